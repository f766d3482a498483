//! `bulkhead run`: a command in a micro-VM, from start to exit code.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bulkhead_image::store::{Container, Store};
use bulkhead_protocol::rpc::agent::{ContainerSpec, Process, StartFailure};
use bulkhead_vmm::spec::{Outcome, Report, VmSpec};
use bulkhead_vmm::timeline::Timeline;

use super::features;
use crate::agent::{Agent, AgentError};
use crate::args::RunArgs;
use crate::assets::Dirs;
use crate::facts::{FactError, Facts, ImageFacts};
use crate::images::{self, ImageError};
use crate::machine_id::MachineIdError;
use crate::net::passt::{self, Passt, PasstError};
use crate::net::{NetError, Network};
use crate::oci::container::ContainerError;
use crate::oci::record::{HostProcess, Phase, Record};
use crate::oci::{self, clock, signal};
use crate::request::{self, Request, RequestError, Volume};
use crate::session::{Cause, Ended, Session};
use crate::state::{self, Root, StateError, VmDir};
use crate::verdict::{self, VerdictError};
use crate::vmm::{self, Course, Input, Vmm, VmmError};
use crate::{EXIT_FAILED, foresight, launch, machine_id, plan, timeline};
use bulkhead_vmm::signals::Signals;

/// Exit codes of a command that cannot be executed, and of one that is not there, as in shells.
const EXIT_NOT_EXECUTABLE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;
/// Where a container looks for its name server.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Exit codes from here on are 128 + a signal's number.
const EXIT_SIGNAL: u8 = 128;
/// Bytes of randomness in a name that was not given.
const NAME_BYTES: usize = 6;

/// Why no container ran to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Fact(#[from] FactError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Verdict(#[from] VerdictError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Passt(#[from] PasstError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("cannot receive signals: {0}")]
    Signals(#[source] io::Error),
    #[error("lost track of bulkhead-vmm: {0}")]
    Session(#[source] io::Error),
    #[error("no random name can be made ({0}); give a --name")]
    Name(#[source] io::Error),
    #[error(transparent)]
    MachineId(#[from] MachineIdError),
    #[error("{}", .0.message)]
    Start(StartFailure),
    #[error("{message}")]
    Vm {
        /// One clause.
        message: String,
        /// The guest kernel's last lines, if it panicked.
        kernel_log: Vec<String>,
    },
}

impl RunError {
    /// What bulkhead exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Start(failure) if failure.errno == libc::ENOENT as u32 => EXIT_NOT_FOUND,
            Self::Start(_) => EXIT_NOT_EXECUTABLE,
            _ => EXIT_FAILED,
        }
    }

    /// What the guest's kernel said last, if that matters.
    pub fn kernel_log(&self) -> &[String] {
        match self {
            Self::Vm { kernel_log, .. } => kernel_log,
            _ => &[],
        }
    }
}

/// Runs the container, whose VM boots if it is to be `cold`; returns its exit code. `started_ns` is
/// where the timeline begins.
pub fn run(args: &RunArgs, root: &Root, cold: bool, started_ns: u64) -> Result<u8, RunError> {
    let mut request = Request::try_from(args)?;
    let mut facts = Facts::gather(&request, &Dirs::of_this_process())?;
    root.create()?;
    verdict::ensure(root)?;
    let name = match &request.name {
        Some(name) => name.clone(),
        None => random_name()?,
    };
    let dir = root.claim(&name)?;
    // Its writable layer lasts as long as this.
    let image = image(&request)?;
    facts.image = image.as_ref().map(|(_, facts)| facts.clone());
    let from_ns = request.timeline.then_some(started_ns);
    let timeline = Timeline::new(from_ns);
    // passt lives as long as this.
    let (_passt, network) = network(&mut request, &mut facts, &dir)?;
    let vm = plan::vm(&request, &facts, &name, dir.socket(), from_ns);
    let vm = VmSpec { nets: network.nets, ..vm };
    // Another kernel is for one to find out what it does, from its beginning.
    let template = launch::template(&vm, &facts.vmm, root, cold || request.kernel.is_some());
    // Before the VMM is there: none may be lost.
    let signals = Signals::block().map_err(RunError::Signals)?;
    let course = Course::by(template.as_ref());
    let started_as = VmSpec { nets: Vec::new(), ..vm.clone() };
    let vmm = Vmm::start(&facts.vmm, vm, &dir, input(&request), course)?;
    timeline.mark("spawned");
    // The VMM has them now, and the taps are to go with it.
    drop(network.taps);
    let container = plan::container(&request, &facts, &name, clock_ns());
    let root = match &image {
        Some((container, _)) => machine_id::Root::Open(container.root()),
        None => machine_id::Root::At(&facts.rootfs),
    };
    let machine_id = machine_id::for_container(root)?;
    let container = ContainerSpec { network: Some(network.spec).into(), machine_id, ..container };
    let process = container.process.get_or_default().clone();
    let container = foresight::add(root, container);
    let agent = match Agent::connect(&dir.socket(), container) {
        Ok(agent) => agent,
        Err(error) => return unreachable(vmm, error),
    };
    let layer = image.as_ref().map(|(container, _)| container.path().to_owned());
    write_down(&dir, &vmm, started_as, course.mapped(), layer, &process)?;
    let raw_wanted = request.tty && request.interactive;
    let session = Session::new(vmm, agent, signals, facts.window, raw_wanted, &timeline);
    let session = session.with_stop_signal(facts.image.and_then(|image| image.stop_signal));
    let ended = session.run().map_err(RunError::Session)?;
    if request.timeline {
        let guest = ended.report.iter().flat_map(|report| report.timeline.iter().cloned());
        eprint!("{}", timeline::table(timeline.marks().into_iter().chain(guest).collect()));
    }
    exit_code(ended)
}

/// The container's network, and what has to live as long as it. passt's comes with a name server, for
/// a file that is mounted like a volume.
fn network(
    request: &mut Request,
    facts: &mut Facts,
    dir: &VmDir,
) -> Result<(Option<Passt>, Network), RunError> {
    let ports = match &request.network {
        request::Network::None => return Ok((None, Network::default())),
        request::Network::Namespace(path) => return Ok((None, Network::take_over(path)?)),
        request::Network::Passt(ports) => ports,
    };
    let (passt, network) = Passt::start(ports)?;
    if request.volumes.iter().all(|volume| volume.guest != RESOLV_CONF) {
        let file = dir.path().join(state::RESOLV_CONF);
        fs::write(&file, passt::resolv_conf()).map_err(|source| StateError::Io {
            action: "write",
            path: file.clone(),
            source,
        })?;
        let guest = RESOLV_CONF.to_owned();
        request.volumes.push(Volume { host: file.clone(), guest, read_only: true });
        facts.volumes.push(file);
    }
    Ok((Some(passt), network))
}

/// Nobody to connect to: the VMM has ended already, and that says more than our error.
fn unreachable(vmm: Vmm, error: AgentError) -> Result<u8, RunError> {
    /// How long a VMM may be gone before it can be waited for.
    const END_MAX: Duration = Duration::from_secs(2);
    if !vmm.has_ended_within(END_MAX) {
        return Err(error.into());
    }
    let (status, report) = vmm.wait().map_err(RunError::Session)?;
    exit_code(Ended { status, report, cause: None })
}

/// Lets other verbs (exec, kill, ps, list) find the container while it runs.
fn write_down(
    dir: &VmDir,
    vmm: &Vmm,
    vm: VmSpec,
    memory: Option<PathBuf>,
    image: Option<PathBuf>,
    process: &Process,
) -> Result<(), RunError> {
    let record = Record {
        id: vm.name.clone(),
        bundle: Default::default(),
        rootfs: Default::default(),
        oci_version: features::VERSIONS[1].to_owned(),
        annotations: Default::default(),
        created: clock::now_rfc3339(),
        cgroups_path: None,
        systemd_cgroup: false,
        vm: Some(vm),
        memory,
        image,
        member: None,
        process: HostProcess::identify(vmm.pid()).map_err(RunError::Session)?,
        phase: Phase::Running,
    };
    Ok(oci::container::Container::write_run(dir.path(), &record, process)?)
}

/// The root of an image's container, and what the image says about it.
fn image(request: &Request) -> Result<Option<(Container, ImageFacts)>, ImageError> {
    let request::Root::Image(name) = &request.root else { return Ok(None) };
    let store = Store::choose()?;
    let record = images::obtain(&store, name, &Dirs::of_this_process())?;
    let container = images::container(&store, &record, request.read_only)?;
    let config = &container.config;
    let stop_signal = config.stop_signal.as_deref().map(signal::parse).transpose()?;
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let facts = ImageFacts {
        root_fd: container.root().as_raw_fd(),
        args: config.args(request.entrypoint.as_deref(), &request.command)?,
        env: config.variables().into_iter().map(owned).collect(),
        workdir: config.workdir.clone(),
        user: config.user.clone(),
        stop_signal: stop_signal.map(i32::from),
    };
    Ok(Some((container, facts)))
}

fn input(request: &Request) -> Input {
    match (request.interactive, request.tty) {
        (true, _) => Input::Inherited,
        (false, true) => Input::Silent,
        (false, false) => Input::Empty,
    }
}

fn random_name() -> Result<String, RunError> {
    let mut bytes = [0; NAME_BYTES];
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::rand::getrandom(&mut bytes, flags).map_err(|error| RunError::Name(error.into()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn clock_ns() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(0)
}

/// What came first counts: a failure to start, the VMM's report, why we ended the VM, how it died.
fn exit_code(ended: Ended) -> Result<u8, RunError> {
    let vm = |message: String, kernel_log| RunError::Vm { message, kernel_log };
    match (ended.cause, ended.report) {
        (Some(Cause::StartFailed(failure)), _) => Err(RunError::Start(failure)),
        (_, Some(Report { outcome: Outcome::Exited { code, .. }, .. })) => Ok(code),
        (_, Some(Report { outcome: Outcome::Failed { message, kernel_log }, .. })) => {
            Err(vm(message, kernel_log))
        }
        (_, Some(Report { outcome: Outcome::Saved, .. })) => {
            Err(vm("bulkhead-vmm saved a VM that it was to run".to_owned(), Vec::new()))
        }
        (Some(Cause::Signal(signal)), None) => {
            Ok(u8::try_from(signal).map_or(EXIT_FAILED, |signal| EXIT_SIGNAL | signal))
        }
        (Some(Cause::Agent(error)), None) => Err(error.into()),
        (None, None) => Err(vm(vmm::describe(ended.status), Vec::new())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn ended(cause: Option<Cause>, outcome: Option<Outcome>) -> Ended {
        let report = outcome.map(|outcome| Report { outcome, timeline: Vec::new() });
        Ended { status: ExitStatus::from_raw(9), report, cause }
    }

    fn start_failure(errno: i32) -> Cause {
        let errno = errno as u32;
        Cause::StartFailed(StartFailure { errno, message: "x".into(), ..Default::default() })
    }

    fn code(cause: Option<Cause>, outcome: Option<Outcome>) -> u8 {
        exit_code(ended(cause, outcome)).unwrap_or_else(|error| error.exit_code())
    }

    #[test]
    fn the_exit_code_is_the_process_s_or_says_what_failed() {
        let exited = |code| Some(Outcome::Exited { code, oom_killed: false });
        let failed = Outcome::Failed { message: "m".into(), kernel_log: vec!["l".into()] };
        assert_eq!(code(None, exited(0)), 0);
        assert_eq!(code(None, exited(143)), 143);
        assert_eq!(code(None, Some(failed)), 125);
        assert_eq!(code(None, None), 125);
        assert_eq!(code(Some(start_failure(libc::ENOENT)), None), 127);
        assert_eq!(code(Some(start_failure(libc::EACCES)), None), 126);
        assert_eq!(code(Some(start_failure(libc::ENOENT)), exited(1)), 127);
        assert_eq!(code(Some(Cause::Signal(libc::SIGINT)), None), 130);
        assert_eq!(code(Some(Cause::Signal(libc::SIGINT)), exited(3)), 3);
        assert_eq!(code(Some(Cause::Agent(AgentError::Closed)), None), 125);
    }

    #[test]
    fn a_vm_s_own_words_come_before_ours() {
        let failed = Outcome::Failed { message: "panic".into(), kernel_log: vec!["l".into()] };
        let cause = Some(Cause::Agent(AgentError::Closed));
        let error = exit_code(ended(cause, Some(failed))).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kernel_log().len()), ("panic", 1));
        let error = exit_code(ended(None, None)).unwrap_err().to_string();
        assert!(error.contains("killed by signal 9"), "{error}");
    }

    #[test]
    fn random_names_are_names_and_differ() {
        let [one, two] = [(); 2].map(|()| random_name().unwrap());
        assert_eq!(one.len(), 12);
        assert_ne!(one, two);
    }
}
