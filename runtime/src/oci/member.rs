//! A container in the VM of another, whose network it joined.
//!
//! ```text
//!  bulkhead create ── fork ──▶ bulkhead-member ══ agent's service ══ the VM of another container
//!        │                      (stays)        ── control socket ──▶ its shares, added and taken away
//!        └── hooks, record: as for any container
//! ```
//!
//! What stays is a process of the caller's that is for the container what a VMM is for its own: it holds
//! the streams, the lock of the container's directory and the connection that the container came by and
//! ends with; signals that reach it reach the container; it ends with the container's exit code.

use std::ffi::CStr;
use std::fs;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use bulkhead_protocol::rpc::agent::{
    ContainerSpec, CreateContainerRequest, CreateContainerResponse, Setting,
    UpdateResourcesRequest, UpdateResourcesResponse,
};
use bulkhead_vmm::control::NewShare;
use bulkhead_vmm::fs_worker;
use bulkhead_vmm::spec::{Outcome, Report, Share};

use super::background::{self, Side};
use super::bundle::Bundle;
use super::cgroup::{HostCgroup, Limits};
use super::console;
use super::container::{Container, REPORT};
use super::create::{self, CreateError, Origin, Ours, Wanted};
use super::detached::Detached;
use super::exec::{Ended, Session};
use super::overlays::Overlays;
use super::plan;
use super::record::{HostProcess, Membership, Record};
use crate::agent::AgentError;
use crate::state::{Root, VmDir};

/// The name of the process that stays (at most 15 bytes).
pub const COMM: &CStr = c"bulkhead-member";
/// What one exits with that never stood for a container.
const NEVER_RAN: i32 = 1;

/// Creates a container in the VM of `host`; it lives on only if what stays is let go.
pub fn create(
    wanted: Wanted<'_>,
    spec: ContainerSpec,
    host: &Container,
    root: &Root,
) -> Result<(Container, Detached), CreateError> {
    let Ours { bundle, settings } = wanted.ours;
    if !matches!(wanted.origin, Origin::Template | Origin::Boot) {
        return Err(CreateError::MemberSaved);
    }
    let walls = settings.walls(&bundle.annotations())?;
    if walls != settings.walls(&host.record.annotations)? {
        return Err(CreateError::MemberWalls(host.id.clone()));
    }
    let dir = create::claim(wanted, root)?;
    let mut record = create::record(wanted);
    // The VM is held to limits already, and the container to its own in there.
    let cgroup = create::cgroup(&record, &Limits::default())?;
    let made = make(wanted, spec, host, &dir, &mut record, cgroup.as_ref());
    create::conclude(wanted, root, dir, cgroup, made)
}

/// Forks off what stays, with the hooks before and after.
fn make(
    wanted: Wanted<'_>,
    spec: ContainerSpec,
    host: &Container,
    dir: &VmDir,
    record: &mut Record,
    cgroup: Option<&HostCgroup>,
) -> Result<Detached, CreateError> {
    let hooks = wanted.ours.bundle.spec.hooks().clone().unwrap_or_default();
    create::before_create(&hooks, record)?;
    let console = create::console(wanted, &spec)?;
    let entrances = cgroup.map(HostCgroup::entrances).transpose()?.unwrap_or_default();
    let (leash_end, leash) = io::pipe().map_err(CreateError::Fork)?;
    let mut detached = match background::fork().map_err(CreateError::Fork)? {
        Side::Background(background) => {
            drop(leash);
            let terminal = console.map(|console| console.slave);
            let mut background = Some(background);
            let started = || background.take().map_or((), background::Background::started);
            let bundle = &wanted.ours.bundle;
            let stay = Stay { spec, bundle, host, dir, leash: Some(leash_end) };
            let code = match enter(entrances, terminal).and_then(|()| stay.run(started)) {
                Ok(code) => code.into(),
                Err(error) => {
                    if let Some(background) = background.take() {
                        background.failed(&error.to_string());
                    }
                    NEVER_RAN
                }
            };
            // Nothing of the caller's is to be undone by its copy.
            // SAFETY: _exit touches no memory.
            unsafe { libc::_exit(code) }
        }
        Side::Caller(caller) => {
            let pid = caller.pid;
            caller.wait().map_err(CreateError::Member)?;
            Detached::of(pid, leash).map_err(CreateError::Fork)?
        }
    };
    record.process = detached.process;
    let shares = plan::shares(&wanted.ours.bundle);
    record.member = Some(Membership {
        of: host.id.to_string(),
        shares: shares.iter().map(|share| share_name(detached.process, &share.name)).collect(),
    });
    let rest = || -> Result<(), CreateError> {
        create::after_create(&hooks, record)?;
        if let (Some(console), Some(socket)) = (console, &wanted.args.console_socket) {
            console.send(socket)?;
        }
        Ok(Container::write(dir.path(), record)?)
    };
    rest().inspect_err(|_| detached.kill())?;
    Ok(detached)
}

/// Enters the container's cgroup and terminal, under a name of its own.
fn enter(cgroups: Vec<OwnedFd>, terminal: Option<OwnedFd>) -> Result<(), CreateError> {
    for cgroup in cgroups {
        // 0 is the writer itself (admin-guide/cgroup-v2.rst, "Processes").
        rustix::io::write(&cgroup, b"0").map_err(|errno| CreateError::Fork(errno.into()))?;
    }
    rustix::thread::set_name(COMM).map_err(|errno| CreateError::Fork(errno.into()))?;
    terminal.map_or(Ok(()), |terminal| Ok(console::take(terminal)?))
}

/// The process that stays.
struct Stay<'a> {
    spec: ContainerSpec,
    bundle: &'a Bundle,
    host: &'a Container,
    dir: &'a VmDir,
    /// Until the container is there.
    leash: Option<PipeReader>,
}

impl Stay<'_> {
    /// Has the container created, says so by `started`, and stays until it has ended; returns its exit code.
    fn run(mut self, started: impl FnOnce()) -> Result<u8, CreateError> {
        let process =
            HostProcess::identify(rustix::process::getpid()).map_err(CreateError::Fork)?;
        let mut shares = plan::shares(self.bundle);
        let overlays = Overlays::mount(self.bundle, false)?;
        overlays.give_to(&mut shares);
        // Whoever opens the shares takes their descriptors over.
        std::mem::forget(overlays);
        let name = |share: &str| share_name(process, share);
        plan::rename_shares(&mut self.spec, name);
        for share in &mut shares {
            share.name = name(&share.name);
        }
        let names: Vec<String> = shares.iter().map(|share| share.name.clone()).collect();
        self.add(&shares)?;
        let ended = self.attend(started);
        if let Ok(ended) = &ended {
            self.report(*ended);
        }
        take_away(self.host, &names);
        Ok(ended?.code)
    }

    fn add(&self, shares: &[Share]) -> Result<(), CreateError> {
        let opened = shares.iter().map(fs_worker::open).collect::<Result<Vec<_>, _>>();
        let opened = opened.map_err(|error| CreateError::Member(error.to_string()))?;
        let shares: Vec<NewShare<'_>> = shares
            .iter()
            .zip(&opened)
            .map(|(share, fd)| NewShare {
                name: &share.name,
                readonly: share.readonly,
                fd: fd.as_fd(),
            })
            .collect();
        self.host
            .control()
            .and_then(|mut control| control.share(&shares))
            .map_err(|error| CreateError::Member(error.to_string()))
    }

    fn attend(&mut self, started: impl FnOnce()) -> Result<Ended, CreateError> {
        let agent = self.host.agent(create::SETUP_MAX)?;
        let id = self.dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let process = self.spec.process.mut_or_insert_default();
        let mut session = Session::begin(agent, id.clone(), process)?;
        session.leash = self.leash.take();
        let request = CreateContainerRequest {
            container: Some(std::mem::take(&mut self.spec)).into(),
            id,
            ..Default::default()
        };
        let response: CreateContainerResponse =
            session.agent.call("CreateContainer", &request, create::SETUP_MAX)?;
        if let Some(failure) = response.failure.into_option() {
            return Err(CreateError::Start(failure));
        }
        let ports = [response.stdin_port, response.stdout_port, response.stderr_port];
        let outputs = session.join(ports, &self.host.socket())?;
        started();
        Ok(session.wait(outputs)?)
    }

    /// Writes down how it ended, for `state`.
    fn report(&self, Ended { code, oom_killed }: Ended) {
        let outcome = Outcome::Exited { code, oom_killed };
        let report = Report { outcome, timeline: Vec::new() };
        // The exit code tells, too.
        let _ = serde_json::to_vec(&report)
            .map_err(io::Error::from)
            .and_then(|json| fs::write(self.dir.path().join(REPORT), json));
    }
}

/// What a share is called beside those of other containers: no two that live have the same.
fn share_name(process: HostProcess, share: &str) -> String {
    format!("m{}-{}-{share}", process.pid, process.start_ticks)
}

/// Takes shares away from a VM, which need not be there any more.
fn take_away(container: &Container, names: &[String]) {
    let _ = container.control().and_then(|mut control| control.unshare(names));
}

/// Takes away what is left of a container whose process was killed, and could not.
pub fn clean_up(container: &Container) {
    if let Some(member) = &container.record.member {
        take_away(container, &member.shares);
    }
}

/// Stops all processes of a container that is in another's VM, or lets them go on.
pub fn freeze(container: &Container, frozen: bool, patience: Duration) -> Result<(), AgentError> {
    let value = if frozen { "1" } else { "0" }.to_owned();
    let setting = Setting { name: "cgroup.freeze".to_owned(), value, ..Default::default() };
    let request = UpdateResourcesRequest {
        cgroup: vec![setting],
        container: container.name_in_vm(),
        ..Default::default()
    };
    let _: UpdateResourcesResponse =
        container.agent(patience)?.call("UpdateResources", &request, patience)?;
    Ok(())
}
