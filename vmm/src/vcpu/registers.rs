//! The boot CPU's registers at the kernel's entry point.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::boot::Entry;
use crate::layout;
use crate::vcpu::VcpuError;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 2;
/// Selectors of the 64-bit Linux boot protocol: __BOOT_CS, __BOOT_DS.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TSS: u8 = 0xb;
/// MSR_MTRRdefType: MTRRs enabled, write-back where none says otherwise, as firmware leaves it.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = 0x806;

/// Sets the boot CPU up for `entry`.
pub fn set_boot(vcpu: &VcpuFd, entry: Entry) -> Result<(), VcpuError> {
    let mut sregs = vcpu.get_sregs().map_err(VcpuError::at(0, "KVM_GET_SREGS"))?;
    let mut regs = kvm_regs { rflags: RFLAGS_RESERVED, ..Default::default() };
    match entry {
        Entry::Pvh(start) => {
            protected_mode(&mut sregs);
            (regs.rip, regs.rbx) = (start.0, layout::BOOT_INFO);
        }
        Entry::Linux64(start) => {
            long_mode(&mut sregs);
            (regs.rip, regs.rsi) = (start.0, layout::BOOT_INFO);
        }
    }
    vcpu.set_sregs(&sregs).map_err(VcpuError::at(0, "KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(VcpuError::at(0, "KVM_SET_REGS"))?;
    let mtrr = kvm_msr_entry {
        index: MSR_MTRR_DEF_TYPE,
        data: MTRR_ENABLE_WRITE_BACK,
        ..Default::default()
    };
    if let Ok(msrs) = Msrs::from_entries(&[mtrr]) {
        vcpu.set_msrs(&msrs).map_err(VcpuError::at(0, "KVM_SET_MSRS"))?;
    }
    Ok(())
}

/// PVH: flat 32-bit segments, paging off.
fn protected_mode(sregs: &mut kvm_sregs) {
    sregs.cs = segment(BOOT_CS, TYPE_CODE);
    set_data_segments(sregs);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
}

/// The 64-bit boot protocol: long mode on the identity map of [`layout::PAGE_TABLES`].
fn long_mode(sregs: &mut kvm_sregs) {
    sregs.cs = kvm_segment { l: 1, db: 0, ..segment(BOOT_CS, TYPE_CODE) };
    set_data_segments(sregs);
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
}

fn set_data_segments(sregs: &mut kvm_sregs) {
    let data = segment(BOOT_DS, TYPE_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    let task = kvm_segment { limit: 0x67, g: 0, db: 0, s: 0, ..segment(0, TYPE_TSS) };
    sregs.tr = task;
}

fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}
