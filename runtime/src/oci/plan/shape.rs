//! The VM's shape: how many CPUs, how much memory.

use std::collections::HashMap;

use bulkhead_vmm::spec::{MEMORY_MIB_MAX, MEMORY_MIB_MIN, VCPUS_MAX};
use oci_spec::runtime::{LinuxResources, Spec};

use super::super::pod;
use super::{Host, resources};

/// vCPUs of a container without a limit.
const VCPUS_DEFAULT: u64 = 1;
/// Memory of a container without a limit, MiB.
const MEMORY_MIB_DEFAULT: u64 = 512;
/// What the guest's kernel and agent need besides the container, MiB: 14 are not in MemTotal, as many
/// are taken when the container starts.
const KERNEL_MIB: u64 = 32;
/// Memory of a VM for a pod without a limit, MiB: what its containers do not use is not the host's.
const POD_MEMORY_MIB: u64 = 2048;
/// vCPUs of one, if the host has as many.
const POD_VCPUS: u64 = 4;
/// What Kubernetes' engines note of a pod's containers together: bytes, and CPU time in a period.
const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
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

/// A VM's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub vcpus: u8,
    pub memory_mib: u32,
}

impl Shape {
    /// What a container of `spec` takes, or, if it is there for the others of a pod, those.
    pub fn of(spec: &Spec, host: &Host) -> Self {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let (mut cpus, mut memory) =
            (resources.and_then(asked_cpus), resources.and_then(asked_memory_mib));
        let mut memory_default = MEMORY_MIB_DEFAULT;
        if pod::is_pause(spec) {
            let annotations = spec.annotations().as_ref();
            let note = |name: &str| noted(annotations?, name);
            let quota = note(POD_QUOTA).zip(note(POD_PERIOD));
            let quota = quota.map(|(quota, period)| quota.div_ceil(period));
            cpus = cpus.or(quota).or(Some(POD_VCPUS));
            memory = memory.or(note(POD_MEMORY).map(|bytes| bytes.div_ceil(1 << 20)));
            memory_default = POD_MEMORY_MIB;
        }
        Self { vcpus: vcpus(cpus, host), memory_mib: memory_mib(memory, memory_default, host) }
    }
}

/// A number above 0.
fn noted(annotations: &HashMap<String, String>, name: &str) -> Option<u64> {
    annotations.get(name)?.parse().ok().filter(|number| *number > 0)
}

/// As many CPUs as the container may keep busy.
fn vcpus(asked: Option<u64>, host: &Host) -> u8 {
    let wanted = asked.unwrap_or(VCPUS_DEFAULT);
    let most = host.vcpus.clamp(1, VCPUS_MAX);
    u8::try_from(wanted).unwrap_or(most).clamp(1, most)
}

/// The container's limit, and what its kernel needs; no more than the machine has.
fn memory_mib(limit: Option<u64>, default: u64, host: &Host) -> u32 {
    let container = limit.unwrap_or(default);
    let wanted = match limit {
        Some(_) => container + KERNEL_MIB + container.div_ceil(MEMORY_PER_OVERHEAD),
        None => container,
    };
    let most = u32::try_from(host.memory_mib).unwrap_or(MEMORY_MIB_MAX);
    let most = most.clamp(MEMORY_MIB_MIN, MEMORY_MIB_MAX);
    u32::try_from(wanted).unwrap_or(most).clamp(MEMORY_MIB_MIN, most)
}
