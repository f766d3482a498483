//! The command line as typed. What it means is decided in [`crate::request`].

pub mod oci;
mod verbs;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as _, FromArgMatches};

use self::verbs::verbs;

/// A command line.
#[derive(Debug)]
pub struct Args {
    pub global: oci::Global,
    pub command: Command,
}

impl Args {
    /// Reads this process's.
    pub fn try_parse() -> Result<Self, clap::Error> {
        Self::try_parse_from(std::env::args_os())
    }

    /// Reads what was typed, the program's name first.
    pub fn try_parse_from<Word: Into<OsString>>(
        typed: impl IntoIterator<Item = Word>,
    ) -> Result<Self, clap::Error> {
        let typed: Vec<OsString> = typed.into_iter().map(Into::into).collect();
        let is_typed = |verb: &str| typed.iter().any(|word| word == verb);
        // Help, and what is said of a mistake, are of all verbs.
        Self::read(&typed, is_typed).or_else(|_| Self::read(&typed, |_| true))
    }

    fn read(typed: &[OsString], wanted: impl Fn(&str) -> bool) -> Result<Self, clap::Error> {
        let mut known = known(wanted);
        let mut typed = known.try_get_matches_from_mut(typed)?;
        let global = oci::Global::from_arg_matches_mut(&mut typed);
        global
            .and_then(|global| Ok(Self { global, command: Command::take(&mut typed)? }))
            .map_err(|error| error.format(&mut known))
    }
}

/// Behind the program's name on `--version`, as runc has it: docker looks for the word.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"));

/// What may be typed, with the verbs that are `wanted`.
fn known(wanted: impl Fn(&str) -> bool) -> clap::Command {
    let bulkhead = clap::Command::new("bulkhead").version(VERSION);
    let bulkhead = oci::Global::augment_args(bulkhead)
        .about("Containers in Linux kernels of their own")
        .disable_help_subcommand(true);
    Command::add_to(bulkhead, wanted)
}

verbs! {
    /// Run a command from an image or a root directory, or a bundle's container; its exit code is bulkhead's
    Run(Box<RunArgs>) = "run",
    /// Make the container of a bundle, ready to be started
    Create(oci::CreateArgs) = "create",
    /// Start the process of a created container
    Start(oci::IdArgs) = "start",
    /// Print what a container is doing, as JSON
    State(oci::IdArgs) = "state",
    /// Send a signal to a container
    Kill(oci::KillArgs) = "kill",
    /// Remove a container
    Delete(oci::DeleteArgs) = "delete",
    /// Run a further process in a running container
    Exec(Box<oci::ExecArgs>) = "exec",
    /// List the processes of a container
    Ps(oci::PsArgs) = "ps",
    /// List containers
    List(oci::ListArgs) = "list",
    /// Stop a container's virtual CPUs
    Pause(oci::IdArgs) = "pause",
    /// Let them run again
    Resume(oci::IdArgs) = "resume",
    /// Save a running container to files, and remove it
    Checkpoint(Box<oci::CheckpointArgs>) = "checkpoint",
    /// Let a container go on from where it was saved
    Restore(Box<oci::RestoreArgs>) = "restore",
    /// Make a second container that goes on from where a running one is now
    Clone(oci::CloneArgs) = "clone",
    /// Print what a container uses, and when it runs out of memory, as JSON
    Events(oci::EventsArgs) = "events",
    /// Change a container's limits
    Update(Box<oci::UpdateArgs>) = "update",
    /// Write a config.json to start from
    Spec(oci::SpecArgs) = "spec",
    /// Print what this runtime can do, as JSON (OCI runtime specification, features.md)
    Features(NoArgs) = "features",
    /// Bring an image into the store
    Pull(PullArgs) = "pull",
    /// List the images in the store
    Images(ImagesArgs) = "images",
    /// Remove images from the store
    Rmi(RmiArgs) = "rmi",
    /// Say whether this host can run micro-VMs, by trying, and what to do if it cannot
    Doctor(DoctorArgs) = "doctor",
    /// Measure starts, files, pipes and memory, here and beside others
    Bench(Box<BenchArgs>) = "bench",
}

/// A verb that takes nothing.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct NoArgs {}

/// `bulkhead run`
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Directory that is the container's root file system, instead of an image
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,
    #[command(flatten)]
    pub bundle: oci::BundleArgs,
    /// Leave the container of a bundle running, and end
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the container of a bundle when it has ended
    #[arg(long)]
    pub keep: bool,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N", default_value = "1")]
    pub cpus: String,
    /// Guest memory: a number of bytes, or of k, m or g
    #[arg(short, long, value_name = "SIZE", default_value = "128m")]
    pub memory: String,
    /// Set a variable, or pass the caller's on
    #[arg(short, long, value_name = "NAME[=VAL]")]
    pub env: Vec<String>,
    /// Working directory in the container [default: the image's, else /]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Who runs the command: names or numbers [default: the image's, else root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Run this instead of the image's entry point; "" for none
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Pass standard input on to the command
    #[arg(short, long)]
    pub interactive: bool,
    /// Show a host directory or file in the container
    #[arg(short, long, value_name = "HOST:GUEST[:ro]")]
    pub volume: Vec<String>,
    /// Refuse writes to the root file system
    #[arg(long)]
    pub read_only: bool,
    /// Give the command a capability more, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// Take a capability away, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_drop: Vec<String>,
    /// Limit a resource, e.g. nofile=1024:4096
    #[arg(long, value_name = "TYPE=SOFT[:HARD]")]
    pub ulimit: Vec<String>,
    /// The container's users are these of the host: root is HOST, the others follow [default: the same]
    #[arg(long, value_name = "HOST[:COUNT]")]
    pub idmap: Option<String>,
    /// Limit what the guest asks of a device in a second, e.g. fs-bytes=100m or net-tx-ops=1000:5000; or its vsock-connections and the vsock-buffer of each
    #[arg(long, value_name = "NAME=RATE[:BURST]")]
    pub limit: Vec<String>,
    /// The container's network: none, that of a network namespace, which it takes over, or passt's
    #[arg(long, value_name = "none|netns:PATH|passt", default_value = "none")]
    pub network: String,
    /// With --network passt: make a port of the host's the container's
    #[arg(short, long, value_name = "[IP:]HOST:GUEST[/udp]")]
    pub publish: Vec<String>,
    /// Name of the VM [default: random]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Host name in the container [default: the VM's name]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Guest kernel: a vmlinux with a PVH entry, or a bzImage [default: bulkhead's own]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Show the guest kernel's console on standard error
    #[arg(long)]
    pub console: bool,
    /// Say afterwards on standard error when each phase of the start was reached
    #[arg(long)]
    pub timeline: bool,
    /// What confines the VMM [default: strict]; off is for finding out why a jail fails, never for
    /// strangers' code
    #[arg(long, value_name = "sealed|strict|off", value_parser = ["sealed", "strict", "off"])]
    pub jail: Option<String>,
    /// Image, then the command to run in it (or the image's own); with --rootfs the command alone; with
    /// a bundle, the container's ID
    #[arg(value_name = "IMAGE|CMD|ID", required = true, trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// `bulkhead pull`
#[derive(Clone, Debug, clap::Args)]
pub struct PullArgs {
    /// Take any certificate, and plain HTTP, if false; always so for registries on the loopback
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub tls_verify: bool,
    /// NAME[:TAG][@DIGEST], or oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, ./FILE
    #[arg(value_name = "IMAGE")]
    pub image: String,
}

/// `bulkhead images`
#[derive(Clone, Debug, clap::Args)]
pub struct ImagesArgs {
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
}

/// `bulkhead rmi`
#[derive(Clone, Debug, clap::Args)]
pub struct RmiArgs {
    /// Names or IDs
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// `bulkhead doctor`
#[derive(Clone, Debug, clap::Args)]
pub struct DoctorArgs {
    /// Check what matters for strangers' code instead, and the walls of the VMs that run
    #[arg(long)]
    pub security: bool,
    /// Print the checks as JSON
    #[arg(long)]
    pub json: bool,
}

/// `bulkhead bench`
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// What to measure [default: boot clone]
    #[arg(value_enum, value_name = "WHAT")]
    pub kinds: Vec<BenchKind>,
    /// Directory that is every container's root file system; it needs /bin/busybox for VMs of --vs
    #[arg(long, value_name = "DIR")]
    pub rootfs: PathBuf,
    /// Runs of each side
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub runs: usize,
    /// Runs of each side before those that count
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warmups: usize,
    /// Containers at once, for density
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub clones: usize,
    /// Number of virtual CPUs of every VM
    #[arg(long, value_name = "N", default_value = "1")]
    pub cpus: String,
    /// Memory of every VM, in MiB
    #[arg(long, value_name = "SIZE", default_value = "128m")]
    pub memory: String,
    /// Others to measure: firecracker=PATH, qemu[=PATH], cloud-hypervisor=PATH, runc[=PATH], crun[=PATH]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub vs: Vec<String>,
    /// The clock counts instructions (tests/lab/run --exact)
    #[arg(long)]
    pub exact: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Write an HTML page with the timelines drawn
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// What `bulkhead bench` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchKind {
    /// From exec to the first output of a VM that boots
    Boot,
    /// The same of one that is cloned
    Clone,
    /// An engine's verbs: create and start, exec to its first output, delete
    Exec,
    /// Memory of many at once, the last start beside the first, many to their end in turn and eight at a time
    Density,
    /// Files: written, read, made, removed
    Fs,
    /// Bytes through a container's standard streams
    Vsock,
}

/// The first paragraph of clap's message as one sentence.
pub fn sentence(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let lines = message.lines().map(str::trim).take_while(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ") + "; try `bulkhead --help`"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        known(|_| true).debug_assert();
    }

    #[test]
    fn the_command_keeps_its_own_options() {
        let typed = ["bulkhead", "run", "-it", "--rootfs", "/r", "ls", "-l", "--root", "x"];
        let args = Args::try_parse_from(typed).unwrap();
        let Command::Run(run) = args.command else { panic!("not run") };
        assert_eq!(run.command, ["ls", "-l", "--root", "x"]);
        assert!(run.tty && run.interactive && args.global.root.is_none());
    }

    #[test]
    fn options_may_be_joined_to_their_values() {
        let typed = ["bulkhead", "run", "-m512m", "-va:/b", "--rootfs=/r", "--", "-odd", "-x"];
        let Command::Run(run) = Args::try_parse_from(typed).unwrap().command else {
            panic!("not run")
        };
        assert_eq!((&*run.memory, &*run.volume), ("512m", &["a:/b".to_owned()][..]));
        assert_eq!(run.command, ["-odd", "-x"]);
        assert!(Args::try_parse_from(["bulkhead", "run", "--rootfs=/r", "-q", "x"]).is_err());
    }

    #[test]
    fn a_verb_s_name_may_stand_elsewhere() {
        let args = Args::try_parse_from(["bulkhead", "--root", "kill", "state", "run"]).unwrap();
        let Command::State(state) = args.command else { panic!("not state") };
        assert_eq!((args.global.root, &*state.id), (Some("kill".into()), "run"));
    }

    #[test]
    fn help_and_mistakes_are_told_of_all_verbs() {
        let said = |typed: &[&str]| Args::try_parse_from(typed).unwrap_err().to_string();
        for typed in [&["bulkhead", "--help"][..], &["bulkhead", "--help", "run"], &["bulkhead"]] {
            assert!(said(typed).contains("delete "), "{typed:?}");
        }
        assert!(said(&["bulkhead", "delet", "run"]).contains("'delete'"));
    }

    #[test]
    fn errors_are_one_sentence() {
        let error = Args::try_parse_from(["bulkhead", "run", "--rootfs", "/r"]).unwrap_err();
        let sentence = sentence(&error.to_string());
        assert!(sentence.contains("IMAGE|CMD") && !sentence.contains('\n'), "{sentence}");
        assert!(!sentence.contains("Usage"), "{sentence}");
    }
}
