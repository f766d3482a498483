//! What must be in guest memory before the first instruction: kernel, command line, initramfs,
//! MP table and the boot protocol's data.

mod bzimage;
mod elf;
mod initramfs;
mod mptable;
mod pvh;

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use bulkhead_devices::GuestMemory;
use linux_loader::cmdline::Cmdline;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout;

pub use elf::ElfError;
pub use initramfs::InitramfsError;

/// Where and how the boot CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// PVH: 32-bit protected mode without paging, RBX at `hvm_start_info`.
    Pvh(GuestAddress),
    /// The 64-bit Linux boot protocol: long mode, RSI at `boot_params`.
    Linux64(GuestAddress),
}

/// Why a VM's memory could not be prepared for boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel file cannot be opened.
    #[error("cannot open the kernel {path}: {source}")]
    Open {
        /// The kernel.
        path: PathBuf,
        /// What failed.
        source: std::io::Error,
    },
    /// Neither ELF nor bzImage.
    #[error("the kernel {0} is neither an ELF vmlinux nor a bzImage")]
    Format(PathBuf),
    /// An ELF kernel that is not one, or does not fit.
    #[error("the kernel {path} cannot be loaded into {mib} MiB of memory: {source}")]
    LoadElf {
        /// The kernel.
        path: PathBuf,
        /// Memory size.
        mib: u64,
        /// What failed.
        source: ElfError,
    },
    /// linux-loader does not take a bzImage.
    #[error("the kernel {path} cannot be loaded into {mib} MiB of memory: {source}")]
    Load {
        /// The kernel.
        path: PathBuf,
        /// Memory size.
        mib: u64,
        /// What failed.
        source: linux_loader::loader::Error,
    },
    /// An ELF without the PVH note.
    #[error("the kernel {0} has no PVH entry point; build it with CONFIG_PVH=y")]
    NoPvh(PathBuf),
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// The command line does not fit.
    #[error("the kernel command line does not fit: {0}")]
    Cmdline(#[from] linux_loader::cmdline::Error),
    /// Boot data does not fit into memory.
    #[error("cannot write boot data to guest memory: {0}")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// Loads all a VM needs to boot; the kernel command line is `cmdline`, /init is the file `init`.
pub fn load(
    memory: &GuestMemory,
    kernel: &Path,
    init: &Path,
    cmdline: &Cmdline,
    vcpus: u8,
) -> Result<Entry, BootError> {
    mptable::write(memory, vcpus)?;
    let text = cmdline.as_cstring()?;
    memory.write_slice(text.as_bytes_with_nul(), GuestAddress(layout::CMDLINE))?;
    let mut image =
        File::open(kernel).map_err(|source| BootError::Open { path: kernel.to_owned(), source })?;
    let mut magic = [0; 4];
    let is_elf = image.read_exact(&mut magic).is_ok() && magic == *b"\x7fELF";
    let rewound = image.rewind();
    rewound.map_err(|source| BootError::Open { path: kernel.to_owned(), source })?;
    let initramfs = |kernel_end| initramfs::load(memory, init, kernel_end);
    if is_elf {
        let (entry, kernel_end) = pvh::load_kernel(memory, kernel, &mut image)?;
        pvh::write_start_info(memory, initramfs(kernel_end)?)?;
        Ok(entry)
    } else {
        let loaded = bzimage::load_kernel(memory, kernel, &mut image)?;
        let modules = initramfs(loaded.kernel_end)?;
        bzimage::write_boot_params(memory, &loaded, modules, text.as_bytes().len())?;
        Ok(loaded.entry)
    }
}

fn load_error(
    memory: &GuestMemory,
    path: &Path,
) -> impl FnOnce(linux_loader::loader::Error) -> BootError {
    let (path, mib) = (path.to_owned(), mib(memory));
    move |source| BootError::Load { path, mib, source }
}

fn mib(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum::<u64>() >> 20
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Guest physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}
