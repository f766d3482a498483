//! Snapshots that hold only what differs from another memory file, their base. The memory of a VM that was
//! cloned or restored is a private mapping of one: pages that are no longer the file's are the VM's own,
//! and the kernel says which they are (admin-guide/mm/pagemap.rst). A difference of a difference has the
//! same base: it holds what either has. So there is nothing to switch on, as KVM's dirty log would have
//! to be, at the price of a fault for every page that the guest writes to again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bulkhead_devices::GuestMemory;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::memory::write_pages;
use super::pagemap::{OF_FILE, PRESENT, SWAPPED};
use super::runs::{PAGE, Run, end, parts, runs};
use super::{SnapshotError, file};

/// More runs of pages are not worth it: each is a mapping, of which a process has 65530.
const RUNS_MAX: usize = 16 << 10;
/// Entries looked at together.
const ENTRIES: usize = 64 << 10;
/// Bytes written together.
const CHUNK: u64 = 1 << 20;

/// The pages that a memory file has of its own, in order; all others are its base's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnPages(Vec<Run>);

impl OwnPages {
    /// Those of `memory`, of whose process `pagemap` is, and which had `before` when it was mapped.
    /// `None` if they are too scattered.
    pub fn of(memory: &GuestMemory, pagemap: &File, before: &Self) -> io::Result<Option<Self>> {
        let mut own = Vec::new();
        let mut before = before.0.iter().copied().peekable();
        let mut page = 0;
        let mut bytes = vec![0; ENTRIES * size_of::<u64>()];
        for region in memory.iter() {
            let entry = region.as_ptr() as u64 / PAGE;
            let pages = region.len() / PAGE;
            for at in (0..pages).step_by(ENTRIES) {
                let wanted = (pages - at).min(ENTRIES as u64) as usize;
                let bytes = &mut bytes[..wanted * size_of::<u64>()];
                pagemap.read_exact_at(bytes, (entry + at) * size_of::<u64>() as u64)?;
                for entry in bytes.as_chunks::<8>().0 {
                    let entry = u64::from_ne_bytes(*entry);
                    while before.next_if(|run| run.end() <= page).is_some() {}
                    let had = before.peek().is_some_and(|run| u64::from(run.first) <= page);
                    let has = entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0;
                    if had || has {
                        own.push(page as u32);
                    }
                    page += 1;
                }
            }
        }
        let own = runs(own);
        Ok((own.len() <= RUNS_MAX).then_some(Self(own)))
    }

    /// What comes from a file fits a memory of `mib` MiB.
    pub fn check(&self, mib: u32) -> Result<(), SnapshotError> {
        let Some(end) = end(&self.0) else {
            return Err(SnapshotError::Damaged("its pages are out of order"));
        };
        if end > (u64::from(mib) << 20) / PAGE || self.0.len() > RUNS_MAX {
            return Err(SnapshotError::Damaged("it has too many pages"));
        }
        Ok(())
    }

    /// Writes them to the empty file `to`, each to its place. The guest must stand still.
    pub fn save(&self, memory: &GuestMemory, to: &File) -> Result<(), SnapshotError> {
        let mut chunk = vec![0; CHUNK as usize];
        let written = parts(&self.0, memory, |part| {
            for done in (0..part.len).step_by(CHUNK as usize) {
                let bytes = &mut chunk[..CHUNK.min(part.len - done) as usize];
                let from = part.host.wrapping_add(done as usize);
                // SAFETY: as many bytes of the part, which lies within a mapping of guest memory; the
                // guest, the only other user, stands still.
                unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
                write_pages(to, bytes, part.file + done)?;
            }
            Ok(())
        });
        written.map_err(file("write"))?;
        let len = memory.iter().map(GuestMemoryRegion::len).sum();
        to.set_len(len).map_err(file("write"))
    }

    /// Maps them from `from` into `memory`, a private mapping of the base that nobody uses yet.
    pub fn map_into(&self, memory: &GuestMemory, from: &File) -> Result<(), SnapshotError> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        let flags = flags | MapFlags::NORESERVE | MapFlags::FIXED;
        let mapped = parts(&self.0, memory, |part| {
            let len = part.len as usize;
            // SAFETY: the part lies within a mapping of guest memory of the same kind, which nobody
            // uses yet.
            unsafe { mmap(part.host.cast(), len, protection, flags, from, part.file) }?;
            Ok(())
        });
        mapped.map_err(file("map"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::snapshot::map;

    fn own(memory: &GuestMemory, before: &OwnPages) -> OwnPages {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        OwnPages::of(memory, &pagemap, before).unwrap().unwrap()
    }

    #[test]
    fn a_difference_holds_what_was_written_and_the_rest_is_the_base_s() {
        let base = tempfile::tempfile().unwrap();
        base.set_len(64 << 20).unwrap();
        for page in 0..16 {
            base.write_all_at(&[1; 4096], page * PAGE).unwrap();
        }
        let memory = map(&base, 64).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);
        assert_eq!(own(&memory, &OwnPages::default()), OwnPages::default(), "it was only read");
        for (page, byte) in [(3u64, 2u8), (4, 2), (9, 0), (64, 2)] {
            memory.write_slice(&[byte; 4096], GuestAddress(page * PAGE)).unwrap();
        }
        let first = own(&memory, &OwnPages::default());
        let run = |first, count| Run { first, count };
        assert_eq!(first.0, [run(3, 2), run(9, 1), run(64, 1)]);
        let saved = tempfile::tempfile().unwrap();
        first.save(&memory, &saved).unwrap();
        let metadata = saved.metadata().unwrap();
        assert!(metadata.len() == 64 << 20 && metadata.blocks() * 512 <= 64 << 10);

        let again = map(&base, 64).unwrap();
        first.check(64).unwrap();
        first.map_into(&again, &saved).unwrap();
        let byte = |page: u64| again.read_obj::<u8>(GuestAddress(page * PAGE + 5)).unwrap();
        assert_eq!([2, 3, 4, 5, 9, 64, 65].map(byte), [1, 2, 2, 1, 0, 2, 0]);
        again.write_obj(7u8, GuestAddress(5 * PAGE)).unwrap();
        let second = own(&again, &first);
        assert_eq!(second.0, [run(3, 3), run(9, 1), run(64, 1)], "what the first one has, too");
    }

    #[test]
    fn no_pages_of_another_memory_are_taken() {
        let run = |first, count| Run { first, count };
        for runs in [
            vec![run(0, 0)],
            vec![run(5, 2), run(6, 1)],
            vec![run((64 << 20 >> 12) - 1, 2)],
            vec![run(u32::MAX, u32::MAX)],
            (0..=RUNS_MAX as u32).map(|page| run(page * 2, 1)).collect(),
        ] {
            assert!(matches!(OwnPages(runs).check(64), Err(SnapshotError::Damaged(_))));
        }
    }
}
