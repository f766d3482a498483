//! The pages that a clone uses on its way to its container's first output, as they were seen in a trial
//! when the template was made. A clone copies those it writes to, and maps all of them for its guest
//! at once, before it runs: one by one, each would cost the guest an exit, most of the former two.
//!
//! The file is sealed like a state file; its body is two lists of runs of pages of the memory file.

use std::fs::File;
use std::io::Write;

use bulkhead_devices::GuestMemory;
use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use rustix::mm::{Advice, madvise};
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::runs::{PAGE, Run, end, parts, runs};
use super::shared::{HUGE_PAGE, SharedBlocks};
use super::{SnapshotError, file};

/// Used pages that make a huge page worth it: each is an entry less in the tables of host and KVM.
const USED_MIN: u64 = 16;
/// More pages than any trial's: a container of busybox's takes some 900.
const PAGES_MAX: u64 = 4096;

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Pages of a memory file, as runs in order, none of which meets another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// What the guest uses.
    used: Vec<Run>,
    /// What it writes to.
    written: Vec<Run>,
}

impl WorkingSet {
    /// The set of these pages, which come in order. Beyond the largest set, they are left out.
    pub fn of_pages(
        used: impl IntoIterator<Item = u32>,
        written: impl IntoIterator<Item = u32>,
    ) -> Self {
        let most = PAGES_MAX as usize;
        Self {
            used: runs(used.into_iter().take(most)),
            written: runs(written.into_iter().take(most)),
        }
    }

    /// Writes the set to an empty file.
    pub fn write(&self, mut to: &File) -> Result<(), SnapshotError> {
        let body = postcard::to_stdvec(self);
        let body = body.map_err(|_| SnapshotError::Busy("its working set does not encode"))?;
        to.write_all(&super::seal(&body)).map_err(file("write"))
    }

    /// Reads the set of a memory file of `mib` MiB; there is none yet for a template on trial.
    pub fn read(from: &File, mib: u32) -> Result<Option<Self>, SnapshotError> {
        let bytes = file::bytes(from)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let Ok((set, [])) = postcard::take_from_bytes::<Self>(file::body(&bytes)?) else {
            return Err(SnapshotError::Damaged("its working set does not decode"));
        };
        for runs in [&set.used, &set.written] {
            let Some(end) = end(runs) else {
                return Err(SnapshotError::Damaged("its working set is out of order"));
            };
            let pages: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
            if end > (u64::from(mib) << 20) / PAGE || pages > PAGES_MAX {
                return Err(SnapshotError::Damaged("its working set is too large"));
            }
        }
        Ok(Some(set))
    }

    /// Where in the memory file blocks of the size of a huge page begin of which clones use enough pages
    /// for that to be worth it, and write to none. In order.
    pub(super) fn read_only_blocks(&self) -> Vec<u64> {
        let written = pages_of_blocks(&self.written);
        let is_written = |block| written.binary_search_by_key(&block, |(block, _)| *block).is_ok();
        let used = pages_of_blocks(&self.used).into_iter();
        let read_only = used.filter(|(block, pages)| *pages >= USED_MIN && !is_written(*block));
        read_only.map(|(block, _)| block).collect()
    }

    /// Takes a copy of each page that is written to. Advice alone: where the host's kernel cannot
    /// (before Linux 5.14), pages are copied when the guest gets there.
    pub fn copy(&self, memory: &GuestMemory) {
        let _ = parts(&self.written, memory, |part| {
            // SAFETY: the part lies within a mapping of guest memory, and this advice changes no
            // contents.
            unsafe { madvise(part.host.cast(), part.len as usize, Advice::LinuxPopulateWrite) }
        });
    }

    /// Maps each page for the guest of `vcpu`, whose registers are set. Where KVM cannot (before
    /// Linux 6.11), they are mapped when the guest gets there.
    pub fn map_for(&self, vcpu: &VcpuFd, memory: &GuestMemory) {
        let mut shared = SharedBlocks::new(self.read_only_blocks());
        let _ = parts(&self.used, memory, |part| {
            if shared.has(part.file, part.len) {
                return Ok(());
            }
            let mut wanted =
                kvm_pre_fault_memory { gpa: part.guest, size: part.len, ..Default::default() };
            // SAFETY: KVM reads and writes a kvm_pre_fault_memory, which `wanted` is, and guest
            // memory as the guest may at any time.
            let done =
                unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), &mut wanted) == 0 };
            shared.look_at(part.file, part.host);
            if done { Ok(()) } else { Err(()) }
        });
    }
}

/// How many pages of each block of the size of a huge page the runs have; blocks without any are left out.
fn pages_of_blocks(runs: &[Run]) -> Vec<(u64, u64)> {
    let mut blocks: Vec<(u64, u64)> = Vec::new();
    for run in runs {
        let (mut at, end) = (u64::from(run.first) * PAGE, run.end() * PAGE);
        while at < end {
            let block = at / HUGE_PAGE * HUGE_PAGE;
            let part = end.min(block + HUGE_PAGE) - at;
            match blocks.last_mut().filter(|(last, _)| *last == block) {
                Some((_, pages)) => *pages += part / PAGE,
                None => blocks.push((block, part / PAGE)),
            }
            at += part;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    fn written(set: &WorkingSet) -> File {
        let file = tempfile::tempfile().unwrap();
        set.write(&file).unwrap();
        file
    }

    #[test]
    fn what_is_written_is_read_and_too_much_is_left_out() {
        let set = WorkingSet::of_pages([0, 1, 2, 7, 9, 10], [1, 2]);
        assert_eq!((set.used.len(), set.written.len()), (3, 1));
        assert_eq!(WorkingSet::read(&written(&set), 64).unwrap(), Some(set));
        let all = WorkingSet::of_pages(0..1 << 14, []);
        assert_eq!(all.used, [Run { first: 0, count: PAGES_MAX as u32 }]);
        assert_eq!(WorkingSet::read(&written(&all), 64).unwrap(), Some(all));
        assert_eq!(WorkingSet::read(&tempfile::tempfile().unwrap(), 64).unwrap(), None);
    }

    #[test]
    fn no_set_of_another_memory_is_taken() {
        let run = |first, count| Run { first, count };
        for runs in [
            vec![run(0, 0)],
            vec![run(5, 2), run(6, 1)],
            vec![run(0, 1), run((64 << 20 >> 12) - 1, 2)],
            vec![run(u32::MAX, u32::MAX)],
            vec![run(0, PAGES_MAX as u32 + 1)],
        ] {
            for (used, written_to) in [(runs.clone(), vec![]), (vec![], runs.clone())] {
                let set = WorkingSet { used, written: written_to };
                let read = WorkingSet::read(&written(&set), 64);
                assert!(matches!(read, Err(SnapshotError::Damaged(_))), "{set:?}");
            }
        }
    }

    #[test]
    fn copied_pages_are_those_of_the_set_in_all_regions() {
        // 3 GiB lie below the hole.
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(4 << 30).unwrap();
        let memory = crate::snapshot::map(&memory, 4096).unwrap();
        let (below, all) = ((3u64 << 30 >> 12) as u32, (4u64 << 30 >> 12) as u32);
        let set = WorkingSet::of_pages([], [1, below - 1, below, below + 1, all - 1]);
        let mut found = Vec::new();
        let all_found = parts(&set.written, &memory, |part| -> Result<(), ()> {
            found.push((part.guest, part.len));
            Ok(())
        });
        assert_eq!(all_found, Ok(()));
        let expected = [
            (0x1000, 0x1000),
            (0xbfff_f000, 0x1000),
            (1 << 32, 0x2000),
            ((5 << 30) - 0x1000, 0x1000),
        ];
        assert_eq!(found, expected);
        set.copy(&memory);
    }

    #[test]
    fn blocks_that_are_used_enough_and_never_written_to_are_shared() {
        let block = |number: u32| number * 512;
        let used = (block(1)..block(1) + 15)
            .chain(block(2) + 8..block(2) + 24)
            .chain(block(5) - 20..block(5) + 16)
            .chain(block(7)..block(7) + 512);
        let set = WorkingSet::of_pages(used.clone(), [block(7) + 511]);
        assert_eq!(set.read_only_blocks(), [2, 4, 5].map(|block| block * HUGE_PAGE));
        let all = pages_of_blocks(&set.used);
        let pages = [(1, 15), (2, 16), (4, 20), (5, 16), (7, 512)];
        assert_eq!(all, pages.map(|(block, pages)| (block * HUGE_PAGE, pages)));
    }

    proptest! {
        #[test]
        fn nonsense_is_refused(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&crate::snapshot::seal(&body), 0).unwrap();
            if let Ok(Some(set)) = WorkingSet::read(&file, 64) {
                prop_assert!(set.used.len() + set.written.len() <= 2 * PAGES_MAX as usize);
            }
        }
    }
}
