//! A client of the agent's service for one call after the other, for verbs that have nothing else to
//! do meanwhile. (`bulkhead run` polls its own, see agent.rs.)
//!
//! Every wait has an end: the guest decides nothing but how long we wait for it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_protocol::AGENT_PORT;
use protobuf::Message;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use ttrpc::MessageHeader;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_RESPONSE};

use crate::agent::{AgentError, frame};
use crate::short_path::ShortPath;

/// Longest line the handshake is answered with: "OK 4294967295\n".
const HANDSHAKE_MAX: usize = 14;

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    next_stream: u32,
}

/// An answer and the call it belongs to.
#[derive(Debug)]
pub struct Answer {
    /// As [`Client::send`] returned it.
    pub call: u32,
    response: ttrpc::Response,
}

impl Answer {
    /// The message, or the agent's refusal of `method`.
    pub fn message<M: Message>(self, method: &'static str) -> Result<M, AgentError> {
        if self.response.status().code() != ttrpc::Code::OK {
            let message = self.response.status().message().to_owned();
            return Err(AgentError::Refusal { method, message });
        }
        M::parse_from_bytes(&self.response.payload)
            .map_err(|_| AgentError::Nonsense("a malformed answer"))
    }
}

impl Client {
    /// Connects to the agent behind a VM's vsock socket, waiting for it to be there.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Self, AgentError> {
        Ok(Self { stream: stream(socket, AGENT_PORT, patience)?, next_stream: 1 })
    }

    /// Calls a method and waits for its answer.
    pub fn call<M: Message>(
        &mut self,
        method: &'static str,
        request: &impl Message,
        patience: Duration,
    ) -> Result<M, AgentError> {
        let until = Instant::now() + patience;
        let call = self.send(method, request, patience)?;
        loop {
            let answer = self.receive(left(until)?)?;
            if answer.call == call {
                return answer.message(method);
            }
        }
    }

    /// Calls a method whose answer will be [received](Self::receive) later; returns the call's number.
    pub fn send(
        &mut self,
        method: &'static str,
        request: &impl Message,
        patience: Duration,
    ) -> Result<u32, AgentError> {
        let call = self.next_stream;
        self.next_stream = call.wrapping_add(2);
        self.stream.set_write_timeout(Some(patience)).map_err(AgentError::Broken)?;
        self.stream.write_all(&frame(call, method, request)?).map_err(broken)?;
        Ok(call)
    }

    /// Waits for the next answer to any call.
    pub fn receive(&mut self, patience: Duration) -> Result<Answer, AgentError> {
        let until = Instant::now() + patience;
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        read_exact(&self.stream, &mut header, until)?;
        let header = MessageHeader::from(header);
        let length = header.length as usize;
        if length > MESSAGE_LENGTH_MAX {
            return Err(AgentError::Nonsense("too long a message"));
        }
        if header.type_ != MESSAGE_TYPE_RESPONSE {
            return Err(AgentError::Nonsense("a message that is no answer"));
        }
        let mut body = vec![0; length];
        read_exact(&self.stream, &mut body, until)?;
        let response = ttrpc::Response::parse_from_bytes(&body)
            .map_err(|_| AgentError::Nonsense("a malformed answer"))?;
        Ok(Answer { call: header.stream_id, response })
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Connects to a port of the guest, waiting for the VMM to take connections.
pub fn stream(socket: &Path, port: u32, patience: Duration) -> Result<UnixStream, AgentError> {
    let until = Instant::now() + patience;
    let mut stream = connect(socket, patience).map_err(|errno| match errno {
        Errno::AGAIN => AgentError::Silent,
        errno => AgentError::Connect(errno.into()),
    })?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).map_err(broken)?;
    let mut line = Vec::with_capacity(HANDSHAKE_MAX);
    // Not a byte more than the line: what follows is the port's.
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        read_exact(&stream, &mut byte, until)?;
        line.push(byte[0]);
        if line.len() > HANDSHAKE_MAX {
            return Err(AgentError::Refused);
        }
    }
    match line.starts_with(b"OK ") {
        true => stream.set_read_timeout(None).map_err(AgentError::Broken)?,
        false => return Err(AgentError::Refused),
    }
    Ok(stream)
}

/// A VMM that accepts nothing fills its backlog: the time to connect is limited too.
fn connect(socket: &Path, patience: Duration) -> rustix::io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let fd: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(patience))?;
    let path =
        ShortPath::of(socket).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path.as_ref())?)?;
    Ok(fd.into())
}

fn read_exact(
    mut stream: &UnixStream,
    buffer: &mut [u8],
    until: Instant,
) -> Result<(), AgentError> {
    let mut length = 0;
    while length < buffer.len() {
        stream.set_read_timeout(Some(left(until)?)).map_err(AgentError::Broken)?;
        match stream.read(&mut buffer[length..]) {
            Ok(0) => return Err(AgentError::Closed),
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
    Ok(())
}

fn broken(error: io::Error) -> AgentError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AgentError::Silent,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => AgentError::Closed,
        _ => AgentError::Broken(error),
    }
}

fn left(until: Instant) -> Result<Duration, AgentError> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(AgentError::Silent) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_protocol::rpc::agent::{SignalRequest, WaitRequest, WaitResponse};
    use std::os::unix::net::UnixListener;
    use std::thread;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Runs `vmm` at the other end of a client's connection.
    fn with<T>(
        vmm: impl FnOnce(UnixStream) + Send,
        test: impl FnOnce(Result<Client, AgentError>) -> T,
    ) -> T {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || vmm(listener.accept().unwrap().0));
            test(Client::connect(&path, PATIENCE))
        })
    }

    fn greet(stream: &mut UnixStream) {
        let mut line = [0; 13];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"CONNECT 1024\n");
        stream.write_all(b"OK 5\n").unwrap();
    }

    fn request(stream: &mut UnixStream) -> u32 {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        stream.read_exact(&mut header).unwrap();
        let header = MessageHeader::from(header);
        stream.read_exact(&mut vec![0; header.length as usize]).unwrap();
        header.stream_id
    }

    fn answer(stream: &mut UnixStream, call: u32, response: &ttrpc::Response) {
        let body = response.write_to_bytes().unwrap();
        let header = Vec::from(MessageHeader::new_response(call, body.len() as u32));
        stream.write_all(&[header, body].concat()).unwrap();
    }

    #[test]
    fn answers_find_their_calls() {
        let vmm = |mut stream: UnixStream| {
            greet(&mut stream);
            let calls = [request(&mut stream), request(&mut stream)];
            for (call, exit_code) in [(calls[1], 2), (calls[0], 1)] {
                let message = WaitResponse { exit_code, ..Default::default() };
                let payload = message.write_to_bytes().unwrap();
                answer(&mut stream, call, &ttrpc::Response { payload, ..Default::default() });
            }
        };
        with(vmm, |client| {
            let mut client = client.unwrap();
            let first = client.send("Wait", &WaitRequest::default(), PATIENCE).unwrap();
            let second: WaitResponse =
                client.call("Wait", &WaitRequest::default(), PATIENCE).unwrap();
            assert_eq!(second.exit_code, 2);
            let late = client.receive(PATIENCE).unwrap();
            assert_eq!(late.call, first);
            assert_eq!(late.message::<WaitResponse>("Wait").unwrap().exit_code, 1);
        });
    }

    #[test]
    fn a_refusal_is_told_with_its_method() {
        let vmm = |mut stream: UnixStream| {
            greet(&mut stream);
            let call = request(&mut stream);
            let mut response = ttrpc::Response::new();
            response.set_status(ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no such process"));
            answer(&mut stream, call, &response);
        };
        with(vmm, |client| {
            let answer: Result<WaitResponse, _> =
                client.unwrap().call("Signal", &SignalRequest::default(), PATIENCE);
            let expected = "the guest's agent refuses Signal: no such process";
            assert_eq!(answer.unwrap_err().to_string(), expected);
        });
    }

    #[test]
    fn silence_ends_and_nonsense_is_refused() {
        let silent = |mut stream: UnixStream| {
            greet(&mut stream);
            request(&mut stream);
            let _ = stream.read(&mut [0]);
        };
        with(silent, |client| {
            let answer: Result<WaitResponse, _> =
                client.unwrap().call("Wait", &WaitRequest::default(), Duration::from_millis(50));
            assert!(matches!(answer, Err(AgentError::Silent)), "{answer:?}");
        });
        let babbling = |mut stream: UnixStream| {
            greet(&mut stream);
            let call = request(&mut stream);
            let header = MessageHeader::new_response(call, u32::MAX);
            stream.write_all(&Vec::from(header)).unwrap();
        };
        with(babbling, |client| {
            let answer: Result<WaitResponse, _> =
                client.unwrap().call("Wait", &WaitRequest::default(), PATIENCE);
            assert!(matches!(answer, Err(AgentError::Nonsense(_))), "{answer:?}");
        });
        let refusing = |mut stream: UnixStream| stream.write_all(&[b'x'; 20]).unwrap();
        with(refusing, |client| assert!(matches!(client, Err(AgentError::Refused))));
        with(drop, |client| {
            assert!(matches!(client, Err(AgentError::Closed | AgentError::Broken(_))))
        });
    }
}
