//! Host file descriptors as streams that never block the event loop.
//!
//! An inherited descriptor shares its open file description with the caller's shell, so its status
//! flags are not ours to change. How to read and write without blocking depends on what it is:
//!
//! | descriptor                | how                                                          |
//! |---------------------------|--------------------------------------------------------------|
//! | pipe, terminal, /dev/null | opened anew through /proc/self/fd: a description of our own  |
//! | socket                    | MSG_DONTWAIT                                                 |
//! | file, block device        | plain calls; never waits for long, and epoll will not have it|
//! | all else, or no reopening | poll(2) first, and writes of at most PIPE_BUF bytes          |
//!
//! Streams are watched for edges: after an event, go on until [`io::ErrorKind::WouldBlock`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use event_manager::{EventOps, EventSet, Events};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::Shutdown;
use vm_memory::VolatileSlice;

use crate::iovec::{IoVecs, retry};

/// POSIX's PIPE_BUF on Linux: a pipe that poll(2) calls writable takes this much.
const PIPE_BUF: usize = 4096;
/// The most buffers of one system call: more than the chain of a full vsock packet (a header and
/// MAX_SKB_FRAGS pages), and little enough for the stack.
const IOV_MAX: usize = 32;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the host descriptor.
    Read,
    /// To the host descriptor.
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Has an open file description of its own, with O_NONBLOCK.
    NonBlocking,
    Socket,
    File,
    Polled,
}

/// One direction of a host descriptor.
#[derive(Debug)]
pub struct HostStream {
    fd: OwnedFd,
    kind: Kind,
    direction: Direction,
    /// The other direction keeps the socket open: closing this one takes a shutdown(2).
    is_half: bool,
    watched: bool,
}

impl HostStream {
    /// Takes over one direction of an inherited descriptor.
    pub fn inherited(fd: OwnedFd, direction: Direction) -> Self {
        let kind = rustix::fs::fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let (fd, kind) = match kind {
            Ok(FileType::Socket) => (fd, Kind::Socket),
            Ok(FileType::RegularFile | FileType::BlockDevice) => (fd, Kind::File),
            Ok(FileType::Fifo | FileType::CharacterDevice) => match reopen(&fd, direction) {
                Ok(own) => (own, Kind::NonBlocking),
                Err(_) => (fd, Kind::Polled),
            },
            _ => (fd, Kind::Polled),
        };
        Self { fd, kind, direction, is_half: false, watched: false }
    }

    /// Both directions of a socket of our own, the one to read first. Closing one of them shuts
    /// the socket down in that direction.
    pub fn pair(socket: UnixStream) -> io::Result<(Self, Self)> {
        let half = |socket: UnixStream, direction| Self {
            fd: socket.into(),
            kind: Kind::Socket,
            direction,
            is_half: true,
            watched: false,
        };
        let clone = socket.try_clone()?;
        Ok((half(clone, Direction::Read), half(socket, Direction::Write)))
    }

    /// Has the event loop call with `data` when the stream may have become ready to read, or its
    /// other end was closed. Descriptors that epoll refuses are always ready: returns whether it is
    /// one of those.
    pub fn watch(&mut self, ops: &mut EventOps, data: u32) -> io::Result<bool> {
        if self.kind == Kind::File {
            return Ok(true);
        }
        let events = match self.direction {
            Direction::Read => EventSet::IN | EventSet::READ_HANG_UP,
            // Errors and hang-ups are always reported.
            Direction::Write => EventSet::empty(),
        };
        match ops.add(Events::with_data(self, data, events | EventSet::EDGE_TRIGGERED)) {
            Ok(()) => {
                self.watched = true;
                Ok(false)
            }
            Err(event_manager::Error::Epoll(errno)) => {
                let error = io::Error::from(errno);
                // What has no readiness to speak of, such as /dev/null.
                (error.raw_os_error() == Some(libc::EPERM)).then_some(true).ok_or(error)
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Has the event loop call with `data` when the stream can be written again, too. Not part of
    /// [`HostStream::watch`], which would report a fresh stream as writable at once.
    pub fn watch_writable(&self, ops: &mut EventOps, data: u32) -> io::Result<()> {
        if !self.watched {
            return Ok(());
        }
        let events = EventSet::OUT | EventSet::EDGE_TRIGGERED;
        ops.modify(Events::with_data(self, data, events)).map_err(io::Error::other)
    }

    /// Closes this direction.
    pub fn close(self, ops: &mut EventOps) {
        if self.watched {
            // The descriptor is open and was added: nothing can fail but the bookkeeping.
            let _ = ops.remove(Events::empty(&self));
        }
        if self.is_half {
            let how = match self.direction {
                Direction::Read => Shutdown::Read,
                Direction::Write => Shutdown::Write,
            };
            // A peer that is gone already needs no telling.
            let _ = rustix::net::shutdown(&self.fd, how);
        }
    }

    /// Reads into guest memory. Returns 0 at end of file.
    pub fn read(&self, buffers: &[VolatileSlice]) -> io::Result<usize> {
        self.wait_is_over(PollFlags::IN)?;
        let mut iov = IoVecs::<IOV_MAX>::new();
        iov.push(buffers, usize::MAX);
        retry(|| match self.kind {
            // SAFETY: the message's buffers are those of `iov`.
            Kind::Socket => unsafe {
                libc::recvmsg(self.as_raw_fd(), &mut iov.message(), libc::MSG_DONTWAIT)
            },
            // SAFETY: `iov` holds `count` buffers that are valid for writes.
            _ => unsafe { libc::readv(self.as_raw_fd(), iov.as_ptr(), iov.count()) },
        })
    }

    /// Writes from guest memory. Returns how much was taken.
    pub fn write(&self, buffers: &[VolatileSlice]) -> io::Result<usize> {
        self.wait_is_over(PollFlags::OUT)?;
        let limit = if self.kind == Kind::Polled { PIPE_BUF } else { usize::MAX };
        let mut iov = IoVecs::<IOV_MAX>::new();
        iov.push(buffers, limit);
        retry(|| match self.kind {
            // SAFETY: the message's buffers are those of `iov`.
            Kind::Socket => unsafe {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                libc::sendmsg(self.as_raw_fd(), &iov.message(), flags)
            },
            // SAFETY: `iov` holds `count` buffers that are valid for reads.
            _ => unsafe { libc::writev(self.as_raw_fd(), iov.as_ptr(), iov.count()) },
        })
    }

    /// For descriptors that would block: reports [`io::ErrorKind::WouldBlock`] instead.
    fn wait_is_over(&self, flags: PollFlags) -> io::Result<()> {
        if self.kind != Kind::Polled {
            return Ok(());
        }
        let mut fds = [PollFd::new(&self.fd, flags)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    }
}

impl AsRawFd for HostStream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for HostStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens what `fd` refers to once more, for an open file description of our own.
fn reopen(fd: &OwnedFd, direction: Direction) -> io::Result<OwnedFd> {
    let access = match direction {
        Direction::Read => OFlags::RDONLY,
        Direction::Write => OFlags::WRONLY,
    };
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests;
