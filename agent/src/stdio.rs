//! A process's standard streams: pipes or a pseudo-terminal at the process, sockets to the host,
//! and pumps that move the bytes between them.
//!
//! Processes get pipes, not the sockets themselves: a program may open /dev/stdout, which works
//! through /proc for pipes and terminals but not for sockets.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bulkhead_protocol::HostPort;
use bulkhead_protocol::rpc::agent::{Process, Terminal};
use rustix::fs::{Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::net::Shutdown;
use rustix::pipe::{PipeFlags, SpliceFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// One of a process's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard input, a pipe.
    Stdin,
    /// Standard output, a pipe.
    Stdout,
    /// Standard error, a pipe.
    Stderr,
    /// All three in one, a pseudo-terminal.
    Terminal,
}

impl Stream {
    /// Where the VMM takes this stream of the container's own process.
    pub fn host_port(self) -> HostPort {
        match self {
            Self::Stdin => HostPort::Stdin,
            Self::Stdout => HostPort::Stdout,
            Self::Stderr => HostPort::Stderr,
            Self::Terminal => HostPort::Terminal,
        }
    }
}

/// One side of a process's streams: those that were asked for.
pub type Ends = Vec<(Stream, OwnedFd)>;

/// The streams that `process` asks for.
pub fn wanted(process: &Process) -> impl Iterator<Item = Stream> {
    let terminal = process.terminal.is_some();
    [
        (Stream::Terminal, terminal),
        (Stream::Stdin, process.stdin && !terminal),
        (Stream::Stdout, process.stdout && !terminal),
        (Stream::Stderr, process.stderr && !terminal),
    ]
    .into_iter()
    .filter_map(|(stream, wanted)| wanted.then_some(stream))
}

/// Makes the streams that `process` asks for: the process's ends, which block, and the agent's,
/// which do not. A terminal is opened in `devpts`, the root of a devpts file system.
pub fn open(process: &Process, devpts: BorrowedFd<'_>) -> io::Result<(Ends, Ends)> {
    if let Some(size) = process.terminal.as_ref() {
        let (slave, master) = open_terminal(size, devpts)?;
        return Ok((vec![(Stream::Terminal, slave)], vec![(Stream::Terminal, master)]));
    }
    let (mut theirs, mut ours) = (Ends::new(), Ends::new());
    for stream in wanted(process) {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (their, our) = if stream == Stream::Stdin { (read, write) } else { (write, read) };
        rustix::fs::fcntl_setfl(&our, OFlags::NONBLOCK)?;
        theirs.push((stream, their));
        ours.push((stream, our));
    }
    Ok((theirs, ours))
}

fn open_terminal(size: &Terminal, devpts: BorrowedFd<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = rustix::fs::openat(devpts, "ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    resize(master.as_fd(), size.rows, size.columns)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    Ok((slave, master))
}

/// Sets a terminal's size, in characters; what does not fit 16 bits is cut to that.
pub fn resize(terminal: BorrowedFd<'_>, rows: u32, columns: u32) -> io::Result<()> {
    let cut = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let size = Winsize { ws_row: cut(rows), ws_col: cut(columns), ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size)
}

/// The pumps that join the agent's end of a stream to a socket.
pub fn join(stream: Stream, end: OwnedFd, socket: OwnedFd) -> io::Result<Vec<Pump>> {
    Ok(match stream {
        Stream::Stdin => vec![Pump::new(socket, end, Direction::In)],
        Stream::Stdout | Stream::Stderr => vec![Pump::new(end, socket, Direction::Out)],
        Stream::Terminal => {
            let dup = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 0);
            let input = Pump::new(dup(&socket)?, dup(&end)?, Direction::In);
            vec![Pump::new(end, socket, Direction::Out), input]
        }
    })
}

/// Which way a pump moves bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the process.
    In,
    /// From the process.
    Out,
}

/// Moves bytes from one non-blocking fd to another until the source ends or the sink is gone.
///
/// Made for edge-triggered readiness of either side: [`Pump::run`] after each event, and again
/// whenever it answers [`Progress::More`]. Dropping a pump closes both sides.
#[derive(Debug)]
pub struct Pump {
    source: OwnedFd,
    sink: OwnedFd,
    direction: Direction,
    /// For fds that splice(2) does not join: terminals.
    buffer: Option<Buffer>,
}

/// What came of [`Pump::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing moves before the next event.
    Blocked,
    /// There is more to move, but it is someone else's turn.
    More,
    /// Everything was moved, or the sink takes no more.
    Finished,
}

/// The most bytes moved at a time: a pipe's capacity.
const CHUNK: usize = 64 << 10;
/// How many chunks a pump may move before other events get their turn.
const CHUNKS_PER_TURN: usize = 16;

#[derive(Debug)]
struct Buffer {
    bytes: Box<[u8]>,
    /// What was read and not yet written: `bytes[from..to]`.
    from: usize,
    to: usize,
}

impl Pump {
    /// A pump between two non-blocking fds, either of which may be a socket still connecting.
    pub fn new(source: OwnedFd, sink: OwnedFd, direction: Direction) -> Self {
        Self { source, sink, direction, buffer: None }
    }

    /// Which way it moves bytes.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Both fds, for an event loop.
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.source.as_fd(), self.sink.as_fd()]
    }

    /// Moves what can be moved now.
    pub fn run(&mut self) -> Progress {
        for _ in 0..CHUNKS_PER_TURN {
            match self.step() {
                Ok(0) => return self.finish(),
                Ok(_) | Err(Errno::INTR) => {}
                // A socket says NOTCONN until it is connected.
                Err(Errno::AGAIN | Errno::NOTCONN) => return Progress::Blocked,
                Err(Errno::INVAL) if self.buffer.is_none() => self.buffer = Some(Buffer::new()),
                // The sink is gone (PIPE, CONNRESET), or the source: a terminal's master reads IO
                // when its last slave was closed.
                Err(_) => return self.finish(),
            }
        }
        Progress::More
    }

    fn step(&mut self) -> io::Result<usize> {
        match &mut self.buffer {
            Some(buffer) => buffer.step(self.source.as_fd(), self.sink.as_fd()),
            None => {
                let flags = SpliceFlags::NONBLOCK;
                rustix::pipe::splice(&self.source, None, &self.sink, None, CHUNK, flags)
            }
        }
    }

    /// Nothing that was written to the source is left to be moved.
    pub fn is_drained(&self) -> bool {
        let buffered = self.buffer.as_ref().is_some_and(|buffer| buffer.from < buffer.to);
        !buffered && rustix::io::ioctl_fionread(&self.source).is_ok_and(|left| left == 0)
    }

    /// Tells the sink that no more will come: for a terminal's socket dropping is not enough, for
    /// the other direction holds it too. (A sink that is no socket refuses this: no harm.)
    pub fn finish(&self) -> Progress {
        let _ = rustix::net::shutdown(&self.sink, Shutdown::Write);
        Progress::Finished
    }
}

impl Buffer {
    fn new() -> Self {
        // Terminals move a few KiB at a time.
        Self { bytes: vec![0; 16 << 10].into_boxed_slice(), from: 0, to: 0 }
    }

    /// Writes what is there, or reads more. 0 is the end of the source.
    fn step(&mut self, source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> io::Result<usize> {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
            self.to = rustix::io::read(source, &mut self.bytes[..])?;
            return Ok(self.to);
        }
        let written = rustix::io::write(sink, &self.bytes[self.from..self.to])?;
        self.from += written;
        Ok(written)
    }
}

#[cfg(test)]
mod tests;
