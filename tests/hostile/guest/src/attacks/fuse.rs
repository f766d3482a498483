//! A file system as a driver sees it that may send any FUSE request. The runner's VM has two shares: "s", with `file`, `dir`, and
//! the symbolic links `up` (to ../secret) and `abs` (to /); and "r", read-only, with `file`.

use crate::fail;
use crate::io::{get, put, put_bytes};
use crate::virtio::{BUFFERS, Device, FS, NEXT, Queue, WRITE};

pub const REQUEST: u64 = BUFFERS;
pub const REPLY: u64 = BUFFERS + 0x40_0000;
const REPLY_LEN: u32 = 1 << 21;
pub const ROOT: u64 = 1;
/// struct fuse_init_in: version 7.41, nothing wanted.
pub const INIT_BODY: [u8; 64] = {
    let mut body = [0; 64];
    (body[0], body[4]) = (7, 41);
    body
};

pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const SETATTR: u32 = 4;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const CREATE: u32 = 35;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
    pub const TMPFILE: u32 = 51;
}

/// A file system as a driver sees it.
pub struct Fs {
    pub hiprio: Queue,
    pub requests: Queue,
    unique: u64,
}

/// errno (0 for none) and the body's address.
pub struct Reply {
    pub errno: u32,
    pub body: u64,
}

impl Reply {
    /// The node of a fuse_entry_out.
    pub fn node(&self) -> u64 {
        if self.errno == 0 { get(self.body) } else { 0 }
    }
}

impl Fs {
    /// Resets the device and starts a session.
    pub fn start() -> Self {
        let mut fs = Self::bare();
        if fs.call(op::INIT, 0, &[&INIT_BODY]).errno != 0 {
            fail("INIT is refused");
        }
        fs
    }

    /// The same without INIT.
    pub fn bare() -> Self {
        let device = Device::find(FS);
        device.negotiate(0);
        let [hiprio, requests] = [0, 1].map(|index| device.queue(index, 64).enable());
        device.ok();
        Self { hiprio, requests, unique: 0 }
    }

    /// Writes a request to `at`; returns its length.
    pub fn write(&mut self, at: u64, opcode: u32, node: u64, parts: &[&[u8]]) -> u32 {
        let mut end = at + 40;
        for part in parts {
            put_bytes(end, part);
            end += part.len() as u64;
        }
        self.unique += 2;
        let len = (end - at) as u32;
        put(at, len);
        put(at + 4, opcode);
        put(at + 8, self.unique);
        put(at + 16, node);
        (0..4).for_each(|word| put(at + 24 + 4 * word, 0u32));
        len
    }

    /// Sends what is at [`REQUEST`] as `len` bytes; None if nothing comes back.
    pub fn submit(&mut self, len: u32, room: u32) -> Option<Reply> {
        put(REPLY, 0u64);
        self.requests.describe(0, REQUEST, len, NEXT, 1);
        self.requests.describe(1, REPLY, room, WRITE, 0);
        self.requests.submit(0).then(|| {
            let errno = get::<i32>(REPLY + 4).unsigned_abs();
            Reply { errno, body: REPLY + 16 }
        })
    }

    /// A whole request and its reply.
    pub fn call(&mut self, opcode: u32, node: u64, parts: &[&[u8]]) -> Reply {
        let len = self.write(REQUEST, opcode, node, parts);
        match self.submit(len, REPLY_LEN) {
            Some(reply) => reply,
            None => {
                fail("a request is not answered");
                Reply { errno: 5, body: REPLY + 16 }
            }
        }
    }

    /// A request nobody waits for.
    pub fn send_and_forget(&mut self, opcode: u32, node: u64, parts: &[&[u8]]) {
        let len = self.write(REQUEST, opcode, node, parts);
        self.requests.describe(0, REQUEST, len, NEXT, 1);
        self.requests.describe(1, REPLY, 4096, WRITE, 0);
        self.requests.offer(0);
        self.requests.notify();
    }

    pub fn lookup(&mut self, node: u64, name: &[u8]) -> u64 {
        self.call(op::LOOKUP, node, &[name, &[0]]).node()
    }

    /// The root of the share "s".
    pub fn share(&mut self) -> u64 {
        self.lookup(ROOT, b"s")
    }

    /// Opens a node with open(2)'s `flags`; returns errno and the handle.
    pub fn open(&mut self, opcode: u32, node: u64, flags: u32) -> (u32, u64) {
        let reply = self.call(opcode, node, &[&flags.to_le_bytes(), &[0; 4]]);
        (reply.errno, if reply.errno == 0 { get(reply.body) } else { 0 })
    }

    pub fn read(&mut self, opcode: u32, node: u64, handle: u64, offset: u64, size: u32) -> Reply {
        let (handle, offset) = (handle.to_le_bytes(), offset.to_le_bytes());
        self.call(opcode, node, &[&handle, &offset, &size.to_le_bytes(), &[0; 20]])
    }
}

/// The device, reset, still serves files.
pub fn sane() {
    let mut fs = Fs::start();
    let share = fs.share();
    if share == 0 || fs.lookup(share, b"file") == 0 {
        fail("files are not served any more");
    }
}

pub fn refused(what: &str, errno: u32) {
    if errno == 0 {
        fail(what);
    }
}
