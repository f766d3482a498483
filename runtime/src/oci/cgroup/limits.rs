//! Limits of a container's cgroup on the host: what the configuration asks for, and that the VM
//! does not outgrow itself.

use bulkhead_vmm::spec::VmSpec;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxResources, LinuxThrottleDevice};

use super::layout::Hierarchy;
use crate::oci::plan::resources::cpu_quota;

/// What VMM and fs worker need beside the guest's memory: their own, page tables, and the file
/// system's caches, which the kernel gives up when it must. Bytes.
const OVERHEAD_BYTES: u64 = 96 << 20;
/// Page tables and the like grow with the guest's memory: one byte for each of these many.
const MEMORY_PER_OVERHEAD: u64 = 32;
/// Threads and processes: the fs worker's threads, the VMM's own, and some to spare.
const TASKS: u64 = 64;

/// The period of a profile's limit on CPU time, us: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// A file of a controller and what goes into it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Limit {
    controller: &'static str,
    file: String,
    value: String,
}

/// Files of both versions of cgroups; which of them count depends on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    v2: Vec<Limit>,
    v1: Vec<Limit>,
}

impl Limits {
    /// The limits for a VM whose container has these `resources`, and at most `cpus` by its profile.
    pub fn of_vm(vm: &VmSpec, resources: Option<&LinuxResources>, cpus: Option<u8>) -> Self {
        let mut limits = Self::default();
        let guest = u64::from(vm.memory_mib) << 20;
        let memory = guest + guest / MEMORY_PER_OVERHEAD + OVERHEAD_BYTES;
        limits.both("memory", ("memory.max", "memory.limit_in_bytes"), memory);
        let tasks = TASKS + u64::from(vm.vcpus);
        limits.both("pids", ("pids.max", "pids.max"), tasks);
        if let Some(resources) = resources {
            limits.extend(resources);
        }
        let quota = resources.and_then(|resources| cpu_quota(resources.cpu().as_ref()?));
        limits.hold(quota, cpus);
        limits
    }

    /// The limits that a change of `resources` means for a VM whose shape stays as it is.
    pub fn of_change(resources: &LinuxResources, cpus: Option<u8>) -> Self {
        let mut limits = Self::default();
        limits.extend(resources);
        if let Some(cpu) = resources.cpu().as_ref().filter(|cpu| cpu.quota().is_some()) {
            limits.hold(cpu_quota(cpu), cpus);
        }
        limits
    }

    /// Lowers the `quota` of CPU time, a number of us in each period, to that of `cpus`.
    fn hold(&mut self, quota: Option<(u64, u64)>, cpus: Option<u8>) {
        let Some(most) = cpus.map(u64::from) else { return };
        if quota.is_none_or(|(quota, period)| quota > most.saturating_mul(period)) {
            self.quota(most * CPU_PERIOD_US, CPU_PERIOD_US);
        }
    }

    /// What to write in `hierarchy`: file and value, in order.
    pub fn of<'a>(&'a self, hierarchy: &'a Hierarchy) -> impl Iterator<Item = (&'a str, &'a str)> {
        let limits = if hierarchy.unified { &self.v2 } else { &self.v1 };
        let has = |limit: &&Limit| {
            hierarchy.unified || hierarchy.controllers.iter().any(|name| name == limit.controller)
        };
        limits.iter().filter(has).map(|limit| (&*limit.file, &*limit.value))
    }

    fn extend(&mut self, resources: &LinuxResources) {
        if let Some(cpu) = resources.cpu() {
            self.cpu(cpu);
        }
        if let Some(block) = resources.block_io() {
            self.block(block);
        }
        let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
        unified.sort();
        for (file, value) in unified.into_iter().filter(|(file, _)| is_host_file(file)) {
            self.v2("", file, value);
        }
    }

    fn cpu(&mut self, cpu: &LinuxCpu) {
        if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
            self.v1("cpu", "cpu.shares", shares);
            self.v2("cpu", "cpu.weight", weight(shares));
        }
        if let Some(idle) = cpu.idle() {
            self.both("cpu", ("cpu.idle", "cpu.idle"), idle);
        }
        let period = cpu.period().filter(|period| *period > 0);
        match (cpu_quota(cpu), cpu.quota(), period) {
            (Some((quota, period)), ..) => self.quota(quota, period),
            (None, None | Some(-1), Some(period)) => {
                self.v1("cpu", "cpu.cfs_quota_us", -1);
                self.v1("cpu", "cpu.cfs_period_us", period);
                self.v2("cpu", "cpu.max", format!("max {period}"));
            }
            (None, Some(-1), None) => {
                self.v1("cpu", "cpu.cfs_quota_us", -1);
                self.v2("cpu", "cpu.max", "max");
            }
            _ => {}
        }
        for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
                self.both("cpuset", (file, file), list);
            }
        }
    }

    fn quota(&mut self, quota: u64, period: u64) {
        self.v1("cpu", "cpu.cfs_period_us", period);
        self.v1("cpu", "cpu.cfs_quota_us", quota);
        self.v2("cpu", "cpu.max", format!("{quota} {period}"));
    }

    fn block(&mut self, block: &LinuxBlockIo) {
        if let Some(weight) = block.weight().filter(|weight| *weight > 0) {
            self.v1("blkio", "blkio.weight", weight);
            self.v1("blkio", "blkio.bfq.weight", weight);
            self.v2("io", "io.bfq.weight", weight);
            self.v2("io", "io.weight", format!("default {}", io_weight(weight)));
        }
        for (v1, v2, devices) in [
            ("read_bps_device", "rbps", block.throttle_read_bps_device()),
            ("write_bps_device", "wbps", block.throttle_write_bps_device()),
            ("read_iops_device", "riops", block.throttle_read_iops_device()),
            ("write_iops_device", "wiops", block.throttle_write_iops_device()),
        ] {
            for device in devices.iter().flatten() {
                let number = number(device);
                let rate = device.rate();
                self.v1("blkio", &format!("blkio.throttle.{v1}"), format!("{number} {rate}"));
                let rate = if rate == 0 { "max".to_owned() } else { rate.to_string() };
                self.v2("io", "io.max", format!("{number} {v2}={rate}"));
            }
        }
    }

    fn v1(&mut self, controller: &'static str, file: &str, value: impl ToString) {
        self.v1.push(Limit { controller, file: file.to_owned(), value: value.to_string() });
    }

    fn v2(&mut self, controller: &'static str, file: &str, value: impl ToString) {
        self.v2.push(Limit { controller, file: file.to_owned(), value: value.to_string() });
    }

    fn both(&mut self, controller: &'static str, (v2, v1): (&str, &str), value: impl ToString) {
        let value = value.to_string();
        self.v1(controller, v1, &value);
        self.v2(controller, v2, value);
    }
}

/// Whether a file of linux.resources.unified belongs to the host: block devices and CPUs by number
/// are its own; memory, processes and CPU time are limited in the guest.
pub fn is_host_file(file: &str) -> bool {
    ["io.", "cpuset."].iter().any(|controller| file.starts_with(controller)) && !file.contains('/')
}

fn number(device: &LinuxThrottleDevice) -> String {
    format!("{}:{}", device.major(), device.minor())
}

/// Shares of version 1, 2 to 262144 and 1024 in the middle, as a weight of version 2, 1 to 10000.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

/// The weight of BFQ, 1 to 1000, as one of version 2, 1 to 10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(resources: Value, unified: bool) -> Vec<String> {
        held(resources, unified, None)
    }

    fn held(resources: Value, unified: bool, cpus: Option<u8>) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_value(resources).expect("resources");
        let names = ["cpu", "cpuset", "memory", "blkio", "pids"].map(str::to_owned);
        let controllers = if unified { Vec::new() } else { names.to_vec() };
        let hierarchy = Hierarchy { root: "/cg".into(), unified, controllers };
        let limits = Limits::of_change(&resources, cpus);
        limits.of(&hierarchy).map(|(file, value)| format!("{file}={value}")).collect()
    }

    #[test]
    fn the_same_limits_in_both_versions() {
        let resources = json!({
            "cpu": {"shares": 1024, "quota": 50000, "cpus": "0-1", "mems": ""},
            "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 9}]},
            "unified": {"io.latency": "8:0 target=5", "memory.high": "1", "io.x/../../y": "1"},
        });
        assert_eq!(
            of(resources.clone(), true),
            [
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "io.bfq.weight=500",
                "io.weight=default 4950",
                "io.max=8:0 rbps=9",
                "io.latency=8:0 target=5",
            ]
        );
        assert_eq!(
            of(resources, false),
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpuset.cpus=0-1",
                "blkio.weight=500",
                "blkio.bfq.weight=500",
                "blkio.throttle.read_bps_device=8:0 9",
            ]
        );
        assert_eq!(of(json!({"cpu": {"quota": -1, "shares": 0}}), true), ["cpu.max=max"]);
        assert_eq!(of(json!({"cpu": {"period": 50_000}}), true), ["cpu.max=max 50000"]);
    }

    #[test]
    fn a_profile_lowers_the_quota_that_is_asked_for() {
        let unlimited = ["cpu.max=max", "cpu.max=200000 100000"];
        assert_eq!(held(json!({"cpu": {"quota": -1}}), true, Some(2)), unlimited);
        let more = json!({"cpu": {"quota": 250_000}});
        assert_eq!(held(more, true, Some(2)).last().unwrap(), "cpu.max=200000 100000");
        let less = json!({"cpu": {"quota": 30_000, "period": 20_000}});
        assert_eq!(held(less, true, Some(2)), ["cpu.max=30000 20000"]);
        assert_eq!(held(json!({"cpu": {"shares": 1024}}), true, Some(2)), ["cpu.weight=39"]);
        let vm = VmSpec { memory_mib: 64, ..VmSpec::default() };
        let limits = Limits::of_vm(&vm, None, Some(1));
        assert_eq!(limits.v2.last().unwrap().value, "100000 100000");
        assert_eq!(Limits::of_vm(&vm, None, None).v2.last().unwrap().file, "pids.max");
    }

    #[test]
    fn weights_reach_from_end_to_end() {
        assert_eq!((weight(0), weight(2), weight(u64::MAX)), (1, 1, 10_000));
        assert_eq!((io_weight(0), io_weight(10), io_weight(1000)), (1, 1, 10_000));
    }
}
