//! The runtime's end of the agent's ttrpc service, over the VM's vsock socket.
//!
//! ```text
//!  handshake ──"OK <port>"──▶ creating ──CreateContainer's answer──▶ open
//! ```
//!
//! A ttrpc client on one non-blocking socket, without threads: the session polls it beside
//! signals and the VMM. Frames and messages are ttrpc's own types. The agent belongs to the guest:
//! what it sends is checked and bounded, and decides nothing but this container's fate.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::short_path::ShortPath;
use bulkhead_protocol::AGENT_PORT;
use bulkhead_protocol::rpc::agent::{
    ContainerSpec, CreateContainerRequest, CreateContainerResponse, ResizeRequest, SignalRequest,
    StartFailure,
};
use protobuf::Message;
use rustix::event::PollFlags;
use ttrpc::MessageHeader;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_RESPONSE};

pub(crate) const SERVICE: &str = "bulkhead.agent.v1.Agent";
/// Longest line the handshake can be answered with: "OK 4294967295\n".
const HANDSHAKE_MAX: usize = 14;
/// Bytes read at once, and how often before others get their turn.
const READ: usize = 4096;
const READS_MAX: usize = 16;
/// Stream of the first request; clients use odd numbers (the ttrpc protocol, "Stream IDs").
const CREATE_STREAM: u32 = 1;

/// Why the agent cannot be talked to any more.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot connect to the guest's agent: {0}")]
    Connect(#[source] io::Error),
    #[error("the connection to the guest's agent broke: {0}")]
    Broken(#[source] io::Error),
    #[error("the guest's agent closed its connection")]
    Closed,
    #[error("the guest's agent refused the connection")]
    Refused,
    #[error("the guest's agent sent {0}")]
    Nonsense(&'static str),
    #[error("the guest's agent cannot set the container up: {0}")]
    Create(String),
    #[error("the guest's agent refuses {method}: {message}")]
    Refusal {
        /// What was called.
        method: &'static str,
        /// Its sentence.
        message: String,
    },
    #[error("the guest's agent does not answer")]
    Silent,
}

/// What the agent said.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It is there.
    Connected,
    /// The container's process runs.
    Started,
    /// The container's process could not be executed.
    StartFailed(StartFailure),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Handshake,
    Creating,
    Open,
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    phase: Phase,
    /// The request that starts the container; sent once the agent is there.
    create: Vec<u8>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    next_stream: u32,
}

impl Agent {
    /// Connects to the VM's vsock socket, where a VMM may or may not accept already, and asks for
    /// `container` to be started as soon as there is an agent.
    pub fn connect(socket: &Path, container: ContainerSpec) -> Result<Self, AgentError> {
        let stream =
            ShortPath::of(socket).and_then(UnixStream::connect).map_err(AgentError::Connect)?;
        stream.set_nonblocking(true).map_err(AgentError::Connect)?;
        let create = CreateContainerRequest {
            container: Some(container).into(),
            start: true,
            ..Default::default()
        };
        let mut agent = Self {
            stream,
            phase: Phase::Handshake,
            create: frame(CREATE_STREAM, "CreateContainer", &create)?,
            incoming: Vec::new(),
            outgoing: format!("CONNECT {AGENT_PORT}\n").into_bytes(),
            next_stream: CREATE_STREAM + 2,
        };
        agent.write()?;
        Ok(agent)
    }

    /// What to poll the socket for.
    pub fn interest(&self) -> PollFlags {
        match self.outgoing.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        }
    }

    /// Sends a signal to the container's process; ignored while there is none.
    pub fn signal(&mut self, signal: i32) -> Result<(), AgentError> {
        let request = SignalRequest { signal: signal.unsigned_abs(), ..SignalRequest::default() };
        self.request("Signal", &request)
    }

    /// Sets the size of the container's terminal; ignored while there is none.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<(), AgentError> {
        let (rows, columns) = (rows.into(), columns.into());
        self.request("Resize", &ResizeRequest { rows, columns, ..Default::default() })
    }

    /// Reads and writes what can be without waiting.
    pub fn process(&mut self) -> Result<Vec<Event>, AgentError> {
        self.write()?;
        let mut events = Vec::new();
        for _ in 0..READS_MAX {
            let mut buffer = [0; READ];
            match self.stream.read(&mut buffer) {
                Ok(0) if events.is_empty() => return Err(AgentError::Closed),
                // Told when polled again, after what was said before it.
                Ok(0) => return Ok(events),
                Ok(length) => self.incoming.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(events),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(AgentError::Broken(error)),
            }
            while let Some(event) = self.parse()? {
                events.extend(event);
            }
        }
        Ok(events)
    }

    fn request(&mut self, method: &str, message: &impl Message) -> Result<(), AgentError> {
        if self.phase != Phase::Open {
            return Ok(());
        }
        let stream = self.next_stream;
        self.next_stream = stream.wrapping_add(2);
        self.outgoing.extend(frame(stream, method, message)?);
        self.write()
    }

    fn write(&mut self) -> Result<(), AgentError> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(AgentError::Broken(error)),
            }
        }
        Ok(())
    }

    /// Takes one line or frame off what arrived: `None` if there is none yet, `Some(None)` for one
    /// that means nothing to the session.
    fn parse(&mut self) -> Result<Option<Option<Event>>, AgentError> {
        match self.phase {
            Phase::Handshake => self.parse_handshake(),
            Phase::Creating | Phase::Open => self.parse_frame(),
        }
    }

    fn parse_handshake(&mut self) -> Result<Option<Option<Event>>, AgentError> {
        let Some(end) = self.incoming.iter().position(|byte| *byte == b'\n') else {
            return match self.incoming.len() < HANDSHAKE_MAX {
                true => Ok(None),
                false => Err(AgentError::Refused),
            };
        };
        let line: Vec<u8> = self.incoming.drain(..=end).collect();
        if !line.starts_with(b"OK ") {
            return Err(AgentError::Refused);
        }
        self.phase = Phase::Creating;
        self.outgoing.append(&mut self.create);
        self.write()?;
        Ok(Some(Some(Event::Connected)))
    }

    fn parse_frame(&mut self) -> Result<Option<Option<Event>>, AgentError> {
        let Some(header) = self.incoming.get(..MESSAGE_HEADER_LENGTH) else { return Ok(None) };
        let header = MessageHeader::from(header);
        let length = header.length as usize;
        if length > MESSAGE_LENGTH_MAX {
            return Err(AgentError::Nonsense("too long a message"));
        }
        let end = MESSAGE_HEADER_LENGTH + length;
        let Some(body) = self.incoming.get(MESSAGE_HEADER_LENGTH..end) else { return Ok(None) };
        if header.type_ != MESSAGE_TYPE_RESPONSE {
            return Err(AgentError::Nonsense("a message that is no answer"));
        }
        let response = ttrpc::Response::parse_from_bytes(body);
        self.incoming.drain(..end);
        let response = response.map_err(|_| AgentError::Nonsense("a malformed answer"))?;
        // Whether a signal or a size could be passed on changes nothing here.
        if header.stream_id != CREATE_STREAM || self.phase != Phase::Creating {
            return Ok(Some(None));
        }
        self.phase = Phase::Open;
        created(&response).map(|event| Some(Some(event)))
    }
}

impl AsFd for Agent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn created(response: &ttrpc::Response) -> Result<Event, AgentError> {
    if response.status().code() != ttrpc::Code::OK {
        return Err(AgentError::Create(response.status().message().to_owned()));
    }
    let created = CreateContainerResponse::parse_from_bytes(&response.payload);
    let created = created.map_err(|_| AgentError::Nonsense("a malformed answer"))?;
    Ok(match created.failure.into_option() {
        Some(failure) => Event::StartFailed(failure),
        None => Event::Started,
    })
}

pub(crate) fn frame(
    stream: u32,
    method: &str,
    message: &impl Message,
) -> Result<Vec<u8>, AgentError> {
    let encode = |error: protobuf::Error| AgentError::Create(error.to_string());
    let request = ttrpc::Request {
        service: SERVICE.to_owned(),
        method: method.to_owned(),
        payload: message.write_to_bytes().map_err(encode)?,
        ..Default::default()
    };
    let body = request.write_to_bytes().map_err(encode)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MESSAGE_LENGTH_MAX);
    let too_long = || AgentError::Create("its description is too long".to_owned());
    let header = MessageHeader::new_request(stream, length.ok_or_else(too_long)?);
    let mut frame = Vec::from(header);
    frame.extend(body);
    Ok(frame)
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
