//! Files that the guest maps: which they are, what is handed over, and how they come to be written to.

mod support;

use std::fs::{self, File, Permissions};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use bulkhead_fs_server::{Options, save};
use rustix::fs::{Mode, OFlags, fcntl_getfl};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use support::client::{
    CREATE, Client, EISDIR, EROFS, ESTALE, FORGET, LOOKUP, OPEN, SETATTR, SETUPMAPPING,
};

const DAX: u32 = 2;
/// FATTR_SIZE.
const SIZE: u64 = 1 << 3;

/// What a guest does to a file, by its node ID, to change it; an error.
type Attempt<'a> = &'a dyn Fn(&mut Client, u64) -> i32;

/// A directory with a program of 100 KiB, "program", and one of 10 MiB, "large".
fn host() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    for (name, len, mode) in [
        ("program", 100 << 10, 0o755),
        ("large", 10 << 20, 0o755),
        ("library.so", 100 << 10, 0o644),
        ("library.so.1.2", 100 << 10, 0o644),
        ("small", 1 << 10, 0o755),
        ("data", 100 << 10, 0o644),
    ] {
        let path = temp.path().join(name);
        fs::write(&path, vec![7; len]).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    temp
}

fn client(host: &Path, slots: u16, state: Option<File>) -> (Client, u64, u64) {
    let shares = [("rw", host, false), ("ro", host, true)];
    let options = Options { window_slots: slots, state, ..Options::default() };
    let mut client = Client::with_options(&shares, options);
    client.init();
    let [rw, ro] = ["rw", "ro"].map(|name| client.lookup(1, name).unwrap());
    (client, rw, ro)
}

/// Node ID, and whether the guest is to map the file.
fn look_up(client: &mut Client, dir: u64, name: &str) -> (u64, bool) {
    let (error, entry) = client.ask(LOOKUP, dir, &[name.as_bytes(), b"\0"].concat());
    assert_eq!(error, 0, "{name}");
    let flags = u32::from_le_bytes(entry[124..128].try_into().unwrap());
    (u64::from_le_bytes(entry[..8].try_into().unwrap()), flags & DAX != 0)
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// SETUPMAPPING with these flags: the file handed over.
fn set_up(client: &mut Client, node: u64, flags: u64) -> Result<File, i32> {
    client.send(SETUPMAPPING, node, &words(&[u64::MAX, 0, 2 << 20, flags, 0]));
    let mut header = [0; 17];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut to = [IoSliceMut::new(&mut header)];
    let len =
        recvmsg(&client.socket, &mut to, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    assert_eq!((len, header[0]), (16, 16));
    let mut files = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => files.collect(),
        _ => Vec::new(),
    });
    let file = files.next();
    assert!(files.next().is_none());
    let error = i32::from_le_bytes(header[4..8].try_into().unwrap());
    assert_eq!(file.is_some(), error == 0);
    file.map(File::from).ok_or(error)
}

fn open(client: &mut Client, node: u64, flags: OFlags) -> i32 {
    client.ask(OPEN, node, &words(&[u64::from(flags.bits())])).0
}

#[test]
fn code_is_mapped_as_long_as_there_is_room() {
    let host = host();
    let names = ["program", "library.so", "library.so.1.2", "small", "data", "large"];
    let (mut client, rw, _) = client(host.path(), 8, None);
    let mapped = names.map(|name| look_up(&mut client, rw, name).1);
    // Three slots of six are taken, and the large one would take five.
    assert_eq!(mapped, [true, true, true, false, false, false]);
    for name in ["library.so", "library.so.1.2", "large"] {
        let (node, _) = look_up(&mut client, rw, name);
        client.send(FORGET, node, &words(&[2]));
    }
    assert!(look_up(&mut client, rw, "large").1, "forgotten files leave room");
    assert!(!look_up(&mut client, rw, "library.so").1);
    client.finish().unwrap();
    let (mut client, rw, _) = self::client(host.path(), 0, None);
    assert!(!look_up(&mut client, rw, "program").1, "there is no window");
}

#[test]
fn what_is_handed_over_is_that_file_and_can_only_be_read() {
    let host = host();
    let (mut client, rw, ro) = client(host.path(), 8, None);
    for dir in [rw, ro] {
        let (node, _) = look_up(&mut client, dir, "program");
        let file = set_up(&mut client, node, 2).unwrap();
        assert_eq!(fcntl_getfl(&file).unwrap() & OFlags::RWMODE, OFlags::RDONLY);
        let mut byte = [0];
        file.read_exact_at(&mut byte, (100 << 10) - 1).unwrap();
        assert_eq!(byte, [7]);
        assert_eq!(set_up(&mut client, node, 3).unwrap_err(), EROFS, "not to be written to");
    }
    assert_eq!(set_up(&mut client, rw, 2).unwrap_err(), EISDIR);
    assert_eq!(set_up(&mut client, 99, 2).unwrap_err(), ESTALE);
    let fifo = host.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, fifo, Mode::from(0o777)).unwrap();
    let (node, _) = look_up(&mut client, rw, "fifo");
    assert!(set_up(&mut client, node, 2).is_err(), "it would wait for a writer");
    assert_eq!(client.ask(SETUPMAPPING, rw, &[0; 39]).0, -22);
    client.finish().unwrap();
}

#[test]
fn what_is_written_to_is_another_node_from_then_on() {
    let host = host();
    let names = ["0", "1", "2", "3"];
    for name in names {
        fs::copy(host.path().join("program"), host.path().join(name)).unwrap();
    }
    let (mut client, rw, ro) = client(host.path(), 8, None);
    let truncate = [words(&[SIZE, 0, 5]), vec![0; 64]].concat();
    let create = [words(&[1 | 0o644 << 32, 0]), b"3\0".to_vec()].concat();
    let attempts: [Attempt<'_>; 4] = [
        &|client, node| open(client, node, OFlags::WRONLY),
        &|client, node| open(client, node, OFlags::RDONLY | OFlags::TRUNC),
        &|client, node| client.ask(SETATTR, node, &truncate).0,
        &|client, _| client.ask(CREATE, rw, &create).0,
    ];
    for (attempt, name) in attempts.iter().zip(names) {
        let (old, mapped) = look_up(&mut client, rw, name);
        assert!(mapped);
        assert_eq!(open(&mut client, old, OFlags::RDONLY), 0);
        assert_eq!([(); 2].map(|()| attempt(&mut client, old))[0], ESTALE);
        assert_eq!(host.path().join(name).metadata().unwrap().len(), 100 << 10);
        // As Linux does: it looks whether the name is still that node's, and then what it is.
        let (other, _) = look_up(&mut client, rw, name);
        client.send(FORGET, other, &words(&[1]));
        let (new, mapped) = look_up(&mut client, rw, name);
        assert!(new != old && !mapped);
        assert_eq!(look_up(&mut client, rw, name).0, new);
        assert_eq!(open(&mut client, new, OFlags::RDWR), 0);
        assert!(set_up(&mut client, old, 2).is_ok(), "who has it mapped keeps it");
        // The guest forgets both, in the order that is easy to get wrong.
        client.send(FORGET, old, &words(&[1]));
        assert_eq!(look_up(&mut client, rw, name).0, new);
        client.send(FORGET, new, &words(&[9]));
    }
    let (node, mapped) = look_up(&mut client, ro, "program");
    assert_eq!((mapped, open(&mut client, node, OFlags::WRONLY)), (true, EROFS));
    assert_eq!(look_up(&mut client, ro, "program").0, node, "nothing was written");
    client.finish().unwrap();
}

#[test]
fn a_saved_guests_mapped_files_are_found_again_or_it_is_not_saved() {
    let host = host();
    let state = tempfile::tempfile().unwrap();
    let (mut first, rw, _) = client(host.path(), 8, Some(state.try_clone().unwrap()));
    let (node, _) = look_up(&mut first, rw, "program");
    let (large, _) = look_up(&mut first, rw, "large");
    assert!(set_up(&mut first, node, 2).is_ok());
    save(&first.socket).unwrap();
    let shares = [("rw", host.path(), false), ("ro", host.path(), true)];
    let options = Options { window_slots: 8, state: Some(state), ..Options::default() };
    let mut second = Client::with_options(&shares, options);
    assert!(set_up(&mut second, node, 2).is_ok());
    assert_eq!(open(&mut second, node, OFlags::WRONLY), ESTALE, "it knows what the guest maps");
    assert!(!look_up(&mut second, rw, "library.so").1 || large == 0, "and what room that takes");
    second.finish().unwrap();
    // A file that nobody maps may go.
    fs::remove_file(host.path().join("large")).unwrap();
    save(&first.socket).unwrap();
    fs::remove_file(host.path().join("program")).unwrap();
    let refused = save(&first.socket).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(-ESTALE));
    first.finish().unwrap();
}
