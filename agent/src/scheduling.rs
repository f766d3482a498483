//! How a process is scheduled: CPU, I/O, and the kernel it believes to run on.

use bulkhead_protocol::rpc::agent::{Process, Scheduler};

use crate::process::last_errno;

/// `IOPRIO_WHO_PROCESS` (linux/ioprio.h).
const WHO_PROCESS: libc::c_int = 1;

/// `struct sched_attr`, version 0 (linux/sched/types.h).
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Applies what `process` asks for to the calling process.
pub fn apply(process: &Process) -> rustix::io::Result<()> {
    if let Some(scheduler) = process.scheduler.as_ref() {
        set_scheduler(scheduler)?;
    }
    if let Some(priority) = process.io_priority {
        // SAFETY: no argument is a pointer; 0 is the calling process.
        check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) })?;
    }
    if let Some(personality) = process.personality {
        // SAFETY: the argument is no pointer.
        check(unsafe { libc::syscall(libc::SYS_personality, personality) })?;
    }
    Ok(())
}

fn set_scheduler(scheduler: &Scheduler) -> rustix::io::Result<()> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    };
    // SAFETY: the kernel reads `size` bytes of the attributes, which live until it has; 0 is the
    // calling process.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

fn check(result: libc::c_long) -> rustix::io::Result<()> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}
