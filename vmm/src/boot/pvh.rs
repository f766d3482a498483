//! The PVH boot protocol for ELF kernels (Xen's public/arch-x86/hvm/start_info.h).

use std::fs::File;
use std::path::Path;

use bulkhead_devices::GuestMemory;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::KernelLoader;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::{BootError, Entry, Placed, load_error};
use crate::layout;

/// XEN_HVM_START_MAGIC_VALUE
const START_MAGIC: u32 = 0x336e_c578;
/// XEN_HVM_MEMMAP_TYPE_RAM
const TYPE_RAM: u32 = 1;

/// Loads an ELF kernel; returns its entry and the end of its image.
pub fn load_kernel(
    memory: &GuestMemory,
    path: &Path,
    image: &mut File,
) -> Result<(Entry, u64), BootError> {
    let high = Some(GuestAddress(layout::HIGH_MEMORY_START));
    let loaded = Elf::load(memory, None, image, high).map_err(load_error(memory, path))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok((Entry::Pvh(entry), loaded.kernel_end)),
        _ => Err(BootError::NoPvh(path.to_owned())),
    }
}

/// Writes `hvm_start_info`, the memory map and the module list.
pub fn write_start_info(memory: &GuestMemory, initramfs: Placed) -> Result<(), BootError> {
    let map = memory_map(memory);
    let module = hvm_modlist_entry {
        paddr: initramfs.start,
        size: initramfs.len,
        ..Default::default()
    };
    let start_info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        nr_modules: 1,
        modlist_paddr: layout::PVH_MODULES,
        cmdline_paddr: layout::CMDLINE,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    for (slot, entry) in (0..).zip(map) {
        let address = layout::PVH_MEMORY_MAP + slot * size_of::<hvm_memmap_table_entry>() as u64;
        memory.write_obj(entry, GuestAddress(address))?;
    }
    memory.write_obj(module, GuestAddress(layout::PVH_MODULES))?;
    memory.write_obj(start_info, GuestAddress(layout::BOOT_INFO))?;
    Ok(())
}

fn memory_map(memory: &GuestMemory) -> Vec<hvm_memmap_table_entry> {
    usable(memory)
        .into_iter()
        .map(|Placed { start, len }| hvm_memmap_table_entry {
            addr: start,
            size: len,
            type_: TYPE_RAM,
            reserved: 0,
        })
        .collect()
}

/// Memory the guest may use freely: all but the MP table's KiB and the legacy hole.
pub fn usable(memory: &GuestMemory) -> Vec<Placed> {
    let mut usable = vec![Placed { start: 0, len: layout::MP_TABLE }];
    for region in memory.iter() {
        let (start, end) = (region.start_addr().0, region.last_addr().0 + 1);
        let start = start.max(layout::HIGH_MEMORY_START);
        usable.push(Placed { start, len: end - start });
    }
    usable
}
