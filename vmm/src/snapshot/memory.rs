//! The memory file: guest memory's ranges one after another, zero pages left out as holes.
//!
//! It is mapped, and not served by a userfaultfd(2) handler: on the lab's exact clock a page costs 10.4 us
//! through one, against 0.3 to be read and 4.1 to be written to through the mapping, and a clone uses some
//! 1,400; nor would clones share any.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::Arc;

use bulkhead_devices::GuestMemory;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use super::shared::HUGE_PAGE;
use super::{SnapshotError, file};
use crate::memory::ranges;

const PAGE: usize = 4096;
/// Pages looked at together; written together if none of them is zero.
const CHUNK: usize = 256 * PAGE;

/// Writes all of `memory` to the empty file `to`. The guest must stand still.
pub fn save(memory: &GuestMemory, to: &File) -> Result<(), SnapshotError> {
    let mut start = 0;
    let mut chunk = vec![0; CHUNK];
    for region in memory.iter() {
        for at in (0..region.len() as usize).step_by(CHUNK) {
            let wanted = CHUNK.min(region.len() as usize - at);
            let bytes = &mut chunk[..wanted];
            let read = region.get_host_address(vm_memory::MemoryRegionAddress(at as u64));
            let Ok(from) = read else { return Err(SnapshotError::Shape("memory")) };
            // SAFETY: `from` is the address of `wanted` mapped bytes of the region, which `memory`
            // keeps; the guest, the only other user, stands still.
            unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), wanted) };
            write_pages(to, bytes, start + at as u64).map_err(file("write"))?;
        }
        start += region.len();
    }
    to.set_len(start).map_err(file("write"))
}

/// Writes the pages of `bytes` that are not zero, neighbours together, to `at` in `to`.
pub(super) fn write_pages(to: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut begin = 0;
    while begin < bytes.len() {
        let zero = |from: usize| is_zero(&bytes[from..(from + PAGE).min(bytes.len())]);
        if zero(begin) {
            begin += PAGE;
            continue;
        }
        let mut end = begin + PAGE;
        while end < bytes.len() && !zero(end) {
            end += PAGE;
        }
        to.write_all_at(&bytes[begin..end.min(bytes.len())], at + begin as u64)?;
        begin = end;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    // SAFETY: every bit pattern is a u128.
    let (head, middle, tail) = unsafe { bytes.align_to::<u128>() };
    middle.iter().all(|word| *word == 0) && head.iter().chain(tail).all(|byte| *byte == 0)
}

/// Maps `mib` MiB of guest memory from a memory file: pages come from the file on first touch, and
/// what is written stays with this VM. The mappings last as long as the process; the file may be
/// closed.
pub fn map(from: &File, mib: u32) -> Result<Arc<GuestMemory>, SnapshotError> {
    let wanted = u64::from(mib) << 20;
    if from.metadata().map_err(file("read"))?.len() != wanted {
        return Err(SnapshotError::Damaged("its memory has not the length of a VM's"));
    }
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in ranges(mib) {
        let mapped = map_part(from, offset, len as usize).map_err(file("map"))?;
        offset += len;
        let region = GuestRegionMmap::new(mapped, GuestAddress(start));
        regions.push(region.ok_or(SnapshotError::Shape("memory"))?);
    }
    let memory = GuestMemory::from_regions(regions);
    memory.map(Arc::new).map_err(|error| file("map")(io::Error::other(error)))
}

fn map_part(from: &File, offset: u64, len: usize) -> io::Result<MmapRegion> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    let flags = flags | MapFlags::NORESERVE;
    let huge = HUGE_PAGE as usize;
    let (none, room) = (ProtFlags::empty(), len + huge);
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let room = unsafe { mmap_anonymous(ptr::null_mut(), room, none, MapFlags::PRIVATE) }?;
    // Where huge pages of the file can be mapped as such. What is left of the room stays, a guard.
    let aligned = room.wrapping_byte_add(room.align_offset(huge));
    let fixed = flags | MapFlags::FIXED;
    // SAFETY: it takes the place of a part of the room, which nobody uses or unmaps.
    let start = unsafe { mmap(aligned, len, protection, fixed, from, offset) }?;
    let (protection, flags) = (protection.bits() as i32, flags.bits() as i32);
    // SAFETY: that mapping, of this length, which outlives every use.
    unsafe { MmapRegion::build_raw(start.cast(), len, protection, flags) }.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_comes_back_and_zeroes_take_no_room() {
        let memory = crate::memory::create(64).unwrap();
        for (at, byte) in [(0, 1u8), (4095, 2), (8192, 3), (0x0200_0000, 4), ((64 << 20) - 1, 5)] {
            memory.write_obj(byte, GuestAddress(at)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        save(&memory, &file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 64 << 20);
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);

        let [one, two] = [(); 2].map(|()| map(&file, 64).unwrap());
        for (at, byte) in [(0, 1u8), (4095, 2), (8192, 3), (0x0200_0000, 4), ((64 << 20) - 1, 5)] {
            assert_eq!(one.read_obj::<u8>(GuestAddress(at)).unwrap(), byte);
        }
        assert_eq!(one.read_obj::<u8>(GuestAddress(4096)).unwrap(), 0);
        one.write_obj(9u8, GuestAddress(0)).unwrap();
        assert_eq!(two.read_obj::<u8>(GuestAddress(0)).unwrap(), 1, "each has its own");
    }

    #[test]
    fn a_file_of_another_length_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len((64 << 20) - 4096).unwrap();
        assert!(matches!(map(&file, 64), Err(SnapshotError::Damaged(_))));
    }
}
