//! Snapshots: a whole VM as a state file and a memory file, and back.
//!
//! ```text
//!  running ──▶ paused ──▶ devices idle ──▶ [VmState] ──▶ state file (checksum, small)
//!                                     └──▶ guest memory ──▶ memory file (sparse)
//!
//!  state file ──▶ checked ──▶ new VM: memory mapped MAP_PRIVATE ──▶ devices, vCPUs, irqchip, clock
//! ```
//!
//! The memory file of a VM that was itself cloned or restored may be but the difference from the one that
//! its memory is a mapping of (difference.rs).
//!
//! Any number of VMs may be restored from one snapshot, at the same time too: each maps the memory
//! file privately, so that pages nobody has written to are shared by all through the page cache.
//!
//! [`VmState`] is what is saved, plain data that comes from a file and may be anything: what decodes
//! is checked against the VM that is to be restored ([`VmState::check`]), by each device, and by KVM.

mod cpu;
mod difference;
mod file;
mod memory;
pub mod pagemap;
mod runs;
mod shared;
mod trial;
mod vcpu;
mod vm;
mod working_set;

use std::io;

use bulkhead_devices::net;
use bulkhead_devices::virtio::RestoreError;
use bulkhead_devices::virtio::mmio::TransportState;
use serde::{Deserialize, Serialize};

pub use self::cpu::Cpu;
pub use self::difference::OwnPages;
pub use self::file::{decode, encode, read, seal, verify, write};
pub use self::memory::{map, save as save_memory};
pub use self::shared::share_huge_pages;
pub use self::trial::map_used_pages_alone;
pub use self::vcpu::{VcpuState, msr_indices};
pub use self::vm::InterruptState;
pub use self::working_set::WorkingSet;
use crate::spec::VmSpec;

/// Everything a VM is besides its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    /// The processor it ran on.
    pub cpu: Cpu,
    /// Its memory, MiB.
    pub memory_mib: u32,
    /// Which pages the memory file holds, if it is the difference from another one.
    pub own_pages: Option<OwnPages>,
    /// Its DAX window, MiB.
    pub window_mib: u16,
    /// What its file server knows: for the next one, nothing that the VMM looks into.
    pub files: Vec<u8>,
    /// Its vCPUs, in order.
    pub vcpus: Vec<VcpuState>,
    /// What KVM keeps for all of them.
    pub interrupts: InterruptState,
    /// Its virtio devices, in the order of their windows.
    pub devices: Vec<TransportState>,
}

/// Why a VM cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not one of our files, or cut off before its header's end.
    #[error("the snapshot is not one of bulkhead's; make it anew")]
    Foreign,
    /// Made by another version.
    #[error(
        "the snapshot has format {found}, this bulkhead-vmm reads {}; make it anew",
        file::VERSION
    )]
    Version {
        /// The file's.
        found: u32,
    },
    /// Shorter or longer than it says, or changed.
    #[error("the snapshot is damaged ({0}); make it anew")]
    Damaged(&'static str),
    /// Another processor.
    #[error("the snapshot was made on another processor ({made_on}, this is {here}); make it anew")]
    Cpu {
        /// The file's.
        made_on: String,
        /// This host's.
        here: String,
    },
    /// A VM of another shape.
    #[error("the snapshot is of a VM with other {0}; make it anew")]
    Shape(&'static str),
    /// A difference without its base.
    #[error("the snapshot is the difference from another one, its base, which is not there")]
    Base,
    /// A device does not take its state.
    #[error(transparent)]
    Device(#[from] RestoreError),
    /// KVM neither gives nor takes something.
    #[error("{ioctl} failed on a snapshot: {source}")]
    Kvm {
        /// The ioctl's name in the kernel's linux/kvm.h.
        ioctl: &'static str,
        /// What KVM answered.
        source: io::Error,
    },
    /// A model-specific register.
    #[error("KVM does not take the snapshot's value of MSR {index:#x}")]
    Msr {
        /// Its number.
        index: u32,
    },
    /// A file.
    #[error("cannot {action} the snapshot: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// What failed.
        source: io::Error,
    },
    /// The file server does not say what it knows.
    #[error("cannot save what the file server knows: {0}")]
    Files(#[source] io::Error),
    /// Devices stay busy.
    #[error("the VM cannot be saved now: {0}")]
    Busy(&'static str),
}

fn kvm(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> SnapshotError {
    move |error| SnapshotError::Kvm { ioctl, source: error.into() }
}

fn file(action: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::File { action, source }
}

impl VmState {
    /// Whether this is the state of a VM as `spec` describes it, on this host's processor.
    pub fn check(&self, spec: &VmSpec) -> Result<(), SnapshotError> {
        self.check_cpu(&Cpu::of_this_host())?;
        if self.vcpus.len() != usize::from(spec.vcpus) {
            return Err(SnapshotError::Shape("vCPUs"));
        }
        if self.memory_mib != spec.memory_mib {
            return Err(SnapshotError::Shape("memory"));
        }
        if self.window_mib != spec.window_mib() {
            return Err(SnapshotError::Shape("room to map files"));
        }
        self.own_pages.as_ref().map_or(Ok(()), |own| own.check(self.memory_mib))
    }

    /// How many network interfaces it has, and how many places for further ones.
    pub fn nets(&self) -> (usize, usize) {
        let count = |id| self.devices.iter().filter(|device| device.device_id == id).count();
        (count(net::ID), count(net::PLACE_ID))
    }

    fn check_cpu(&self, here: &Cpu) -> Result<(), SnapshotError> {
        if self.cpu == *here {
            return Ok(());
        }
        Err(SnapshotError::Cpu { made_on: self.cpu.to_string(), here: here.to_string() })
    }
}

#[cfg(test)]
mod tests;
