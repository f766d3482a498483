//! Shares that come and go while the server serves: SHARE and UNSHARE, requests of the monitor's own, as
//! [`crate::save`]'s is. The device passes none of a guest on that has such a code.
//!
//! ```text
//!  SHARE:   [readonly: u32, name, NUL]...   with a descriptor each, in this order
//!  UNSHARE: [name, NUL]...
//! ```
//!
//! Either is done whole or not at all. What a share held is closed when it goes: to the guest its files
//! are ESTALE, and its open ones EBADF. The guest believes the name of such a share no longer than any
//! other entry; one of the shares that were there from the beginning stays for good.

use rustix::io::Errno;

use crate::ShareRoot;
use crate::server::{Request, Server};
use crate::wire::{HEADER_LEN_IN, op, request_without_body};

/// The most shares of one request.
pub const SHARES_MAX: usize = 128;

/// The request to add shares: their names, and whether each is read-only. [`SHARES_MAX`] at most; the
/// descriptors go with its first byte. The server answers EEXIST for a name that is taken, ENFILE if it may
/// not have so many files open, EINVAL for a name that is none or if descriptors are missing.
pub fn share_request<'a>(shares: impl IntoIterator<Item = (&'a str, bool)>) -> Vec<u8> {
    let mut message = request_without_body(op::SHARE).to_vec();
    for (name, readonly) in shares {
        message.extend(u32::from(readonly).to_le_bytes());
        put_name(&mut message, name);
    }
    with_length(message)
}

/// The request to take shares away that were added. The server answers ENOENT for a name that was not.
pub fn unshare_request<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut message = request_without_body(op::UNSHARE).to_vec();
    names.into_iter().for_each(|name| put_name(&mut message, name));
    with_length(message)
}

fn put_name(message: &mut Vec<u8>, name: &str) {
    message.extend(name.as_bytes());
    message.push(0);
}

fn with_length(mut message: Vec<u8>) -> Vec<u8> {
    debug_assert!(message.len() >= HEADER_LEN_IN);
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_le_bytes());
    message
}

impl Server {
    pub(crate) fn share(&self, request: Request<'_>) -> Result<(), Errno> {
        let (mut args, mut files) = (request.args, request.files.into_iter());
        let mut roots = Vec::new();
        while !args.is_empty() {
            let readonly = args.u32()? != 0;
            let name = args.name()?.as_c_str().to_str().map_err(|_| Errno::INVAL)?.to_owned();
            let fd = files.next().ok_or(Errno::INVAL)?;
            roots.push(ShareRoot { name, fd, readonly, copied: false });
        }
        if files.next().is_some() {
            return Err(Errno::INVAL);
        }
        self.root.add(roots, &self.inodes)
    }

    pub(crate) fn unshare(&self, request: Request<'_>) -> Result<(), Errno> {
        let mut args = request.args;
        let mut names = Vec::new();
        while !args.is_empty() {
            names.push(args.name()?.to_bytes());
        }
        for share in self.root.remove(&names)? {
            self.handles.close(&self.inodes.remove_share(share));
        }
        Ok(())
    }
}
