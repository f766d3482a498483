//! FUSE: what the worker says to the monitor, and what the guest says to the worker.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;

use bulkhead_devices::fs::FsDevice;
use bulkhead_devices::testing::Driver;
use bulkhead_fs_server::{Options, ServeError, ShareRoot, save, serve};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat};

use crate::input::Input;
use crate::scratch;

const REQUESTS: usize = 1;
const HEADER_LEN: usize = 40;
const STATFS: u32 = 17;
/// The number of a last request.
const LAST: u64 = u64::MAX;

pub fn message(opcode: u32, unique: u64, nodeid: u64, body: &[u8]) -> Vec<u8> {
    let len = (HEADER_LEN + body.len()) as u32;
    let head = [&len.to_le_bytes()[..], &opcode.to_le_bytes(), &unique.to_le_bytes()].concat();
    [&head[..], &nodeid.to_le_bytes(), &[0; 16], body].concat()
}

/// Eight requests are under way; the input is what comes back, in pieces of any size.
pub fn replies(input: &[u8]) {
    let (mut worker, socket) = UnixStream::pair().unwrap();
    worker.set_nonblocking(true).unwrap();
    let mut driver = Driver::start(Box::new(FsDevice::new("fuzz", OwnedFd::from(socket))));
    for unique in 0..8 {
        driver.queue(REQUESTS).post(&[&message(15, unique, 1, &[0; 40])], &[16, 64, 4096]);
    }
    driver.kick(REQUESTS);
    driver.run();
    let mut asked = vec![0; 8 * 80];
    worker.read_exact(&mut asked).expect("all requests are sent");
    let mut input = Input(input);
    while !input.is_empty() {
        let piece = match input.u8() {
            // A reply's head, to a request that was made or to another.
            kind @ 0..64 => {
                let at = usize::from(kind % 8) * 80 + 8;
                let unique = &asked[at..at + 8];
                let (len, error) = (u32::from(input.u16()), -i32::from(input.u8()));
                [&len.to_le_bytes()[..], &error.to_le_bytes(), unique].concat()
            }
            len => input.bytes(len.into()).to_vec(),
        };
        let _ = worker.write_all(&piece);
        driver.run();
        while driver.queue(REQUESTS).take_used().is_some() {}
    }
}

pub fn reply_seeds() -> Vec<Vec<u8>> {
    let head =
        |which: u8, len: u16, error: u8| [&[which][..], &len.to_le_bytes(), &[error]].concat();
    let good = [head(0, 16 + 70, 0), vec![70; 71], head(3, 16, 2), head(1, 16, 0)].concat();
    vec![good, head(2, 16 + 5000, 0), head(7, 15, 0), [head(4, 4000, 0), vec![255; 256]].concat()]
}

/// Requests to a server whose shares are two small directories; the last bytes are sent as they are.
pub fn requests(input: &[u8]) {
    let served = Served::new();
    served.ask(None, &stream(input));
}

/// A server that goes on where another one was: the first half of the input, in pairs, changes bytes
/// of what that one had saved, or is all of it; the second half are requests.
pub fn saved(input: &[u8]) {
    let served = Served::new();
    let (changes, asked) = input.split_at(input.len() / 2);
    let state = match changes.split_first() {
        Some((0..=15, state)) => state.to_vec(),
        _ => {
            let mut state = served.save(&stream(&request_seeds()[0]));
            for change in changes.chunks_exact(2) {
                let at = usize::from(change[0]) % state.len().max(1);
                state[at] = change[1];
            }
            state
        }
    };
    served.ask(Some(state_file(&state)), &stream(asked));
}

pub fn saved_seeds() -> Vec<Vec<u8>> {
    let asked = request_seeds();
    // As much of each; the changes are to bytes beyond the state's first few.
    asked.iter().map(|asked| [&vec![200; asked.len()][..], asked].concat()).collect()
}

/// Two shares and what lies beside them, which nothing may reach.
struct Served(tempfile::TempDir);

impl Served {
    fn new() -> Self {
        let dir = scratch::fresh();
        std::fs::write(dir.path().join("beside"), "untouched").unwrap();
        for name in ["rw", "ro"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.join("d")).unwrap();
            std::fs::write(path.join("f"), "some bytes").unwrap();
            std::os::unix::fs::symlink("../../beside", path.join("l")).unwrap();
        }
        Self(dir)
    }

    fn serve(&self, state: Option<File>) -> (UnixStream, JoinHandle<Result<(), ServeError>>) {
        let shares = ["rw", "ro"].map(|name| share(self.0.path(), name)).into();
        let (client, server) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn(move || {
            // One thread: answers come in order, and an input does the same each time.
            let options = Options { threads_max: 1, state, ..Options::default() };
            serve(OwnedFd::from(server), shares, options)
        });
        (client, serving)
    }

    /// Asks a server all of `asked`, and looks at what it has left.
    fn ask(&self, state: Option<File>, asked: &[u8]) {
        let (client, serving) = self.serve(state);
        pump(&client, asked);
        let _ = serving.join().expect("the server does not panic");
        assert_eq!(std::fs::read(self.0.path().join("beside")).unwrap(), b"untouched");
        let names = ["f", "d"].map(|name| self.0.path().join("ro").join(name).exists());
        assert_eq!(names, [true, true], "a read-only share is read-only");
    }

    /// What a server saves that was asked `asked`, which is answered by less than a socket holds.
    fn save(&self, asked: &[u8]) -> Vec<u8> {
        let file = state_file(&[]);
        let (client, serving) = self.serve(Some(file.try_clone().unwrap()));
        (&client).write_all(asked).unwrap();
        let unanswered = message(STATFS, LAST, 1, &[]);
        (&client).write_all(&unanswered).unwrap();
        while receive(&client) != LAST {}
        let len = save(&client).expect("a server saves");
        drop(client);
        serving.join().unwrap().expect("a server that was asked well");
        let mut state = vec![0; len as usize];
        file.read_exact_at(&mut state, 0).unwrap();
        state
    }
}

/// Reads one answer and returns the number of what it answers.
fn receive(mut client: &UnixStream) -> u64 {
    let mut header = [0; 16];
    client.read_exact(&mut header).unwrap();
    let [len, number] = [&header[..4], &header[8..]]
        .map(|bytes| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    client.read_exact(&mut vec![0; len as usize - header.len()]).unwrap();
    number
}

pub fn state_file(state: &[u8]) -> File {
    let file = memfd_create("state", MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(file);
    file.write_all_at(state, 0).unwrap();
    file
}

fn share(dir: &Path, name: &str) -> ShareRoot {
    let fd = openat(CWD, dir.join(name), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    ShareRoot { name: name.to_owned(), fd, readonly: name == "ro", copied: false }
}

/// The input as requests: each an opcode, a node, and a body of up to 255 bytes.
fn stream(input: &[u8]) -> Vec<u8> {
    let mut input = Input(input);
    let mut stream = Vec::new();
    while !input.is_empty() {
        let (opcode, nodeid, len) = (u32::from(input.u8()), u64::from(input.u8()), input.u8());
        let nodeid = if nodeid == 255 { input.u64() } else { nodeid };
        if opcode == 255 {
            stream.extend(input.bytes(len.into()));
            continue;
        }
        let opcode = opcode % 54;
        stream.extend(message(opcode, stream.len() as u64, nodeid, input.bytes(len.into())));
    }
    stream
}

/// Sends all of `bytes`, reads all answers, and waits for the other side to close.
fn pump(mut client: &UnixStream, bytes: &[u8]) {
    client.set_nonblocking(true).unwrap();
    let (mut sent, mut answers) = (0, vec![0; 64 << 10]);
    loop {
        match client.write(&bytes[sent..]) {
            _ if sent == bytes.len() => {}
            Ok(len) => sent += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if sent == bytes.len() {
            let _ = client.shutdown(std::net::Shutdown::Write);
        }
        match client.read(&mut answers) {
            Ok(0) => return,
            Ok(_) => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        let out = if sent < bytes.len() { PollFlags::OUT } else { PollFlags::empty() };
        let _ = poll(&mut [PollFd::new(&client, PollFlags::IN | out)], None);
    }
}

pub fn request_seeds() -> Vec<Vec<u8>> {
    let ask = |opcode: u8, nodeid: u8, body: &[u8]| {
        [&[opcode, nodeid, body.len() as u8][..], body].concat()
    };
    let words =
        |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let init = ask(26, 0, &words(&[7, 38, 1 << 17, u32::MAX]));
    let start = [init, ask(1, 1, b"rw\0"), ask(1, 2, b"f\0"), ask(1, 1, b"ro\0")].concat();
    let read = [
        ask(14, 3, &words(&[2, 0])),
        ask(15, 3, &words(&[1, 0, 0, 0, 100, 0, 0, 0, 0, 0])),
        ask(16, 3, &[&words(&[1, 0, 0, 0, 4, 0, 0, 0, 0, 0])[..], b"more"].concat()),
        ask(20, 3, &words(&[1, 0, 0, 0])),
        ask(18, 3, &words(&[1, 0, 0, 0, 0, 0])),
        ask(3, 3, &words(&[0; 4])),
        ask(4, 3, &words(&[8, 0, 0, 0, 2, 0])),
    ];
    let names = [
        ask(9, 2, &[&words(&[0o755, 0])[..], b"new\0"].concat()),
        ask(35, 2, &[&words(&[2, 0o644, 0, 0])[..], b"file\0"].concat()),
        ask(6, 2, b"link\0target\0"),
        ask(12, 2, &[&words(&[2, 0])[..], b"f\0g\0"].concat()),
        ask(45, 2, &[&words(&[2, 0, 1, 0])[..], b"f\0g\0"].concat()),
        ask(13, 2, &[&words(&[3, 0])[..], b"hard\0"].concat()),
        ask(8, 2, &[&words(&[0o100644, 0, 0, 0])[..], b"node\0"].concat()),
        ask(10, 2, b"g\0"),
        ask(11, 2, b"d\0"),
        ask(10, 4, b"f\0"),
    ];
    let lists = [
        ask(27, 2, &words(&[0, 0])),
        ask(28, 2, &words(&[1, 0, 0, 0, 4096, 0, 0, 0, 0, 0])),
        ask(44, 2, &words(&[1, 0, 0, 0, 4096, 0, 0, 0, 0, 0])),
        ask(29, 2, &words(&[1, 0, 0, 0, 0, 0])),
        ask(22, 3, &[&words(&[16, 0])[..], b"user.name\0"].concat()),
        ask(21, 3, &[&words(&[3, 0])[..], b"user.name\0val"].concat()),
        ask(23, 3, &words(&[0, 0])),
        ask(17, 1, b""),
        ask(2, 3, &words(&[1, 0])),
        ask(42, 0, &words(&[1, 0, 3, 0, 1, 0])),
        vec![255, 0, 4, 0xff, 0xff, 0xff, 0xff],
    ];
    [read.concat(), names.concat(), lists.concat()].map(|rest| [&start[..], &rest].concat()).into()
}
