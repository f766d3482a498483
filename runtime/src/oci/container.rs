//! [`Container`]: a created container, found again by a later call of `bulkhead`.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_protocol::rpc::agent::Process;
use bulkhead_vmm::control::{Client as Control, ClientError};
use bulkhead_vmm::spec::{Outcome, Report};
use oci_spec::runtime::{Hooks, Spec};
use protobuf::Message as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cgroup::{CgroupError, CgroupPath, HostCgroup, Layout};
use super::id::ContainerId;
use super::record::{HostProcess, Phase, Record, Status};
use crate::agent::AgentError;
use crate::client::Client;
use crate::short_path::ShortPath;
use crate::state::{self, Root, StateError};

/// The container's configuration as it was when it was created.
pub const CONFIG: &str = "config.json";
/// The process of a container of `bulkhead run`, as the agent was given it (protobuf).
const PROCESS: &str = "process";
/// How its VM ended.
pub const REPORT: &str = "report.json";
/// The longest report that is read, bytes: a kernel's last lines are far shorter.
const REPORT_MAX: u64 = 1 << 20;
/// How long a killed process may take to be gone: the kernel takes its memory apart.
const DEATH_MAX: Duration = Duration::from_secs(30);

/// Why a container cannot be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error("container {0} does not exist")]
    Missing(ContainerId),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    #[error("cannot signal bulkhead-vmm of container {id}, process {pid}: {source}")]
    Signal {
        /// The container.
        id: ContainerId,
        /// Its VMM.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    #[error("bulkhead-vmm of container {0} was killed but does not end")]
    Undead(ContainerId),
}

/// A created container.
#[derive(Debug)]
pub struct Container {
    /// Its ID.
    pub id: ContainerId,
    /// What is kept of it.
    pub record: Record,
    dir: PathBuf,
    /// Where the record is.
    file: &'static str,
}

impl Container {
    /// Finds a container.
    pub fn open(root: &Root, id: &ContainerId) -> Result<Self, ContainerError> {
        let dir = root.file(id.as_str());
        for file in [state::RECORD, state::RUN_RECORD] {
            let path = dir.join(file);
            let record = match fs::read(&path) {
                Ok(json) => serde_json::from_slice(&json).map_err(io::Error::from),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Err(error),
            };
            let record = record.map_err(|source| ContainerError::Read { path, source })?;
            return Ok(Self { id: id.clone(), record, dir, file });
        }
        Err(ContainerError::Missing(id.clone()))
    }

    /// Writes down what is to be kept of a container in its directory.
    pub fn write(dir: &Path, record: &Record) -> Result<(), ContainerError> {
        write_record(dir, state::RECORD, record)
    }

    /// Writes down what other verbs need to know of a container of `bulkhead run`.
    pub fn write_run(dir: &Path, record: &Record, process: &Process) -> Result<(), ContainerError> {
        let path = dir.join(PROCESS);
        let bytes = process.write_to_bytes().map_err(io::Error::from);
        bytes
            .and_then(|bytes| fs::write(&path, bytes))
            .map_err(|source| ContainerError::Write { path, source })?;
        write_record(dir, state::RUN_RECORD, record)
    }

    /// Writes down what was done to it.
    pub fn set_phase(&mut self, phase: Phase) -> Result<(), ContainerError> {
        self.record.phase = phase;
        write_record(&self.dir, self.file, &self.record)
    }

    /// The process of a container of `bulkhead run`; `None` if it is one of a bundle.
    pub fn process(&self) -> Result<Option<Process>, ContainerError> {
        if self.file != state::RUN_RECORD {
            return Ok(None);
        }
        let path = self.file(PROCESS);
        let process = fs::read(&path).and_then(|bytes| Ok(Process::parse_from_bytes(&bytes)?));
        process.map(Some).map_err(|source| ContainerError::Read { path, source })
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        Status::of(self.record.phase, !state::is_dead(&self.dir))
    }

    /// Whether it is in the VM of another container.
    pub fn is_member(&self) -> bool {
        self.record.member.is_some()
    }

    /// What the agent of its VM calls it.
    pub fn name_in_vm(&self) -> String {
        if self.is_member() { self.id.to_string() } else { String::new() }
    }

    /// The directory of its VM's sockets.
    fn vm_dir(&self) -> PathBuf {
        match &self.record.member {
            Some(member) => self.dir.with_file_name(&member.of),
            None => self.dir.clone(),
        }
    }

    /// The vsock socket of its VM.
    pub fn socket(&self) -> PathBuf {
        self.vm_dir().join(state::SOCKET)
    }

    /// Connects to its VM's control socket.
    pub fn control(&self) -> Result<Control, ClientError> {
        control(&self.vm_dir())
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file of its directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Connects to its agent.
    pub fn agent(&self, patience: Duration) -> Result<Client, AgentError> {
        Client::connect(&self.socket(), patience)
    }

    /// How its VM ended; `None` if it did not say.
    pub fn report(&self) -> Option<Report> {
        read_report(&self.file(REPORT))
    }

    /// Its configuration, as it was when it was created.
    pub fn config(&self) -> Result<Spec, ContainerError> {
        let path = self.file(CONFIG);
        let config = fs::read(&path).and_then(|json| Ok(serde_json::from_slice(&json)?));
        config.map_err(|source| ContainerError::Read { path, source })
    }

    /// Its hooks; none if its configuration cannot be read any more.
    pub fn hooks(&self) -> Hooks {
        self.config().ok().and_then(|config| config.hooks().clone()).unwrap_or_default()
    }

    /// The cgroup around its VMM.
    pub fn cgroup(&self) -> Result<HostCgroup, CgroupError> {
        host_cgroup(&self.record)
    }

    /// Ends its VM at once, without asking the guest.
    pub fn kill_vmm(&self) -> Result<(), ContainerError> {
        self.signal_vmm(Signal::KILL)
    }

    /// Signals its VMM; one that has ended needs no signal.
    pub fn signal_vmm(&self, signal: Signal) -> Result<(), ContainerError> {
        let HostProcess { pid, .. } = self.record.process;
        let Some(pidfd) = self.record.process.find() else { return Ok(()) };
        match pidfd_send_signal(pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => {
                let id = self.id.clone();
                Err(ContainerError::Signal { id, pid, source: errno.into() })
            }
        }
    }

    /// Waits for its VM to end; returns whether it has.
    pub fn wait(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        if let Some(pidfd) = self.record.process.find() {
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            let timeout = Timespec::try_from(patience).ok();
            let _ = rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()));
        }
        // The lock goes with the process's last descriptor, a moment after or before.
        while !state::is_dead(&self.dir) {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Ends its VM at once and waits for that.
    pub fn destroy_vm(&self) -> Result<(), ContainerError> {
        self.kill_vmm()?;
        match self.wait(DEATH_MAX) {
            true => Ok(()),
            false => Err(ContainerError::Undead(self.id.clone())),
        }
    }

    /// Why its VM ended, and its kernel's last lines, if that was no exit of the container.
    pub fn failure(&self) -> Option<(String, Vec<String>)> {
        match self.report()?.outcome {
            Outcome::Failed { message, kernel_log } => Some((message, kernel_log)),
            Outcome::Exited { .. } | Outcome::Saved => None,
        }
    }

    /// Why it ended, if that was no ordinary exit: annotations for `state`.
    pub fn post_mortem(&self) -> Vec<(String, String)> {
        let note = |name: &str, text: String| (format!("dev.bulkhead.{name}"), text);
        match self.report().map(|report| report.outcome) {
            Some(Outcome::Exited { oom_killed: true, .. }) => vec![note("oom", "true".to_owned())],
            Some(Outcome::Failed { message, kernel_log }) => {
                let log =
                    (!kernel_log.is_empty()).then(|| note("kernel-log", kernel_log.join("\n")));
                [note("failure", message)].into_iter().chain(log).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn write_record(dir: &Path, file: &str, record: &Record) -> Result<(), ContainerError> {
    let path = dir.join(file);
    // Another name of its own for each writer: the last one wins, whole.
    let new = dir.join(format!("{file}.{}", std::process::id()));
    let json = serde_json::to_vec_pretty(record).map_err(io::Error::from);
    let written =
        json.and_then(|json| fs::write(&new, json)).and_then(|()| fs::rename(&new, &path));
    written.map_err(|source| ContainerError::Write { path, source })
}

/// Connects to the control socket of the VM whose directory is `dir`.
pub fn control(dir: &Path) -> Result<Control, ClientError> {
    let path = dir.join(state::CONTROL_SOCKET);
    match ShortPath::of(&path) {
        Ok(short) => Control::connect(short.as_ref()),
        Err(source) => Err(ClientError::Connect { path, source }),
    }
}

/// The cgroup around a container's VMM, which need not be there.
pub fn host_cgroup(record: &Record) -> Result<HostCgroup, CgroupError> {
    let path = CgroupPath::of(record.cgroups_path.as_deref(), &record.id, record.systemd_cgroup)?;
    Ok(HostCgroup::at(&Layout::of_this_host()?, &path))
}

impl HostProcess {
    /// The process with this ID, now.
    pub fn identify(pid: Pid) -> io::Result<Self> {
        let pid = pid.as_raw_nonzero().get();
        let start_ticks = start_ticks(pid)?;
        Ok(Self { pid, start_ticks })
    }

    /// Opens the process, if it is still there.
    pub fn find(self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Only now: the descriptor keeps the ID from being another's.
        (start_ticks(self.pid).ok()? == self.start_ticks).then_some(pidfd)
    }
}

fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
    // The state, field 3, is the first after the name.
    let field = after_name.and_then(|rest| rest.split_whitespace().nth(22 - 3)?.parse().ok());
    field.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// What a process of this host ended with, as shells have it.
pub fn exit_code(status: std::process::ExitStatus) -> u8 {
    let signal = || status.signal().map(|signal| 128 + signal);
    status.code().or_else(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}

/// How the VM ended that reports to `file`; `None` if it did not say. It may still be writing there, and
/// write what it likes if somebody took it over.
pub fn read_report(file: &Path) -> Option<Report> {
    let mut json = Vec::new();
    File::open(file).ok()?.take(REPORT_MAX).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_again_and_a_later_one_is_not_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = HostProcess::identify(Pid::from_child(&child)).unwrap();
        assert!(process.find().is_some());
        let later = HostProcess { start_ticks: process.start_ticks + 1, ..process };
        assert!(later.find().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process.find().is_none());
    }

    #[test]
    fn a_report_is_read_as_far_as_it_may_be_long() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(REPORT);
        let report = r#"{"outcome":{"exited":{"code":7,"oom_killed":false}},"timeline":[]}"#;
        fs::write(&file, report).unwrap();
        assert!(read_report(&file).is_some());
        fs::write(&file, " ".repeat(REPORT_MAX as usize) + report).unwrap();
        assert_eq!(read_report(&file), None);
        assert_eq!(read_report(&dir.path().join("none")), None);
    }

    #[test]
    fn what_is_not_there_does_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::choose(Some(dir.path().to_owned())).unwrap();
        let id = ContainerId::try_from("web").unwrap();
        let error = Container::open(&root, &id).unwrap_err().to_string();
        // Engines look for these words.
        assert_eq!(error, "container web does not exist");
    }
}
