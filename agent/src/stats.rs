//! What the container has used, from its cgroup (admin-guide/cgroup-v2.rst).

use bulkhead_protocol::rpc::agent::{StatsRequest, StatsResponse};
use ttrpc::Status;

use crate::agent::Agent;

impl Agent {
    /// Reads the figures.
    pub(crate) fn stats(&self, request: StatsRequest) -> Result<StatsResponse, Status> {
        let (container, guest) = self.container(&request.container)?;
        Ok(figures(|file| container.cgroup_file(guest, file)))
    }
}

/// The figures of the cgroup whose files `read` reads.
fn figures(read: impl Fn(&str) -> Option<String>) -> StatsResponse {
    // "max" is no number, and so no limit.
    let number = |file: &str| read(file).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let keyed = |file: &str, key: &str| -> u64 {
        let text = read(file).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key).and_then(|(_, n)| n.parse().ok()).unwrap_or(0)
    };
    StatsResponse {
        cpu_usage_us: keyed("cpu.stat", "usage_usec"),
        cpu_user_us: keyed("cpu.stat", "user_usec"),
        cpu_system_us: keyed("cpu.stat", "system_usec"),
        memory_bytes: number("memory.current"),
        memory_peak_bytes: number("memory.peak"),
        memory_limit_bytes: number("memory.max"),
        oom_kills: keyed("memory.events", "oom_kill"),
        pids: number("pids.current"),
        pids_limit: number("pids.max"),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_what_is_missing_is_zero() {
        let stats = figures(|file| {
            let text = match file {
                "cpu.stat" => "usage_usec 700\nuser_usec 500\nsystem_usec 200\n",
                "memory.current" => "4096\n",
                "memory.max" => "max\n",
                "memory.events" => "oom 3\noom_kill 2\n",
                "pids.max" => "100\n",
                _ => return None,
            };
            Some(text.to_owned())
        });
        assert_eq!((stats.cpu_usage_us, stats.cpu_user_us, stats.cpu_system_us), (700, 500, 200));
        assert_eq!((stats.memory_bytes, stats.memory_limit_bytes, stats.oom_kills), (4096, 0, 2));
        assert_eq!((stats.pids, stats.pids_limit), (0, 100));
    }
}
