//! /proc/PID/pagemap (admin-guide/mm/pagemap.rst) of a VMM, for it to tell its own pages from its memory
//! file's. It must not show where in the host's memory they are: the kernel shows that by a descriptor
//! that was opened with CAP_SYS_ADMIN, whoever has it then.

use std::fs::File;
use std::io;
use std::thread;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::record::HostProcess;

/// Opens it. `None` where we may not look.
pub fn open(vmm: HostProcess) -> Option<File> {
    let open_without_admin = || -> io::Result<File> {
        let mut sets = capabilities(None)?;
        sets.effective.remove(CapabilitySet::SYS_ADMIN);
        set_capabilities(None, sets)?;
        File::open(format!("/proc/{}/pagemap", vmm.pid))
    };
    // Capabilities are a thread's.
    let opened = thread::scope(|scope| scope.spawn(open_without_admin).join());
    let pagemap = opened.ok()?.ok()?;
    // Only now: while it lives, its ID is nobody else's.
    vmm.find().map(|_| pagemap)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::process::getpid;

    use super::*;

    #[test]
    fn it_says_what_is_there_and_not_where() {
        let here = Box::new([1u8; 8192]);
        let us = HostProcess::identify(getpid()).unwrap();
        let mut entry = [0; 8];
        let page = (&raw const *here).addr() / 4096 + 1;
        open(us).unwrap().read_exact_at(&mut entry, page as u64 * 8).unwrap();
        let entry = u64::from_ne_bytes(entry);
        assert_eq!(entry >> 63, 1, "the page is there");
        assert_eq!(entry & ((1 << 55) - 1), 0, "no frame number");
        let other = HostProcess { start_ticks: us.start_ticks + 1, ..us };
        assert!(open(other).is_none());
    }
}
