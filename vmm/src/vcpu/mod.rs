//! vCPUs: their registers at boot, what CPUID tells them, and the thread that runs each.

mod cpuid;
mod gate;
mod registers;
mod run;
mod stats;

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use gate::Gate;
pub use run::{Exits, run};
pub use stats::ExitCounter;

use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::boot::Entry;
use crate::snapshot::{SnapshotError, VcpuState};

/// Why a vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// An ioctl.
    #[error("vCPU {id}: {ioctl} failed: {source}")]
    Ioctl {
        /// The vCPU.
        id: u8,
        /// The ioctl's name in the kernel's linux/kvm.h.
        ioctl: &'static str,
        /// What KVM answered.
        source: io::Error,
    },
    /// Its saved state.
    #[error("vCPU {id}: {source}")]
    Restore {
        /// The vCPU.
        id: u8,
        /// What does not fit.
        source: SnapshotError,
    },
}

/// A vCPU. Its thread holds the lock but while it is parked at the [`Gate`].
pub struct Vcpu {
    /// Its number, for messages and as its APIC ID.
    pub id: u8,
    fd: Mutex<VcpuFd>,
    immediate_exit: ImmediateExit,
}

/// The field of `struct kvm_run` that makes KVM_RUN return at once.
struct ImmediateExit(NonNull<AtomicU8>);

// SAFETY: the target is an atomic in a mapping that `Vcpu` owns beside it; see `Vcpu::new`.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above; an atomic may be shared.
unsafe impl Sync for ImmediateExit {}

impl Vcpu {
    fn new(id: u8, mut fd: VcpuFd) -> Self {
        let flag = NonNull::from(&mut fd.get_kvm_run().immediate_exit).cast();
        Self { id, fd: Mutex::new(fd), immediate_exit: ImmediateExit(flag) }
    }

    /// The vCPU's descriptor; waits for its thread to park or end.
    pub fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave_at_once(&self, now: bool) {
        // SAFETY: the byte lies in the mapping of `struct kvm_run`, which `fd` keeps for as long as
        // `self`; the kernel, too, reads it while others write it (linux/kvm.h).
        unsafe { self.immediate_exit.0.as_ref() }.store(now.into(), Ordering::SeqCst);
    }
}

impl VcpuError {
    fn at(id: u8, ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Ioctl { id, ioctl, source: error.into() }
    }
}

/// Reads once what CPUID of this host's KVM can offer to all vCPUs of a VM.
pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, VcpuError> {
    kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(VcpuError::at(0, "KVM_GET_SUPPORTED_CPUID"))
}

/// Creates vCPUs as the saved ones were.
pub fn restore(vm: &VmFd, states: &[VcpuState]) -> Result<Vec<Vcpu>, VcpuError> {
    let create = |id| vm.create_vcpu(id as u64).map_err(VcpuError::at(id as u8, "KVM_CREATE_VCPU"));
    let vcpus = (0..states.len()).map(create).collect::<Result<Vec<_>, _>>()?;
    // The latest: no vCPU's time goes backwards.
    let tsc = states.iter().map(VcpuState::tsc).max().unwrap_or(0);
    for (id, (vcpu, state)) in (0..).zip(vcpus.iter().zip(states)) {
        state.restore(vcpu, tsc).map_err(|source| VcpuError::Restore { id, source })?;
    }
    Ok((0..).zip(vcpus).map(|(id, vcpu)| Vcpu::new(id, vcpu)).collect())
}

/// Creates vCPU `id` of `count`. The boot CPU (0) starts at `entry`, the others wait for its SIPI.
pub fn create(
    vm: &VmFd,
    id: u8,
    count: u8,
    supported: &CpuId,
    entry: Entry,
) -> Result<Vcpu, VcpuError> {
    let vcpu = vm.create_vcpu(u64::from(id)).map_err(VcpuError::at(id, "KVM_CREATE_VCPU"))?;
    // 0 is this host's own frequency. KVM's default is the one it was initialised with: if the kernel
    // has measured again since, and the CPU cannot scale its TSC, KVM mistakes the guest's TSC for one
    // that stands still, and its timers fire late by the VM's age. A KVM that refuses has no choice.
    let _ = vcpu.set_tsc_khz(0);
    let cpuid = cpuid::for_vcpu(supported, id, count, vm);
    vcpu.set_cpuid2(&cpuid).map_err(VcpuError::at(id, "KVM_SET_CPUID2"))?;
    if id == 0 {
        registers::set_boot(&vcpu, entry)?;
    }
    Ok(Vcpu::new(id, vcpu))
}
