//! The OCI verbs' one error, and what they share.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_image::store::StoreError;
use bulkhead_vmm::control::ClientError;

use crate::agent::AgentError;
use crate::delegate::DelegateError;
use crate::oci::base::BaseError;
use crate::oci::cgroup::CgroupError;
use crate::oci::console::ConsoleError;
use crate::oci::container::{Container, ContainerError};
use crate::oci::create::CreateError;
use crate::oci::detached::Detached;
use crate::oci::exec::ExecError;
use crate::oci::id::{ContainerId, IdError};
use crate::oci::plan::PlanError;
use crate::oci::plug::PlugError;
use crate::oci::record::Status;
use crate::oci::signal::SignalError;
use crate::request::RequestError;
use crate::settings::{SettingsError, WallError};
use crate::state::{Root, StateError};
use crate::templates::TemplateError;

/// How long the agent of a running container may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Create(#[from] Box<CreateError>),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Control(#[from] ClientError),
    #[error(transparent)]
    Plug(#[from] PlugError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Snapshot(#[from] TemplateError),
    #[error(
        "container {0} has no bundle that it could be restored with: it is one of `bulkhead run`"
    )]
    NoBundle(ContainerId),
    #[error("container {0} is in the VM of another one, and cannot be saved without that")]
    Member(ContainerId),
    #[error(transparent)]
    Image(#[from] StoreError),
    #[error(transparent)]
    Signal(#[from] SignalError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot read the new limits: {0}")]
    Resources(#[source] serde_json::Error),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Wall(#[from] WallError),
    #[error(transparent)]
    Delegate(#[from] DelegateError),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error("cannot {verb} container {id}: it is {status}")]
    Status {
        /// What was asked.
        verb: &'static str,
        /// Of which container.
        id: ContainerId,
        /// What that is doing.
        status: Status,
    },
    // Engines look for these words.
    #[error("container not running: {id} is {status}")]
    NotRunning {
        /// The container.
        id: ContainerId,
        /// What it is doing.
        status: Status,
    },
    #[error("cannot delete container {id} that is not stopped: it is {status}; use --force")]
    NotStopped {
        /// The container.
        id: ContainerId,
        /// What it is doing.
        status: Status,
    },
    #[error("cannot start container {id}: {message}")]
    Start {
        /// The container.
        id: ContainerId,
        /// The agent's sentence.
        message: String,
    },
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    #[error("--format {0}: give table or json")]
    Format(String),
    #[error("--preserve-fds {0}: descriptors of this host mean nothing to the guest's kernel")]
    PreserveFds(u32),
    #[error("exec needs a command, or a --process FILE")]
    NoCommand,
    #[error("a process with a terminal that is left behind needs a --console-socket")]
    NoConsoleSocket,
    #[error("--console-socket needs --detach and a process with a terminal")]
    NoTerminal,
    #[error("--{option} {value:?}: {advice}")]
    Option {
        /// Its name.
        option: &'static str,
        /// As given.
        value: String,
        /// What to give.
        advice: &'static str,
    },
    #[error("give --rootfs DIR and a command, or --bundle DIR and the container's ID alone")]
    OneId,
    #[error("cannot receive signals: {0}")]
    Signals(#[source] io::Error),
    #[error("{message}")]
    Vm {
        /// Why the VM ended.
        message: String,
        /// The guest kernel's last lines, if it panicked.
        kernel_log: Vec<String>,
    },
    #[error("cannot leave a process behind: {0}")]
    Fork(#[source] io::Error),
    #[error("{0}")]
    Background(String),
}

impl OciError {
    /// What the guest's kernel said last, if that matters.
    pub fn kernel_log(&self) -> &[String] {
        match self {
            Self::Vm { kernel_log, .. } => kernel_log,
            Self::Create(error) => match &**error {
                CreateError::Vm { kernel_log, .. } => kernel_log,
                _ => &[],
            },
            _ => &[],
        }
    }
}

impl From<CreateError> for OciError {
    fn from(error: CreateError) -> Self {
        Self::Create(Box::new(error))
    }
}

/// Finds a container by what was typed.
pub fn open(root: &Root, id: &str) -> Result<Container, OciError> {
    Ok(Container::open(root, &ContainerId::try_from(id)?)?)
}

/// Lets a container that is there live on by itself, once its process ID is written down for its engine;
/// removes it if that cannot be.
pub fn leave_behind(
    mut vmm: Detached,
    pid_file: Option<&Path>,
    id: &ContainerId,
    root: &Root,
) -> Result<(), OciError> {
    if let Some(file) = pid_file
        && let Err(error) = write_pid_file(file, vmm.process.pid)
    {
        vmm.kill();
        root.remove(id.as_str()).map_err(ContainerError::from)?;
        return Err(error);
    }
    vmm.let_go();
    Ok(())
}

/// Writes a process ID for whoever waits for the file: all of it, or nothing yet.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<(), OciError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = fs::write(&new, pid.to_string()).and_then(|()| fs::rename(&new, path));
    written.map_err(|source| {
        let _ = fs::remove_file(&new);
        OciError::Write { path: path.to_owned(), source }
    })
}

/// Prints a line to standard output; a reader who left is no failure.
pub fn print(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(io::stdout(), "{}", text.trim_end_matches('\n'));
}
