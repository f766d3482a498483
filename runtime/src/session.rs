//! A running VM seen from outside: signals go in, the end comes out.
//!
//! ```text
//!            agent answers         process started
//!   booting ───────────────▶ creating ───────────────▶ running
//!      │ INT, TERM, ...          │ start failure          │ signals are passed on
//!      └───────── VMM killed ◀───┴───── second call ◀─────┤
//!                     └──────────▶ ended ◀────────────────┘ VMM ends by itself
//! ```
//!
//! One thread, one poll(2) over signals, the VMM's pidfd and report, and the agent's socket. The
//! session ends when the VMM has ended, never before.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use bulkhead_protocol::rpc::agent::StartFailure;
use bulkhead_vmm::spec::Report;
use bulkhead_vmm::timeline::Timeline;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::Winsize;

use crate::agent::{Agent, AgentError, Event};
use crate::terminal::{self, Raw};
use crate::vmm::Vmm;
use bulkhead_vmm::signals::Signals;

/// How long a container has to end once it was asked to, before asking again ends the VM.
const GRACE: Duration = Duration::from_secs(10);
/// How long a guest may take to boot and to make the container: far longer than the slowest that was
/// seen.
const START_MAX: Duration = Duration::from_secs(240);
/// How long a VMM may outlive the connection to its agent before the container runs.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Booting,
    Creating,
    Running,
}

/// Why the session ended the VM.
#[derive(Debug)]
pub enum Cause {
    /// The container's process could not be executed.
    StartFailed(StartFailure),
    /// A signal came that nobody inside took.
    Signal(i32),
    /// The agent failed before the container ran.
    Agent(AgentError),
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Of the VMM.
    pub status: ExitStatus,
    /// The VMM's report, if it wrote one.
    pub report: Option<Report>,
    /// Why the session ended the VM, if it did.
    pub cause: Option<Cause>,
}

/// A running VM.
pub struct Session<'a> {
    vmm: Vmm,
    agent: Option<Agent>,
    signals: Signals,
    timeline: &'a Timeline,
    phase: Phase,
    /// The size the container's terminal was given, if it has one.
    window: Option<Winsize>,
    /// The caller's terminal is to be raw while the container has it.
    raw_wanted: bool,
    raw: Option<Raw>,
    cause: Option<Cause>,
    /// What SIGTERM is passed on as.
    stop_signal: i32,
    /// When the first signal was passed on that containers end at.
    asked_to_end: Option<Instant>,
    /// When a VM is ended that has not got its container to run, or lost its agent before, and what is
    /// said then.
    farewell: Option<(Instant, AgentError)>,
}

/// What poll(2) found.
struct Ready {
    signals: bool,
    ended: bool,
    report: bool,
    agent: bool,
}

impl<'a> Session<'a> {
    /// A session on a VM that has been started. With `window`, the container has a terminal of that
    /// size; with `raw_wanted`, the caller types at it.
    pub fn new(
        vmm: Vmm,
        agent: Agent,
        signals: Signals,
        window: Option<Winsize>,
        raw_wanted: bool,
        timeline: &'a Timeline,
    ) -> Self {
        Self {
            vmm,
            agent: Some(agent),
            signals,
            timeline,
            phase: Phase::Booting,
            window,
            raw_wanted,
            raw: None,
            cause: None,
            stop_signal: libc::SIGTERM,
            asked_to_end: None,
            farewell: Some((Instant::now() + START_MAX, AgentError::Silent)),
        }
    }

    /// The same for a container that is asked to end by another signal than SIGTERM.
    pub fn with_stop_signal(self, stop_signal: Option<i32>) -> Self {
        Self { stop_signal: stop_signal.unwrap_or(libc::SIGTERM), ..self }
    }

    /// Runs until the VM has ended. The terminal is as it was then.
    pub fn run(mut self) -> io::Result<Ended> {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    self.vmm.kill();
                    self.vmm.wait()?;
                    return Err(error);
                }
            };
            if ready.report {
                self.vmm.read_report();
            }
            if ready.agent {
                self.serve_agent();
            }
            if ready.ended {
                break;
            }
            if ready.signals {
                for signal in self.signals.read()? {
                    self.take_signal(signal);
                }
            }
            self.end_if_overdue();
        }
        drop(self.raw);
        let (status, report) = self.vmm.wait()?;
        Ok(Ended { status, report, cause: self.cause })
    }

    fn wait(&self) -> io::Result<Ready> {
        let signals = PollFd::new(&self.signals, PollFlags::IN);
        let pidfd = self.vmm.pidfd();
        let mut fds = vec![signals, PollFd::new(&pidfd, PollFlags::IN)];
        let report = self.vmm.report_fd();
        let report_at = report.as_ref().map(|fd| push(&mut fds, fd, PollFlags::IN));
        let agent = self.agent.as_ref();
        let agent_at = agent.map(|agent| push(&mut fds, agent, agent.interest()));
        let left = self.farewell.as_ref().map(|(until, _)| {
            let left = until.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        rustix::io::retry_on_intr(|| poll(&mut fds, left.as_ref()))?;
        let ready = |at: usize| !fds[at].revents().is_empty();
        Ok(Ready {
            signals: ready(0),
            ended: ready(1),
            report: report_at.is_some_and(ready),
            agent: agent_at.is_some_and(ready),
        })
    }

    fn serve_agent(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        match agent.process() {
            Ok(events) => events.into_iter().for_each(|event| self.take_event(event)),
            Err(error) => self.lose_agent(error),
        }
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Connected => {
                debug_assert_eq!(self.phase, Phase::Booting);
                self.timeline.mark("connected");
                self.phase = Phase::Creating;
                // Until here the keys that interrupt do so; from here on the container gets them.
                if self.raw_wanted {
                    self.raw = Raw::enter().unwrap_or(None);
                }
            }
            Event::Started => {
                debug_assert_eq!(self.phase, Phase::Creating);
                self.timeline.mark("start_confirmed");
                self.phase = Phase::Running;
                self.farewell = None;
                self.resize();
            }
            Event::StartFailed(failure) => self.end(Cause::StartFailed(failure)),
        }
    }

    fn take_signal(&mut self, signal: i32) {
        if signal == libc::SIGWINCH {
            return self.resize();
        }
        let ends = matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT);
        let reachable = self.agent.is_some() && self.phase == Phase::Running;
        let in_vain = self.asked_to_end.is_some_and(|asked| asked.elapsed() > GRACE);
        if ends && (!reachable || in_vain) {
            return self.end(Cause::Signal(signal));
        }
        if matches!(signal, libc::SIGINT | libc::SIGTERM) {
            self.asked_to_end.get_or_insert_with(Instant::now);
        }
        let signal = if signal == libc::SIGTERM { self.stop_signal } else { signal };
        if let Some(Err(error)) = self.agent.as_mut().map(|agent| agent.signal(signal)) {
            self.lose_agent(error);
        }
    }

    fn resize(&mut self) {
        let (Some(known), Phase::Running) = (&self.window, self.phase) else { return };
        let now = terminal::window();
        if (known.ws_row, known.ws_col) == (now.ws_row, now.ws_col) {
            return;
        }
        self.window = Some(now);
        let resized = self.agent.as_mut().map(|agent| agent.resize(now.ws_row, now.ws_col));
        if let Some(Err(error)) = resized {
            self.lose_agent(error);
        }
    }

    /// The VMM knows best why, and says so when it ends, which it does by itself or shortly.
    fn lose_agent(&mut self, error: AgentError) {
        self.agent = None;
        if self.phase == Phase::Running {
            return;
        }
        let patience = match error {
            AgentError::Create(_) | AgentError::Nonsense(_) => Duration::ZERO,
            _ => FAREWELL_MAX,
        };
        self.farewell = Some((Instant::now() + patience, error));
    }

    fn end_if_overdue(&mut self) {
        if self.farewell.as_ref().is_some_and(|(until, _)| *until <= Instant::now())
            && let Some((_, error)) = self.farewell.take()
        {
            self.end(Cause::Agent(error));
        }
    }

    fn end(&mut self, cause: Cause) {
        self.cause.get_or_insert(cause);
        self.vmm.kill();
    }
}

/// Adds a descriptor to poll; returns where.
fn push<'fd>(fds: &mut Vec<PollFd<'fd>>, fd: &'fd impl AsFd, events: PollFlags) -> usize {
    fds.push(PollFd::new(fd, events));
    fds.len() - 1
}
