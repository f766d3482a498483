//! Resource limits (config-linux.md, "Control groups") as files of cgroup v2
//! (kernel, admin-guide/cgroup-v2.rst).

use bulkhead_protocol::rpc::agent::Setting;
use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::setting;
use crate::oci::cgroup::is_host_file;

/// The period of a CPU quota that names none, us.
const CPU_PERIOD_US_DEFAULT: u64 = 100_000;

/// The files of the container's cgroup in the guest.
pub fn guest(resources: &LinuxResources) -> Vec<Setting> {
    let mut files = Vec::new();
    if let Some(memory) = resources.memory() {
        if let Some(limit) = memory.limit().and_then(limit) {
            files.push(setting("memory.max", limit));
        }
        if let Some(low) = memory.reservation().and_then(limit) {
            files.push(setting("memory.low", low));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(max) = cpu_max(cpu) {
            files.push(setting("cpu.max", max));
        }
        if let Some(burst) = cpu.burst() {
            files.push(setting("cpu.max.burst", burst.to_string()));
        }
    }
    if let Some(max) = resources.pids().as_ref().and_then(|pids| limit(pids.limit())) {
        files.push(setting("pids.max", max));
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    let unified = unified.into_iter().filter(|(file, _)| !is_host_file(file));
    files.extend(unified.map(|(file, value)| setting(file, value)));
    for page in resources.hugepage_limits().iter().flatten() {
        if let Some(limit) = limit(page.limit()) {
            files.push(setting(format!("hugetlb.{}.max", page.page_size()), limit));
        }
    }
    files
}

/// The container's memory limit, bytes; `None` if it has none.
pub fn memory_limit(resources: &LinuxResources) -> Option<u64> {
    let limit = resources.memory().as_ref().and_then(|memory| memory.limit());
    limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0)
}

/// The container's CPU quota and its period, us; `None` if it has none.
pub fn cpu_quota(cpu: &LinuxCpu) -> Option<(u64, u64)> {
    let quota = u64::try_from(cpu.quota()?).ok().filter(|quota| *quota > 0)?;
    let period = cpu.period().filter(|period| *period > 0).unwrap_or(CPU_PERIOD_US_DEFAULT);
    Some((quota, period))
}

/// How many CPUs a list such as "0-3,7" names; `None` if it is no such list.
pub fn cpu_count(list: &str) -> Option<u64> {
    let mut cpus = std::collections::BTreeSet::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let [first, last]: [u16; 2] = [first.trim().parse().ok()?, last.trim().parse().ok()?];
        cpus.extend(first..=last);
    }
    u64::try_from(cpus.len()).ok().filter(|count| *count > 0)
}

fn cpu_max(cpu: &LinuxCpu) -> Option<String> {
    match (cpu_quota(cpu), cpu.quota(), cpu.period()) {
        (Some((quota, period)), ..) => Some(format!("{quota} {period}")),
        (None, None, Some(period)) if period > 0 => Some(format!("max {period}")),
        (None, Some(-1), period) => {
            Some(format!("max {}", period.unwrap_or(CPU_PERIOD_US_DEFAULT)))
        }
        _ => None,
    }
}

/// A limit's value: -1 is none at all; 0 leaves things as they are.
fn limit(value: i64) -> Option<String> {
    match value {
        0 => None,
        1.. => Some(value.to_string()),
        _ => Some("max".to_owned()),
    }
}
