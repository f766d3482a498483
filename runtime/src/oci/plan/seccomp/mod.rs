//! OCI seccomp profiles (config-linux.md, "Seccomp") as programs of classic BPF (seccomp(2)).
//!
//! Compiled here, on the host, where the guest's agent needs no compiler; loaded there. Written for
//! the purpose: of the crates, one cannot give each system call an action of its own, the other
//! wraps a C library.
//!
//! ```text
//! architecture? ─▶ number: a tree of comparisons over ranges ─▶ action
//!                                                          └──▶ arguments: rule after rule ─▶ action
//! ```
//!
//! What the specification leaves open is as in runc: a rule without arguments wins over those with
//! some; several conditions on one argument are alternatives, on different ones all must hold; names
//! that this architecture does not know are skipped; numbers above all that the profile names are
//! ENOSYS rather than a refusal, so that programs fall back to what they know.

mod bpf;
mod rules;
mod syscalls;

use bulkhead_protocol::rpc::agent::Seccomp;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag,
};

use bpf::Program;
use rules::Rules;

/// Why a profile makes no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// An action that needs a process on the host.
    #[error(
        "linux.seccomp: SCMP_ACT_NOTIFY is not supported: the listener's descriptor would belong to \
         the guest's kernel"
    )]
    Notify,
    /// An errno that no system call returns.
    #[error("linux.seccomp: errnoRet {0} is no error number")]
    Errno(u32),
    /// No such argument.
    #[error("linux.seccomp: {syscall} has no argument {index}; system calls have 0 to 5")]
    Argument {
        /// The system call.
        syscall: String,
        /// The index asked for.
        index: usize,
    },
    /// A program larger than the kernel takes.
    #[error("linux.seccomp: the profile needs {0} instructions; the kernel takes 4096")]
    Long(usize),
}

/// Compiles a profile.
pub fn compile(profile: &LinuxSeccomp) -> Result<Seccomp, SeccompError> {
    let mut program = Program::default();
    program.match_architecture(syscalls::AUDIT_X86_64, |program| {
        Rules::of(profile, &syscalls::X86_64)?.emit(program);
        Ok(())
    })?;
    if profile.architectures().iter().flatten().any(|arch| *arch == Arch::ScmpArchX86) {
        program.match_architecture(syscalls::AUDIT_I386, |program| {
            Rules::of(profile, &syscalls::I386)?.emit(program);
            Ok(())
        })?;
    }
    program.ret(bpf::KILL_THREAD);
    let program = program.bytes().map_err(SeccompError::Long)?;
    Ok(Seccomp { program, flags: flags(profile), ..Default::default() })
}

/// Flags for seccomp(2). TSYNC and WAIT_KILLABLE_RECV mean nothing to a process of one thread and
/// without a listener.
fn flags(profile: &LinuxSeccomp) -> u32 {
    let number = |flag: &Flag| match flag {
        Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Flag::SeccompFilterFlagTsync | Flag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    let default = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    let flags =
        profile.flags().as_ref().map_or(default, |f| f.iter().map(number).fold(0, |a, b| a | b));
    flags as u32
}

/// What the filter returns for an action (linux/seccomp.h).
fn return_value(action: Action, errno: Option<u32>) -> Result<u32, SeccompError> {
    /// MAX_ERRNO (linux/err.h).
    const ERRNO_MAX: u32 = 4095;
    let data = |default: u32| match errno.unwrap_or(default) {
        errno if errno > ERRNO_MAX => Err(SeccompError::Errno(errno)),
        errno => Ok(errno),
    };
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => bpf::KILL_THREAD,
        Action::ScmpActKillProcess => bpf::KILL_PROCESS,
        Action::ScmpActTrap => bpf::TRAP,
        Action::ScmpActErrno => bpf::ERRNO | data(libc::EPERM as u32)?,
        Action::ScmpActTrace => bpf::TRACE | data(libc::EPERM as u32)?,
        Action::ScmpActLog => bpf::LOG,
        Action::ScmpActAllow => bpf::ALLOW,
        Action::ScmpActNotify => return Err(SeccompError::Notify),
    })
}

#[cfg(test)]
mod tests;
