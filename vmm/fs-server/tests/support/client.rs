//! A guest reduced to its FUSE requests, one at a time.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bulkhead_fs_server::{Options, ServeError, ShareRoot, serve};
use rustix::fs::{CWD, Mode, OFlags, openat};

// Opcodes of linux/fuse.h, and errors as replies have them.
pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const RELEASE: u32 = 18;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const CREATE: u32 = 35;
pub const FALLOCATE: u32 = 43;
pub const RENAME2: u32 = 45;
pub const SETUPMAPPING: u32 = 48;
pub const SYNCFS: u32 = 50;
pub const TMPFILE: u32 = 51;
pub const ENOENT: i32 = -2;
pub const EIO: i32 = -5;
pub const EBADF: i32 = -9;
pub const EISDIR: i32 = -21;
pub const EINVAL: i32 = -22;
pub const EROFS: i32 = -30;
pub const ENOSYS: i32 = -38;
pub const ESTALE: i32 = -116;

pub struct Client {
    pub socket: UnixStream,
    pub unique: u64,
    pub server: JoinHandle<Result<(), ServeError>>,
}

impl Client {
    pub fn new(shares: &[(&str, &Path, bool)]) -> Self {
        Self::with_options(shares, Options::default())
    }

    /// A server that restores and saves its state in `state`.
    pub fn with_state(shares: &[(&str, &Path, bool)], state: File) -> Self {
        Self::with_options(shares, Options { state: Some(state), ..Options::default() })
    }

    /// The same of copies of the shares.
    pub fn with_copies(shares: &[(&str, &Path, bool)], state: File) -> Self {
        Self::start(shares, true, Options { state: Some(state), ..Options::default() }, || {})
    }

    pub fn with_options(shares: &[(&str, &Path, bool)], options: Options) -> Self {
        Self::start(shares, false, options, || {})
    }

    /// A server whose thread runs `prepare` first.
    pub fn with_thread(shares: &[(&str, &Path, bool)], prepare: fn()) -> Self {
        Self::start(shares, false, Options::default(), prepare)
    }

    fn start(
        shares: &[(&str, &Path, bool)],
        copied: bool,
        options: Options,
        prepare: fn(),
    ) -> Self {
        let (socket, far) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let shares = shares
            .iter()
            .map(|&(name, path, readonly)| {
                let fd = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
                ShareRoot { name: name.to_owned(), fd, readonly, copied }
            })
            .collect();
        let server = thread::spawn(move || {
            prepare();
            serve(OwnedFd::from(far), shares, options)
        });
        Self { socket, unique: 0, server }
    }

    pub fn send(&mut self, opcode: u32, nodeid: u64, body: &[u8]) {
        self.unique += 1;
        let message = message(opcode, self.unique, nodeid, body);
        self.socket.write_all(&message).unwrap();
    }

    pub fn receive(&mut self) -> (i32, u64, Vec<u8>) {
        let mut header = [0; 16];
        self.socket.read_exact(&mut header).unwrap();
        let len = u32::from_le_bytes(header[..4].try_into().unwrap()) as usize;
        let mut body = vec![0; len - 16];
        self.socket.read_exact(&mut body).unwrap();
        let error = i32::from_le_bytes(header[4..8].try_into().unwrap());
        (error, u64::from_le_bytes(header[8..].try_into().unwrap()), body)
    }

    pub fn ask(&mut self, opcode: u32, nodeid: u64, body: &[u8]) -> (i32, Vec<u8>) {
        self.send(opcode, nodeid, body);
        let (error, unique, body) = self.receive();
        assert_eq!(unique, self.unique);
        (error, body)
    }

    /// CREATE by a user and the group of the same number; returns the error.
    pub fn create_as(&mut self, user: u32, dir: u64, mode: u32, name: &str) -> i32 {
        self.unique += 1;
        let fields = [1, mode, 0, 0].map(u32::to_le_bytes).concat();
        let body = [fields.as_slice(), name.as_bytes(), b"\0"].concat();
        let mut message = message(35, self.unique, dir, &body);
        for at in [24, 28] {
            message[at..at + 4].copy_from_slice(&user.to_le_bytes());
        }
        self.socket.write_all(&message).unwrap();
        self.receive().0
    }

    pub fn init(&mut self) {
        let body = [7u32, 41, 1 << 17, u32::MAX].map(u32::to_le_bytes).concat();
        let (error, reply) = self.ask(INIT, 0, &body);
        assert_eq!((error, reply.len()), (0, 64));
        assert_eq!(reply[..8], [7, 0, 0, 0, 41, 0, 0, 0]);
    }

    pub fn lookup(&mut self, nodeid: u64, name: &str) -> Result<u64, i32> {
        match self.ask(LOOKUP, nodeid, &[name.as_bytes(), b"\0"].concat()) {
            (0, body) => Ok(u64::from_le_bytes(body[..8].try_into().unwrap())),
            (error, _) => Err(error),
        }
    }

    pub fn finish(self) -> Result<(), ServeError> {
        drop(self.socket);
        self.server.join().expect("the server did not panic")
    }
}

pub fn message(opcode: u32, unique: u64, nodeid: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = ((40 + body.len()) as u32).to_le_bytes().to_vec();
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(nodeid.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}
