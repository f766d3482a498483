//! The methods of the ttrpc service (resources/proto/agent.proto).

use std::os::fd::{AsFd as _, OwnedFd};

use bulkhead_protocol::rpc::agent::{
    CreateContainerRequest, CreateContainerResponse, ExecRequest, ExecResponse, Process,
    ResizeRequest, ResizeResponse, SignalRequest, SignalResponse, StartContainerRequest,
    StartContainerResponse, StartFailure, WaitRequest, WaitResponse,
};
use bulkhead_protocol::{BootMark, HostEvent};
use rustix::process::Pid;
use ttrpc::proto::Codec;
use ttrpc::{Code, Status};

use crate::agent::{Agent, ExecEntry, SourceId};
use crate::container::Container;
use crate::guest::Guest;
use crate::hooks;
use crate::limits;
use crate::log::log;
use crate::network::NetworkError;
use crate::process::{Course, step};
use crate::rpc::{Call, Outcome, refuse};
use crate::stdio::{self, Ends, Stream};
use crate::vsock::Listener;

const SERVICE: &str = "bulkhead.agent.v1.Agent";
/// Processes of Exec remembered at a time; beyond it those that ended are forgotten.
const EXECS_MAX: usize = 256;
/// Real-time signals end here (signal(7)).
const SIGNAL_MAX: u32 = 64;

impl Agent {
    /// Carries a call out. `None` means that the answer comes later.
    pub(crate) fn dispatch(&mut self, client: SourceId, call: Call) -> Option<Outcome> {
        let (stream, request) = (call.stream, call.request);
        let payload = request.payload.as_slice();
        if request.service != SERVICE {
            let message = format!("there is no service {:?} here", request.service);
            return Some(Err(refuse(Code::UNIMPLEMENTED, message)));
        }
        Some(match request.method.as_str() {
            "CreateContainer" => {
                call_with(payload, |request| Ok(self.create_container(client, request)))
            }
            "StartContainer" => call_with(payload, |request| self.start_container(request)),
            "Exec" => call_with(payload, |request| self.exec(client, request)),
            "Wait" => return self.wait(client, stream, payload),
            "Signal" => call_with(payload, |request| self.signal(request)),
            "Resize" => call_with(payload, |request| self.resize(request)),
            "Processes" => call_with(payload, |request| self.processes(request)),
            "UpdateResources" => call_with(payload, |request| self.update_resources(request)),
            "Checkpoint" => call_with(payload, |request| self.checkpoint(request)),
            "Restore" => call_with(payload, |request| self.restore(request)),
            "Stats" => call_with(payload, |request| self.stats(request)),
            method => Err(refuse(Code::UNIMPLEMENTED, format!("there is no method {method:?}"))),
        })
    }

    fn create_container(
        &mut self,
        client: SourceId,
        request: CreateContainerRequest,
    ) -> CreateContainerResponse {
        let created = match request.id.is_empty() {
            true => self
                .try_create(&request)
                .map(|pid| CreateContainerResponse { pid, ..Default::default() }),
            false => self.add_member(client, &request),
        };
        created.unwrap_or_else(|failure| CreateContainerResponse {
            failure: Some(failure).into(),
            ..Default::default()
        })
    }

    /// A container, by the name that calls have for it, and the guest it is in.
    pub(crate) fn container(&self, id: &str) -> Result<(&Container, &Guest), Status> {
        let container = match id {
            "" => self.container.as_ref(),
            id => self.members.get(id),
        };
        container.zip(self.guest.as_ref().ok()).ok_or_else(no_container)
    }

    fn try_create(&mut self, request: &CreateContainerRequest) -> Result<u32, StartFailure> {
        let spec = request.container.get_or_default();
        if self.container.is_some() {
            return Err(failure(libc::EEXIST, "there is a container in this VM already"));
        }
        let guest = self.guest.as_ref().map_err(|error| {
            failure(error.source.raw_os_error(), &format!("the guest is not ready: {error}"))
        })?;
        if spec.clock_ns != 0 && !self.clock_is_set {
            guest.set_clock(spec.clock_ns).map_err(step("set the clock"))?;
        }
        limits::set(guest.cgroup.as_ref(), &spec.cgroup, &spec.device_rules)?;
        guest.set_network(spec.network.get_or_default()).map_err(no_network)?;
        let sockets = self.connect(stdio::wanted(spec.process.get_or_default()))?;
        let course = if request.start { Course::Fast } else { Course::Gated };
        let (mut container, ends) = Container::spawn(spec, course, guest, self.null.as_fd(), None)?;
        if course == Course::Gated {
            container.launch.created()?;
        } else {
            container.launch.started()?;
            container.started = true;
            self.marks.stamp(BootMark::Started);
        }
        let pid = raw(container.launch.pid);
        self.container = Some(container);
        self.network.clone_from(spec.network.get_or_default());
        self.join(ends, sockets);
        if request.host_events {
            self.take_host_events();
        }
        Ok(pid)
    }

    fn start_container(
        &mut self,
        request: StartContainerRequest,
    ) -> Result<StartContainerResponse, Status> {
        let container = match request.container.as_str() {
            "" => self.container.as_mut(),
            id => self.members.get_mut(id),
        };
        let container = container.ok_or_else(no_container)?;
        if container.started {
            return Err(refuse(Code::FAILED_PRECONDITION, "the container was started already"));
        }
        let network = request.network.get_or_default();
        let prepared = match &self.guest {
            Ok(guest) => guest.add_network(network).map_err(no_network).and_then(|()| {
                let null = self.null.as_fd();
                hooks::run(&request.hooks, &request.state, container, guest, null)
            }),
            Err(_) => Ok(()),
        };
        let started = prepared.and_then(|()| {
            container.launch.go();
            container.launch.started()
        });
        let failure = started.err();
        container.started = failure.is_none();
        if !network.interfaces.is_empty() {
            self.network.clone_from(network);
        }
        if container.started {
            self.marks.stamp(BootMark::Started);
        }
        Ok(StartContainerResponse { failure: failure.into(), ..Default::default() })
    }

    fn exec(&mut self, client: SourceId, request: ExecRequest) -> Result<ExecResponse, Status> {
        let taken = self.execs.get(&request.id).is_some_and(|entry| entry.ended.is_none());
        if request.id.is_empty() || taken {
            let message = format!("the process ID {:?} is taken", request.id);
            return Err(refuse(Code::ALREADY_EXISTS, message));
        }
        self.container(&request.container)?;
        Ok(self.try_exec(client, &request).unwrap_or_else(|failure| ExecResponse {
            failure: Some(failure).into(),
            ..Default::default()
        }))
    }

    fn try_exec(
        &mut self,
        client: SourceId,
        request: &ExecRequest,
    ) -> Result<ExecResponse, StartFailure> {
        let (container, guest) = self
            .container(&request.container)
            .map_err(|_| failure(libc::ESRCH, "there is no container"))?;
        let process = request.process.get_or_default();
        let listeners = self.listeners(process)?;
        let (exec, ends) = container.exec(process, guest, self.null.as_fd())?;
        exec.launch.started()?;
        let Ports { stdin, stdout, stderr } = self.offer_all(&request.id, ends, listeners);
        let pid = exec.launch.pid;
        let response = ExecResponse {
            pid: raw(pid),
            stdin_port: stdin,
            stdout_port: stdout,
            stderr_port: stderr,
            ..Default::default()
        };
        let leash = request.kill_on_hangup.then_some(client);
        self.remember(&request.id, pid, exec.terminal, leash);
        Ok(response)
    }

    /// Listens once for each stream that `process` is to have.
    pub(crate) fn listeners(&self, process: &Process) -> Result<Vec<Listener>, StartFailure> {
        let listeners = stdio::wanted(process).map(|_| self.transport.listen(None));
        listeners.collect::<std::io::Result<_>>().map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            failure(errno, &format!("cannot listen for the standard streams: {error}"))
        })
    }

    /// Offers the streams of the process named `id`, each on its listener.
    pub(crate) fn offer_all(&mut self, id: &str, ends: Ends, listeners: Vec<Listener>) -> Ports {
        let mut ports = Ports::default();
        self.close_offers(id);
        for ((stream, end), listener) in ends.into_iter().zip(listeners) {
            *match stream {
                Stream::Stdin | Stream::Terminal => &mut ports.stdin,
                Stream::Stdout => &mut ports.stdout,
                Stream::Stderr => &mut ports.stderr,
            } = listener.port();
            self.offer(stream, end, listener, Some(id.to_owned()));
        }
        ports
    }

    /// Keeps a process in mind for Wait, Signal and Resize.
    pub(crate) fn remember(
        &mut self,
        id: &str,
        pid: Pid,
        terminal: Option<OwnedFd>,
        leash: Option<SourceId>,
    ) {
        if self.execs.len() >= EXECS_MAX {
            self.execs.retain(|id, entry| entry.ended.is_none() || self.members.contains_key(id));
        }
        let entry = ExecEntry { pid, terminal, ended: None, waiters: Vec::new(), leash };
        self.execs.insert(id.to_owned(), entry);
    }

    fn wait(&mut self, client: SourceId, stream: u32, payload: &[u8]) -> Option<Outcome> {
        let request = match decode::<WaitRequest>(payload) {
            Ok(request) => request,
            Err(status) => return Some(Err(status)),
        };
        match self.execs.get_mut(&request.id) {
            None => Some(Err(no_process(&request.id))),
            Some(entry) => {
                entry.waiters.push((client, stream));
                self.answer_waiters(&request.id);
                None
            }
        }
    }

    /// If the process of Exec has ended, tells those who wait for it and forgets it.
    pub(crate) fn answer_waiters(&mut self, id: &str) {
        let Some(entry) = self.execs.get(id) else { return };
        let Some(code) = entry.ended.filter(|_| !entry.waiters.is_empty()) else { return };
        let oom_killed = self.forget_member(id);
        let response =
            WaitResponse { exit_code: u32::from(code), oom_killed, ..Default::default() };
        let waiters = self.execs.remove(id).map(|entry| entry.waiters).unwrap_or_default();
        for (client, stream) in waiters {
            self.answer(client, stream, encode(&response));
        }
        self.close_offers(id);
    }

    fn signal(&mut self, request: SignalRequest) -> Result<SignalResponse, Status> {
        if request.signal > SIGNAL_MAX {
            let message = format!("there is no signal {}", request.signal);
            return Err(refuse(Code::INVALID_ARGUMENT, message));
        }
        let signal = request.signal as libc::c_int;
        let (container, _) = self.container(&request.container)?;
        let result = if request.all {
            container.signal_all(signal)
        } else {
            let pid = match request.id.as_str() {
                "" => container.launch.pid,
                id => match self.execs.get(id) {
                    Some(entry) if entry.ended.is_none() => entry.pid,
                    _ => return Err(no_process(id)),
                },
            };
            container.signal_process(pid, signal)
        };
        result
            .map(|()| SignalResponse::default())
            .map_err(|error| refuse(Code::INTERNAL, error.to_string()))
    }

    fn resize(&mut self, request: ResizeRequest) -> Result<ResizeResponse, Status> {
        let terminal = match request.id.as_str() {
            "" => self.container.as_ref().ok_or_else(no_container)?.terminal.as_ref(),
            id => match self.execs.get(id) {
                Some(entry) => entry.terminal.as_ref(),
                None => return Err(no_process(id)),
            },
        };
        let Some(terminal) = terminal else {
            return Err(refuse(Code::FAILED_PRECONDITION, "the process has no terminal"));
        };
        stdio::resize(terminal.as_fd(), request.rows, request.columns)
            .map(|()| ResizeResponse::default())
            .map_err(|error| refuse(Code::INTERNAL, format!("cannot resize the terminal: {error}")))
    }
}

impl Agent {
    /// What happened to the VMM's process happens to the container's: its failure there concerns
    /// nobody here.
    pub(crate) fn take_host_event(&mut self, event: HostEvent) {
        let Some(container) = &self.container else { return };
        let result = match (event, &container.terminal) {
            (HostEvent::Signal(signal), _) => {
                container.signal_process(container.launch.pid, signal.into())
            }
            (HostEvent::Window { rows, columns }, Some(terminal)) => {
                stdio::resize(terminal.as_fd(), rows.into(), columns.into())
                    .map_err(step("resize the terminal"))
            }
            (HostEvent::Window { .. }, None) => Ok(()),
        };
        if let Err(error) = result {
            log!("{error}");
        }
    }
}

fn call_with<Req: Codec + Default, Res: Codec>(
    payload: &[u8],
    method: impl FnOnce(Req) -> Result<Res, Status>,
) -> Outcome {
    encode(&method(decode(payload)?)?)
}

fn decode<M: Codec>(payload: &[u8]) -> Result<M, Status> {
    M::decode(payload)
        .map_err(|_| refuse(Code::INVALID_ARGUMENT, "the request is not valid protobuf"))
}

fn encode(message: &impl Codec) -> Outcome {
    message.encode().map_err(|_| refuse(Code::INTERNAL, "the response does not encode"))
}

/// Where the streams of a process wait for whoever wants them; 0 where there is none.
#[derive(Debug, Default)]
pub struct Ports {
    pub stdin: u32,
    pub stdout: u32,
    pub stderr: u32,
}

pub fn failure(errno: i32, message: &str) -> StartFailure {
    let errno = errno.unsigned_abs();
    StartFailure { message: message.to_owned(), errno, ..Default::default() }
}

fn no_network(error: NetworkError) -> StartFailure {
    failure(error.source.raw_os_error(), &error.to_string())
}

pub fn raw(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

pub fn no_container() -> Status {
    refuse(Code::FAILED_PRECONDITION, "there is no container yet")
}

fn no_process(id: &str) -> Status {
    refuse(Code::NOT_FOUND, format!("there is no running process {id:?}"))
}
