//! The direction of a connection from the guest to the host.
//!
//! ```text
//!  open ──guest will send no more──▶ ending ──backlog written──▶ closed
//!    └──────────────the host's end is broken───────────────────────▲
//! ```
//!
//! A closed output takes and drops whatever still comes.

use std::io;

use event_manager::EventOps;

use super::backlog::Backlog;
use super::host_port::Message;
use crate::host_stream::HostStream;
use crate::virtio::buffers::Buffers;

/// Where a connection's bytes from the guest go.
#[derive(Debug)]
pub struct Output {
    sink: Sink,
    backlog: Backlog,
    /// Nothing says that a write would block.
    writable: bool,
    /// The stream's event data.
    data: u32,
    /// The event loop reports when the stream can be written again.
    watches_writable: bool,
    ending: bool,
    broken: bool,
    /// It is a stream of the VMM's own, not of a Unix client: a container's output.
    joined: bool,
    /// Bytes written so far.
    written: u64,
}

#[derive(Debug)]
enum Sink {
    Stream(HostStream),
    Message(Message),
    /// Closed, or a port that only sends.
    Nothing,
}

impl Output {
    /// An output to one of the VMM's own streams; without one, bytes are dropped.
    pub fn joined(stream: Option<HostStream>) -> Self {
        Self { joined: true, ..Self::new(stream.map_or(Sink::Nothing, Sink::Stream)) }
    }

    /// An output to a Unix client.
    pub fn to_client(stream: HostStream) -> Self {
        Self::new(Sink::Stream(stream))
    }

    /// An output that collects a message.
    pub fn message(message: Message) -> Self {
        Self::new(Sink::Message(message))
    }

    fn new(sink: Sink) -> Self {
        Self {
            sink,
            backlog: Backlog::default(),
            writable: true,
            data: 0,
            watches_writable: false,
            ending: false,
            broken: false,
            joined: false,
            written: 0,
        }
    }

    /// Has the event loop report on the stream.
    pub fn watch(&mut self, ops: &mut EventOps, data: u32) -> io::Result<()> {
        self.data = data;
        match &mut self.sink {
            Sink::Stream(stream) => stream.watch(ops, data).map(drop),
            _ => Ok(()),
        }
    }

    /// Takes bytes of the guest and returns how many have left, straight from guest memory if
    /// nothing is waiting before them.
    pub fn take(&mut self, mut payload: Buffers) -> usize {
        let len = payload.len();
        match &mut self.sink {
            Sink::Nothing => return len,
            Sink::Message(message) => {
                message.collect(&mut payload);
                return len;
            }
            Sink::Stream(stream) => {
                while self.backlog.is_empty() && self.writable && !payload.is_empty() {
                    match stream.write(payload.slices()) {
                        Ok(count) if count > 0 => payload.advance(count),
                        result => {
                            self.writable = false;
                            self.broken = !is_later(&result);
                        }
                    }
                }
            }
        }
        let written = len - payload.len();
        self.written += written as u64;
        if self.broken {
            return len;
        }
        self.backlog.push(&mut payload);
        written
    }

    /// The stream may be writable again: writes what is waiting, and returns how much has left.
    pub fn flush(&mut self) -> usize {
        self.writable = true;
        let mut left = 0;
        while let Sink::Stream(stream) = &self.sink
            && self.writable
            && !self.backlog.is_empty()
        {
            match stream.write(&[self.backlog.slice()]) {
                Ok(count) if count > 0 => {
                    self.backlog.consume(count);
                    self.written += count as u64;
                    left += count;
                }
                result => {
                    self.writable = false;
                    self.broken = !is_later(&result);
                }
            }
        }
        if self.broken { left + self.backlog.clear() } else { left }
    }

    /// The host's end was closed: nothing more can be written.
    pub fn break_off(&mut self) -> usize {
        self.broken = true;
        self.backlog.clear()
    }

    /// The guest will send no more.
    pub fn end(&mut self) {
        self.ending = true;
    }

    /// Closes the stream if it is broken, or at its end with nothing waiting; if something is
    /// waiting, sees to it that it is written later.
    pub fn settle(&mut self, ops: &mut EventOps) {
        if self.broken || self.ending && self.is_drained() {
            self.close(ops);
        } else if !self.writable
            && !self.watches_writable
            && let Sink::Stream(stream) = &self.sink
        {
            self.watches_writable = stream.watch_writable(ops, self.data).is_ok();
        }
    }

    /// Closes the stream, whatever is waiting.
    pub fn close(&mut self, ops: &mut EventOps) {
        self.backlog.clear();
        if matches!(self.sink, Sink::Stream(_))
            && let Sink::Stream(stream) = std::mem::replace(&mut self.sink, Sink::Nothing)
        {
            stream.close(ops);
        }
    }

    /// For a snapshot: what is waiting, if it is one of the VMM's own streams.
    pub fn saved(&self) -> Option<Vec<u8>> {
        self.joined.then(|| self.backlog.to_vec())
    }

    /// What waited when the guest was saved is written first.
    pub fn restore(&mut self, backlog: Vec<u8>) {
        self.backlog = backlog.into();
    }

    /// Nothing is waiting to be written.
    pub fn is_drained(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Nothing is waiting to be written or delivered.
    pub fn is_settled(&self) -> bool {
        self.is_drained() && !self.is_due()
    }

    /// The host's end is gone, while the guest may still be sending.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Bytes of a container's output are waiting to be written.
    pub fn holds_output(&self) -> bool {
        self.joined && !self.is_drained()
    }

    /// The first byte of a container's output has been written.
    pub fn has_output(&self) -> bool {
        self.joined && self.written > 0
    }

    /// A message is complete and was not delivered yet.
    pub fn is_due(&self) -> bool {
        matches!(&self.sink, Sink::Message(message) if message.is_due())
    }

    /// Delivers the message that is due.
    pub fn deliver(&mut self) {
        match &mut self.sink {
            Sink::Message(message) if message.is_due() => message.deliver(),
            _ => {}
        }
    }
}

/// A write that took nothing may take something later; any other never will.
fn is_later(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
