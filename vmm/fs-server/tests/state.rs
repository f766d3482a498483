//! A server's state, saved and taken over by another one: what the guest knew is the same file, or
//! an error.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bulkhead_fs_server::{ServeError, save};
use proptest::prelude::*;
use support::client::{
    CREATE, Client, EBADF, EIO, ESTALE, FORGET, GETATTR, LOOKUP, MKDIR, OPEN, OPENDIR, READ,
    READDIR, RELEASE, RENAME, RMDIR, TMPFILE, UNLINK, WRITE,
};

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// What the guest's kernel would remember.
#[derive(Clone, Default)]
struct Guest {
    /// Node IDs and their lookups.
    nodes: BTreeMap<u64, u64>,
    /// Handles, their node IDs, and whether they are directories.
    handles: BTreeMap<u64, (u64, bool)>,
}

/// A node, as GETATTR has it: inode number and mode; `Err` for an error.
type Facts = Result<(u64, u32), i32>;

impl Guest {
    fn knows(&mut self, (error, reply): (i32, Vec<u8>)) -> Option<u64> {
        let id = (error == 0).then(|| u64_at(&reply, 0))?;
        *self.nodes.entry(id).or_default() += 1;
        Some(id)
    }

    fn opens(&mut self, node: u64, is_dir: bool, reply: &[u8]) {
        self.handles.insert(u64_at(reply, 0), (node, is_dir));
    }

    fn node(&self, choice: u8) -> u64 {
        let nodes: Vec<_> = self.nodes.keys().collect();
        *nodes[usize::from(choice) % nodes.len()]
    }

    fn apply(&mut self, client: &mut Client, op: &Op) {
        let c_string = |name: &str| [name.as_bytes(), b"\0"].concat();
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let with_name = |fields: &[u32], name: &str| {
            let fields: Vec<u8> = words(fields);
            [fields, c_string(name)].concat()
        };
        match *op {
            Op::Lookup(dir, name) => {
                let reply = client.ask(LOOKUP, self.node(dir), &c_string(name));
                self.knows(reply);
            }
            Op::Mkdir(dir, name) => {
                let reply = client.ask(MKDIR, self.node(dir), &with_name(&[0o755, 0], name));
                self.knows(reply);
            }
            Op::Create(dir, name, flags) => {
                let body = with_name(&[flags, 0o644, 0, 0], name);
                let (error, reply) = client.ask(CREATE, self.node(dir), &body);
                if let Some(id) = self.knows((error, reply.clone())) {
                    self.opens(id, false, &reply[128..]);
                }
            }
            Op::Open(node, flags) => {
                let node = self.node(node);
                if let (0, reply) = client.ask(OPEN, node, &words(&[flags, 0])) {
                    self.opens(node, false, &reply);
                }
            }
            Op::Opendir(node) => {
                let node = self.node(node);
                if let (0, reply) = client.ask(OPENDIR, node, &words(&[0, 0])) {
                    self.opens(node, true, &reply);
                }
            }
            Op::Forget(node) => {
                let node = self.node(node);
                // As a kernel: not while it has handles of it, nor a share's root.
                if node > 3 && self.handles.values().all(|(of, _)| *of != node) {
                    let lookups = self.nodes.remove(&node).unwrap();
                    client.send(FORGET, node, &lookups.to_le_bytes());
                }
            }
            Op::Release(handle) => {
                let handles: Vec<_> = self.handles.keys().copied().collect();
                if let Some(handle) = handles.get(usize::from(handle) % handles.len().max(1)) {
                    let (node, _) = self.handles.remove(handle).unwrap();
                    let body = [&handle.to_le_bytes()[..], &[0; 16]].concat();
                    assert_eq!(client.ask(RELEASE, node, &body).0, 0);
                }
            }
            Op::Unlink(dir, name) => drop(client.ask(UNLINK, self.node(dir), &c_string(name))),
            Op::Rmdir(dir, name) => drop(client.ask(RMDIR, self.node(dir), &c_string(name))),
            Op::Rename(dir, name, to, new) => {
                let to = self.node(to).to_le_bytes();
                let body = [&to[..], &c_string(name), &c_string(new)].concat();
                client.ask(RENAME, self.node(dir), &body);
            }
        }
    }

    /// What a server says of everything known, and whether it has a name.
    fn nodes(&self, client: &mut Client) -> Vec<(u64, Facts, bool)> {
        let facts = |id: u64| match client.ask(GETATTR, id, &[0; 16]) {
            (0, reply) => {
                (id, Ok((u64_at(&reply, 16), u32_at(&reply, 76))), u32_at(&reply, 80) > 0)
            }
            (error, _) => (id, Err(error), false),
        };
        self.nodes.keys().copied().map(facts).collect()
    }

    /// What a server reads through every handle.
    fn contents(&self, client: &mut Client) -> BTreeMap<u64, Result<Vec<u8>, i32>> {
        let read = |(number, (node, is_dir)): (&u64, &(u64, bool))| {
            let opcode = if *is_dir { READDIR } else { READ };
            let (error, reply) = client.ask(opcode, *node, &io(*number, 0, 4096));
            (*number, if error == 0 { Ok(reply) } else { Err(error) })
        };
        self.handles.iter().map(read).collect()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// `struct fuse_read_in` and `struct fuse_write_in`.
fn io(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    let [handle, offset] = [handle, offset].map(u64::to_le_bytes);
    [&handle[..], &offset, &size.to_le_bytes(), &[0; 20]].concat()
}

#[derive(Clone, Debug)]
enum Op {
    Lookup(u8, &'static str),
    Mkdir(u8, &'static str),
    Create(u8, &'static str, u32),
    Open(u8, u32),
    Opendir(u8),
    Forget(u8),
    Release(u8),
    Unlink(u8, &'static str),
    Rmdir(u8, &'static str),
    Rename(u8, &'static str, u8, &'static str),
}

fn op() -> impl Strategy<Value = Op> {
    let names = || prop::sample::select(vec!["a", "b", "c", "d (deleted)", "\u{fc}\n"]);
    // O_RDONLY, O_RDWR, O_RDWR | O_APPEND.
    let flags = || prop::sample::select(vec![0, 2, 0o2002]);
    prop_oneof![
        3 => (any::<u8>(), names()).prop_map(|(dir, name)| Op::Lookup(dir, name)),
        3 => (any::<u8>(), names()).prop_map(|(dir, name)| Op::Mkdir(dir, name)),
        4 => (any::<u8>(), names(), flags()).prop_map(|(dir, name, flags)| Op::Create(dir, name, flags)),
        2 => (any::<u8>(), flags()).prop_map(|(node, flags)| Op::Open(node, flags)),
        1 => any::<u8>().prop_map(Op::Opendir),
        1 => any::<u8>().prop_map(Op::Forget),
        1 => any::<u8>().prop_map(Op::Release),
        1 => (any::<u8>(), names()).prop_map(|(dir, name)| Op::Unlink(dir, name)),
        1 => (any::<u8>(), names()).prop_map(|(dir, name)| Op::Rmdir(dir, name)),
        2 => (any::<u8>(), names(), any::<u8>(), names())
            .prop_map(|(dir, name, to, new)| Op::Rename(dir, name, to, new)),
    ]
}

/// A guest of a server for the directories `rw` and `ro` below `dir`.
fn guest(dir: &Path, state: &File) -> (Client, Guest) {
    let mut client = served(dir, state);
    client.init();
    let mut guest = Guest::default();
    for name in ["rw", "ro"] {
        let id = client.lookup(1, name).unwrap();
        guest.nodes.insert(id, 1);
    }
    (client, guest)
}

fn served(dir: &Path, state: &File) -> Client {
    let (rw, ro) = (dir.join("rw"), dir.join("ro"));
    Client::with_state(&[("rw", &rw, false), ("ro", &ro, true)], state.try_clone().unwrap())
}

fn shares() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir_all(temp.path().join("ro/a")).unwrap();
    fs::create_dir(temp.path().join("rw")).unwrap();
    fs::write(temp.path().join("ro/a/b"), "frozen").unwrap();
    temp
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_next_server_knows_what_this_one_knew(ops in prop::collection::vec(op(), 1..80)) {
        let (temp, state) = (shares(), tempfile::tempfile().unwrap());
        let (mut client, mut guest) = guest(temp.path(), &state);
        for op in &ops {
            guest.apply(&mut client, op);
        }
        let before = guest.nodes(&mut client);
        let contents = guest.contents(&mut client);
        prop_assert_eq!(save(&client.socket).unwrap(), state.metadata().unwrap().len());
        client.finish().unwrap();

        let mut client = served(temp.path(), &state);
        let after = guest.nodes(&mut client);
        for ((id, before, named), (_, after, _)) in before.iter().zip(&after) {
            let expected = if *named { *before } else { Err(ESTALE) };
            prop_assert_eq!(after, &expected, "node {}", id);
        }
        let lost = |handle: u64| {
            let node = guest.handles[&handle].0;
            !before.iter().any(|(id, _, named)| *id == node && *named)
        };
        for (number, read) in guest.contents(&mut client) {
            let expected = if lost(number) { Err(EIO) } else { contents[&number].clone() };
            prop_assert_eq!(read, expected, "handle {}", number);
        }
        // What is new has a number that nothing has had, and lookups go on from where they were.
        let last = *guest.nodes.keys().last().unwrap();
        fs::write(temp.path().join("rw/new"), "").unwrap();
        let rw = *guest.nodes.keys().next().unwrap();
        prop_assert!(client.lookup(rw, "new").unwrap() > last);
        for (id, lookups) in guest.nodes.iter().skip(2) {
            if *lookups > 1 {
                client.send(FORGET, *id, &(lookups - 1).to_le_bytes());
            }
        }
        prop_assert_eq!(guest.nodes(&mut client), after);
        guest.nodes.keys().skip(2).for_each(|id| client.send(FORGET, *id, &1u64.to_le_bytes()));
        for (id, facts, _) in guest.nodes(&mut client).into_iter().skip(2) {
            prop_assert_eq!(facts, Err(ESTALE), "node {}", id);
        }
        client.finish().unwrap();
    }

    #[test]
    fn a_damaged_state_is_refused_or_served(
        ops in prop::collection::vec(op(), 1..40),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (temp, state) = (shares(), tempfile::tempfile().unwrap());
        let (mut client, mut guest) = guest(temp.path(), &state);
        ops.iter().for_each(|op| guest.apply(&mut client, op));
        let len = save(&client.socket).unwrap();
        client.finish().unwrap();
        for (at, with) in flips {
            let (at, mut byte) = (at.index(len as usize) as u64, [0]);
            state.read_exact_at(&mut byte, at).unwrap();
            state.write_all_at(&[byte[0] ^ with], at).unwrap();
        }
        let client = served(temp.path(), &state);
        let ended = client.finish();
        prop_assert!(matches!(ended, Ok(()) | Err(ServeError::State(_))), "{:?}", ended);
    }
}

#[test]
fn handles_go_on_as_they_were_opened() {
    let (temp, state) = (shares(), tempfile::tempfile().unwrap());
    let (mut client, mut guest) = guest(temp.path(), &state);
    let rw = guest.node(0);
    // O_WRONLY | O_APPEND | O_TRUNC is not truncated again.
    guest.apply(&mut client, &Op::Create(0, "log", 0o2001 | 0o1000));
    let (log, node) = guest.handles.iter().map(|(fh, (node, _))| (*fh, *node)).next().unwrap();
    let write = |client: &mut Client, text: &[u8]| {
        client.ask(WRITE, node, &[&io(log, 0, text.len() as u32), text].concat()).0
    };
    assert_eq!(write(&mut client, b"one "), 0);
    let body = [2u32 | 0o20200000, 0o600, 0, 0].map(u32::to_le_bytes).concat();
    let (error, unnamed) = client.ask(TMPFILE, rw, &[&body[..], b"\0"].concat());
    assert_eq!(error, 0);
    save(&client.socket).unwrap();
    client.finish().unwrap();

    let mut client = served(temp.path(), &state);
    assert_eq!(write(&mut client, b"two"), 0);
    assert_eq!(fs::read(temp.path().join("rw/log")).unwrap(), b"one two");
    assert_eq!(client.ask(READ, node, &io(log, 0, 9)).0, EBADF);
    let (id, handle) = (u64_at(&unnamed, 0), u64_at(&unnamed, 128));
    assert_eq!(client.ask(READ, id, &io(handle, 0, 9)).0, EIO);
    // Saved again, what was lost stays lost.
    save(&client.socket).unwrap();
    client.finish().unwrap();
    let mut client = served(temp.path(), &state);
    assert_eq!(client.ask(READ, id, &io(handle, 0, 9)).0, EIO);
    assert_eq!(write(&mut client, b"!"), 0);
}

#[test]
fn another_file_in_the_same_place_is_never_taken_for_it() {
    let (temp, state) = (shares(), tempfile::tempfile().unwrap());
    let (mut client, mut guest) = guest(temp.path(), &state);
    for name in ["vanished", "replaced", "linked", "moved", "kept"] {
        guest.apply(&mut client, &Op::Create(0, name, 2));
    }
    save(&client.socket).unwrap();
    client.finish().unwrap();
    let rw = temp.path().join("rw");
    let path = |name: &str| rw.join(name);
    fs::remove_file(path("vanished")).unwrap();
    // Some file systems give the inode number of the old one to the new one at once.
    fs::remove_file(path("replaced")).unwrap();
    fs::write(path("replaced"), "another").unwrap();
    fs::remove_file(path("linked")).unwrap();
    std::os::unix::fs::symlink("kept", path("linked")).unwrap();
    fs::rename(path("moved"), path("elsewhere")).unwrap();
    fs::write(path("kept"), "changed").unwrap();

    let mut client = served(temp.path(), &state);
    let found: Vec<_> =
        guest.nodes(&mut client).iter().map(|(_, facts, _)| facts.is_ok()).collect();
    assert_eq!(found, [true, true, false, false, false, false, true]);
    let read: Vec<_> = guest.contents(&mut client).into_values().collect();
    assert_eq!(read, [Err(EIO), Err(EIO), Err(EIO), Err(EIO), Ok(b"changed".to_vec())]);
}

#[test]
fn files_of_a_copy_are_known_by_their_places() {
    let (temp, state) = (shares(), tempfile::tempfile().unwrap());
    let (mut client, mut guest) = guest(temp.path(), &state);
    for name in ["kept", "other", "gone"] {
        guest.apply(&mut client, &Op::Create(0, name, 2));
    }
    guest.apply(&mut client, &Op::Unlink(0, "gone"));
    // The host's kernel calls that so.
    fs::write(temp.path().join("rw/gone (deleted)"), "another").unwrap();
    save(&client.socket).unwrap();
    client.finish().unwrap();
    let copy = tempfile::tempdir().unwrap();
    support::sh(temp.path(), &format!("cp -a . {}", copy.path().display()));
    let (rw, ro) = (copy.path().join("rw"), copy.path().join("ro"));
    fs::remove_file(rw.join("other")).unwrap();
    fs::create_dir(rw.join("other")).unwrap();
    fs::write(rw.join("kept"), "the copy's").unwrap();

    let shares = [("rw", rw.as_path(), false), ("ro", ro.as_path(), true)];
    let mut client = Client::with_copies(&shares, state);
    let found: Vec<_> =
        guest.nodes(&mut client).iter().map(|(_, facts, _)| facts.is_ok()).collect();
    assert_eq!(found, [true, true, true, false, false]);
    let read: Vec<_> = guest.contents(&mut client).into_values().collect();
    assert_eq!(read, [Ok(b"the copy's".to_vec()), Err(EIO), Err(EIO)]);
}

#[test]
fn a_share_that_is_read_only_now_is_not_written_to() {
    let (temp, state) = (shares(), tempfile::tempfile().unwrap());
    let (mut client, mut guest) = guest(temp.path(), &state);
    guest.apply(&mut client, &Op::Create(0, "f", 2));
    save(&client.socket).unwrap();
    client.finish().unwrap();
    let rw = temp.path().join("rw");
    let shares = [("rw", rw.as_path(), true), ("other", temp.path(), false)];
    let mut client = Client::with_state(&shares, state);
    let (handle, (node, _)) = guest.handles.first_key_value().unwrap();
    assert_eq!(client.ask(WRITE, *node, &[&io(*handle, 0, 1), &b"x"[..]].concat()).0, EIO);
    assert!(client.ask(GETATTR, *node, &[0; 16]).0 == 0);
    // The share that is gone has no successor.
    let ro = guest.node(1);
    assert_eq!(client.ask(GETATTR, ro, &[0; 16]).0, ESTALE);
    assert!(client.lookup(1, "other").unwrap() > *guest.nodes.keys().last().unwrap());
}
