//! A terminal of this host whose other end the container engine gets.
//!
//! The guest's own terminal does the line editing and echoing, so this one is raw: two pipes with a
//! window size.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Winsize};

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    #[error("cannot make a terminal: {0}")]
    Open(#[source] io::Error),
    #[error("cannot send the terminal to {}: {source}", .path.display())]
    Send {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    #[error("cannot take over the terminal: {0}")]
    Take(#[source] io::Error),
}

/// A terminal: the engine's end and the container's.
#[derive(Debug)]
pub struct Console {
    master: OwnedFd,
    /// The container's end.
    pub slave: OwnedFd,
    name: Vec<u8>,
}

impl Console {
    /// Makes a raw terminal, of `size` if that is known.
    pub fn open(size: Option<Winsize>) -> Result<Self, ConsoleError> {
        Self::try_open(size).map_err(|errno| ConsoleError::Open(errno.into()))
    }

    fn try_open(size: Option<Winsize>) -> rustix::io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(&name, flags, Mode::empty())?;
        let mut termios = rustix::termios::tcgetattr(&slave)?;
        termios.make_raw();
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &termios)?;
        if let Some(size) = size {
            rustix::termios::tcsetwinsize(&slave, size)?;
        }
        Ok(Self { master, slave, name: name.into_bytes() })
    }

    /// Sends the engine's end over the Unix socket at `path` (runc's docs/terminals.md); keeps the
    /// container's.
    pub fn send(self, path: &Path) -> Result<OwnedFd, ConsoleError> {
        self.try_send(path)
            .map_err(|errno| ConsoleError::Send { path: path.to_owned(), source: errno.into() })?;
        Ok(self.slave)
    }

    fn try_send(&self, path: &Path) -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let descriptors = [self.master.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let name = [IoSlice::new(&self.name)];
        rustix::net::sendmsg(&socket, &name, &mut control, SendFlags::NOSIGNAL).map(drop)
    }
}

/// Makes a terminal this process's standard streams and controlling terminal, in a session of its
/// own.
pub fn take(slave: OwnedFd) -> Result<(), ConsoleError> {
    let take = || {
        rustix::process::ioctl_tiocsctty(&slave)?;
        rustix::stdio::dup2_stdin(&slave)?;
        rustix::stdio::dup2_stdout(&slave)?;
        rustix::stdio::dup2_stderr(&slave)
    };
    take().map_err(|errno: rustix::io::Errno| ConsoleError::Take(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    use std::fs::File;
    use std::io::{IoSliceMut, Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_engine_gets_a_raw_terminal_of_the_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let slave = Console::open(Some(size)).unwrap().send(&path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let (mut name, mut space) =
            ([0; 64], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut name)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(&stream, &mut buffers, &mut control, flags).unwrap();
        assert!(name.starts_with(b"/dev/pts/"));
        let Some(RecvAncillaryMessage::ScmRights(mut sent)) = control.drain().next() else {
            panic!("no descriptor")
        };
        let mut master = File::from(sent.next().unwrap());
        assert_eq!(rustix::termios::tcgetwinsize(&master).unwrap(), size);
        // Neither echo nor line editing nor carriage returns.
        let mut slave = File::from(slave);
        master.write_all(b"a").unwrap();
        slave.read_exact(&mut [0]).unwrap();
        slave.write_all(b"b\n").unwrap();
        let mut said = [0; 2];
        master.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"b\n");
    }

    #[test]
    fn a_socket_that_is_not_there_is_named() {
        let error = Console::open(None).unwrap().send(Path::new("/nonexistent/sock")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/sock"), "{error}");
    }
}
