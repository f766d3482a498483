//! The 64-bit Linux boot protocol for users' own bzImage kernels (the kernel's
//! Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::path::Path;

use bulkhead_devices::GuestMemory;
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::{BootError, Entry, Placed, load_error, pvh};
use crate::layout;

/// The 64-bit entry is this far into the protected-mode kernel.
const ENTRY_64_OFFSET: u64 = 0x200;
/// XLF_KERNEL_64: the kernel has that entry.
const XLF_KERNEL_64: u16 = 1;
/// "undefined" in Documentation/arch/x86/boot.rst: a loader without an assigned ID.
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const PAGE_PRESENT_WRITABLE: u64 = 3;
const PAGE_2M: u64 = 1 << 7;

/// A bzImage in guest memory.
pub struct Loaded {
    /// Where to start.
    pub entry: Entry,
    /// End of what the kernel needs while it unpacks itself.
    pub kernel_end: u64,
    header: setup_header,
}

/// Loads a bzImage at 1 MiB.
pub fn load_kernel(
    memory: &GuestMemory,
    path: &Path,
    image: &mut File,
) -> Result<Loaded, BootError> {
    let high = Some(GuestAddress(layout::HIGH_MEMORY_START));
    let loaded = BzImage::load(memory, high, image, high).map_err(load_error(memory, path))?;
    let header = loaded.setup_header.filter(|header| header.xloadflags & XLF_KERNEL_64 != 0);
    let header = header.ok_or_else(|| BootError::Format(path.to_owned()))?;
    let unpacked_end = header.pref_address + u64::from(header.init_size);
    Ok(Loaded {
        entry: Entry::Linux64(GuestAddress(loaded.kernel_load.0 + ENTRY_64_OFFSET)),
        kernel_end: loaded.kernel_end.max(unpacked_end),
        header,
    })
}

/// Writes `boot_params` and the identity page tables that the 64-bit entry asks for.
pub fn write_boot_params(
    memory: &GuestMemory,
    loaded: &Loaded,
    initramfs: Placed,
    cmdline_len: usize,
) -> Result<(), BootError> {
    let mut params = boot_params { hdr: loaded.header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    params.hdr.ramdisk_image = initramfs.start as u32;
    params.hdr.ramdisk_size = initramfs.len as u32;
    let usable = pvh::usable(memory);
    params.e820_entries = usable.len() as u8;
    for (slot, Placed { start, len }) in usable.into_iter().enumerate() {
        params.e820_table[slot] = boot_e820_entry { addr: start, size: len, r#type: E820_RAM };
    }
    memory.write_obj(params, GuestAddress(layout::BOOT_INFO))?;
    write_page_tables(memory)?;
    Ok(())
}

/// Identity-maps the first GiB with 2 MiB pages.
fn write_page_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    let [pml4, pdpt, pd] = [0, 1, 2].map(|table| layout::PAGE_TABLES + table * 0x1000);
    memory.write_obj(pdpt | PAGE_PRESENT_WRITABLE, GuestAddress(pml4))?;
    memory.write_obj(pd | PAGE_PRESENT_WRITABLE, GuestAddress(pdpt))?;
    let mut entries = Vec::with_capacity(4096);
    for page in 0..512u64 {
        entries.extend(((page << 21) | PAGE_PRESENT_WRITABLE | PAGE_2M).to_le_bytes());
    }
    memory.write_slice(&entries, GuestAddress(pd))
}
