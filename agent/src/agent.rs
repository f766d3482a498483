//! The agent: one thread, one event loop, one container, and perhaps further ones beside it.
//!
//! ```text
//!            CreateContainer            StartContainer        its process ends
//!   no container ──────────▶ created ──────────────▶ started ──────────────────▶ draining
//!                  │  (start: both at once)             ▲ Exec, Signal, Resize      │ outputs
//!                  └──────────── failed: no container   └────────────────           ▼ are out
//!                                                                              exit report
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bulkhead_protocol::rpc::agent::NetworkSpec;
use bulkhead_protocol::{AGENT_PORT, BootMark, ExitReport, HostPort};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::boot_mark::BootMarks;
use crate::container::{Container, signal_one};
use crate::guest::{Guest, GuestError};
use crate::host_events::HostEvents;
use crate::identity;
use crate::log::log;
use crate::process::step;
use crate::reaper;
use crate::rpc::{Connection, Outcome};
use crate::stdio::{self, Direction, Ends, Progress, Pump, Stream};
use crate::vsock::{Listener, Transport};

/// How long the exit report waits for those who are to hear of a process of Exec that ended before.
const TELL_MAX: Duration = Duration::from_secs(2);
const TELL_STEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// How long the VMM may take to accept the exit report, seconds.
const REPORT_SECONDS_MAX: i64 = 5;
/// How long the VMM may take to end the VM after that, seconds: it may still be writing output.
const END_SECONDS_MAX: i64 = 10;

/// Names a source of events.
pub type SourceId = u64;

/// Whose stream it is: the container's, or that of the process of Exec named so.
pub type Owner = Option<String>;

/// What the event loop waits for.
#[derive(Debug)]
enum Source {
    /// Clients of the service.
    Clients(Listener),
    /// Ended children.
    Signals(OwnedFd),
    /// One client.
    Client(Connection),
    /// A stream of Exec that its caller has not connected to yet.
    Offer { listener: Listener, stream: Stream, end: OwnedFd, owner: Owner },
    /// A stream in use.
    Pump { pump: Pump, owner: Owner },
    /// What happens to the VMM's process.
    HostEvents(HostEvents),
}

/// A process of Exec, or of a further container, and those who wait for it.
#[derive(Debug)]
pub struct ExecEntry {
    /// The process.
    pub pid: Pid,
    /// The agent's end of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Its exit code, once it has ended.
    pub ended: Option<u8>,
    /// Calls of Wait to be answered: client and ttrpc stream.
    pub waiters: Vec<(SourceId, u32)>,
    /// The client whose end is the process's.
    pub leash: Option<SourceId>,
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    pub(crate) transport: Transport,
    pub(crate) guest: Result<Guest, GuestError>,
    pub(crate) marks: BootMarks,
    pub(crate) null: OwnedFd,
    /// The VMM has said what time it is.
    pub(crate) clock_is_set: bool,
    pub(crate) container: Option<Container>,
    /// What its network was last set up as.
    pub(crate) network: NetworkSpec,
    pub(crate) execs: BTreeMap<String, ExecEntry>,
    /// Further containers by ID, until their ends were told; their processes are in `execs`.
    pub(crate) members: BTreeMap<String, Container>,
    /// How many there have ever been.
    pub(crate) members_made: u64,
    /// The container stands still since before this VM was restored, until Restore.
    pub(crate) awaits_restore: bool,
    epoll: OwnedFd,
    sources: BTreeMap<SourceId, Source>,
    next_source: SourceId,
    /// Pumps that have more to move.
    unfinished: Vec<SourceId>,
    /// The container's exit code, and when it ended.
    exit: Option<(u8, Instant)>,
}

impl Agent {
    /// Listens, says so, and then makes the guest ready with `prepare`, while the host connects.
    /// What goes wrong with that is told to whoever wants to create a container.
    pub fn listen(
        transport: Transport,
        marks: BootMarks,
        null: OwnedFd,
        prepare: impl FnOnce() -> Result<Guest, GuestError>,
    ) -> std::io::Result<Self> {
        let signals = reaper::signals()?;
        let clients = transport.listen(Some(AGENT_PORT))?;
        marks.stamp(BootMark::AgentReady);
        let mut agent = Self {
            transport,
            guest: prepare(),
            marks,
            null,
            clock_is_set: false,
            container: None,
            network: NetworkSpec::default(),
            execs: BTreeMap::new(),
            members: BTreeMap::new(),
            members_made: 0,
            awaits_restore: false,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sources: BTreeMap::new(),
            next_source: 0,
            unfinished: Vec::new(),
            exit: None,
        };
        agent.add(Source::Signals(signals))?;
        agent.add(Source::Clients(clients))?;
        agent.clock_is_set = identity::assume(marks).clock_is_set;
        Ok(agent)
    }

    /// Serves until the container has ended and its output is out; returns its exit report.
    pub fn run(&mut self) -> ExitReport {
        let mut events = Vec::with_capacity(16);
        loop {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let timeout = match self.unfinished.is_empty() {
                false => Some(&now),
                true => self.is_to_tell().then_some(&TELL_STEP),
            };
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => log!("cannot wait for events: {error}"),
            }
            for id in std::mem::take(&mut self.unfinished) {
                self.handle(id, false);
            }
            for event in &events {
                let (flags, data) = (event.flags, event.data);
                self.handle(data.u64(), flags.contains(epoll::EventFlags::ERR));
            }
            if let Some(report) = self.finished() {
                return report;
            }
        }
    }

    /// The report, once nothing of the container is left to wait for.
    fn finished(&self) -> Option<ExitReport> {
        let (code, _) = self.exit?;
        let draining = self.sources.values().any(|source| match source {
            Source::Pump { pump, owner: None } => pump.direction() == Direction::Out,
            _ => false,
        });
        let own = || self.container.as_ref().zip(self.guest.as_ref().ok());
        let oom_killed = || own().is_some_and(|(own, guest)| own.oom_kills(guest) > 0);
        (!draining && !self.is_to_tell()).then(|| ExitReport { code, oom_killed: oom_killed() })
    }

    /// Whether the container has ended just now, and callers of Exec may be about to ask how a process
    /// ended before.
    fn is_to_tell(&self) -> bool {
        let is_untold = |entry: &ExecEntry| {
            let caller = entry.leash.filter(|client| self.sources.contains_key(client));
            entry.ended.is_some() && caller.is_some()
        };
        self.exit.is_some_and(|(_, since)| since.elapsed() < TELL_MAX)
            && self.execs.values().any(is_untold)
    }

    /// Waits for events of a source; edge-triggered, so each handler works until it would block.
    fn add(&mut self, source: Source) -> rustix::io::Result<SourceId> {
        let id = self.next_source;
        self.next_source += 1;
        let watch = |fd: BorrowedFd<'_>, flags| {
            epoll::add(
                &self.epoll,
                fd,
                epoll::EventData::new_u64(id),
                flags | epoll::EventFlags::ET,
            )
        };
        const IN: epoll::EventFlags = epoll::EventFlags::IN;
        const OUT: epoll::EventFlags = epoll::EventFlags::OUT;
        match &source {
            Source::Clients(listener) | Source::Offer { listener, .. } => {
                watch(listener.as_fd(), IN)?;
            }
            Source::Signals(fd) => watch(fd.as_fd(), IN)?,
            Source::HostEvents(events) => watch(events.as_fd(), IN)?,
            Source::Client(connection) => watch(connection.as_fd(), IN | OUT)?,
            Source::Pump { pump, .. } => {
                let [from, to] = pump.fds();
                watch(from, IN)?;
                watch(to, OUT)?;
            }
        }
        self.sources.insert(id, source);
        Ok(id)
    }

    fn handle(&mut self, id: SourceId, failed: bool) {
        match self.sources.get_mut(&id) {
            // Closed by an earlier event of the same batch.
            None => {}
            Some(Source::Clients(_)) => self.accept_clients(id),
            Some(Source::Signals(signals)) => {
                reaper::drain(signals);
                while let Some((pid, code)) = reaper::next_ended() {
                    self.ended(pid, code);
                }
            }
            Some(Source::Client(connection)) => {
                if connection.flush().is_err() {
                    self.lose_client(id);
                }
                self.serve(id);
            }
            Some(Source::Offer { .. }) => self.accept_offer(id),
            Some(Source::HostEvents(_)) => self.handle_host_events(id),
            Some(Source::Pump { pump, owner }) => {
                match if failed { Progress::Finished } else { pump.run() } {
                    Progress::Blocked => {
                        if owner.as_ref().is_some_and(|id| has_ended(&self.execs, id)) {
                            self.finish_pump(id);
                        }
                    }
                    Progress::More => self.unfinished.push(id),
                    Progress::Finished => drop(self.sources.remove(&id)),
                }
            }
        }
    }

    fn accept_clients(&mut self, id: SourceId) {
        while let Some(Source::Clients(listener)) = self.sources.get(&id) {
            match listener.accept() {
                Ok(Some(socket)) => {
                    if let Err(error) = self.add(Source::Client(Connection::new(socket))) {
                        log!("cannot serve a client: {error}");
                    }
                }
                Ok(None) => return,
                Err(error) => return log!("cannot accept a client: {error}"),
            }
        }
    }

    /// Takes and answers a client's calls.
    fn serve(&mut self, id: SourceId) {
        while let Some(Source::Client(connection)) = self.sources.get_mut(&id) {
            match connection.next_call() {
                Ok(Some(call)) => {
                    let stream = call.stream;
                    if let Some(outcome) = self.dispatch(id, call) {
                        self.answer(id, stream, outcome);
                    }
                }
                Ok(None) => return,
                Err(_) => self.lose_client(id),
            }
        }
    }

    /// Forgets a client, and ends the processes that it wanted to end with it.
    fn lose_client(&mut self, id: SourceId) {
        self.sources.remove(&id);
        let left = |entry: &&ExecEntry| entry.leash == Some(id) && entry.ended.is_none();
        for entry in self.execs.values().filter(left) {
            // One that ended just now is about to be reaped.
            let _ = signal_one(entry.pid, libc::SIGKILL);
        }
    }

    /// Takes what happens to the VMM's process from now on.
    pub(crate) fn take_host_events(&mut self) {
        let events = self.transport.connect(HostPort::Events).map(HostEvents::new);
        let added = events.and_then(|events| Ok(self.add(Source::HostEvents(events))?));
        if let Err(error) = added {
            log!("cannot take the host's events: {error}");
        }
    }

    fn handle_host_events(&mut self, id: SourceId) {
        while let Some(Source::HostEvents(events)) = self.sources.get_mut(&id) {
            match events.next() {
                Ok(Some(event)) => self.take_host_event(event),
                Ok(None) => return,
                Err(_) => drop(self.sources.remove(&id)),
            }
        }
    }

    /// Answers a call, if its client is still there.
    pub(crate) fn answer(&mut self, client: SourceId, stream: u32, outcome: Outcome) {
        if let Some(Source::Client(connection)) = self.sources.get_mut(&client)
            && connection.answer(stream, outcome).is_err()
        {
            self.lose_client(client);
        }
    }

    /// Joins the container's streams to the sockets made for them.
    pub(crate) fn join(&mut self, ends: Ends, sockets: Ends) {
        for ((stream, end), (_, socket)) in ends.into_iter().zip(sockets) {
            self.start_pumps(stream, end, socket, None);
        }
    }

    /// Offers a stream of Exec on a listener, for its caller to connect to.
    pub(crate) fn offer(&mut self, stream: Stream, end: OwnedFd, listener: Listener, owner: Owner) {
        if let Err(error) = self.add(Source::Offer { listener, stream, end, owner }) {
            log!("cannot offer a stream: {error}");
        }
    }

    fn accept_offer(&mut self, id: SourceId) {
        let Some(Source::Offer { listener, .. }) = self.sources.get(&id) else { return };
        let socket = match listener.accept() {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(error) => return log!("cannot accept a stream: {error}"),
        };
        if let Some(Source::Offer { stream, end, owner, .. }) = self.sources.remove(&id) {
            self.start_pumps(stream, end, socket, owner);
        }
    }

    fn start_pumps(&mut self, stream: Stream, end: OwnedFd, socket: OwnedFd, owner: Owner) {
        let add = |pump| self.add(Source::Pump { pump, owner: owner.clone() }).map(drop);
        let added = stdio::join(stream, end, socket).and_then(|p| p.into_iter().try_for_each(add));
        if let Err(error) = added {
            log!("cannot join a stream: {error}");
        }
    }

    /// Gives up on streams that the caller of Exec does not connect to.
    pub(crate) fn close_offers(&mut self, of: &str) {
        let is_of = |source: &Source| match source {
            Source::Offer { owner, .. } => owner.as_deref() == Some(of),
            _ => false,
        };
        let ids: Vec<_> =
            self.sources.iter().filter(|(_, s)| is_of(s)).map(|(id, _)| *id).collect();
        for id in ids {
            self.accept_offer(id);
            if self.sources.get(&id).is_some_and(is_of) {
                self.sources.remove(&id);
            }
        }
    }

    fn ended(&mut self, pid: Pid, code: u8) {
        if self.container.as_ref().is_some_and(|container| container.launch.pid == pid) {
            self.exit = Some((code, Instant::now()));
        }
        let entry = self.execs.iter_mut().find(|(_, e)| e.pid == pid && e.ended.is_none());
        if let Some((id, entry)) = entry {
            entry.ended = Some(code);
            let id = id.clone();
            let orphaned = entry.leash.is_some_and(|client| !self.sources.contains_key(&client));
            self.finish_streams(&id);
            self.answer_waiters(&id);
            if orphaned {
                // Nobody is going to ask.
                self.forget_member(&id);
                self.execs.remove(&id);
            }
        }
    }

    /// What a process of Exec wrote before it ended is its output; what its children may still write
    /// is not waited for, as with a process of the host whose pipes its caller closes.
    fn finish_streams(&mut self, id: &str) {
        let is_its = |source: &Source| match source {
            Source::Pump { owner, .. } => owner.as_deref() == Some(id),
            _ => false,
        };
        let pumps: Vec<_> =
            self.sources.iter().filter(|(_, s)| is_its(s)).map(|(id, _)| *id).collect();
        pumps.into_iter().for_each(|pump| self.handle(pump, false));
    }

    /// Closes a stream of a process that has ended, if all that it wrote was moved.
    fn finish_pump(&mut self, id: SourceId) {
        if let Some(Source::Pump { pump, .. }) = self.sources.get(&id)
            && pump.is_drained()
        {
            pump.finish();
            self.sources.remove(&id);
        }
    }

    /// Makes the connections for the container's streams, in the order of `streams`.
    pub(crate) fn connect(
        &self,
        streams: impl Iterator<Item = Stream>,
    ) -> Result<Ends, crate::process::ProcessError> {
        streams
            .map(|stream| Ok((stream, self.transport.connect(stream.host_port())?)))
            .collect::<std::io::Result<_>>()
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .map_err(step("connect the standard streams to the host"))
    }

    /// Writes the container's files back, reports, and waits for the VMM to end the VM.
    pub fn report(self, report: ExitReport) {
        if let Ok(guest) = &self.guest {
            guest.sync();
        }
        if let Err(error) = send_report(&self.transport, report) {
            log!("cannot report the exit code {}: {error}", report.code);
        }
    }
}

/// Whether a process of Exec has ended, or is forgotten since.
fn has_ended(execs: &BTreeMap<String, ExecEntry>, id: &str) -> bool {
    execs.get(id).is_none_or(|entry| entry.ended.is_some())
}

fn send_report(transport: &Transport, report: ExitReport) -> std::io::Result<()> {
    let socket = transport.connect(HostPort::Exit)?;
    wait_for(&socket, PollFlags::OUT, REPORT_SECONDS_MAX)?;
    // A new connection takes this much at once.
    rustix::io::write(&socket, &report.to_bytes())?;
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Write)?;
    wait_for(&socket, PollFlags::IN, END_SECONDS_MAX)
}

fn wait_for(socket: &impl AsFd, flags: PollFlags, seconds: i64) -> std::io::Result<()> {
    let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
    match rustix::event::poll(&mut [PollFd::new(socket, flags)], Some(&timeout))? {
        0 => Err(std::io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}
