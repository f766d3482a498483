//! What a hostile guest, or a VMM it took over, may send: nothing panics, hangs or reaches out of
//! the share, and the server goes on serving.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bulkhead_fs_server::ServeError;
use proptest::prelude::*;
use rustix::fs::{CWD, Mode};
use support::client::{
    Client, EBADF, EINVAL, ENOENT, ENOSYS, FALLOCATE, INIT, LINK, LOOKUP, OPEN, RENAME, RENAME2,
    SYNCFS, WRITE, message,
};

/// Every file below `dir`: type and mode, size, times, and owner.
fn snapshot(dir: &Path) -> BTreeMap<String, [i64; 6]> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let facts = [
            i64::from(meta.mode()),
            meta.size() as i64,
            meta.mtime_nsec(),
            meta.ctime_nsec(),
            i64::from(meta.uid()),
            meta.nlink() as i64,
        ];
        found.insert(path.to_string_lossy().into_owned(), facts);
    }
    found
}

fn word() -> impl Strategy<Value = Vec<u8>> {
    let numbers = prop_oneof![
        0u64..12,
        Just(u64::MAX),
        Just(1u64 << 63),
        Just(0x8000),
        Just(0x81ff),
        Just(0o40000),
        Just(4096),
        any::<u64>(),
    ];
    prop_oneof![
        4 => numbers.clone().prop_map(|n| n.to_le_bytes().to_vec()),
        4 => numbers.prop_map(|n| (n as u32).to_le_bytes().to_vec()),
        6 => prop::sample::select(vec![
            "f", "d", "s", "up", "new", "..", ".", "", "/", "../outside/secret", "/etc/passwd",
            "d/f", "fifo", "user.x", "security.capability",
        ]).prop_map(|name| [name.as_bytes(), b"\0"].concat()),
        1 => prop::collection::vec(any::<u8>(), 0..300),
    ]
}

fn request() -> impl Strategy<Value = (u32, u64, Vec<u8>)> {
    let body = prop::collection::vec(word(), 0..12).prop_map(|words| words.concat());
    (0u32..56, prop_oneof![9 => 0u64..12, 1 => any::<u64>()], body)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn random_requests_stay_inside(requests in prop::collection::vec(request(), 1..300)) {
        let temp = tempfile::tempdir().unwrap();
        let [share, frozen, outside] = ["share", "frozen", "outside"].map(|name| {
            let dir = temp.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("secret"), "secret").unwrap();
            fs::write(dir.join("f"), "data").unwrap();
            fs::create_dir(dir.join("d")).unwrap();
            fs::write(dir.join("d/f"), "data").unwrap();
            dir
        });
        std::os::unix::fs::symlink("../outside", share.join("up")).unwrap();
        std::os::unix::fs::symlink("../outside/secret", share.join("s")).unwrap();
        rustix::fs::mknodat(CWD, share.join("fifo"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        let before = (snapshot(&outside), snapshot(&frozen));
        let mut client = Client::new(&[("share", &share, false), ("frozen", &frozen, true)]);
        client.init();
        let share_id = client.lookup(1, "share").unwrap();
        for name in ["f", "d", "up", "s", "fifo"] {
            client.lookup(share_id, name).unwrap();
        }
        for (opcode, nodeid, body) in requests {
            // The first fills the disk, the second waits for all of it.
            if matches!(opcode, FALLOCATE | SYNCFS) {
                continue;
            }
            client.send(opcode, nodeid, &body);
            if !matches!(opcode, 2 | 36 | 42) {
                let (error, unique, _) = client.receive();
                prop_assert_eq!(unique, client.unique);
                prop_assert!(error <= 0 && error > -512);
            }
        }
        prop_assert_eq!((snapshot(&outside), snapshot(&frozen)), before);
        prop_assert!(client.lookup(1, "share").is_ok(), "still serving");
        prop_assert!(client.finish().is_ok());
    }
}

#[test]
fn names_never_leave_their_directory() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("share")).unwrap();
    fs::write(temp.path().join("secret"), "").unwrap();
    std::os::unix::fs::symlink("..", temp.path().join("share/up")).unwrap();
    let mut client = Client::new(&[("share", &temp.path().join("share"), false)]);
    client.init();
    let share = client.lookup(1, "share").unwrap();
    for name in ["..", ".", "", "/", "up/secret", "../secret", "/etc/passwd"] {
        assert_eq!(client.lookup(share, name), Err(EINVAL), "{name:?}");
    }
    let up = client.lookup(share, "up").unwrap();
    assert_eq!(client.lookup(up, "secret"), Err(-20), "a symbolic link is not followed");
    assert_eq!(client.lookup(1, "other"), Err(ENOENT));
    // Opening the link itself for I/O, or as a directory.
    assert_eq!(client.ask(14, up, &[0; 8]).0, -40);
    assert_eq!(client.ask(27, up, &[0; 8]).0, -20);
    client.finish().unwrap();
}

/// Without a jail shares are no mounts of their own, and the host's kernel would not mind.
#[test]
fn no_name_leads_from_one_share_to_another() {
    let temp = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| temp.path().join(name));
    for share in [&one, &other] {
        fs::create_dir(share).unwrap();
        fs::write(share.join("f"), "data").unwrap();
    }
    let before = snapshot(temp.path());
    let mut client = Client::new(&[("one", &one, false), ("other", &other, false)]);
    client.init();
    let [from, to] = ["one", "other"].map(|name| client.lookup(1, name).unwrap());
    let file = client.lookup(from, "f").unwrap();
    let exdev = -18;
    assert_eq!(client.ask(LINK, to, &[&file.to_le_bytes()[..], b"new\0"].concat()).0, exdev);
    for (opcode, flags) in
        [(RENAME, &[][..]), (RENAME2, &[0; 8]), (RENAME2, &[2, 0, 0, 0, 0, 0, 0, 0])]
    {
        let body = [&to.to_le_bytes()[..], flags, b"f\0f\0"].concat();
        assert_eq!(client.ask(opcode, from, &body).0, exdev, "{opcode} {flags:?}");
    }
    client.finish().unwrap();
    assert_eq!(snapshot(temp.path()), before);
}

#[test]
fn only_regular_files_are_opened() {
    let temp = tempfile::tempdir().unwrap();
    let fifo = temp.path().join("fifo");
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut client =
        Client::new(&[("dir", temp.path(), false), ("null", Path::new("/dev/null"), false)]);
    client.init();
    let dir = client.lookup(1, "dir").unwrap();
    let fifo = client.lookup(dir, "fifo").unwrap();
    let null = client.lookup(1, "null").unwrap();
    for node in [fifo, null] {
        assert_eq!(client.ask(14, node, &[2, 0, 0, 0, 0, 0, 0, 0]).0, -6, "ENXIO");
    }
    // CREATE of a name that is a FIFO: it must neither block nor open it.
    let create = [[1u32, 0o644, 0, 0].map(u32::to_le_bytes).concat(), b"fifo\0".to_vec()].concat();
    assert_eq!(client.ask(35, dir, &create).0, -6);
    client.finish().unwrap();
}

/// Not even by a page of a shared mapping, for which an appending handle's file is opened anew.
#[test]
fn what_was_opened_to_be_read_is_not_written_to() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("f");
    fs::write(&path, "as it was").unwrap();
    for readonly in [true, false] {
        let mut client = Client::new(&[("share", temp.path(), readonly)]);
        client.init();
        let share = client.lookup(1, "share").unwrap();
        let file = client.lookup(share, "f").unwrap();
        for flags in [libc::O_RDONLY, libc::O_RDONLY | libc::O_APPEND] {
            let (error, reply) = client.ask(OPEN, file, &(flags as u64).to_le_bytes());
            assert_eq!(error, 0);
            for write_cache in [0u32, 1] {
                let place = [u64::from_le_bytes(*reply.first_chunk().unwrap()), 0];
                let place = place.map(u64::to_le_bytes).concat();
                let sizes = [4u32, write_cache, 0, 0, 0, 0].map(u32::to_le_bytes).concat();
                let body = [place, sizes, b"evil".to_vec()].concat();
                assert_eq!(client.ask(WRITE, file, &body).0, EBADF, "{flags:#x} {write_cache}");
            }
        }
        client.finish().unwrap();
    }
    assert_eq!(fs::read(path).unwrap(), b"as it was");
}

#[test]
fn unknown_and_cut_short_requests_are_answered() {
    let temp = tempfile::tempdir().unwrap();
    let mut client = Client::new(&[("share", temp.path(), false)]);
    client.init();
    for opcode in [0, 7, 34, 37, 39, 40, 49, 999, u32::MAX] {
        assert_eq!(client.ask(opcode, 1, &[]).0, ENOSYS, "opcode {opcode}");
    }
    for opcode in
        [1, 4, 6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21, 22, 25, 28, 45, 46, 47, 48, 51, 52]
    {
        assert_eq!(client.ask(opcode, 2, &[1]).0, EINVAL, "opcode {opcode}");
    }
    // A WRITE that announces more than it brings.
    let mut body = vec![0; 40];
    body[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(client.ask(WRITE, 2, &body).0, EINVAL);
    client.finish().unwrap();
}

#[test]
fn impossible_lengths_end_the_connection() {
    for len in [0u32, 1, 39, (1 << 20) + 8192, u32::MAX] {
        let temp = tempfile::tempdir().unwrap();
        let mut client = Client::new(&[("share", temp.path(), false)]);
        let mut bytes = message(LOOKUP, 1, 1, &[]);
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        client.socket.write_all(&bytes).unwrap();
        assert!(matches!(client.finish(), Err(ServeError::Framing(found)) if found == len));
    }
}

#[test]
fn old_and_new_protocol_versions() {
    let temp = tempfile::tempdir().unwrap();
    let mut client = Client::new(&[("share", temp.path(), false)]);
    let version = |major: u32, minor: u32| [major, minor, 0, 0].map(u32::to_le_bytes).concat();
    assert_eq!(client.ask(INIT, 0, &version(7, 30)).0, -71);
    assert_eq!(client.ask(INIT, 0, &version(6, 99)).0, -71);
    let (error, reply) = client.ask(INIT, 0, &version(8, 0));
    assert_eq!((error, reply[0]), (0, 7));
    for (asked, answered) in [(31, 31), (38, 38), (41, 41), (45, 41)] {
        let (error, reply) = client.ask(INIT, 0, &version(7, asked));
        assert_eq!((error, u32::from(reply[4])), (0, answered));
    }
    client.finish().unwrap();
}

#[test]
fn a_new_mount_starts_over() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("f"), "x").unwrap();
    let mut client = Client::new(&[("share", temp.path(), false)]);
    client.init();
    let share = client.lookup(1, "share").unwrap();
    let file = client.lookup(share, "f").unwrap();
    assert_eq!(client.ask(3, file, &[0; 16]).0, 0);
    client.init();
    assert_eq!(client.ask(3, file, &[0; 16]).0, -116, "ESTALE");
    assert_eq!(client.lookup(1, "share"), Ok(share));
    client.finish().unwrap();
}

#[test]
fn bad_share_names_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path();
    for shares in [
        vec![("a/b", path, false)],
        vec![("", path, false)],
        vec![("..", path, false)],
        vec![("a", path, false), ("a", path, true)],
    ] {
        let client = Client::new(&shares);
        assert!(matches!(client.finish(), Err(ServeError::ShareName(_))));
    }
}

/// Without root's privileges files belong to the server's user, and lend nobody its identity.
#[test]
fn a_server_without_privileges_degrades() {
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut client = Client::with_thread(&[("share", temp.path(), false)], || {
        // SAFETY: numbers only; the system call concerns this thread alone, unlike libc's wrapper.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 1234, 1234, 1234) };
        assert_eq!(result, 0, "this test needs root");
    });
    client.init();
    let share = client.lookup(1, "share").unwrap();
    assert_eq!(client.create_as(1000, share, 0o6755, "user"), 0);
    let user = fs::metadata(temp.path().join("user")).unwrap();
    assert_eq!((user.uid(), user.mode() & 0o7777), (1234, 0o755));
    assert_eq!(client.ask(3, share, &[0; 16]).0, 0);
    client.finish().unwrap();
}

/// CVE-2022-0358: a guest kernel that does not see to it must not get a set-group-ID file of a
/// group its maker is not in.
#[test]
fn set_group_id_is_the_host_s_to_grant() {
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(temp.path(), Some(0), Some(77)).unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o2777)).unwrap();
    let mut client = Client::new(&[("share", temp.path(), false)]);
    client.init();
    let share = client.lookup(1, "share").unwrap();
    for (user, mode) in [(1000, 0o755), (77, 0o2755), (0, 0o2755)] {
        assert_eq!(client.create_as(user, share, 0o2755, &format!("by{user}")), 0);
        let made = fs::metadata(temp.path().join(format!("by{user}"))).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (user, 77, mode));
    }
    client.finish().unwrap();
}
