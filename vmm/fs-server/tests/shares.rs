//! Shares that come and go while the server serves.

mod support;

use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bulkhead_fs_server::{save, share_request, unshare_request};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use support::client::{
    Client, EBADF, EINVAL, ENOENT, EROFS, ESTALE, GETATTR, OPEN, OPENDIR, READ, READDIR,
};

const ROOT: u64 = 1;
const READDIRPLUS: u32 = 44;
const EBUSY: i32 = 16;
const EEXIST: i32 = -17;

fn open(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn share(client: &mut Client, shares: &[(&str, bool)], files: &[BorrowedFd<'_>]) -> i32 {
    let message = share_request(shares.iter().copied());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(files)));
    let parts = [IoSlice::new(&message)];
    let sent = sendmsg(&client.socket, &parts, &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, message.len());
    client.receive().0
}

fn unshare(client: &mut Client, names: &[&str]) -> i32 {
    std::io::Write::write_all(&mut client.socket, &unshare_request(names.iter().copied())).unwrap();
    client.receive().0
}

/// What the root directory lists, by one of two requests.
fn listed(client: &mut Client, opcode: u32) -> Vec<u8> {
    let read = [&[0; 16][..], &4096u32.to_le_bytes(), &[0; 20]].concat();
    let (error, body) = client.ask(opcode, ROOT, &read);
    assert_eq!(error, 0);
    body
}

fn lists(client: &mut Client, name: &str) -> bool {
    let by = [READDIR, READDIRPLUS].map(|opcode| {
        let body = listed(client, opcode);
        body.windows(name.len()).any(|window| window == name.as_bytes())
    });
    assert_eq!(by[0], by[1]);
    by[0]
}

fn two_directories() -> (tempfile::TempDir, [std::path::PathBuf; 2]) {
    let temp = tempfile::tempdir().unwrap();
    let dirs = ["first", "second"].map(|name| {
        let dir = temp.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("f"), name).unwrap();
        dir
    });
    (temp, dirs)
}

#[test]
fn an_added_share_is_as_any_other_until_it_goes() {
    let (_temp, [first, second]) = two_directories();
    let mut client = Client::new(&[("first", &first, false)]);
    client.init();
    assert_eq!(client.lookup(ROOT, "second"), Err(ENOENT));
    let (dir, file) = (open(&second), open(&second.join("f")));
    let shares = [("second", false), ("frozen", true), ("single", false)];
    assert_eq!(share(&mut client, &shares, &[dir.as_fd(), dir.as_fd(), file.as_fd()]), 0);
    assert!(lists(&mut client, "second") && lists(&mut client, "frozen"));

    let (second_id, frozen_id) =
        (client.lookup(ROOT, "second").unwrap(), client.lookup(ROOT, "frozen").unwrap());
    assert_ne!(second_id, frozen_id);
    assert_eq!(client.create_as(0, frozen_id, 0o644, "new"), EROFS);
    assert_eq!(client.create_as(0, second_id, 0o644, "new"), 0);
    assert!(second.join("new").exists());
    let single = client.lookup(ROOT, "single").unwrap();
    let in_it = client.lookup(second_id, "f").unwrap();
    let opened = client.ask(OPEN, in_it, &[0; 8]).1;
    let listing = client.ask(OPENDIR, second_id, &[0; 8]).1;
    let read = |opened: &[u8]| [&opened[..8], &[0; 8], &4096u32.to_le_bytes(), &[0; 20]].concat();
    assert_eq!(client.ask(READ, in_it, &read(&opened)), (0, b"second".to_vec()));

    assert_eq!(unshare(&mut client, &["second", "single"]), 0);
    assert!(!lists(&mut client, "second") && lists(&mut client, "frozen"));
    for name in ["second", "single"] {
        assert_eq!(client.lookup(ROOT, name), Err(ENOENT));
    }
    for node in [second_id, single, in_it] {
        assert_eq!(client.ask(GETATTR, node, &[0; 16]).0, ESTALE);
    }
    assert_eq!(client.lookup(second_id, "f"), Err(ESTALE));
    assert_eq!(client.ask(READ, in_it, &read(&opened)).0, EBADF);
    assert_eq!(client.ask(READDIR, second_id, &read(&listing)).0, EBADF);
    // Nothing else went with it, and the name is free.
    assert!(client.lookup(frozen_id, "f").is_ok());
    let first_id = client.lookup(ROOT, "first").unwrap();
    assert!(client.lookup(first_id, "f").is_ok());
    assert_eq!(share(&mut client, &[("second", true)], &[dir.as_fd()]), 0);
    let again = client.lookup(ROOT, "second").unwrap();
    assert_ne!(again, second_id);
    assert_eq!(client.create_as(0, again, 0o644, "newer"), EROFS);
    client.finish().unwrap();
}

#[test]
fn a_change_is_made_whole_or_not_at_all() {
    let (_temp, [first, second]) = two_directories();
    let mut client = Client::new(&[("first", &first, false)]);
    client.init();
    let before = listed(&mut client, READDIR);
    let dir = open(&second);
    let dir = dir.as_fd();
    let many = [dir; 130];
    for (shares, files, error) in [
        (&[("a", false), ("b", false)][..], &[dir][..], EINVAL),
        (&[("a", false)], &[dir, dir], EINVAL),
        (&[("a", false)], &[], EINVAL),
        (&[("a", false)], &many, EINVAL),
        (&[("a", false), ("first", false)], &[dir, dir], EEXIST),
        (&[("a", false), ("a", true)], &[dir, dir], EEXIST),
        (&[("a", false), ("..", false)], &[dir, dir], EINVAL),
        (&[("a", false), ("b/c", false)], &[dir, dir], EINVAL),
        (&[("", false)], &[dir], EINVAL),
    ] {
        assert_eq!(share(&mut client, shares, files), error, "{shares:?}");
        assert_eq!(listed(&mut client, READDIR), before, "{shares:?}");
    }
    // What is not taken is closed.
    let (mut kept, given) = UnixStream::pair().unwrap();
    kept.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(share(&mut client, &[("a", false), ("b", false)], &[given.as_fd()]), EINVAL);
    drop(given);
    assert_eq!(kept.read(&mut [0]).unwrap(), 0);

    assert_eq!(share(&mut client, &[("a", false), ("b", false)], &[dir, dir]), 0);
    let before = listed(&mut client, READDIR);
    for names in [&["a", "first"][..], &["a", "c"], &["first"]] {
        assert_eq!(unshare(&mut client, names), ENOENT, "{names:?}");
        assert_eq!(listed(&mut client, READDIR), before, "{names:?}");
    }
    assert_eq!(unshare(&mut client, &["b", "a", "b"]), 0);
    client.finish().unwrap();
}

#[test]
fn a_server_with_added_shares_is_not_saved() {
    let (_temp, [first, second]) = two_directories();
    let state = File::from(memfd_create("state", MemfdFlags::CLOEXEC).unwrap());
    let mut client = Client::with_state(&[("first", &first, false)], state);
    client.init();
    let dir = open(&second);
    assert_eq!(share(&mut client, &[("second", false)], &[dir.as_fd()]), 0);
    assert_eq!(save(&client.socket).unwrap_err().raw_os_error(), Some(EBUSY));
    assert_eq!(unshare(&mut client, &["second"]), 0);
    assert!(save(&client.socket).unwrap() > 0);
    client.finish().unwrap();
}
