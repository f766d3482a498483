//! Where things are in the guest's physical address space.
//!
//! ```text
//! 0x0000_0000  low memory: boot data, command line, page tables (bzImage only)
//! 0x0009_fc00  MP table (the last KiB of base memory, where Linux looks for it)
//! 0x000a_0000  legacy hole
//! 0x0010_0000  memory; the kernel where its ELF headers say; the initramfs at the top
//! 0xc000_0000  end of low memory; virtio-mmio windows from 0xd000_0000, local APICs, TSS
//! 0x1_0000_0000  the rest of memory
//! then, at a multiple of 1 GiB, the window to which the guest maps files
//! ```

/// First byte of memory above the legacy hole.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;
/// End of memory below the 32-bit device hole.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;
/// Start of memory above the 32-bit device hole.
pub const ABOVE_4G_START: u64 = 1 << 32;

/// Where the DAX window may begin: no page tables or page structures are shared with memory then.
pub const WINDOW_ALIGNMENT: u64 = 1 << 30;

/// `hvm_start_info` (PVH) or `boot_params` (bzImage).
pub const BOOT_INFO: u64 = 0x6000;
/// The PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x7000;
/// The PVH module list: the initramfs.
pub const PVH_MODULES: u64 = 0x8000;
/// Page tables for the 64-bit entry of a bzImage: PML4, PDPT, PD.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The longest command line, its NUL included (COMMAND_LINE_SIZE in Linux' asm/setup.h).
pub const CMDLINE_LEN_MAX: usize = 2048;

/// The MP table: the last KiB below 640 KiB.
pub const MP_TABLE: u64 = 0x9_fc00;
/// Bytes there are for the MP table.
pub const MP_TABLE_LEN_MAX: usize = 0x400;

/// The first virtio-mmio window.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Size of each virtio-mmio window, bytes.
pub const MMIO_WINDOW: u64 = 0x1000;
/// The GSI of the serial port COM1.
pub const SERIAL_GSI: u32 = 4;
/// The GSI of the first virtio-mmio device; each further device has the next.
pub const MMIO_GSI_BASE: u32 = 5;
/// The last GSI of the I/O APIC that a device may have.
pub const GSI_LAST: u32 = 23;

/// The I/O APIC (fixed by KVM).
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs (fixed by the architecture).
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages KVM needs on Intel hosts without unrestricted guests (KVM_SET_TSS_ADDR).
pub const KVM_TSS: usize = 0xfffb_d000;
