//! From a bundle to a created container: its VM runs, and its process waits to be executed.
//!
//! ```text
//! bundle ▶ plan ▶ directory claimed ▶ VMM on its leash ▶ hooks ▶ the guest's container ▶ recorded
//! ```
//!
//! Whatever fails on the way leaves nothing behind: the directory goes when [`VmDir`] is dropped,
//! the VMM with its leash.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use bulkhead_protocol::rpc::agent::{
    ContainerSpec, CreateContainerRequest, CreateContainerResponse, NetworkSpec, StartFailure,
};
use bulkhead_vmm::spec::{Outcome, VmSpec};
use oci_spec::runtime::{Hooks, LinuxResources};
use rustix::termios::Winsize;

use super::bundle::{self, Bundle, BundleError};
use super::cgroup::{CgroupError, HostCgroup, Limits};
use super::clock;
use super::console::{Console, ConsoleError};
use super::container::{CONFIG, Container, ContainerError, REPORT, host_cgroup, read_report};
use super::detached::{Detached, Surroundings};
use super::exec::ExecError;
use super::hooks::{self, HookError};
use super::id::ContainerId;
use super::member;
use super::overlays::{Overlays, OverlaysError};
use super::plan::{self, Host, Network, PlanError};
use super::plug::{self, PlugError};
use super::pod::{self, PodError};
use super::record::{HostProcess, Phase, Record};
use super::restore::{self, RestoreError};
use super::status::State;
use crate::agent::AgentError;
use crate::args::oci::BundleArgs;
use crate::assets::{self, AssetError, Dirs};
use crate::client::Client;
use crate::facts;
use crate::launch;
use crate::machine_id::{self, MachineIdError};
use crate::net::{self, NetError};
use crate::settings::{Settings, SettingsError, WallError, Walls};
use crate::state::{Root, StateError, VmDir};
use crate::templates::Snapshot;
use crate::terminal;
use crate::user;
use crate::verdict::{self, VerdictError};
use crate::vmm::{Course, VmmError};

/// How long a guest may take to boot: far longer than the slowest that was seen.
pub const BOOT_MAX: Duration = Duration::from_secs(120);
/// How long it may take to make the container, which includes all its mounts.
pub const SETUP_MAX: Duration = Duration::from_secs(120);

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("{}: process is missing; a container without one cannot be created", .0.display())]
    NoProcess(PathBuf),
    #[error("process.terminal is set: give a --console-socket for the terminal to be sent to")]
    NoConsoleSocket,
    #[error("--console-socket needs a process with a terminal, and one that is left behind")]
    NoTerminal,
    #[error("--preserve-fds {0}: descriptors of this host mean nothing to the guest's kernel")]
    PreserveFds(u32),
    #[error(transparent)]
    Asset(#[from] AssetError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Verdict(#[from] VerdictError),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Overlays(#[from] OverlaysError),
    #[error(transparent)]
    Plug(#[from] PlugError),
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error("bulkhead-vmm has not made the network that the container's hooks are to set up")]
    NoNetwork,
    #[error(transparent)]
    MachineId(#[from] MachineIdError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Wall(#[from] WallError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("{}", .0.message)]
    Start(StartFailure),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error("{0}")]
    Member(String),
    #[error(
        "a container that joins another's network is in that one's VM, and not saved by itself"
    )]
    MemberSaved,
    #[error(
        "container {0}, whose network is to be joined, has another profile's walls: who shares a VM \
         shares its walls"
    )]
    MemberWalls(ContainerId),
    #[error("cannot leave a process behind: {0}")]
    Fork(#[source] io::Error),
    #[error("cannot keep a copy of {}: {source}", .path.display())]
    Copy {
        /// The configuration.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    #[error("{message}")]
    Vm {
        /// Why the VM ended.
        message: String,
        /// The guest kernel's last lines, if it panicked.
        kernel_log: Vec<String>,
    },
}

/// A container that is to have a kernel of its own.
#[derive(Clone, Debug)]
pub struct Ours {
    /// What it is to be.
    pub bundle: Bundle,
    /// What the administrator decided.
    pub settings: Settings,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The container's ID.
    pub id: &'a ContainerId,
    /// What it is made of.
    pub ours: &'a Ours,
    /// The options that `create` and `run` have in common.
    pub args: &'a BundleArgs,
    /// The container outlives this process.
    pub detach: bool,
    /// linux.cgroupsPath has systemd's form.
    pub systemd_cgroup: bool,
    /// What its VM comes from.
    pub origin: Origin<'a>,
}

/// What a container's VM comes from.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// It is cloned from a template, if there can be one.
    Template,
    /// It boots.
    Boot,
    /// It goes on as the container that was saved here.
    Checkpoint(&'a Snapshot),
    /// The same, as one more beside that.
    Clone {
        /// The one that was saved.
        files: &'a Snapshot,
        /// Its network, if not that of the bundle.
        network: Option<&'a Network>,
    },
}

impl Origin<'_> {
    /// By template, unless the VM is to start cold.
    pub fn by(cold: bool) -> Self {
        if cold { Self::Boot } else { Self::Template }
    }

    /// The container that was saved.
    fn saved(&self) -> Option<&Snapshot> {
        match self {
            Self::Checkpoint(files) | Self::Clone { files, .. } => Some(files),
            Self::Template | Self::Boot => None,
        }
    }

    /// The network the container is to have, if its bundle does not say.
    fn network(&self) -> Option<&Network> {
        if let Self::Clone { network, .. } = self { *network } else { None }
    }
}

/// Creates a container; it lives on only if the VMM is [let go](Detached::let_go).
pub fn create(wanted: Wanted<'_>, root: &Root) -> Result<(Container, Detached), CreateError> {
    let bundle = &wanted.ours.bundle;
    let spec = plan::container(bundle, wanted.id.as_str(), 0)?;
    check(wanted, &spec)?;
    let joined = pod::join(&bundle.spec, root)?;
    let hostname = joined.hostname.clone().unwrap_or(spec.hostname);
    let machine_id = machine_id::for_container(machine_id::Root::At(&bundle.rootfs))?;
    let spec = ContainerSpec { hostname, machine_id, joins_ipc: joined.ipc, ..spec };
    match &joined.vm {
        Some(host) => member::create(wanted, spec, host, root),
        None => in_own_vm(wanted, spec, root),
    }
}

fn in_own_vm(
    wanted: Wanted<'_>,
    spec: ContainerSpec,
    root: &Root,
) -> Result<(Container, Detached), CreateError> {
    let Ours { bundle, settings } = wanted.ours;
    let dirs = Dirs::of_this_process();
    let vmm = dirs.program(assets::VMM)?;
    let walls = settings.walls(&bundle.annotations())?;
    admit(&walls, resources(bundle))?;
    let host = host(&dirs, &walls)?;
    root.create()?;
    verdict::ensure(root)?;
    let dir = claim(wanted, root)?;
    let asked = plan::network(&bundle.spec);
    let network = match wanted.origin.network().unwrap_or(&asked) {
        Network::Joined(path) => net::Network::take_over(path)?,
        Network::Own | Network::Host => net::Network::default(),
    };
    let spec = ContainerSpec { network: Some(network.spec).into(), ..spec };
    let mut vm = plan::vm(bundle, &host, wanted.id.as_str(), dir.socket());
    let overlays = Overlays::mount(bundle, matches!(wanted.origin, Origin::Clone { .. }))?;
    overlays.give_to(&mut vm.shares);
    let vm = walls.hold(VmSpec { nets: network.nets, ..vm });
    let vm = restore::shape(vm, wanted.origin.saved())?;
    // In our own cgroup, and for the next container too: whatever comes of this one.
    let template = match wanted.origin {
        Origin::Template => launch::template(&vm, &vmm, root, false),
        _ => None,
    };
    let course =
        wanted.origin.saved().map_or_else(|| Course::by(template.as_ref()), Course::Restore);
    let console = console(wanted, &spec)?;
    let terminal = console.as_ref().map(|console| console.slave.try_clone()).transpose();
    let mut record = record(wanted);
    record.memory = course.mapped();
    let interfaces = vm.nets.len();
    let limits = Limits::of_vm(&vm, resources(bundle), walls.cpus);
    let cgroup = cgroup(&record, &limits)?;
    let surroundings = Surroundings {
        terminal: terminal.map_err(ConsoleError::Open)?,
        cgroups: cgroup.as_ref().map(HostCgroup::entrances).transpose()?.unwrap_or_default(),
    };
    let created = Detached::start(&vmm, vm, &dir, course, surroundings)
        .map_err(CreateError::from)
        .and_then(|detached| {
            record.process = detached.process;
            match settle(wanted, &record, spec, console, &dir, interfaces) {
                Ok(()) => Ok(detached),
                Err(error) => Err(end(detached, &dir, error)),
            }
        });
    // The VMM has them now, and the taps are to go with it.
    drop((network.taps, overlays));
    conclude(wanted, root, dir, cgroup, created)
}

/// Leaves the directory to a container that came to be, and otherwise nothing behind.
pub fn conclude(
    wanted: Wanted<'_>,
    root: &Root,
    dir: VmDir,
    cgroup: Option<HostCgroup>,
    created: Result<Detached, CreateError>,
) -> Result<(Container, Detached), CreateError> {
    match created {
        Ok(detached) => {
            dir.leave();
            Ok((Container::open(root, wanted.id)?, detached))
        }
        Err(error) => {
            // What cannot be removed is empty, and in nobody's way.
            let _ = cgroup.map(|cgroup| cgroup.remove());
            Err(error)
        }
    }
}

/// The container's directory, with a copy of its configuration, and its root with what is to be mounted on.
pub fn claim(wanted: Wanted<'_>, root: &Root) -> Result<VmDir, CreateError> {
    let bundle = &wanted.ours.bundle;
    let dir = root.claim(wanted.id.as_str())?;
    let config = bundle.dir.join(bundle::CONFIG);
    fs::copy(&config, dir.path().join(CONFIG))
        .map_err(|source| CreateError::Copy { path: config, source })?;
    bundle.make_mount_points()?;
    Ok(dir)
}

fn resources(bundle: &Bundle) -> Option<&LinuxResources> {
    bundle.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref())
}

/// Whether a container with these `resources`, or one to get them, keeps within its walls.
pub fn admit(walls: &Walls, resources: Option<&LinuxResources>) -> Result<(), WallError> {
    let cpus = resources.and_then(plan::shape::asked_cpus);
    walls.admit(cpus, resources.and_then(plan::shape::asked_memory_mib))
}

/// Makes the cgroup around the VMM. A user who may not has none.
pub fn cgroup(record: &Record, limits: &Limits) -> Result<Option<HostCgroup>, CgroupError> {
    let cgroup = host_cgroup(record)?;
    match cgroup.create(limits) {
        Ok(()) => Ok(Some(cgroup)),
        Err(_) if !user::is_host_root() => Ok(None),
        Err(error) => Err(error),
    }
}

fn check(wanted: Wanted<'_>, spec: &ContainerSpec) -> Result<(), CreateError> {
    let Some(process) = spec.process.as_ref() else {
        let bundle = &wanted.ours.bundle;
        return Err(CreateError::NoProcess(bundle.dir.join(bundle::CONFIG)));
    };
    if matches!(plan::network(&wanted.ours.bundle.spec), Network::Host) {
        return Err(NetError::Host.into());
    }
    if wanted.args.preserve_fds > 0 {
        return Err(CreateError::PreserveFds(wanted.args.preserve_fds));
    }
    match (process.terminal.is_some(), wanted.detach, &wanted.args.console_socket) {
        (true, true, None) => Err(CreateError::NoConsoleSocket),
        (false, _, Some(_)) | (_, false, Some(_)) => Err(CreateError::NoTerminal),
        _ => Ok(()),
    }
}

fn host(dirs: &Dirs, walls: &Walls) -> Result<Host, AssetError> {
    let vcpus = available_parallelism().map_or(1, |n| u8::try_from(n.get()).unwrap_or(u8::MAX));
    let memory_mib = facts::host_memory_mib();
    Ok(Host {
        kernel: dirs.file(assets::KERNEL)?,
        agent: dirs.program(assets::AGENT)?,
        vcpus: walls.cpus.map_or(vcpus, |most| most.min(vcpus)),
        memory_mib: walls.memory_mib.map_or(memory_mib, |most| memory_mib.min(most.into())),
    })
}

/// The terminal to be sent, if one is.
pub fn console(wanted: Wanted<'_>, spec: &ContainerSpec) -> Result<Option<Console>, ConsoleError> {
    let asked = spec.process.terminal.as_ref().filter(|_| wanted.args.console_socket.is_some());
    let Some(asked) = asked else { return Ok(None) };
    let cut = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
    let size =
        Winsize { ws_row: cut(asked.rows), ws_col: cut(asked.columns), ws_xpixel: 0, ws_ypixel: 0 };
    Console::open((size.ws_row > 0 && size.ws_col > 0).then_some(size)).map(Some)
}

/// All but the VMM's process, which is not there yet.
pub fn record(wanted: Wanted<'_>) -> Record {
    let bundle = &wanted.ours.bundle;
    let (own_cgroup, phase) = match wanted.origin {
        Origin::Template | Origin::Boot => (false, Phase::Created),
        Origin::Checkpoint(_) => (false, Phase::Running),
        // That of the bundle is the other one's.
        Origin::Clone { .. } => (true, Phase::Running),
    };
    let linux = bundle.spec.linux().as_ref().filter(|_| !own_cgroup);
    Record {
        id: wanted.id.to_string(),
        bundle: bundle.dir.clone(),
        rootfs: bundle.rootfs.clone(),
        oci_version: bundle.spec.version().clone(),
        annotations: bundle.spec.annotations().iter().flatten().map(owned).collect(),
        created: clock::now_rfc3339(),
        cgroups_path: linux.and_then(|linux| linux.cgroups_path().clone()),
        systemd_cgroup: wanted.systemd_cgroup,
        vm: None,
        memory: None,
        image: None,
        member: None,
        process: HostProcess { pid: 0, start_ticks: 0 },
        phase,
    }
}

fn owned((name, value): (&String, &String)) -> (String, String) {
    (name.clone(), value.clone())
}

/// All that is to be done while the VM runs. The hooks run while the guest boots.
fn settle(
    wanted: Wanted<'_>,
    record: &Record,
    spec: ContainerSpec,
    console: Option<Console>,
    dir: &VmDir,
    interfaces: usize,
) -> Result<(), CreateError> {
    let hooks = wanted.ours.bundle.spec.hooks().clone().unwrap_or_default();
    before_create(&hooks, record)?;
    let mut agent = Client::connect(&dir.socket(), BOOT_MAX)?;
    let network = || network(&spec, record.process, dir, interfaces);
    match wanted.origin {
        Origin::Template | Origin::Boot => create_container(&mut agent, spec)?,
        Origin::Checkpoint(_) => {
            let network = network()?;
            restore::go_on(&mut agent, spec.hostname, network, String::new())?;
        }
        Origin::Clone { .. } => {
            let machine_id = machine_id::fresh()?;
            restore::go_on(&mut agent, wanted.id.to_string(), network()?, machine_id)?;
        }
    }
    after_create(&hooks, record)?;
    if let (Some(console), Some(socket)) = (console, &wanted.args.console_socket) {
        console.send(socket)?;
    }
    Ok(Container::write(dir.path(), record)?)
}

/// Waits until a VMM is in a network of its own; one that is not jailed stays in ours.
fn await_network(vmm: HostProcess) -> Result<(), CreateError> {
    /// How long that may take a process on a busy machine.
    const MAX: Duration = Duration::from_secs(30);
    let until = Instant::now() + MAX;
    while !net::has_left(vmm) {
        if Instant::now() > until || vmm.find().is_none() {
            return Err(CreateError::NoNetwork);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The hooks before the container is made.
pub fn before_create(hooks: &Hooks, record: &Record) -> Result<(), CreateError> {
    let state = State::creating(record).json();
    #[allow(deprecated, reason = "the specification still has it, and engines use it")]
    let early = [("prestart", hooks.prestart()), ("createRuntime", hooks.create_runtime())];
    for (stage, list) in early {
        if list.as_ref().is_some_and(|list| !list.is_empty()) && record.member.is_none() {
            // They may want to put something into it.
            await_network(record.process)?;
        }
        hooks::run(stage, list.as_ref(), &state)?;
    }
    Ok(())
}

/// The hooks after that.
pub fn after_create(hooks: &Hooks, record: &Record) -> Result<(), HookError> {
    let state = State::creating(record).json();
    hooks::run("createContainer", hooks.create_container().as_ref(), &state)
}

/// The network of a container that goes on, whose VM has so many interfaces: what was taken over, or
/// what has been put into the VMM's own.
fn network(
    spec: &ContainerSpec,
    vmm: HostProcess,
    dir: &VmDir,
    interfaces: usize,
) -> Result<NetworkSpec, PlugError> {
    match spec.network.as_ref() {
        Some(taken) if !taken.interfaces.is_empty() => Ok(taken.clone()),
        _ => plug::plug_in(vmm, dir.path(), interfaces),
    }
}

fn create_container(agent: &mut Client, mut spec: ContainerSpec) -> Result<(), CreateError> {
    spec.clock_ns = clock::now_ns();
    if let Some(size) = spec.process.as_mut().and_then(|process| process.terminal.as_mut())
        && (size.rows == 0 || size.columns == 0)
    {
        let window = terminal::window();
        (size.rows, size.columns) = (window.ws_row.into(), window.ws_col.into());
    }
    let request = CreateContainerRequest {
        container: Some(spec).into(),
        host_events: true,
        ..Default::default()
    };
    let response: CreateContainerResponse = agent.call("CreateContainer", &request, SETUP_MAX)?;
    match response.failure.into_option() {
        Some(failure) => Err(CreateError::Start(failure)),
        None => Ok(()),
    }
}

/// Ends the VM. If the agent was lost, the VMM knows best why, if it has ended by itself.
fn end(mut detached: Detached, dir: &VmDir, error: CreateError) -> CreateError {
    if !matches!(error, CreateError::Agent(_)) {
        detached.kill();
        return error;
    }
    /// How long a VMM may take to say why, once its agent is gone.
    const FAREWELL_MAX: Duration = Duration::from_secs(5);
    let until = Instant::now() + FAREWELL_MAX;
    let mut status = None;
    while status.is_none() && Instant::now() < until {
        status = detached.try_wait().unwrap_or_default();
        if status.is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    detached.kill();
    match (read_report(&dir.path().join(REPORT)), status) {
        (Some(report), _) => match report.outcome {
            Outcome::Failed { message, kernel_log } => CreateError::Vm { message, kernel_log },
            Outcome::Exited { .. } | Outcome::Saved => error,
        },
        (None, Some(status)) => {
            CreateError::Vm { message: crate::vmm::describe(status), kernel_log: Vec::new() }
        }
        (None, None) => error,
    }
}
