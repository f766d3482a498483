//! The container's processes, from the kernel's /proc (proc(5)).

use std::fs;

use bulkhead_protocol::rpc::agent::{ProcessInfo, ProcessesRequest, ProcessesResponse};
use ttrpc::{Code, Status};

use crate::agent::Agent;
use crate::guest::{self, Cgroup};
use crate::process::Launch;
use crate::rpc::refuse;

/// Processes told of at most: the answer must fit a ttrpc message of 4 MiB.
const PROCESSES_MAX: usize = 4096;
/// Unit of processor times in /proc: USER_HZ, 100 on x86.
const TICKS_PER_SECOND: u64 = 100;
/// The longest command line told of, bytes.
const COMMAND_MAX: usize = 512;

impl Agent {
    /// Lists them by PID.
    pub(crate) fn processes(&self, request: ProcessesRequest) -> Result<ProcessesResponse, Status> {
        let (container, guest) = self.container(&request.container)?;
        // Of one container alone the depth of its namespaces tells.
        let cgroup = container.cgroup(guest).filter(|_| !self.members.is_empty());
        let processes = list(&container.launch, cgroup)
            .map_err(|error| refuse(Code::INTERNAL, format!("cannot list processes: {error}")))?;
        Ok(ProcessesResponse { processes, ..Default::default() })
    }
}

/// The processes in the PID namespace of `container`, or below it; in `cgroup`, if that is given.
fn list(container: &Launch, cgroup: Option<&Cgroup>) -> std::io::Result<Vec<ProcessInfo>> {
    guest::mount_proc();
    let level = levels(&status(&container.pid.as_raw_nonzero().to_string())?);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
        else {
            continue;
        };
        if cgroup.is_some_and(|cgroup| !cgroup.has(pid)) {
            continue;
        }
        // One that ended in the meantime is not there.
        found.extend(status(pid).ok().and_then(|status| inspect(pid, &status, level)));
        if found.len() == PROCESSES_MAX {
            break;
        }
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

fn status(pid: &str) -> std::io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/status"))
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// PID namespaces a process is in.
fn levels(status: &str) -> usize {
    field(status, "NSpid").map_or(1, |pids| pids.split_whitespace().count())
}

/// `None` for a process that is not the container's, such as the agent itself.
fn inspect(pid: &str, status: &str, level: usize) -> Option<ProcessInfo> {
    let inside = |status: &str| -> Option<u32> {
        field(status, "NSpid")?.split_whitespace().nth(level - 1)?.parse().ok()
    };
    let own = inside(status)?;
    let parent = field(status, "PPid").and_then(|ppid| self::status(ppid).ok());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let stat: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // utime and stime, the 14th and 15th; the two before ')' are not counted here.
    let ticks = |i: usize| stat.get(i).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0);
    let resident = field(status, "VmRSS").and_then(|rss| rss.split(' ').next()?.parse().ok());
    Some(ProcessInfo {
        pid: own,
        parent_pid: parent.as_deref().and_then(inside).unwrap_or(0),
        uid: field(status, "Uid").and_then(|uid| uid.split_whitespace().next()?.parse().ok())?,
        state: field(status, "State").and_then(|state| state.get(..1)).unwrap_or("?").to_owned(),
        command: command(pid, status),
        cpu_ms: (ticks(11) + ticks(12)) * 1000 / TICKS_PER_SECOND,
        resident_bytes: resident.unwrap_or(0u64) << 10,
        ..Default::default()
    })
}

fn command(pid: &str, status: &str) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
    let mut line = match words.is_empty() {
        true => format!("[{}]", field(status, "Name").unwrap_or_default()),
        false => words.join(" "),
    };
    if line.len() > COMMAND_MAX {
        line.truncate(line.floor_char_boundary(COMMAND_MAX));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_outside_the_namespace_is_not_the_container_s() {
        let status = "Name:\tsh\nNSpid:\t7\nUid:\t0\t0\t0\t0\n";
        assert_eq!(levels(status), 1);
        assert_eq!(inspect("self", status, 2), None);
        assert_eq!(levels("NSpid:\t7\t1\t9\n"), 3);
    }

    #[test]
    fn this_process_is_found_with_its_command_line() {
        let pid = std::process::id().to_string();
        let status = status(&pid).unwrap();
        let this = inspect(&pid, &status, levels(&status)).unwrap();
        assert!(this.command.contains("bulkhead_agent"), "{}", this.command);
        assert!(this.resident_bytes > 0 && this.parent_pid > 0);
    }
}
