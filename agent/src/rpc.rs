//! ttrpc on the wire: frames of a header and a protobuf message, any number of calls in flight.
//!
//! The `ttrpc` crate's own server spends seven threads on a connection, each of which costs a
//! starting guest tens of thousands of instructions; an agent of one thread may also fork without
//! care. So only its message types are used here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use ttrpc::proto::{
    Codec as _, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MessageHeader,
};
use ttrpc::{Code, Request, Response, Status};

/// What a call comes to: the encoded message of the reply, or why there is none.
pub type Outcome = Result<Vec<u8>, Status>;

/// A refusal with one sentence.
pub fn refuse(code: Code, message: impl Into<String>) -> Status {
    ttrpc::get_status(code, message.into())
}

/// A call, to be answered under its stream ID.
#[derive(Debug)]
pub struct Call {
    /// Chosen by the client, unique among its calls in flight.
    pub stream: u32,
    /// Service, method and encoded message.
    pub request: Request,
}

/// A client's connection, non-blocking.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// The client is gone, or does not speak ttrpc.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Speaks ttrpc on a connected, non-blocking socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, input: Vec::new(), output: Vec::new() }
    }

    /// Takes the next complete call, reading as far as needed; `None` when there is none yet.
    pub fn next_call(&mut self) -> Result<Option<Call>, Closed> {
        loop {
            if let Some(call) = take_call(&mut self.input)? {
                return Ok(Some(call));
            }
            let mut chunk = [0; 4096];
            match rustix::net::recv(&self.socket, &mut chunk[..], RecvFlags::empty()) {
                Ok((0, _)) => return Err(Closed),
                Ok((n, _)) => self.input.extend_from_slice(&chunk[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(Closed),
            }
        }
    }

    /// Answers the call `stream`, as far as the socket takes it now.
    pub fn answer(&mut self, stream: u32, outcome: Outcome) -> Result<(), Closed> {
        let mut response = Response::new();
        match outcome {
            Ok(payload) => {
                response.set_status(ttrpc::get_status(Code::OK, ""));
                response.payload = payload;
            }
            Err(status) => response.set_status(status),
        }
        let payload = response.encode().map_err(|_| Closed)?;
        let length = u32::try_from(payload.len()).map_err(|_| Closed)?;
        self.output.extend(Vec::from(MessageHeader::new_response(stream, length)));
        self.output.extend(payload);
        self.flush()
    }

    /// Sends what is left of answers.
    pub fn flush(&mut self) -> Result<(), Closed> {
        while !self.output.is_empty() {
            match rustix::net::send(&self.socket, &self.output, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }
}

/// Takes a complete call off the front of `input`. Frames of other types are skipped.
fn take_call(input: &mut Vec<u8>) -> Result<Option<Call>, Closed> {
    while let Some((header, rest)) = input.split_at_checked(MESSAGE_HEADER_LENGTH) {
        let header = MessageHeader::from(header);
        let length = header.length as usize;
        if length > MESSAGE_LENGTH_MAX {
            return Err(Closed);
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let call = if header.type_ == MESSAGE_TYPE_REQUEST {
            let request = Request::decode(payload).map_err(|_| Closed)?;
            Some(Call { stream: header.stream_id, request })
        } else {
            None
        };
        input.drain(..MESSAGE_HEADER_LENGTH + length);
        if call.is_some() {
            return Ok(call);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(stream: u32, method: &str) -> Vec<u8> {
        let request = Request { method: method.to_owned(), ..Default::default() };
        let payload = request.encode().unwrap();
        let mut frame = Vec::from(MessageHeader::new_request(stream, payload.len() as u32));
        frame.extend(payload);
        frame
    }

    proptest! {
        #[test]
        fn calls_arrive_however_they_are_cut(cuts in prop::collection::vec(1usize..40, 1..30)) {
            let sent: Vec<u8> = (0..5).flat_map(|i| frame(i, &"m".repeat(i as usize * 9))).collect();
            let (mut input, mut from, mut streams) = (Vec::new(), 0, Vec::new());
            for cut in cuts.into_iter().chain([sent.len()]) {
                let to = sent.len().min(from + cut);
                input.extend_from_slice(&sent[from..to]);
                from = to;
                while let Some(call) = take_call(&mut input).unwrap() {
                    prop_assert_eq!(call.request.method.len(), call.stream as usize * 9);
                    streams.push(call.stream);
                }
            }
            prop_assert_eq!(streams, [0, 1, 2, 3, 4]);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn garbage_is_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            while let Ok(Some(_)) = take_call(&mut bytes) {}
        }
    }

    #[test]
    fn an_oversized_frame_closes_the_connection() {
        let header = MessageHeader::new_request(1, MESSAGE_LENGTH_MAX as u32 + 1);
        assert_eq!(take_call(&mut Vec::from(header)).unwrap_err(), Closed);
    }

    #[test]
    fn frames_of_other_types_are_skipped() {
        let mut input = Vec::from(MessageHeader { length: 3, type_: 9, ..Default::default() });
        input.extend(b"abc");
        input.extend(frame(7, "m"));
        assert_eq!(take_call(&mut input).unwrap().unwrap().stream, 7);
    }
}
