//! The trial of a template: which pages of its memory does a clone use?
//!
//! Whoever wants to know asks the kernel which pages of the mapping are there. But a page that is read
//! brings its neighbours along, those that are in the page cache, up to the ends of its mapping: hence
//! a mapping for each.

use std::fs::File;
use std::ops::Range;

use bulkhead_devices::GuestMemory;
use rustix::fs::{SeekFrom, seek};
use rustix::mm::{Advice, madvise};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

const PAGE: u64 = 4096;

/// Keeps the neighbours of used pages out of the mappings of `memory`, which is that of `file`. As far
/// as the kernel lets it: beyond its limit of mappings (vm.max_map_count), neighbours count as used.
pub fn map_used_pages_alone(memory: &GuestMemory, file: &File) {
    let mut before = 0;
    for region in memory.iter() {
        let advise = |at: u64, len: u64, advice| {
            // SAFETY: `at` and `len` lie within the region's mapping, of which the advices that
            // follow change no contents.
            unsafe { madvise(region.as_ptr().add(at as usize).cast(), len as usize, advice) }
        };
        // Else pages that nobody asked for come to the page cache.
        let _ = advise(0, region.len(), Advice::Random);
        let end = before + region.len();
        for page in extents(file, before, end).flatten().filter(|page| page & 1 == 1) {
            // Mappings that differ stay apart. This difference matters to core dumps alone.
            let at = page * PAGE - before;
            if advise(at, PAGE, Advice::LinuxDontDump).is_err() {
                return;
            }
        }
        before = end;
    }
}

/// The pages of `file` from one offset to another that are no holes.
fn extents(file: &File, start: u64, end: u64) -> impl Iterator<Item = Range<u64>> {
    let next = move |at: u64| {
        let data = seek(file, SeekFrom::Data(at)).ok().filter(|data| *data < end)?;
        let hole = seek(file, SeekFrom::Hole(data)).ok()?.min(end);
        Some(data / PAGE..hole.div_ceil(PAGE))
    };
    std::iter::successors(next(start), move |pages| next(pages.end * PAGE))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn each_page_with_data_has_a_mapping() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        for at in [0x10_0000, 0x10_1000, 0x10_2000, 0x3ff_f000] {
            file.write_all_at(b"data", at).unwrap();
        }
        let pages: Vec<u64> = extents(&file, 0, 64 << 20).flatten().collect();
        assert_eq!(pages, [0x100, 0x101, 0x102, 0x3fff]);
        let mappings = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
            let field = format!(" {inode} ");
            maps.lines().filter(|line| line.contains(&field)).count()
        };
        let memory = crate::snapshot::map(&file, 64).unwrap();
        assert_eq!(mappings(), 1);
        map_used_pages_alone(&memory, &file);
        // 0..=100, 101, 102..=3ffe, 3fff
        assert_eq!(mappings(), 4);
    }
}
