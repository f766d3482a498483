//! The PVH boot protocol for ELF kernels (Xen's public/arch-x86/hvm/start_info.h).

use std::fs::File;
use std::path::Path;

use bulkhead_devices::GuestMemory;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::{BootError, Entry, Placed, elf, mib};
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
    let loaded = elf::load(memory, image, layout::HIGH_MEMORY_START)
        .map_err(|source| BootError::LoadElf { path: path.to_owned(), mib: mib(memory), source })?;
    let entry = loaded.pvh_entry.ok_or_else(|| BootError::NoPvh(path.to_owned()))?;
    Ok((Entry::Pvh(entry), loaded.end))
}

/// Writes `hvm_start_info`, the memory map and the module list.
pub fn write_start_info(memory: &GuestMemory, initramfs: Placed) -> Result<(), BootError> {
    let map = memory_map(memory);
    let module =
        hvm_modlist_entry { paddr: initramfs.start, size: initramfs.len, ..Default::default() };
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::FallocateFlags;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    const PAGE: u64 = 4096;
    const PT_LOAD: u32 = 1;
    const PT_NOTE: u32 = 4;

    /// A minimal ELF with one note and one segment of two pages and a bit at 16 MiB.
    fn kernel() -> Vec<u8> {
        let mut file = vec![0u8; 4096];
        file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
        put(24, &(16u64 << 20).to_le_bytes()); // 64-bit entry
        put(32, &64u64.to_le_bytes()); // program headers
        put(52, &[64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
        let header = |kind: u32, offset: u64, address: u64, in_file: u64, in_memory: u64| {
            let mut header = [kind.to_le_bytes(), 7u32.to_le_bytes()].concat();
            for field in [offset, address, address, in_file, in_memory, 4] {
                header.extend(field.to_le_bytes());
            }
            header
        };
        put(64, &header(PT_LOAD, 4096, 16 << 20, 2 * PAGE + 10, 4 * PAGE));
        put(120, &header(PT_NOTE, 512, 0, 20, 20));
        put(512, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
        put(524, b"Xen\0\x78\x56\0\x01");
        file.extend((0..2 * PAGE + 10).map(|i| (i % 251) as u8));
        file.extend([0xee; 100]); // another section's bytes, not the segment's
        file
    }

    type Loaded = (std::sync::Arc<GuestMemory>, Result<(Entry, u64), BootError>);

    fn load(bytes: &[u8]) -> Loaded {
        load_file(&mut file_of(bytes))
    }

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn load_file(file: &mut File) -> Loaded {
        let memory = crate::memory::create(64).unwrap();
        let loaded = load_kernel(&memory, Path::new("kernel"), file);
        (memory, loaded)
    }

    #[test]
    fn a_segment_is_loaded_and_its_bss_is_zero() {
        let (memory, loaded) = load(&kernel());
        let end = (16 << 20) + 4 * PAGE;
        assert_eq!(loaded.unwrap(), (Entry::Pvh(GuestAddress(0x0100_5678)), end));
        let mut got = vec![0; 4 * PAGE as usize];
        memory.read_slice(&mut got, GuestAddress(16 << 20)).unwrap();
        for (i, byte) in (0u64..).zip(&got) {
            let wanted = if i < 2 * PAGE + 10 { (i % 251) as u8 } else { 0 };
            assert_eq!(*byte, wanted, "byte {i}");
        }
    }

    #[test]
    fn holes_are_zero_and_constant_data_is_the_files_own() {
        for (flags, is_mapped) in [(7, false), (5, false), (4, true)] {
            let mut bytes = kernel();
            bytes[68] = flags;
            let mut file = file_of(&bytes);
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, hole, 2 * PAGE, PAGE).unwrap();
            let (memory, loaded) = load_file(&mut file);
            loaded.unwrap();
            file.write_all_at(b"later", PAGE).unwrap();
            let mut got = vec![0; 4 * PAGE as usize];
            memory.read_slice(&mut got, GuestAddress(16 << 20)).unwrap();
            let wanted = |i: u64| match i {
                0..5 if is_mapped => b"later"[i as usize],
                PAGE..8192 => 0,
                i if i < 2 * PAGE + 10 => (i % 251) as u8,
                _ => 0,
            };
            assert!((0u64..).zip(&got).all(|(i, byte)| *byte == wanted(i)), "flags {flags}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let changed = |at: usize, bytes: &[u8]| {
            let mut file = kernel();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            load(&file).1.unwrap_err().to_string()
        };
        assert!(changed(524, b"xen").contains("no PVH entry point"));
        assert!(changed(64 + 24, &(1u64 << 40).to_le_bytes()).contains("64 MiB of memory"));
        assert!(changed(64 + 32, &(1u64 << 30).to_le_bytes()).contains("64 MiB of memory"));
        // More in memory than in the file, of which nothing is ever written there.
        assert!(changed(64 + 40, &(1u64 << 30).to_le_bytes()).contains("outside of memory"));
        for cut in [100, 300, 5000] {
            load(&kernel()[..cut]).1.unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(changes in prop::collection::vec((0usize..560, any::<u8>()), 1..8)) {
            let mut file = kernel();
            changes.into_iter().for_each(|(at, byte)| file[at] = byte);
            let _ = load(&file);
        }
    }
}
