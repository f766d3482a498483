//! What CPUID tells a vCPU: KVM's offer, with the VM's own topology in place of the host's.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, VmFd};

/// Leaf 1.
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001: all logical processors are cores of one package.
const ECX_CMP_LEGACY: u32 = 1 << 1;
/// Levels of leaf 0xb, ECX bits 8..16.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// Leaves 4 and 0x8000_001d: bits 14..26 count the logical processors that share a cache.
const CACHE_SHARING: u32 = 0xfff << 14;

/// The CPUID table of vCPU `id` of `count`: one package, one thread a core.
pub fn for_vcpu(supported: &CpuId, id: u8, count: u8, vm: &VmFd) -> CpuId {
    let deadline = vm.check_extension(Cap::TscDeadlineTimer);
    let mut cpuid = supported.clone();
    cpuid.retain(|entry| !matches!(entry.function, 0x1f | 0x8000_0026));
    for entry in cpuid.as_mut_slice() {
        adjust(entry, u32::from(id), u32::from(count), deadline);
    }
    cpuid
}

fn adjust(entry: &mut kvm_cpuid_entry2, id: u32, count: u32, deadline: bool) {
    let id_bits = u32::BITS - (count - 1).leading_zeros();
    match entry.function {
        1 => {
            // KVM never says so itself, though its local APIC has the timer: see Cap.
            entry.ecx |= ECX_HYPERVISOR | if deadline { ECX_TSC_DEADLINE } else { 0 };
            entry.ebx = (entry.ebx & 0x0000_ffff) | id << 24 | count << 16;
            entry.edx = (entry.edx & !EDX_HTT) | if count > 1 { EDX_HTT } else { 0 };
        }
        4 | 0x8000_001d => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x03ff_ffff & !CACHE_SHARING) | sharing << 14;
            if entry.function == 4 {
                entry.eax |= (count - 1).min(0x3f) << 26;
            }
        }
        0xb => {
            let (bits, processors, level) = match entry.index {
                0 => (0, 1, LEVEL_SMT),
                1 => (id_bits, count, LEVEL_CORE),
                _ => (0, 0, 0),
            };
            (entry.eax, entry.ebx) = (bits, processors);
            (entry.ecx, entry.edx) = (entry.index | level << 8, id);
        }
        0x8000_0001 => {
            entry.ecx = (entry.ecx & !ECX_CMP_LEGACY) | if count > 1 { ECX_CMP_LEGACY } else { 0 };
        }
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | id_bits << 12 | (count - 1),
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjusted(function: u32, index: u32, id: u32, count: u32) -> kvm_cpuid_entry2 {
        let all = kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let mut entry = all;
        adjust(&mut entry, id, count, true);
        entry
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id() {
        for id in 0..4 {
            assert_eq!(adjusted(1, 0, id, 4).ebx >> 24, id);
            assert_eq!(adjusted(0xb, 0, id, 4).edx, id);
            assert_eq!(adjusted(0x8000_001e, 0, id, 4).eax, id);
        }
    }

    #[test]
    fn topology_counts_the_vcpus() {
        assert_eq!(adjusted(1, 0, 0, 3).ebx >> 16 & 0xff, 3);
        assert_eq!(adjusted(1, 0, 0, 1).edx & EDX_HTT, 0);
        assert_eq!(adjusted(1, 0, 0, 2).edx & EDX_HTT, EDX_HTT);
        let core = adjusted(0xb, 1, 0, 3);
        assert_eq!((core.eax, core.ebx), (2, 3));
        assert_eq!(adjusted(0xb, 1, 0, 1).eax, 0);
    }
}
