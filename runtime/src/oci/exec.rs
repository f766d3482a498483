//! A further process in a running container, joined to this process: its standard streams are ours,
//! signals that reach us reach it, it ends when we are killed, and we end as it does.
//!
//! A thread a stream copies with calls that may block, so whatever the streams are (terminals,
//! pipes, files) needs no change of its flags, which others may share; the main thread waits for
//! signals and for the agent.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
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
use crate::state::SOCKET;
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
    // Before the size is asked for: no change may be lost.
    let signals = Signals::block().map_err(ExecError::Signals)?;
    let has_terminal = process.terminal.is_some();
    if let Some(terminal) = process.terminal.as_mut()
        && (terminal.rows == 0 || terminal.columns == 0)
    {
        (terminal.rows, terminal.columns) = size();
    }
    let mut session = Session {
        agent: container.agent(PATIENCE)?,
        id: random_id().map_err(ExecError::Streams)?,
        signals,
        has_terminal,
    };
    let outputs = session.start(process, container.file(SOCKET))?;
    started();
    let raw = if raw && has_terminal { Raw::enter().unwrap_or(None) } else { None };
    let code = session.wait();
    for output in outputs {
        // A panic of a thread is the process's.
        let _ = output.join();
    }
    drop(raw);
    code
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

struct Session {
    agent: Client,
    id: String,
    signals: Signals,
    has_terminal: bool,
}

impl Session {
    /// Has the process executed and its streams copied; returns the threads that end with its
    /// output.
    fn start(
        &mut self,
        process: Process,
        socket: PathBuf,
    ) -> Result<Vec<JoinHandle<()>>, ExecError> {
        let request = ExecRequest {
            id: self.id.clone(),
            process: Some(process).into(),
            kill_on_hangup: true,
            ..Default::default()
        };
        let response: ExecResponse = self.agent.call("Exec", &request, PATIENCE)?;
        if let Some(failure) = response.failure.into_option() {
            return Err(ExecError::Start(failure));
        }
        let connect = |port: u32| match port {
            0 => Ok(None),
            port => client::stream(&socket, port, PATIENCE).map(Some),
        };
        let input = connect(response.stdin_port)?;
        let stderr = connect(response.stderr_port)?;
        let stdout = match (self.has_terminal, &input) {
            (true, Some(both)) => Some(both.try_clone().map_err(ExecError::Streams)?),
            _ => connect(response.stdout_port)?,
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

    /// Passes signals on until the process has ended.
    fn wait(&mut self) -> Result<u8, ExecError> {
        let request = WaitRequest { id: self.id.clone(), ..Default::default() };
        let wait = match self.agent.send("Wait", &request, PATIENCE) {
            Ok(wait) => wait,
            Err(error) => return gone(error),
        };
        loop {
            let mut fds = [
                PollFd::new(&self.agent, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            rustix::io::retry_on_intr(|| poll(&mut fds, None))
                .map_err(|errno| ExecError::Signals(errno.into()))?;
            let [answer, signals] = fds.map(|fd| !fd.revents().is_empty());
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
                        return Ok(u8::try_from(response.exit_code).unwrap_or(u8::MAX));
                    }
                    // Whether a signal arrived changes nothing here.
                    Ok(_) => {}
                    Err(error) => return gone(error),
                }
            }
        }
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
fn gone(error: AgentError) -> Result<u8, ExecError> {
    match error {
        AgentError::Closed => Ok(EXIT_CONTAINER_GONE),
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
