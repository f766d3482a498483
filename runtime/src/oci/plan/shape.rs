//! The VM's shape: how many CPUs, how much memory.

use bulkhead_vmm::spec::{MEMORY_MIB_MAX, MEMORY_MIB_MIN, VCPUS_MAX};
use oci_spec::runtime::LinuxResources;

use super::{Host, resources};

/// vCPUs of a container without a limit.
const VCPUS_DEFAULT: u64 = 1;
/// Memory of a container without a limit, MiB.
const MEMORY_MIB_DEFAULT: u64 = 512;
/// What the guest's kernel and agent need besides the container, MiB: 14 are not in MemTotal, as many
/// are taken when the container starts.
const KERNEL_MIB: u64 = 32;
/// And for each of these many bytes of memory they need one more: 64 bytes a page, and reserves.
const MEMORY_PER_OVERHEAD: u64 = 48;

/// As many CPUs as a container with these `resources` asks for: its quota rounded up, or the size of
/// its CPU set, whichever is less.
pub fn asked_cpus(resources: &LinuxResources) -> Option<u64> {
    let cpu = resources.cpu().as_ref()?;
    let quota = resources::cpu_quota(cpu).map(|(quota, period)| quota.div_ceil(period));
    let set = cpu.cpus().as_deref().and_then(resources::cpu_count);
    [quota, set].into_iter().flatten().min()
}

/// As much memory as it asks for, MiB.
pub fn asked_memory_mib(resources: &LinuxResources) -> Option<u64> {
    resources::memory_limit(resources).map(|bytes| bytes.div_ceil(1 << 20))
}

/// As many CPUs as the container may keep busy.
pub fn vcpus(resources: Option<&LinuxResources>, host: &Host) -> u8 {
    let wanted = resources.and_then(asked_cpus).unwrap_or(VCPUS_DEFAULT);
    let most = host.vcpus.clamp(1, VCPUS_MAX);
    u8::try_from(wanted).unwrap_or(most).clamp(1, most)
}

/// The container's limit, and what its kernel needs; no more than the machine has.
pub fn memory_mib(resources: Option<&LinuxResources>, host: &Host) -> u32 {
    let limit = resources.and_then(asked_memory_mib);
    let container = limit.unwrap_or(MEMORY_MIB_DEFAULT);
    let wanted = match limit {
        Some(_) => container + KERNEL_MIB + container.div_ceil(MEMORY_PER_OVERHEAD),
        None => container,
    };
    let most = u32::try_from(host.memory_mib).unwrap_or(MEMORY_MIB_MAX);
    let most = most.clamp(MEMORY_MIB_MIN, MEMORY_MIB_MAX);
    u32::try_from(wanted).unwrap_or(most).clamp(MEMORY_MIB_MIN, most)
}
