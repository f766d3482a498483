//! Threads: who reads the next request.
//!
//! ```text
//!  waiting ──── takes the reader ────▶ leading ──▶ answers the request itself (usual)
//!     ▲                                   │
//!     └──── after answering ◀── hands over the reader, when the request may take long
//! ```
//!
//! One thread leads: it reads a request, answers it, and reads the next, which costs nothing while
//! requests are quick. A request that may take long (it syncs, or moves much data) is answered only
//! after the lead was handed over, to a waiting thread or a new one. As no request tells whether
//! the host's disk is slow, the clock does: after one slow answer, the next few are handed over
//! too. An idle or small guest thus has one thread, and a slow disk stalls nobody twice.

use std::io::{self, BufReader, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::ServeError;
use crate::buffer::Buffer;
use crate::incoming::Incoming;
use crate::inodes::lock;
use crate::server::{Request, Server};
use crate::wire::{Args, HEADER_LEN_IN, MESSAGE_MAX, ReadIn, Reply, op};

/// Bytes read ahead: many small requests, or the front of a WRITE whose data is then read to
/// where it is wanted.
const READ_AHEAD: usize = 8 << 10;

/// Bytes of file data from which copying is worth another thread, if there is more to do.
const LARGE: usize = 128 << 10;

/// An answer that took this long waited for something.
const SLOW: Duration = Duration::from_micros(500);

/// How many requests are handed over after a slow one.
const WARY: u32 = 64;

/// How long large buffers stay ready for the next large request.
const LINGER: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

type Requests<'s> = BufReader<Incoming<'s>>;

/// What the threads pass on.
struct Pool<'s> {
    server: &'s Server,
    socket: &'s UnixStream,
    lead: Mutex<Lead<'s>>,
    lead_free: Condvar,
    /// Held while a whole reply is written.
    replies: Mutex<()>,
    /// How many more requests to hand over because of a slow one.
    wary: AtomicU32,
    threads_max: usize,
}

struct Lead<'s> {
    /// Here while nobody leads.
    reader: Option<Requests<'s>>,
    waiting: usize,
    threads: usize,
    /// Set once there is nothing more to read.
    ended: Option<Result<(), ServeError>>,
}

/// A thread's buffers: a request and the reply to it.
struct Buffers {
    request: Buffer,
    reply: Buffer,
    /// What came with the request.
    files: Vec<OwnedFd>,
}

/// Serves until the socket closes.
pub fn run(server: &Server, socket: UnixStream, threads_max: usize) -> Result<(), ServeError> {
    let reader = Some(BufReader::with_capacity(READ_AHEAD, Incoming::new(&socket)));
    let pool = Pool {
        server,
        socket: &socket,
        lead: Mutex::new(Lead { reader, waiting: 0, threads: 1, ended: None }),
        lead_free: Condvar::new(),
        replies: Mutex::new(()),
        wary: AtomicU32::new(0),
        threads_max,
    };
    let buffers = Buffers::new()?;
    thread::scope(|scope| pool.work(scope, buffers));
    let ended = lock(&pool.lead).ended.take();
    ended.unwrap_or(Ok(()))
}

impl<'s> Pool<'s> {
    /// A thread's life: wait for the lead, lead, until there is nothing more to read.
    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, mut buffers: Buffers) {
        while let Some(mut reader) = self.wait_for_lead() {
            loop {
                let len = match self.read_request(&mut reader, &mut buffers) {
                    Ok(Some(len)) => len,
                    Ok(None) => return self.end(Ok(())),
                    Err(error) => return self.end(Err(error)),
                };
                let Some(request) = Request::parse(&buffers.request[..len]) else {
                    // read_request reads a header at least.
                    continue;
                };
                if request.header.opcode == op::SHARE {
                    buffers.files = reader.get_mut().take_files();
                }
                let others_wait = !reader.buffer().is_empty();
                let kept = if self.may_take_long(&request, others_wait) {
                    self.hand_over(scope, reader)
                } else {
                    Some(reader)
                };
                if let Err(error) = self.answer(&mut buffers, len) {
                    return self.end(Err(ServeError::Socket(error)));
                }
                match kept {
                    Some(kept) => reader = kept,
                    None => break,
                }
            }
        }
    }

    /// Reads a whole request and returns its length; `None` if the other side has closed.
    fn read_request(
        &self,
        reader: &mut Requests<'s>,
        buffers: &mut Buffers,
    ) -> Result<Option<usize>, ServeError> {
        if buffers.is_large() && reader.buffer().is_empty() && !self.is_readable_soon() {
            buffers.release();
        }
        let (header, body) = buffers.request.split_at_mut(HEADER_LEN_IN);
        if !read_or_end(reader, header).map_err(ServeError::Socket)? {
            return Ok(None);
        }
        let announced = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let len = announced as usize;
        if !(HEADER_LEN_IN..=MESSAGE_MAX).contains(&len) {
            return Err(ServeError::Framing(announced));
        }
        reader.read_exact(&mut body[..len - HEADER_LEN_IN]).map_err(ServeError::Socket)?;
        buffers.request.touch(len);
        Ok(Some(len))
    }

    /// Carries out the request in `buffers` and sends the reply, if there is to be one.
    fn answer(&self, buffers: &mut Buffers, len: usize) -> io::Result<()> {
        let Some(mut request) = Request::parse(&buffers.request[..len]) else { return Ok(()) };
        request.files = std::mem::take(&mut buffers.files);
        let header = request.header;
        let begun = Instant::now();
        let mut reply = Reply::new(&mut buffers.reply);
        let result = self.server.dispatch(request, &mut reply);
        if begun.elapsed() >= SLOW {
            self.wary.store(WARY, Ordering::Relaxed);
        }
        if op::is_silent(header.opcode) {
            return Ok(());
        }
        let file = reply.take_file();
        let len = reply.finish(header.unique, result);
        buffers.reply.touch(len);
        let _turn = lock(&self.replies);
        match send(self.socket, &buffers.reply[..len], file) {
            // The other side has closed; the reader will notice.
            Err(error) if is_closed(&error) => Ok(()),
            result => result,
        }
    }

    fn may_take_long(&self, request: &Request<'_>, others_wait: bool) -> bool {
        let wary = self.wary.load(Ordering::Relaxed);
        if wary > 0 {
            // Threads may count down twice or not at all; it is a guess anyway.
            self.wary.store(wary - 1, Ordering::Relaxed);
            return true;
        }
        match request.header.opcode {
            op::FSYNC | op::FSYNCDIR | op::SYNCFS | op::FALLOCATE | op::COPY_FILE_RANGE => true,
            op::WRITE if others_wait => request.header.len as usize >= LARGE,
            op::READ if others_wait => read_size(request.args).is_ok_and(|size| size >= LARGE),
            _ => false,
        }
    }

    fn is_readable_soon(&self) -> bool {
        let mut fds = [PollFd::new(self.socket, PollFlags::IN)];
        // On errors reading will say more.
        !matches!(poll(&mut fds, Some(&LINGER)), Ok(0))
    }

    /// Waits until nobody leads; `None` once there is nothing more to read.
    fn wait_for_lead(&self) -> Option<Requests<'s>> {
        let mut lead = lock(&self.lead);
        loop {
            if lead.ended.is_some() {
                return None;
            }
            if let Some(reader) = lead.reader.take() {
                return Some(reader);
            }
            lead.waiting += 1;
            lead = self.lead_free.wait(lead).unwrap_or_else(PoisonError::into_inner);
            lead.waiting -= 1;
        }
    }

    /// Lets another thread lead; gives the reader back if there is none and can be none.
    fn hand_over<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        reader: Requests<'s>,
    ) -> Option<Requests<'s>> {
        let mut lead = lock(&self.lead);
        if lead.waiting == 0 {
            if lead.threads >= self.threads_max {
                return Some(reader);
            }
            let Ok(buffers) = Buffers::new() else { return Some(reader) };
            let thread = thread::Builder::new().name("fs".into());
            if thread.spawn_scoped(scope, || self.work(scope, buffers)).is_err() {
                return Some(reader);
            }
            lead.threads += 1;
        }
        lead.reader = Some(reader);
        self.lead_free.notify_one();
        None
    }

    /// Sends every thread home; the first reason counts.
    fn end(&self, result: Result<(), ServeError>) {
        if result.is_err() {
            // Wakes a thread that reads while this one failed to write. Not connected is as good.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
        lock(&self.lead).ended.get_or_insert(result);
        self.lead_free.notify_all();
    }
}

impl Buffers {
    fn new() -> Result<Self, ServeError> {
        let (request, reply) = (Buffer::new(MESSAGE_MAX)?, Buffer::new(MESSAGE_MAX)?);
        Ok(Self { request, reply, files: Vec::new() })
    }

    fn is_large(&self) -> bool {
        self.request.is_large() || self.reply.is_large()
    }

    fn release(&mut self) {
        self.request.release();
        self.reply.release();
    }
}

/// Sends a reply, and a file with its first byte.
fn send(mut socket: &UnixStream, reply: &[u8], file: Option<OwnedFd>) -> io::Result<()> {
    let Some(file) = file else { return socket.write_all(reply) };
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    let parts = [IoSlice::new(reply)];
    let sent = retry_on_intr(|| sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL))?;
    socket.write_all(&reply[sent..])
}

fn read_size(mut args: Args<'_>) -> Result<usize, Errno> {
    Ok(ReadIn::parse(&mut args)?.size as usize)
}

/// Fills `buffer`; false if the other side closed before the first byte.
fn read_or_end(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let first = loop {
        match reader.read(buffer) {
            Ok(len) => break len,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_closed(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    };
    if first == 0 {
        return Ok(false);
    }
    reader.read_exact(&mut buffer[first..])?;
    Ok(true)
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}
