//! Replies: from the socket to where they belong.
//!
//! Small replies come many at once into a small buffer and are copied from there. Of a large one
//! only the beginning takes that way; the rest goes straight to the guest.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use super::request::Request;
use super::transfer;
use super::wire::{HEADER_LEN_OUT, OutHeader, WITH_FILE};
use crate::GuestMemory;

/// Some 25 replies to LOOKUP; at most this much of a large reply is copied.
const BOUNCE_LEN: usize = 4096;

/// More files than replies with one fit into the buffer.
const FILES_MAX: usize = BOUNCE_LEN / HEADER_LEN_OUT;

/// Where receiving stands: between replies, or within one.
#[derive(Debug)]
pub struct Receiving {
    bounce: Box<[u8; BOUNCE_LEN]>,
    /// The part of `bounce` that was received and not yet looked at.
    start: usize,
    end: usize,
    target: Option<Target>,
    /// The socket has just been found empty. Asking it again is left to the event loop.
    drained: bool,
    /// Files that came with replies not yet looked at.
    files: VecDeque<OwnedFd>,
}

/// A reply whose header has been dealt with.
#[derive(Debug)]
struct Target {
    /// `None` for a reply that nobody waits for.
    request: Option<Request>,
    /// Length of the whole reply.
    len: usize,
    /// How much of it has been received.
    at: usize,
}

impl Receiving {
    /// Between replies.
    pub fn new() -> Self {
        let bounce = Box::new([0; BOUNCE_LEN]);
        let files = VecDeque::new();
        Self { bounce, start: 0, end: 0, target: None, drained: false, files }
    }

    /// Notes that something may be there to receive.
    pub fn begin(&mut self) {
        self.drained = false;
    }

    /// Whether receiving stands within a reply.
    pub fn has_target(&self) -> bool {
        self.target.is_some()
    }

    /// Receives the header of a reply. `WouldBlock` if it is not all there yet, `InvalidData` if it
    /// cannot be one.
    pub fn header(&mut self, socket: &OwnedFd) -> io::Result<OutHeader> {
        loop {
            if let Some(bytes) = self.bounce[self.start..self.end].first_chunk() {
                let header = OutHeader::parse(bytes).ok_or(ErrorKind::InvalidData)?;
                self.start += HEADER_LEN_OUT;
                return Ok(header);
            }
            self.fill(socket)?;
        }
    }

    /// The file that came with the reply that begins with `header`, if that brings one.
    pub fn file_of(&mut self, header: OutHeader) -> Option<OwnedFd> {
        if header.unique & WITH_FILE == 0 || header.error != 0 {
            return None;
        }
        self.files.pop_front()
    }

    /// Says whom the reply that begins with `header` is for; `None` swallows it.
    pub fn set_target(&mut self, header: OutHeader, request: Option<Request>) {
        self.target = Some(Target { request, len: header.len as usize, at: HEADER_LEN_OUT });
    }

    /// Receives what is left of a reply, and returns the request, if somebody waits, and the
    /// reply's length.
    pub fn body(
        &mut self,
        socket: &OwnedFd,
        memory: Option<&GuestMemory>,
    ) -> io::Result<Option<(Request, u32)>> {
        while let Some(target) = &mut self.target
            && target.at < target.len
        {
            let wanted = target.len - target.at;
            let there = &self.bounce[self.start..self.end];
            match (&target.request, memory) {
                (Some(request), Some(memory)) if there.is_empty() => {
                    if self.drained {
                        return Err(ErrorKind::WouldBlock.into());
                    }
                    let to = &request.writable;
                    let len = transfer::receive(socket, memory, to, target.at, wanted)?;
                    target.at += received(len)?;
                    self.drained = len == wanted;
                }
                (_, _) if there.is_empty() => self.fill(socket)?,
                (request, memory) => {
                    let now = &there[..wanted.min(there.len())];
                    if let (Some(request), Some(memory)) = (request, memory) {
                        request.put(memory, target.at, now);
                    }
                    target.at += now.len();
                    self.start += now.len();
                }
            }
        }
        let target = self.target.take();
        Ok(target.and_then(|target| Some((target.request?, target.len as u32))))
    }

    /// Swallows the rest of the reply being received, and returns whom it was for.
    pub fn abandon(&mut self) -> Option<Request> {
        self.target.as_mut()?.request.take()
    }

    /// Receives more into the buffer.
    fn fill(&mut self, socket: &OwnedFd) -> io::Result<()> {
        if self.drained {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.bounce.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = &mut self.bounce[self.end..];
        let len = transfer::receive_bytes(socket, room, &mut self.files)?;
        if self.files.len() > FILES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        self.drained = len < room.len();
        self.end += received(len)?;
        Ok(())
    }
}

/// Nothing received means that the other side has closed.
fn received(len: usize) -> io::Result<usize> {
    if len == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(len) }
}
