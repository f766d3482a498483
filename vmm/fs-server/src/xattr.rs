//! Extended attributes.
//!
//! Their system calls take a path or a descriptor open for I/O. What is at hand is an O_PATH
//! descriptor, and opening it would touch devices and FIFOs; so the path is its name in
//! /proc/self/fd, which is the working directory of every thread here.
//!
//! POSIX ACLs are refused: the guest's kernel does not enforce them (POSIX_ACL is not negotiated),
//! and setting one would change permission bits that it does enforce.

use std::ffi::CStr;

use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::server::{Request, Server, proc_name};
use crate::wire::{GetxattrIn, Reply, SetxattrIn};

/// The longest value or list (XATTR_SIZE_MAX and XATTR_LIST_MAX of limits.h).
const VALUE_MAX: usize = 64 << 10;

/// Flags of setxattr(2).
const FLAGS: XattrFlags = XattrFlags::CREATE.union(XattrFlags::REPLACE);

impl Server {
    pub(crate) fn getxattr(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = GetxattrIn::parse(&mut request.args)?;
        let name = attribute(request.args.string()?)?;
        if self.root.is(request.header.nodeid) {
            return Err(Errno::OPNOTSUPP);
        }
        let inode = self.inodes.get(request.header.nodeid)?;
        let room = room(asked.size);
        let len = getxattr(proc_name(&inode.fd), name, reply.spare(room)?)?;
        put_value(reply, asked.size, len)
    }

    pub(crate) fn listxattr(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = GetxattrIn::parse(&mut request.args)?;
        if self.root.is(request.header.nodeid) {
            return put_value(reply, asked.size, 0);
        }
        let inode = self.inodes.get(request.header.nodeid)?;
        let list = reply.spare(room(asked.size))?;
        let len = listxattr(proc_name(&inode.fd), &mut *list)?;
        let len = without_acls(&mut list[..len]);
        put_value(reply, asked.size, len)
    }

    pub(crate) fn setxattr(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let asked = SetxattrIn::parse(&mut request.args)?;
        let name = attribute(request.args.string()?)?;
        let value = request.args.bytes(asked.size as usize)?;
        let inode = self.writable(request.header.nodeid)?;
        let flags = XattrFlags::from_bits_retain(asked.flags);
        if !FLAGS.contains(flags) {
            return Err(Errno::INVAL);
        }
        setxattr(proc_name(&inode.fd), name, value, flags)
    }

    pub(crate) fn removexattr(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let name = attribute(request.args.string()?)?;
        let inode = self.writable(request.header.nodeid)?;
        removexattr(proc_name(&inode.fd), name)
    }
}

/// Checks an attribute's name.
fn attribute(name: &CStr) -> Result<&CStr, Errno> {
    if is_acl(name.to_bytes()) { Err(Errno::OPNOTSUPP) } else { Ok(name) }
}

fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

/// How much to read: what fits what the guest has room for, or everything if it asks for the size.
fn room(size: u32) -> usize {
    match size as usize {
        0 => VALUE_MAX,
        size => size.min(VALUE_MAX),
    }
}

/// Replies with the `len` bytes read, or with their number (`struct fuse_getxattr_out`).
fn put_value(reply: &mut Reply<'_>, size: u32, len: usize) -> Result<(), Errno> {
    if size == 0 { reply.u32s([len as u32, 0]) } else { reply.grow(len) }
}

/// Takes ACLs out of a list of NUL-terminated names and returns what is left of its length.
fn without_acls(list: &mut [u8]) -> usize {
    let (mut kept, mut at) = (0, 0);
    while at < list.len() {
        let len = list[at..].iter().position(|&byte| byte == 0).map_or(list.len() - at, |n| n + 1);
        if !is_acl(&list[at..at + len]) {
            list.copy_within(at..at + len, kept);
            kept += len;
        }
        at += len;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_lose_acls_and_nothing_else() {
        let mut list = *b"user.a\0system.posix_acl_access\0user.b\0";
        let len = without_acls(&mut list);
        assert_eq!(&list[..len], b"user.a\0user.b\0");
        assert_eq!(without_acls(&mut []), 0);
    }
}
