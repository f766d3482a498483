//! A vCPU's state, in the order KVM can give and take it (the kernel's
//! Documentation/virt/kvm/api.rst).

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::{Cpu, SnapshotError, kvm};

/// The time stamp counter.
const MSR_TSC: u32 = 0x10;
/// The local APIC's timer in deadline mode. Taken only when the TSC and the APIC are as they were.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// KVM's list of registers leaves it out, though guests read what we set at boot.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// The bit of a TSS's type that says that it is in use.
const TSS_BUSY: u8 = 2;
/// Most registers asked for at a time (MAX_IO_MSRS in the kernel's arch/x86/kvm/x86.c is 256).
const MSRS_MAX: usize = 200;
/// A TSC this much faster or slower needs to be scaled, parts per million (KVM's own tolerance).
const TSC_TOLERANCE_PPM: u64 = 250;

/// A saved vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
}

/// The registers to be saved, as KVM lists them.
pub fn msr_indices(system: &Kvm) -> Result<Vec<u32>, SnapshotError> {
    let list = system.get_msr_index_list().map_err(kvm("KVM_GET_MSR_INDEX_LIST"))?;
    let mut indices: Vec<u32> = list.as_slice().to_vec();
    if !indices.contains(&MSR_MTRR_DEF_TYPE) {
        indices.push(MSR_MTRR_DEF_TYPE);
    }
    // Deadline last.
    indices.sort_by_key(|index| (*index == MSR_TSC_DEADLINE, *index));
    Ok(indices)
}

impl VcpuState {
    /// Reads the state of a vCPU that stands still.
    pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, SnapshotError> {
        // First: it makes KVM settle events that change the rest.
        let mp_state = vcpu.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?;
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(kvm("KVM_GET_CPUID2"))?;
        Ok(Self {
            mp_state,
            regs: vcpu.get_regs().map_err(kvm("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?,
            xsave: Box::new(vcpu.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?),
            xcrs: vcpu.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?,
            debugregs: vcpu.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?,
            lapic: vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?,
            msrs: get_msrs(vcpu, msrs)?,
            events: vcpu.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?,
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
        })
    }

    /// Its TSC, as the guest read it.
    pub fn tsc(&self) -> u64 {
        self.msrs.iter().find(|msr| msr.index == MSR_TSC).map_or(0, |msr| msr.data)
    }

    /// Makes a fresh vCPU what the saved one was, but for `tsc`: all vCPUs of a VM are given the same
    /// value, which KVM takes as the wish to have them in step. Each VM has all its vCPUs before the
    /// first is restored: creating one counts as setting its TSC to 0.
    pub fn restore(&self, vcpu: &VcpuFd, tsc: u64) -> Result<(), SnapshotError> {
        let entries = CpuId::from_entries(&self.cpuid);
        let cpuid = entries.map_err(|_| SnapshotError::Damaged("it has too long a CPUID table"))?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
        self.set_tsc_frequency(vcpu)?;
        vcpu.set_mp_state(self.mp_state).map_err(kvm("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(&self.regs).map_err(kvm("KVM_SET_REGS"))?;
        vcpu.set_sregs(&self.sregs_for(&Cpu::of_this_host())).map_err(kvm("KVM_SET_SREGS"))?;
        // SAFETY: `xsave` is the whole structure of 4 KiB, and no feature that needs more was
        // enabled for this process (arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM) never is).
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(kvm("KVM_SET_XSAVE"))?;
        if self.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.xcrs).map_err(kvm("KVM_SET_XCRS"))?;
        }
        vcpu.set_debug_regs(&self.debugregs).map_err(kvm("KVM_SET_DEBUGREGS"))?;
        // After the special registers, which hold its base address.
        vcpu.set_lapic(&self.lapic).map_err(kvm("KVM_SET_LAPIC"))?;
        let with_tsc = |msr: &kvm_msr_entry| match msr.index {
            MSR_TSC => kvm_msr_entry { data: tsc, ..*msr },
            _ => *msr,
        };
        set_msrs(vcpu, &self.msrs.iter().map(with_tsc).collect::<Vec<_>>())?;
        // After the registers: setting those drops pending exceptions.
        vcpu.set_vcpu_events(&self.events).map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }

    /// An AMD processor keeps no busy flag in a VMCB's TR; KVM adds it for readers of KVM_GET_SREGS.
    /// Real ones take either; an emulated one (QEMU 7.2) takes a busy TSS for none when it looks up
    /// I/O permissions.
    fn sregs_for(&self, cpu: &Cpu) -> kvm_sregs {
        let mut sregs = self.sregs;
        if cpu.is_amd() {
            sregs.tr.type_ &= !TSS_BUSY;
        }
        sregs
    }

    fn set_tsc_frequency(&self, vcpu: &VcpuFd) -> Result<(), SnapshotError> {
        // This host's own, as for a vCPU that boots (see `crate::vcpu::create`).
        let _ = vcpu.set_tsc_khz(0);
        let (saved, here) = (u64::from(self.tsc_khz), vcpu.get_tsc_khz().unwrap_or(0).into());
        let tolerated = here * TSC_TOLERANCE_PPM / 1_000_000;
        if saved == 0 || here == 0 || saved.abs_diff(here) <= tolerated {
            return Ok(());
        }
        vcpu.set_tsc_khz(self.tsc_khz).map_err(kvm("KVM_SET_TSC_KHZ"))
    }
}

/// Reads registers, without those that KVM lists but this vCPU does not have.
fn get_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, SnapshotError> {
    let mut got = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(MSRS_MAX)];
        let mut msrs = entries(asked.iter().map(|index| (*index, 0)))?;
        let count = vcpu.get_msrs(&mut msrs).map_err(kvm("KVM_GET_MSRS"))?;
        got.extend_from_slice(&msrs.as_slice()[..count.min(asked.len())]);
        // It stops at one it does not know: leave that out.
        rest = &rest[(count + usize::from(count < asked.len())).min(rest.len())..];
    }
    Ok(got)
}

/// Sets registers in order. One that KVM refuses must have its value already.
fn set_msrs(vcpu: &VcpuFd, mut rest: &[kvm_msr_entry]) -> Result<(), SnapshotError> {
    while !rest.is_empty() {
        let wanted = &rest[..rest.len().min(MSRS_MAX)];
        let msrs = entries(wanted.iter().map(|entry| (entry.index, entry.data)))?;
        let count = vcpu.set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS"))?;
        if let Some(refused) = wanted.get(count) {
            let mut now = entries([(refused.index, !refused.data)])?;
            let there = vcpu.get_msrs(&mut now).is_ok_and(|count| count == 1);
            if !there || now.as_slice()[0].data != refused.data {
                return Err(SnapshotError::Msr { index: refused.index });
            }
        }
        rest = &rest[(count + usize::from(count < wanted.len())).min(rest.len())..];
    }
    Ok(())
}

fn entries(entries: impl IntoIterator<Item = (u32, u64)>) -> Result<Msrs, SnapshotError> {
    let entry = |(index, data)| kvm_msr_entry { index, data, ..Default::default() };
    let entries: Vec<_> = entries.into_iter().map(entry).collect();
    Msrs::from_entries(&entries).map_err(|_| SnapshotError::Damaged("it has too many MSRs"))
}
