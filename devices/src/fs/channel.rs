//! The connection to the worker: requests out, replies in, and what becomes of them.
//!
//! ```text
//!            submit                    all sent               reply complete
//!  Request ─────────▶ Sending ───────────────────▶ in flight ────────────────▶ Done
//!     │                  │ silent: all sent ─────────────────────────────────────▲
//!     │ refused ─────────┼───────────────────────────────────────────────────────┤
//!                        └ the connection died: an error, as for all in flight ───┘
//! ```

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{Shutdown, shutdown};

use super::mapping::{self, Mapping, Verdict};
use super::monitors::Monitors;
use super::receiving::Receiving;
use super::request::{Refused, Request};
use super::slots::Slots;
use super::transfer;
use super::window::Window;
use super::wire::{HEADER_LEN_OUT, MONITORS, OutHeader, WITH_FILE};
use crate::GuestMemory;

/// How long the worker may take over one file of a restored guest: it may still be on its way up.
const ANSWER_MAX: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// A chain to return to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The index of its queue.
    pub queue: usize,
    /// Its head.
    pub head: u16,
    /// Bytes written to it.
    pub len: u32,
}

/// The connection to the worker. It outlives resets of the device.
pub struct Channel {
    socket: OwnedFd,
    sending: Option<Sending>,
    receiving: Receiving,
    slots: Slots,
    /// Replies still to come for requests that a reset took from the guest.
    orphans: usize,
    done: Vec<Done>,
    /// Requests to be used again, for their allocations.
    spare: Vec<Request>,
    /// The error of every request, once the connection has ended.
    dead: Option<i32>,
    /// Where files are mapped.
    window: Option<Window>,
    monitors: Monitors,
}

/// A message that the socket did not take at once.
enum Sending {
    /// A request, of which `sent` bytes are gone; in flight as `number` if it gets a reply.
    Request { request: Request, number: Option<u64>, sent: usize },
    /// The rest of a request that a reset took from the guest; or the monitor's own, with what files are
    /// still to go with it.
    Bytes { bytes: Vec<u8>, sent: usize, files: Vec<OwnedFd> },
}

impl Channel {
    /// A connection over `socket` with at most `in_flight_max` requests in flight.
    pub fn new(socket: OwnedFd, in_flight_max: usize) -> Self {
        Self {
            socket,
            sending: None,
            receiving: Receiving::new(),
            slots: Slots::new(in_flight_max),
            orphans: 0,
            done: Vec::new(),
            spare: Vec::new(),
            dead: None,
            window: None,
            monitors: Monitors::default(),
        }
    }

    /// Gives it a window to map files to.
    pub fn set_window(&mut self, window: Window) {
        self.window = Some(window);
    }

    /// The window.
    pub fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// The socket, to be watched.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The connection has ended; there is nothing more to watch.
    pub fn is_dead(&self) -> bool {
        self.dead.is_some()
    }

    /// No request is on its way, with the worker or on its way back.
    pub fn is_idle(&self) -> bool {
        self.sending.is_none()
            && self.slots.is_empty()
            && self.orphans == 0
            && self.done.is_empty()
            && self.monitors.is_idle()
    }

    /// The socket took no more; no request can be submitted until [`Self::flush`] got it to.
    pub fn is_blocked(&self) -> bool {
        self.sending.is_some()
    }

    /// An empty request.
    pub fn spare_request(&mut self) -> Request {
        self.spare.pop().unwrap_or_else(Request::new)
    }

    /// The chains completed since the last call.
    pub fn take_done(&mut self) -> impl Iterator<Item = Done> {
        self.done.drain(..)
    }

    /// Sends a request on its way, or fails it. The channel must not be blocked.
    pub fn submit(
        &mut self,
        memory: &GuestMemory,
        mut request: Request,
        checked: Result<(), Refused>,
    ) {
        let silent = request.header.is_silent();
        let verdict = match checked {
            Ok(()) => mapping::look(self.window.as_ref(), memory, &mut request),
            Err(Refused) => Verdict::Refused(libc::EIO),
        };
        let refusal = match verdict {
            Verdict::PassOn => None,
            Verdict::Refused(errno) => Some(errno),
            Verdict::Done => {
                let len = request.put_success(memory);
                return self.complete(request, len);
            }
        };
        let number = match self.dead.or(refusal) {
            Some(errno) => return self.fail(Some(memory), request, errno),
            None if silent => None,
            None => match self.slots.reserve() {
                Some(number) => {
                    let file = if request.mapping.is_some() { WITH_FILE } else { 0 };
                    request.header.set_unique(number | file);
                    Some(number)
                }
                None => return self.fail(Some(memory), request, libc::EIO),
            },
        };
        self.sending = Some(Sending::Request { request, number, sent: 0 });
        self.flush(Some(memory));
    }

    /// Sends a request of the monitor's own among the guest's; see [`Monitors::ask`].
    pub fn ask(
        &mut self,
        memory: Option<&GuestMemory>,
        bytes: Vec<u8>,
        files: Vec<OwnedFd>,
    ) -> io::Result<()> {
        self.monitors.ask(bytes, files)?;
        if let Some(errno) = self.dead {
            self.monitors.end(errno);
        }
        self.flush(memory);
        Ok(())
    }

    /// See [`Monitors::take_answer`].
    pub fn take_answer(&mut self) -> Option<io::Result<()>> {
        self.monitors.take_answer()
    }

    /// Sends what is left of the message being sent, as far as the socket takes it, and then what the
    /// monitor asks for.
    pub fn flush(&mut self, memory: Option<&GuestMemory>) {
        loop {
            if self.sending.is_none()
                && let Some((bytes, files)) = self.monitors.take_wanted()
            {
                self.sending = Some(Sending::Bytes { bytes, sent: 0, files });
            }
            let Some(sending) = &mut self.sending else { return };
            match sending.send(&self.socket, memory) {
                Ok(false) => {}
                Ok(true) => self.sent(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.end(memory, libc::ENOTCONN),
            }
        }
    }

    /// The message being sent is all sent.
    fn sent(&mut self) {
        match self.sending.take() {
            Some(Sending::Request { request, number: Some(number), .. }) => {
                self.slots.fill(number, request);
            }
            Some(Sending::Request { request, number: None, .. }) => {
                // It gets no reply.
                self.complete(request, 0);
            }
            Some(Sending::Bytes { .. }) | None => {}
        }
    }

    /// Takes every reply that is there.
    pub fn receive(&mut self, memory: Option<&GuestMemory>) {
        self.receiving.begin();
        while self.dead.is_none() {
            match self.receive_one(memory) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    self.end(memory, libc::EIO);
                }
                Err(_) => self.end(memory, libc::ENOTCONN),
            }
        }
    }

    /// Gets one reply, or a part of one, further.
    fn receive_one(&mut self, memory: Option<&GuestMemory>) -> io::Result<()> {
        if !self.receiving.has_target() {
            let header = self.receiving.header(&self.socket)?;
            let target = self.target(memory, header)?;
            self.receiving.set_target(header, target);
        }
        if let Some((request, len)) = self.receiving.body(&self.socket, memory)? {
            self.complete(request, len);
        }
        Ok(())
    }

    /// The request that a reply is for, its header written; `None` for one that a reset took.
    fn target(
        &mut self,
        memory: Option<&GuestMemory>,
        header: OutHeader,
    ) -> io::Result<Option<Request>> {
        // Before anything else: it must not be left for the next reply that brings one.
        let file = self.receiving.file_of(header);
        if header.unique == MONITORS && self.monitors.answer(header) {
            return Ok(None);
        }
        match (self.slots.take(header.unique & !WITH_FILE), memory) {
            (Some(request), Some(memory)) if fits(&request, header) => {
                let mapped = match request.mapping.filter(|_| header.error == 0) {
                    Some(mapping) => self.map(mapping, file),
                    None => Ok(()),
                };
                let error = if mapped.is_ok() { header.error } else { -libc::EIO };
                let header = OutHeader { error, ..header };
                request.put_header(memory, header);
                Ok(Some(request))
            }
            (Some(request), _) => {
                self.fail(memory, request, libc::EIO);
                Err(ErrorKind::InvalidData.into())
            }
            (None, _) if self.orphans > 0 => {
                self.orphans -= 1;
                Ok(None)
            }
            (None, _) => Err(ErrorKind::InvalidData.into()),
        }
    }

    /// Maps the file that the worker has handed over.
    fn map(&self, mapping: Mapping, file: Option<OwnedFd>) -> io::Result<()> {
        let (Some(window), Some(file)) = (&self.window, file) else {
            return Err(ErrorKind::NotFound.into());
        };
        window.map(mapping, file)
    }

    /// Maps what a saved guest has mapped; waits for the worker. Nothing may be on its way.
    pub fn map_again(&mut self, mapping: Mapping) -> io::Result<()> {
        if self.window.as_ref().is_none_or(|window| !window.takes(&mapping)) {
            return Err(ErrorKind::InvalidInput.into());
        }
        // No number of a slot.
        let unique = WITH_FILE;
        let message = mapping.request(unique);
        if transfer::send_bytes(&self.socket, &message)? != message.len() {
            return Err(ErrorKind::WriteZero.into());
        }
        let header = loop {
            self.receiving.begin();
            match self.receiving.header(&self.socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait()?,
                header => break header?,
            }
        };
        if header.unique != unique || header.len as usize != HEADER_LEN_OUT {
            return Err(ErrorKind::InvalidData.into());
        }
        if header.error != 0 {
            return Err(io::Error::from_raw_os_error(-header.error));
        }
        let file = self.receiving.file_of(header);
        self.map(mapping, file)
    }

    /// Waits for something to receive.
    fn wait(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut fds, Some(&ANSWER_MAX)))? {
            0 => Err(ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Lets go of every request of the guest: its memory is not touched any more. What the worker
    /// has been sent a part of, it is sent the rest of; what it still answers is swallowed.
    pub fn abandon(&mut self, memory: &GuestMemory) {
        self.done.clear();
        self.sending = match self.sending.take() {
            Some(Sending::Request { request, number, sent }) => {
                let bytes = request.copy(memory);
                if let Some(number) = number {
                    self.slots.fill(number, request);
                }
                Some(Sending::Bytes { bytes, sent, files: Vec::new() })
            }
            bytes => bytes,
        };
        self.orphans += self.slots.drain().count();
        self.receiving.abandon();
    }

    /// Ends the connection: everything fails with `errno`, now and later.
    fn end(&mut self, memory: Option<&GuestMemory>, errno: i32) {
        self.dead = Some(errno);
        self.monitors.end(errno);
        // The worker sees it and ends too. Not connected is as good.
        let _ = shutdown(&self.socket, Shutdown::Both);
        let mut left: Vec<Request> = self.slots.drain().collect();
        left.extend(self.receiving.abandon());
        if let Some(Sending::Request { request, .. }) = self.sending.take() {
            left.push(request);
        }
        for request in left {
            self.fail(memory, request, errno);
        }
    }

    /// Completes a request with an error, or with nothing where there is no room for one.
    fn fail(&mut self, memory: Option<&GuestMemory>, request: Request, errno: i32) {
        let len = memory.map_or(0, |memory| request.put_error(memory, errno));
        self.complete(request, len);
    }

    /// Completes a request whose reply has `len` bytes.
    fn complete(&mut self, request: Request, len: u32) {
        self.done.push(Done { queue: request.queue, head: request.head, len });
        self.spare.push(request);
    }
}

/// Whether a reply may be the request's, whose number it has.
fn fits(request: &Request, header: OutHeader) -> bool {
    let with_file = header.unique & WITH_FILE != 0;
    header.len as usize <= request.writable_len && with_file == request.mapping.is_some()
}

impl Sending {
    /// Sends as much as the socket takes at once, and says whether that was all.
    fn send(&mut self, socket: &OwnedFd, memory: Option<&GuestMemory>) -> io::Result<bool> {
        match self {
            Self::Request { request, sent, .. } => {
                let Some(memory) = memory else { return Err(ErrorKind::NotConnected.into()) };
                let front = request.front(*sent);
                let skip = *sent + front[0].len() + front[1].len();
                *sent += transfer::send(socket, front, memory, &request.readable, skip)?;
                Ok(*sent == request.header.len() as usize)
            }
            Self::Bytes { bytes, sent, files } => {
                *sent += transfer::send_files(socket, &bytes[*sent..], files)?;
                files.clear();
                Ok(*sent == bytes.len())
            }
        }
    }
}
