//! Guest memory: a memfd mapped at the ranges of [`crate::layout`].

use std::fs::File;
use std::io;
use std::sync::Arc;

use bulkhead_devices::GuestMemory;
use rustix::fs::MemfdFlags;
use vm_memory::{FileOffset, GuestAddress};

use crate::layout::{ABOVE_4G_START, LOW_MEMORY_END};

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memfd could not be made or sized.
    #[error("cannot create a {mib} MiB memory file for the guest: {source}")]
    File {
        /// Size in MiB.
        mib: u32,
        /// What failed.
        source: io::Error,
    },
    /// The memfd could not be mapped.
    #[error("cannot map {mib} MiB of guest memory: {source}")]
    Map {
        /// Size in MiB.
        mib: u32,
        /// What failed.
        source: vm_memory::mmap::FromRangesError,
    },
}

/// Physical ranges `(start, length)` that `mib` MiB of memory take.
pub fn ranges(mib: u32) -> Vec<(u64, u64)> {
    let total = u64::from(mib) << 20;
    let low = total.min(LOW_MEMORY_END);
    let mut ranges = vec![(0, low)];
    if total > low {
        ranges.push((ABOVE_4G_START, total - low));
    }
    ranges
}

/// Creates guest memory of `mib` MiB, all zero; pages are taken from the host on first touch.
pub fn create(mib: u32) -> Result<Arc<GuestMemory>, MemoryError> {
    let file = memory_file(mib).map_err(|source| MemoryError::File { mib, source })?;
    let file = Arc::new(file);
    let mut offset = 0;
    let ranges = ranges(mib).into_iter().map(|(start, length)| {
        let backing = FileOffset::from_arc(file.clone(), offset);
        offset += length;
        (GuestAddress(start), length as usize, Some(backing))
    });
    GuestMemory::from_ranges_with_files(ranges)
        .map(Arc::new)
        .map_err(|source| MemoryError::Map { mib, source })
}

fn memory_file(mib: u32) -> io::Result<File> {
    let fd = rustix::fs::memfd_create("bulkhead-guest", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, u64::from(mib) << 20)?;
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_range() {
        assert_eq!(ranges(128), [(0, 128 << 20)]);
        assert_eq!(ranges(3072), [(0, 3072 << 20)]);
    }

    #[test]
    fn large_memory_leaves_the_device_hole_free() {
        assert_eq!(ranges(4096), [(0, LOW_MEMORY_END), (ABOVE_4G_START, 1 << 30)]);
    }
}
