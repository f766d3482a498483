//! Requests: bytes in.

use std::ffi::CStr;

use rustix::io::Errno;

/// Length of `struct fuse_in_header`.
pub const HEADER_LEN_IN: usize = 40;

/// `struct fuse_in_header`, which every request begins with.
#[derive(Clone, Copy, Debug)]
pub struct InHeader {
    /// Length of the whole request.
    pub len: u32,
    /// One of [`super::op`], or anything.
    pub opcode: u32,
    /// What the reply repeats.
    pub unique: u64,
    /// The node it is about.
    pub nodeid: u64,
    /// The caller's file system user ID.
    pub uid: u32,
    /// The caller's file system group ID.
    pub gid: u32,
}

impl InHeader {
    /// Reads the header off the front of a request; `None` if there is less than a header.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut args = Args::new(bytes.get(..HEADER_LEN_IN)?);
        Some(Self {
            len: args.u32().ok()?,
            opcode: args.u32().ok()?,
            unique: args.u64().ok()?,
            nodeid: args.u64().ok()?,
            uid: args.u32().ok()?,
            gid: args.u32().ok()?,
        })
    }
}

/// A whole request that is nothing but a header, from nobody and about no node.
pub fn request_without_body(opcode: u32) -> [u8; HEADER_LEN_IN] {
    let mut bytes = [0; HEADER_LEN_IN];
    bytes[..4].copy_from_slice(&(HEADER_LEN_IN as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
    bytes
}

/// What is left to parse of a request. Every method fails with EINVAL where bytes are missing.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a>(&'a [u8]);

/// The name of an entry of a directory, checked: not empty, not "." or "..", no "/", at most
/// [`NAME_MAX`] bytes. A path made of one `Name` never leaves its directory.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a>(&'a CStr);

/// The longest name, bytes (`NAME_MAX` of limits.h).
const NAME_MAX: usize = 255;

impl<'a> Args<'a> {
    /// Parses `bytes`, which stand after the header.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Result<u32, Errno> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*taken))
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Result<u64, Errno> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*taken))
    }

    /// The next string, up to and with its NUL.
    pub fn string(&mut self) -> Result<&'a CStr, Errno> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = &self.0[string.count_bytes() + 1..];
        Ok(string)
    }

    /// The next string, which must be a name of a directory's entry.
    pub fn name(&mut self) -> Result<Name<'a>, Errno> {
        let string = self.string()?;
        if string.count_bytes() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if !is_name(string.to_bytes()) {
            return Err(Errno::INVAL);
        }
        Ok(Name(string))
    }
}

/// Whether `bytes` name an entry of a directory and nothing else.
pub fn is_name(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.len() <= NAME_MAX
        && bytes != b"."
        && bytes != b".."
        && !bytes.iter().any(|&byte| byte == b'/' || byte == 0)
}

impl<'a> Name<'a> {
    /// The name, for system calls.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    /// The name's bytes.
    pub fn to_bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }

    /// Takes a name that the host's kernel listed; `None` if it is no name, as "." and "..".
    pub fn listed(name: &'a CStr) -> Option<Self> {
        is_name(name.to_bytes()).then_some(Self(name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_single_components() {
        for good in [&b"a\0"[..], b"...\0", b" \0", b"\xff\xfe\0", b"a\0trailing"] {
            assert!(Args::new(good).name().is_ok(), "{good:?}");
        }
        for bad in [&b""[..], b"\0", b".\0", b"..\0", b"a/b\0", b"/\0", b"no end"] {
            assert!(matches!(Args::new(bad).name(), Err(Errno::INVAL)), "{bad:?}");
        }
        let mut long = [b'x'; 257];
        long[256] = 0;
        assert!(matches!(Args::new(&long).name(), Err(Errno::NAMETOOLONG)));
        long[255] = 0;
        assert!(Args::new(&long).name().is_ok());
    }

    proptest! {
        #[test]
        fn parsers_take_what_is_there_and_no_more(bytes: Vec<u8>) {
            let mut args = Args::new(&bytes);
            let mut taken = 0;
            while args.u32().is_ok() {
                taken += 4;
            }
            prop_assert!(bytes.len() - taken < 4);
            let mut args = Args::new(&bytes);
            if let Ok(name) = args.name() {
                let name = name.to_bytes();
                prop_assert!(is_name(name));
                prop_assert_eq!(&bytes[..name.len()], name);
            }
            prop_assert_eq!(InHeader::parse(&bytes).is_some(), bytes.len() >= HEADER_LEN_IN);
        }
    }
}
