//! The caller's side.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{LINE_MAX, Request, Response, ShareEntry, Stats, Then, descriptor};

/// How long a VM may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// How long it may take to save one: its memory is written to a disk.
const SAVE_MAX: Duration = Duration::from_secs(600);

/// Why a VM did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot connect to the VM's control socket {}: {source}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The connection broke, or the answer took too long.
    #[error("the VM did not answer on its control socket: {0}")]
    Broken(#[source] io::Error),
    /// Something that is no answer.
    #[error("the VM answered nonsense on its control socket")]
    Nonsense,
    /// The VM's own words.
    #[error("the VM refused: {0}")]
    Refused(String),
}

/// A share to be added; see [`Request::Share`].
#[derive(Clone, Copy, Debug)]
pub struct NewShare<'a> {
    /// Its name in the root directory of the virtio-fs mount.
    pub name: &'a str,
    /// Refuses every write on the host's side.
    pub readonly: bool,
    /// A directory or file, as [`crate::fs_worker::open`] returns it.
    pub fd: BorrowedFd<'a>,
}

/// A connection to a VM's control socket; its calls wait for the answer.
#[derive(Debug)]
pub struct Client(UnixStream);

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        stream
            .set_read_timeout(Some(ANSWER_MAX))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_MAX)))
            .map_err(ClientError::Broken)?;
        Ok(Self(stream))
    }

    /// Stops the VM's vCPUs.
    pub fn pause(&mut self) -> Result<(), ClientError> {
        self.done(Request::Pause)
    }

    /// Lets them go on.
    pub fn resume(&mut self) -> Result<(), ClientError> {
        self.done(Request::Resume)
    }

    /// Asks for figures.
    pub fn stats(&mut self) -> Result<Stats, ClientError> {
        match self.call(&line(Request::Stats)?)? {
            Response::Stats(stats) => Ok(stats),
            _ => Err(ClientError::Nonsense),
        }
    }

    /// Plugs a network interface in; see [`Request::Plug`].
    pub fn plug(
        &mut self,
        mac: [u8; 6],
        mtu: Option<u16>,
        tap: BorrowedFd<'_>,
    ) -> Result<(), ClientError> {
        self.done_with(Request::Plug { mac, mtu }, &[tap])
    }

    /// Shows the guest more files; see [`Request::Share`].
    pub fn share(&mut self, shares: &[NewShare<'_>]) -> Result<(), ClientError> {
        let entry = |share: &NewShare<'_>| ShareEntry {
            name: share.name.to_owned(),
            readonly: share.readonly,
        };
        let files: Vec<_> = shares.iter().map(|share| share.fd).collect();
        self.done_with(Request::Share { shares: shares.iter().map(entry).collect() }, &files)
    }

    /// Takes such shares away; see [`Request::Unshare`].
    pub fn unshare(&mut self, names: &[String]) -> Result<(), ClientError> {
        self.done(Request::Unshare { names: names.to_owned() })
    }

    /// Has the VM saved to files when its agent next stands still; see [`Request::Snapshot`].
    /// The agent may be asked for that once this returns; [`Client::saved`] waits for it.
    pub fn snapshot(&mut self, files: &[BorrowedFd<'_>], then: Then) -> Result<(), ClientError> {
        let line = line(Request::Snapshot { then })?;
        let sent = descriptor::send(&self.0, &line, files).map_err(ClientError::Broken)?;
        match self.call(&line[sent..])? {
            Response::Ready => Ok(()),
            _ => Err(ClientError::Nonsense),
        }
    }

    /// Waits until the VM was saved.
    pub fn saved(&mut self) -> Result<(), ClientError> {
        self.0.set_read_timeout(Some(SAVE_MAX)).map_err(ClientError::Broken)?;
        match self.call(b"")? {
            Response::Done => Ok(()),
            _ => Err(ClientError::Nonsense),
        }
    }

    fn done(&mut self, request: Request) -> Result<(), ClientError> {
        self.call_done(&line(request)?)
    }

    fn done_with(&mut self, request: Request, files: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let line = line(request)?;
        let sent = descriptor::send(&self.0, &line, files).map_err(ClientError::Broken)?;
        self.call_done(&line[sent..])
    }

    fn call_done(&mut self, line: &[u8]) -> Result<(), ClientError> {
        match self.call(line)? {
            Response::Done => Ok(()),
            _ => Err(ClientError::Nonsense),
        }
    }

    /// Sends `line`, or what is left of it, and waits for the answer.
    fn call(&mut self, line: &[u8]) -> Result<Response, ClientError> {
        self.0.write_all(line).map_err(ClientError::Broken)?;
        match serde_json::from_slice(&self.line()?).map_err(|_| ClientError::Nonsense)? {
            Response::Refused { message } => Err(ClientError::Refused(message)),
            response => Ok(response),
        }
    }

    /// Reads one line. Nothing comes after it: the VM speaks when it is spoken to.
    fn line(&mut self) -> Result<Vec<u8>, ClientError> {
        let mut line = Vec::new();
        let mut chunk = [0; 512];
        while !line.ends_with(b"\n") {
            match self.0.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(len) if line.len() + len <= LINE_MAX => line.extend_from_slice(&chunk[..len]),
                Ok(_) => return Err(ClientError::Nonsense),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ClientError::Broken(error)),
            }
        }
        Ok(line)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn line(request: Request) -> Result<Vec<u8>, ClientError> {
    let mut line = serde_json::to_vec(&request).map_err(|_| ClientError::Nonsense)?;
    line.push(b'\n');
    Ok(line)
}
