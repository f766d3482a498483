//! Blocks of a template's memory that its clones only read, as huge pages that all of them share: one
//! mapping for the guest instead of 512, no copy, no room of a clone's own.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::WorkingSet;
use super::pagemap::PRESENT;
use super::runs::PAGE;

/// Bytes of a huge page.
pub(super) const HUGE_PAGE: u64 = 2 << 20;

/// Has the kernel make a huge page, in its page cache, of each block of the memory file `memory` that
/// clones use but do not write to. Advice alone: kernels before Linux 6.1 cannot; others can for a tmpfs,
/// and with CONFIG_READ_ONLY_THP_FOR_FS for any file system, while nobody has the file open for writing.
pub fn share_huge_pages(memory: &File, set: &WorkingSet) {
    // The kernel takes clean pages only. If this fails, it does not take them.
    let _ = memory.sync_data();
    for block in set.read_only_blocks() {
        // An error says that this kernel or file system has none; then all blocks are alike.
        if collapse(memory, block).is_err() {
            return;
        }
    }
}

/// Has one huge page made of the 2 MiB at `at`.
fn collapse(memory: &File, at: u64) -> rustix::io::Result<()> {
    let huge = HUGE_PAGE as usize;
    let none = ProtFlags::empty();
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let room = unsafe { mmap_anonymous(ptr::null_mut(), 2 * huge, none, MapFlags::PRIVATE) }?;
    let aligned = room.wrapping_byte_add(room.align_offset(huge));
    // Executable: file systems other than tmpfs give huge pages to programs alone. Nothing here is run.
    let protection = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: it takes the place of a part of the room that was just made, which nobody uses.
    let mapped = unsafe {
        mmap(aligned, huge, protection, MapFlags::PRIVATE | MapFlags::FIXED, memory.as_fd(), at)
    };
    // SAFETY: the mapping of this length; the advice changes no contents.
    let made = mapped.map(|start| unsafe { libc::madvise(start, huge, libc::MADV_COLLAPSE) });
    // SAFETY: nobody has a reference into the room.
    unsafe { munmap(room, 2 * huge) }?;
    if made? == 0 { Ok(()) } else { Err(Errno::INVAL) }
}

/// Tells which of the blocks that clones only read are mapped as a whole, so that there is nothing
/// more to be done for their other pages.
#[derive(Debug)]
pub(super) struct SharedBlocks {
    /// Where they begin in the memory file, in order.
    blocks: Vec<u64>,
    pagemap: Option<File>,
    /// The one looked at last, and whether it is mapped as a whole.
    last: Option<(u64, bool)>,
}

impl SharedBlocks {
    pub(super) fn new(blocks: Vec<u64>) -> Self {
        let pagemap = if blocks.is_empty() { None } else { File::open("/proc/self/pagemap").ok() };
        Self { blocks, pagemap, last: None }
    }

    /// Whether this part of the file is known to be mapped.
    pub(super) fn has(&self, at: u64, len: u64) -> bool {
        let inside = |block| at >= block && at + len <= block + HUGE_PAGE;
        self.last.is_some_and(|(block, mapped)| mapped && inside(block))
    }

    /// Looks whether the block of the page at `at`, which was mapped just now at address `host`, is there
    /// as a whole: then its farther end is.
    pub(super) fn look_at(&mut self, at: u64, host: *const u8) {
        let block = at / HUGE_PAGE * HUGE_PAGE;
        if self.last.is_some_and(|(last, _)| last == block) {
            return;
        }
        if let (Some(pagemap), Ok(_)) = (&self.pagemap, self.blocks.binary_search(&block)) {
            // A single page brings its neighbours along, but not so far.
            let far = if at - block < HUGE_PAGE / 2 { HUGE_PAGE - PAGE } else { 0 };
            let page = (host.addr() as u64 - (at - block) + far) / PAGE;
            let mut entry = [0; 8];
            let read = pagemap.read_exact_at(&mut entry, page * 8);
            let mapped = read.is_ok() && u64::from_ne_bytes(entry) & PRESENT != 0;
            self.last = Some((block, mapped));
        }
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_devices::GuestMemory;
    use vm_memory::GuestMemoryBackend;

    use super::*;

    const BLOCK: u64 = 5 * HUGE_PAGE;

    fn template() -> File {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let memory = File::from(rustix::fs::memfd_create("template", flags).unwrap());
        memory.set_len(64 << 20).unwrap();
        memory.write_all_at(&[7; 2 * HUGE_PAGE as usize], BLOCK).unwrap();
        memory
    }

    /// Reads a byte, and returns whether the block of it is mapped as a whole then.
    fn read(memory: &GuestMemory, at: u64) -> bool {
        let host = memory.iter().next().unwrap().as_ptr().wrapping_add(at as usize);
        // SAFETY: a byte of guest memory, of which this test alone knows.
        assert_eq!(unsafe { host.read_volatile() }, 7);
        let mut blocks = SharedBlocks::new(vec![BLOCK, BLOCK + HUGE_PAGE]);
        blocks.look_at(at, host);
        let block = at / HUGE_PAGE * HUGE_PAGE;
        assert!(!blocks.has(block - PAGE, 2 * PAGE) && !blocks.has(block + HUGE_PAGE, PAGE));
        blocks.has(block, HUGE_PAGE)
    }

    #[test]
    fn blocks_that_are_only_read_become_huge_pages() {
        let template = template();
        let pages = (BLOCK / PAGE) as u32..((BLOCK + HUGE_PAGE) / PAGE) as u32;
        share_huge_pages(&template, &WorkingSet::of_pages(pages, []));
        let clone = crate::snapshot::map(&template, 64).unwrap();
        let settings = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
        let has_huge_pages = settings.is_ok_and(|text| !text.contains("[deny]"));
        assert_eq!(read(&clone, BLOCK + 9 * PAGE), has_huge_pages);
        assert!(!read(&clone, BLOCK + HUGE_PAGE), "the next one is not in the set");
    }
}
