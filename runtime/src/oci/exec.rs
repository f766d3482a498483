//! A further process in a running container, joined to this process: its standard streams are ours,
//! signals that reach us reach it, it ends when we are killed, and we end as it does.
//!
//! A thread a stream copies with calls that may block, so whatever the streams are (terminals,
//! pipes, files) needs no change of its flags, which others may share; the main thread waits for
//! signals and for the agent.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use bulkhead_protocol::rpc::agent::{
    ExecRequest, ExecResponse, Process, ResizeRequest, SignalRequest, StartFailure, WaitRequest,
    WaitResponse,
};
use bulkhead_vmm::signals::Signals;
use rustix::event::{PollFd, PollFlags, poll};

use super::container::Container;
use crate::agent::AgentError;
use crate::client::{self, Client};
use crate::terminal::{self, Raw};

/// How long the agent of a running container may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a process ends with when its container ends around it: it was killed.
const EXIT_CONTAINER_GONE: u8 = 128 + 9;
/// Bytes copied at a time.
const CHUNK: usize = 64 << 10;
const ID_BYTES: usize = 8;

/// Why a process could not be executed, or was lost.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("{}", .0.message)]
    Start(StartFailure),
    #[error("cannot join the standard streams: {0}")]
    Streams(#[source] io::Error),
    #[error("cannot receive signals: {0}")]
    Signals(#[source] io::Error),
}

/// Executes `process` and stays until it has ended; returns its exit code. Calls `started` when it
/// runs. With `raw`, the caller's terminal is raw meanwhile.
pub fn exec(
    container: &Container,
    mut process: Process,
    raw: bool,
    started: impl FnOnce(),
) -> Result<u8, ExecError> {
    let id = random_id().map_err(ExecError::Streams)?;
    let mut session = Session::begin(container.agent(PATIENCE)?, id, &mut process)?;
    let request = ExecRequest {
        id: session.id.clone(),
        process: Some(process).into(),
        kill_on_hangup: true,
        container: container.name_in_vm(),
        ..Default::default()
    };
    let response: ExecResponse = session.agent.call("Exec", &request, PATIENCE)?;
    if let Some(failure) = response.failure.into_option() {
        return Err(ExecError::Start(failure));
    }
    let ports = [response.stdin_port, response.stdout_port, response.stderr_port];
    let outputs = session.join(ports, &container.socket())?;
    started();
    let raw = if raw && session.has_terminal { Raw::enter().unwrap_or(None) } else { None };
    let ended = session.wait(outputs);
    drop(raw);
    Ok(ended?.code)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// 0..=255; 128 + n for a signal.
    pub code: u8,
    /// Of a container's: the kernel has killed one of its processes for lack of memory.
    pub oom_killed: bool,
}

impl Ended {
    /// It ended with its VM, or was killed with us.
    const GONE: Self = Self { code: EXIT_CONTAINER_GONE, oom_killed: false };
}

fn size() -> (u32, u32) {
    let window = terminal::window();
    (window.ws_row.into(), window.ws_col.into())
}

fn random_id() -> io::Result<String> {
    let mut bytes = [0; ID_BYTES];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A process in a guest, joined to this one.
pub struct Session {
    /// The connection that it came by, and ends with.
    pub agent: Client,
    id: String,
    signals: Signals,
    has_terminal: bool,
    /// Without a byte from here before its end, the process is not to go on.
    pub leash: Option<PipeReader>,
}

/// Threads that end with a process's output.
pub type Outputs = Vec<JoinHandle<()>>;

impl Session {
    /// Makes ready for a process that the agent is to call `id`: its terminal has our size, if it has none yet.
    pub fn begin(agent: Client, id: String, process: &mut Process) -> Result<Self, ExecError> {
        // Before the size is asked for: no change may be lost.
        let signals = Signals::block().map_err(ExecError::Signals)?;
        let has_terminal = process.terminal.is_some();
        if let Some(terminal) = process.terminal.as_mut()
            && (terminal.rows == 0 || terminal.columns == 0)
        {
            (terminal.rows, terminal.columns) = size();
        }
        Ok(Self { agent, id, signals, has_terminal, leash: None })
    }

    /// Has its streams copied, which are offered at `ports` (input, output, errors; 0 for none) behind the
    /// VM's `socket`.
    pub fn join(&self, ports: [u32; 3], socket: &Path) -> Result<Outputs, ExecError> {
        let connect = |port: u32| match port {
            0 => Ok(None),
            port => client::stream(socket, port, PATIENCE).map(Some),
        };
        let [input, stdout, stderr] = ports;
        let (input, stderr) = (connect(input)?, connect(stderr)?);
        let stdout = match (self.has_terminal, &input) {
            (true, Some(both)) => Some(both.try_clone().map_err(ExecError::Streams)?),
            _ => connect(stdout)?,
        };
        if let Some(input) = input {
            let stdin = own(io::stdin().as_fd())?;
            // Ends with this process: nobody waits for a read from a terminal.
            drop(spawn("stdin", move || send(stdin, &input))?);
        }
        let mut outputs = Vec::new();
        if let Some(stream) = stdout {
            let stdout = own(io::stdout().as_fd())?;
            outputs.push(spawn("stdout", move || receive(&stream, stdout))?);
        }
        if let Some(stream) = stderr {
            let stderr = own(io::stderr().as_fd())?;
            outputs.push(spawn("stderr", move || receive(&stream, stderr))?);
        }
        Ok(outputs)
    }

    /// Passes signals on until the process has ended and its output is out.
    pub fn wait(&mut self, outputs: Outputs) -> Result<Ended, ExecError> {
        let ended = self.wait_for_end();
        for output in outputs {
            // A panic of a thread is the process's.
            let _ = output.join();
        }
        ended
    }

    fn wait_for_end(&mut self) -> Result<Ended, ExecError> {
        let request = WaitRequest { id: self.id.clone(), ..Default::default() };
        let wait = match self.agent.send("Wait", &request, PATIENCE) {
            Ok(wait) => wait,
            Err(error) => return gone(error),
        };
        loop {
            let [answer, signals, leash] = self.poll()?;
            if leash && let Some(mut leash) = self.leash.take() {
                match leash.read(&mut [0]) {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Ok(Ended::GONE),
                }
            }
            if signals {
                for signal in self.signals.read().map_err(ExecError::Signals)? {
                    // If the agent is gone, its connection tells.
                    let _ = self.pass_on(signal);
                }
            }
            if answer {
                match self.agent.receive(PATIENCE) {
                    Ok(answer) if answer.call == wait => {
                        let response: WaitResponse = answer.message("Wait")?;
                        let code = u8::try_from(response.exit_code).unwrap_or(u8::MAX);
                        return Ok(Ended { code, oom_killed: response.oom_killed });
                    }
                    // Whether a signal arrived changes nothing here.
                    Ok(_) => {}
                    Err(error) => return gone(error),
                }
            }
        }
    }

    /// Waits for what comes first: an answer, a signal, news of the leash.
    fn poll(&self) -> Result<[bool; 3], ExecError> {
        let mut fds = vec![
            PollFd::new(&self.agent, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        fds.extend(self.leash.as_ref().map(|leash| PollFd::new(leash, PollFlags::IN)));
        rustix::io::retry_on_intr(|| poll(&mut fds, None))
            .map_err(|errno| ExecError::Signals(errno.into()))?;
        let is_ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok([0, 1, 2].map(is_ready))
    }

    fn pass_on(&mut self, signal: i32) -> Result<(), AgentError> {
        let id = self.id.clone();
        if signal == libc::SIGWINCH {
            if !self.has_terminal {
                return Ok(());
            }
            let (rows, columns) = size();
            let request = ResizeRequest { id, rows, columns, ..Default::default() };
            return self.agent.send("Resize", &request, PATIENCE).map(drop);
        }
        let request = SignalRequest { id, signal: signal.unsigned_abs(), ..Default::default() };
        self.agent.send("Signal", &request, PATIENCE).map(drop)
    }
}

/// The agent went away with the container.
fn gone(error: AgentError) -> Result<Ended, ExecError> {
    match error {
        AgentError::Closed => Ok(Ended::GONE),
        error => Err(error.into()),
    }
}

fn own(fd: impl AsFd) -> Result<File, ExecError> {
    fd.as_fd().try_clone_to_owned().map(File::from).map_err(ExecError::Streams)
}

fn spawn(
    name: &'static str,
    copy: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, ExecError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(copy).map_err(ExecError::Streams)
}

/// Copies our input to the process, and says when it ends.
fn send(input: File, stream: &UnixStream) {
    copy(input, stream);
    let _ = stream.shutdown(Shutdown::Write);
}

/// Copies the process's output to ours; a reader who left is told to the process.
fn receive(stream: &UnixStream, output: File) {
    copy(stream, output);
    let _ = stream.shutdown(Shutdown::Read);
}

/// Copies until either side ends.
fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
