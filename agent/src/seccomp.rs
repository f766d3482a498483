//! Filters of system calls (seccomp(2)), compiled by the host.

use bulkhead_protocol::rpc::agent::Seccomp;
use rustix::io::Errno;

use crate::process::last_errno;

/// `BPF_MAXINSNS` (linux/bpf_common.h).
const INSTRUCTIONS_MAX: usize = 4096;

/// Puts the calling thread under a filter. It needs no_new_privs or CAP_SYS_ADMIN.
pub fn load(seccomp: &Seccomp) -> rustix::io::Result<()> {
    let instructions: Vec<u64> = seccomp
        .program
        .chunks_exact(size_of::<libc::sock_filter>())
        .map(|bytes| bytes.try_into().map(u64::from_ne_bytes).unwrap_or_default())
        .collect();
    if instructions.len() * 8 != seccomp.program.len() || instructions.len() > INSTRUCTIONS_MAX {
        return Err(Errno::INVAL);
    }
    let program = libc::sock_fprog {
        len: instructions.len() as libc::c_ushort,
        filter: instructions.as_ptr().cast_mut().cast(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: `program` and the instructions it points to live until the call returns, and it only
    // reads them: `len` of them, each 8 bytes of integers as sock_filter is.
    match unsafe { libc::syscall(libc::SYS_seccomp, mode, seccomp.flags, &raw const program) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}
