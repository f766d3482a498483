//! [`Record`]: what is kept of a container, as ROOT/ID/state.json.
//!
//! It says what was last done to the container. Whether it still lives says the lock its VMM holds
//! (see state.rs): the two together are its [`Status`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use bulkhead_vmm::spec::VmSpec;
use serde::{Deserialize, Serialize};

/// What was last done to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its process waits to be executed.
    Created,
    /// Its process was executed.
    Running,
    /// Its virtual CPUs were stopped.
    Paused,
}

/// All that later calls need to know of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its ID.
    pub id: String,
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// The root file system's, absolute.
    pub rootfs: PathBuf,
    /// Of the configuration.
    pub oci_version: String,
    /// Of the configuration.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// When it was created: RFC 3339, UTC.
    pub created: String,
    /// Its place among the host's cgroups: linux.cgroupsPath, and whether that is systemd's form.
    #[serde(default)]
    pub cgroups_path: Option<PathBuf>,
    /// See `cgroups_path`.
    #[serde(default)]
    pub systemd_cgroup: bool,
    /// What the VM of a container of `bulkhead run` was started as, for clones: descriptors and network
    /// mean nothing.
    #[serde(default)]
    pub vm: Option<VmSpec>,
    /// The memory file that its VM's memory is a mapping of, if there is one of that name still.
    #[serde(default)]
    pub memory: Option<PathBuf>,
    /// The directory, in the store of images, of its root's writable layer, if it has one.
    #[serde(default)]
    pub image: Option<PathBuf>,
    /// Where it is, if not in a VM of its own (see member.rs).
    #[serde(default)]
    pub member: Option<Membership>,
    /// The VMM's, or that of what stands for it beside another one's.
    pub process: HostProcess,
    /// What was last done to it.
    pub phase: Phase,
}

/// The place of a container in another one's VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// That container.
    pub of: String,
    /// What its own shares are called there.
    pub shares: Vec<String>,
}

/// A process of this host that can be told from a later one of the same ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProcess {
    /// Its ID.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of /proc/PID/stat (proc_pid_stat(5)).
    pub start_ticks: u64,
}

/// What a container is doing (OCI runtime specification, runtime.md, "State").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its process waits to be executed.
    Created,
    /// Its process runs.
    Running,
    /// It is stopped for a while (runc's word; the specification has none).
    Paused,
    /// Its process has ended.
    Stopped,
}

impl Status {
    /// Of a container whose last phase was `phase`, and whose VMM lives or does not.
    pub fn of(phase: Phase, lives: bool) -> Self {
        match (lives, phase) {
            (false, _) => Self::Stopped,
            (true, Phase::Created) => Self::Created,
            (true, Phase::Running) => Self::Running,
            (true, Phase::Paused) => Self::Paused,
        }
    }

    /// `start` makes sense.
    pub fn can_start(self) -> bool {
        self == Self::Created
    }

    /// `kill` reaches a process.
    pub fn can_kill(self) -> bool {
        self != Self::Stopped
    }

    /// `exec` finds a process to join: one that is to be started yet will do, as with runc.
    pub fn can_exec(self) -> bool {
        matches!(self, Self::Created | Self::Running)
    }

    /// `pause` makes sense.
    pub fn can_pause(self) -> bool {
        self == Self::Running
    }

    /// `resume` makes sense.
    pub fn can_resume(self) -> bool {
        self == Self::Paused
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_stopped_whatever_was_done_to_them() {
        for phase in [Phase::Created, Phase::Running, Phase::Paused] {
            let status = Status::of(phase, false);
            assert_eq!(status, Status::Stopped);
            assert!(!status.can_start() && !status.can_kill() && !status.can_exec());
            assert!(!status.can_pause() && !status.can_resume());
        }
    }

    #[test]
    fn what_is_there_can_be_joined_and_only_the_created_started() {
        let created = Status::of(Phase::Created, true);
        assert!(created.can_start() && created.can_kill());
        assert!(created.can_exec() && !created.can_pause());
        let running = Status::of(Phase::Running, true);
        assert!(!running.can_start() && running.can_exec() && running.can_pause());
        let paused = Status::of(Phase::Paused, true);
        assert!(paused.can_resume() && paused.can_kill() && !paused.can_exec());
    }
}
