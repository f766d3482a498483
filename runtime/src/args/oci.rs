//! The verbs of the OCI command line as typed: names, short forms and defaults are runc's, which is
//! what container engines call. What has no meaning for a VM is accepted and ignored; the help says
//! so.

use std::path::PathBuf;

/// Options before the verb.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Global {
    /// Where containers are kept [default: /run/bulkhead as root, else $XDG_RUNTIME_DIR/bulkhead]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Write errors to this file as well
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How errors are written to it: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: String,
    /// Accepted and ignored: there are no debug messages
    #[arg(long)]
    pub debug: bool,
    /// The cgroup's path is systemd's, "slice:prefix:name"
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Accepted and ignored: what this user may do is found out by trying
    #[arg(long, value_name = "BOOL")]
    pub rootless: Option<String>,
    /// The wall around the container: vm, a kernel of its own, or process, the host's kernel and
    /// another runtime's containers [default: the profile's, which is vm]
    #[arg(long, value_name = "WALL")]
    pub isolation: Option<String>,
    /// Boot the container's VM, rather than clone it from a template
    #[arg(long, global = true)]
    pub cold: bool,
    /// Accepted and ignored: checkpoints of a VM need no criu
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<PathBuf>,
}

/// What `create` and `run` have in common.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct BundleArgs {
    /// The bundle: a directory with a config.json [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Unix socket that is sent the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the container's host process ID to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted and ignored: the root is always another file system of another kernel
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted and ignored: keyrings are the guest kernel's
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Accepted as 0 only: descriptors of this host mean nothing to another kernel
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

/// `bulkhead create`
#[derive(Clone, Debug, clap::Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub bundle: BundleArgs,
    /// Name of the container, unique on this host
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Verbs that take nothing but a container.
#[derive(Clone, Debug, clap::Args)]
pub struct IdArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// `bulkhead kill`
#[derive(Clone, Debug, clap::Args)]
pub struct KillArgs {
    /// Signal every process of the container
    #[arg(short, long)]
    pub all: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// The signal: a name, with or without SIG, or a number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub signal: String,
}

/// `bulkhead delete`
#[derive(Clone, Debug, clap::Args)]
pub struct DeleteArgs {
    /// Kill it first if it runs; no error if there is no such container
    #[arg(short, long)]
    pub force: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// `bulkhead exec`
#[derive(Clone, Debug, clap::Args)]
pub struct ExecArgs {
    /// The process as JSON (OCI runtime specification, "process"); replaces the options below
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Unix socket that is sent the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the process's host process ID to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Do not wait for the process
    #[arg(short, long)]
    pub detach: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Set a variable
    #[arg(short, long, value_name = "NAME=VAL")]
    pub env: Vec<String>,
    /// Who runs it: names or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// A further group, by number
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Give the process a capability more
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Deny the process new privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Try it in a paused container too: it runs when that is resumed
    #[arg(long)]
    pub ignore_paused: bool,
    /// Accepted and ignored: labels are the host's
    #[arg(long, value_name = "LABEL", hide = true)]
    pub process_label: Option<String>,
    /// Accepted and ignored: profiles are the host's
    #[arg(long, value_name = "PROFILE", hide = true)]
    pub apparmor: Option<String>,
    /// Accepted as 0 only
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// Command to run, and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// `bulkhead ps`
#[derive(Clone, Debug, clap::Args)]
pub struct PsArgs {
    /// table, or json: the process IDs in the container
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// Accepted and ignored: options of ps(1)
    #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub options: Vec<String>,
}

/// `bulkhead list`
#[derive(Clone, Debug, clap::Args)]
pub struct ListArgs {
    /// table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// IDs only
    #[arg(short, long)]
    pub quiet: bool,
}

/// Options of runc's for criu, which has no part in this.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CriuArgs {
    /// Accepted and ignored: there are no working files
    #[arg(long, value_name = "DIR", hide = true)]
    pub work_path: Option<PathBuf>,
    /// Accepted and ignored: the guest's connections within itself are kept in any case
    #[arg(long, hide = true)]
    pub tcp_established: bool,
    /// Accepted and ignored
    #[arg(long, hide = true)]
    pub ext_unix_sk: bool,
    /// Accepted and ignored
    #[arg(long, hide = true)]
    pub shell_job: bool,
    /// Accepted and ignored: locks are the guest's, and kept
    #[arg(long, hide = true)]
    pub file_locks: bool,
    /// Accepted and ignored
    #[arg(long, value_name = "MODE", hide = true)]
    pub manage_cgroups_mode: Option<String>,
    /// Accepted and ignored
    #[arg(long, value_name = "NAMESPACE", hide = true)]
    pub empty_ns: Vec<String>,
    /// Accepted and ignored
    #[arg(long, hide = true)]
    pub auto_dedup: bool,
}

/// `bulkhead checkpoint`
#[derive(Clone, Debug, clap::Args)]
pub struct CheckpointArgs {
    /// Directory to save it to, which has no checkpoint yet
    #[arg(short = 'o', long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Let it go on, and keep it
    #[arg(long)]
    pub leave_running: bool,
    #[command(flatten)]
    pub criu: CriuArgs,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// `bulkhead restore`
#[derive(Clone, Debug, clap::Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub bundle: BundleArgs,
    /// Leave it running, and end
    #[arg(short, long)]
    pub detach: bool,
    /// Directory it was saved to
    #[arg(short = 'o', long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Accepted and ignored
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    #[command(flatten)]
    pub criu: CriuArgs,
    /// Name of the container, unique on this host
    #[arg(value_name = "ID")]
    pub id: String,
}

/// `bulkhead clone`
#[derive(Clone, Debug, clap::Args)]
pub struct CloneArgs {
    #[command(flatten)]
    pub bundle: BundleArgs,
    /// The other one's network: that of a network namespace, which it takes over, or none [default: the
    /// bundle's; none of a container of `run`]
    #[arg(long, value_name = "none|netns:PATH")]
    pub network: Option<String>,
    /// The running container
    #[arg(value_name = "ID")]
    pub id: String,
    /// Name of the other one, unique on this host, and its host name
    #[arg(value_name = "NEW")]
    pub new: String,
}

/// `bulkhead events`
#[derive(Clone, Debug, clap::Args)]
pub struct EventsArgs {
    /// Time between figures, in seconds (5) or with a unit (500ms, 5s, 1m)
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub interval: String,
    /// Print the figures once, and end
    #[arg(long)]
    pub stats: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// `bulkhead update`
#[derive(Clone, Debug, clap::Args)]
pub struct UpdateArgs {
    /// The limits as JSON (OCI runtime specification, "resources"), `-` for standard input; replaces
    /// the options below
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Most memory, bytes; the VM's own size stays the most there can be
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<i64>,
    /// Memory that is reclaimed last, bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<i64>,
    /// Memory and swap, bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<i64>,
    /// Period of the CPU quota, us
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// CPU time in each period, us
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Share of CPU time, relative to others
    #[arg(long, alias = "cpu-shares", value_name = "N")]
    pub cpu_share: Option<u64>,
    /// CPUs to be used
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to be used
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Share of block I/O, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// Most processes
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// `bulkhead spec`
#[derive(Clone, Debug, clap::Args)]
pub struct SpecArgs {
    /// Directory to write config.json to [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Accepted and ignored: the guest's users need nothing of the host's
    #[arg(long)]
    pub rootless: bool,
}
