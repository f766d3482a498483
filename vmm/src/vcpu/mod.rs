//! vCPUs: their registers at boot, what CPUID tells them, and the thread that runs each.

mod cpuid;
mod registers;
mod run;
mod stats;

use std::io;

pub use run::{Exits, run};
pub use stats::ExitCounter;

use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::boot::Entry;

/// Why a vCPU could not be set up; each names the ioctl.
#[derive(Debug, thiserror::Error)]
#[error("vCPU {id}: {ioctl} failed: {source}")]
pub struct VcpuError {
    /// The vCPU.
    pub id: u8,
    /// The ioctl's name in the kernel's linux/kvm.h.
    pub ioctl: &'static str,
    /// What KVM answered.
    pub source: io::Error,
}

impl VcpuError {
    fn at(id: u8, ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self { id, ioctl, source: error.into() }
    }
}

/// Reads once what CPUID of this host's KVM can offer to all vCPUs of a VM.
pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, VcpuError> {
    kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(VcpuError::at(0, "KVM_GET_SUPPORTED_CPUID"))
}

/// Creates vCPU `id` of `count`. The boot CPU (0) starts at `entry`, the others wait for its SIPI.
pub fn create(
    vm: &VmFd,
    id: u8,
    count: u8,
    supported: &CpuId,
    entry: Entry,
) -> Result<VcpuFd, VcpuError> {
    let vcpu = vm.create_vcpu(u64::from(id)).map_err(VcpuError::at(id, "KVM_CREATE_VCPU"))?;
    let cpuid = cpuid::for_vcpu(supported, id, count, vm);
    vcpu.set_cpuid2(&cpuid).map_err(VcpuError::at(id, "KVM_SET_CPUID2"))?;
    if id == 0 {
        registers::set_boot(&vcpu, entry)?;
    }
    Ok(vcpu)
}
