//! Which devices of the guest the container may use: a program on its cgroup
//! (bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE).

mod program;

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use bulkhead_protocol::rpc::agent::DeviceRule;
use rustix::io::Errno;

use crate::process::last_errno;

/// Commands of bpf(2), and what else it takes (linux/bpf.h).
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 1 << 1;
const F_REPLACE: u32 = 1 << 2;
/// Length of a `struct bpf_insn`.
const INSTRUCTION_LEN: usize = 8;

/// The part of `union bpf_attr` that a simple program needs.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

/// What attaches a program.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// What engines ask for unless they are told otherwise: no device but what every container has.
fn usual() -> Vec<u8> {
    program::compile(&[DeviceRule { access: u32::MAX, ..Default::default() }])
}

/// The program of a cgroup.
#[derive(Debug, Default)]
pub struct Filter {
    /// The one it has.
    current: Option<OwnedFd>,
    /// The usual one, if it is at hand.
    usual: Option<OwnedFd>,
}

impl Filter {
    /// Has the usual program ready: for a template, whose clones need not have it checked. It also
    /// leaves them the 2 MiB that the kernel fills for its first program of any kind, filters of
    /// system calls included.
    pub fn prepare() -> Self {
        Self { current: None, usual: load(&usual()).ok() }
    }

    /// Holds a cgroup to `rules`, if there are any, in the place of those it is held to.
    pub fn set(&mut self, cgroup: BorrowedFd<'_>, rules: &[DeviceRule]) -> rustix::io::Result<()> {
        if rules.is_empty() {
            return Ok(());
        }
        let wanted = program::compile(rules);
        let program = match self.usual.take() {
            Some(ready) if wanted == usual() => ready,
            _ => load(&wanted)?,
        };
        attach(cgroup, &program, self.current.as_ref())?;
        self.current = Some(program);
        Ok(())
    }
}

/// Has the kernel check a program.
fn load(instructions: &[u8]) -> rustix::io::Result<OwnedFd> {
    if !instructions.len().is_multiple_of(INSTRUCTION_LEN) {
        return Err(Errno::INVAL);
    }
    let load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len() / INSTRUCTION_LEN).map_err(|_| Errno::TOOBIG)?,
        insns: instructions.as_ptr() as u64,
        // It calls nothing of the kernel's.
        license: c"".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
    };
    // SAFETY: the command reads a `Load`, and the instructions and the string it points to, which all
    // live until the call returns; the kernel makes fds of BPF close-on-exec.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has made this descriptor for us alone.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_errno()),
    }
}

/// Puts a cgroup, and all below it, under a program, in the place of `old`. Cgroups below may add
/// programs of their own, which can only forbid more.
fn attach(
    cgroup: BorrowedFd<'_>,
    program: &OwnedFd,
    old: Option<&OwnedFd>,
) -> rustix::io::Result<()> {
    let number = |fd: i32| fd.unsigned_abs();
    let attach = Attach {
        target_fd: number(cgroup.as_raw_fd()),
        attach_bpf_fd: number(program.as_raw_fd()),
        attach_type: CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI | old.map_or(0, |_| F_REPLACE),
        replace_bpf_fd: old.map_or(0, |old| number(old.as_raw_fd())),
    };
    let (attr, len) = (&raw const attach, size_of::<Attach>());
    // SAFETY: the command reads an `Attach`, which lives until the call returns.
    match unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, attr, len) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}
