//! Names that are none, in every FUSE request that takes one.

use super::Attack;
use super::fuse::{Fs, op, sane};
use crate::fail;

pub const ATTACKS: &[Attack] = &[
    ("names_in_lookup", || names(&[(op::LOOKUP, &[])])),
    ("names_in_mkdir", || names(&[(op::MKDIR, &[0; 8])])),
    ("names_in_mknod", || {
        names(&[(op::MKNOD, &[0xa4, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])])
    }),
    ("names_in_create", || {
        names(&[(op::CREATE, &[2, 0, 0, 0, 0xa4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])])
    }),
    ("names_in_unlink_and_rmdir", || names(&[(op::UNLINK, &[]), (op::RMDIR, &[])])),
    ("names_in_symlink", symlinks),
    ("names_in_link", links),
    ("names_in_rename", renames),
    ("names_without_an_end", names_without_an_end),
    ("names_of_xattrs", names_of_xattrs),
];

/// Names that may never be resolved, each with its NUL.
const BAD: [&[u8]; 10] = [
    b"..\0",
    b".\0",
    b"\0",
    b"/\0",
    b"/etc/passwd\0",
    b"../secret\0",
    b"dir/../../secret\0",
    b"dir/x\0",
    b"./file\0",
    b"file/\0",
];

/// A name of as many letters, with its NUL.
fn long<const LEN: usize>() -> [u8; LEN] {
    let mut name = [b'n'; LEN];
    name[LEN - 1] = 0;
    name
}

fn check(errno: u32, opcode: u32) {
    if errno == 0 {
        crate::print_count("opcode ", opcode.into());
        fail("a name that is none is taken");
    }
}

fn names(requests: &[(u32, &[u8])]) {
    let mut fs = Fs::start();
    let share = fs.share();
    for &(opcode, head) in requests {
        for node in [share, 1] {
            for name in BAD {
                check(fs.call(opcode, node, &[head, name]).errno, opcode);
            }
            for name in [&long::<257>()[..], &long::<4097>(), &long::<20_000>()] {
                check(fs.call(opcode, node, &[head, name]).errno, opcode);
            }
        }
        // 255 bytes are a name: taken or not, but no more than that.
        let longest = long::<256>();
        fs.call(opcode, share, &[head, &longest]);
        fs.call(op::UNLINK, share, &[&longest]);
        fs.call(op::RMDIR, share, &[&longest]);
    }
    sane();
}

fn symlinks() {
    let mut fs = Fs::start();
    let share = fs.share();
    for name in BAD {
        check(fs.call(op::SYMLINK, share, &[name, b"target\0"]).errno, op::SYMLINK);
    }
    check(fs.call(op::SYMLINK, share, &[b"empty\0\0"]).errno, op::SYMLINK);
    check(fs.call(op::SYMLINK, share, &[b"long\0", &long::<5000>()]).errno, op::SYMLINK);
    check(fs.call(op::SYMLINK, share, &[b"none\0"]).errno, op::SYMLINK);
    sane();
}

fn links() {
    let mut fs = Fs::start();
    let share = fs.share();
    let file = fs.lookup(share, b"file");
    for name in BAD {
        check(fs.call(op::LINK, share, &[&file.to_le_bytes(), name]).errno, op::LINK);
    }
    for node in [0, 1, share, 999, u64::MAX] {
        check(fs.call(op::LINK, share, &[&node.to_le_bytes(), b"linked\0"]).errno, op::LINK);
    }
    sane();
}

fn renames() {
    let mut fs = Fs::start();
    let share = fs.share();
    let to = share.to_le_bytes();
    for name in BAD {
        for opcode in [op::RENAME, op::RENAME2] {
            let flags: &[u8] = if opcode == op::RENAME2 { &[0; 8] } else { &[] };
            check(fs.call(opcode, share, &[&to, flags, name, b"good\0"]).errno, opcode);
            check(fs.call(opcode, share, &[&to, flags, b"file\0", name]).errno, opcode);
        }
    }
    sane();
}

fn names_without_an_end() {
    let mut fs = Fs::start();
    let share = fs.share();
    for (opcode, head) in [(op::LOOKUP, 0), (op::MKDIR, 8), (op::MKNOD, 16), (op::UNLINK, 0)] {
        let zeros = [0u8; 16];
        check(fs.call(opcode, share, &[&zeros[..head], b"unended"]).errno, opcode);
        check(fs.call(opcode, share, &[&zeros[..head]]).errno, opcode);
    }
    // What follows the first NUL is no part of the name.
    fs.call(op::LOOKUP, share, &[b"file\0/../../secret\0"]);
    sane();
}

fn names_of_xattrs() {
    let mut fs = Fs::start();
    let share = fs.share();
    for name in [&b"\0"[..], b"..\0", b"user.\0", &long::<257>(), &long::<4097>(), b"user.unended"]
    {
        fs.call(op::SETXATTR, share, &[&[1, 0, 0, 0, 0, 0, 0, 0], name, b"v"]);
        fs.call(op::GETXATTR, share, &[&[0xff, 0, 0, 0, 0, 0, 0, 0], name]);
        fs.call(op::REMOVEXATTR, share, &[name]);
    }
    sane();
}
