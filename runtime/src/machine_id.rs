//! /etc/machine-id (machine-id(5)): the name of an installation, which no two containers share.
//!
//! An image that is meant to be started many times has an empty file, or one that says "uninitialized";
//! its containers get an ID of their own each time they start, mounted over that, as systemd does where
//! it cannot write one. An image that carries an ID, or no such file, is taken to mean it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::rand::GetRandomFlags;

/// Inside the container.
const FILE: &str = "etc/machine-id";
const UNINITIALIZED: &str = "uninitialized";

/// The kernel gives no randomness.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a machine ID: {0}")]
pub struct MachineIdError(#[source] io::Error);

/// The root file system of a container to be.
#[derive(Clone, Copy, Debug)]
pub enum Root<'a> {
    /// By its path.
    At(&'a Path),
    /// By a descriptor.
    Open(BorrowedFd<'a>),
}

impl Root<'_> {
    /// Looks at it.
    pub fn look<T>(
        self,
        look: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match self {
            Root::Open(root) => look(root),
            Root::At(path) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                look(rustix::fs::openat(CWD, path, flags, Mode::empty())?.as_fd())
            }
        }
    }
}

/// The ID that a container with this root is to get; empty if it is to get none.
pub fn for_container(root: Root<'_>) -> Result<String, MachineIdError> {
    if wants_one(root).unwrap_or(false) { fresh() } else { Ok(String::new()) }
}

/// A random ID: a UUID (RFC 9562, version 4) in hexadecimal.
pub fn fresh() -> Result<String, MachineIdError> {
    let mut id = [0; 16];
    let drawn = rustix::rand::getrandom(&mut id, GetRandomFlags::empty());
    drawn.map_err(|errno| MachineIdError(errno.into()))?;
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// An error says that there is no such file, or none that is one.
fn wants_one(root: Root<'_>) -> io::Result<bool> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // What it is comes first: to open a device may be to use it.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = root.look(|root| openat2(root, FILE, flags, Mode::empty(), resolve))?;
    let stat = rustix::fs::fstat(&file)?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Ok(false);
    }
    match usize::try_from(stat.st_size) {
        Ok(0) => Ok(true),
        Ok(len) if len <= UNINITIALIZED.len() + 1 => {
            let mut text = String::new();
            reopen(&file)?.take(len as u64).read_to_string(&mut text)?;
            Ok(text.trim_end_matches('\n') == UNINITIALIZED)
        }
        _ => Ok(false),
    }
}

/// Opens what an `O_PATH` descriptor stands for, to be read.
pub fn reopen(file: &OwnedFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_file_without_an_id_is_to_get_one() {
        let root = tempfile::tempdir().unwrap();
        let id = || for_container(Root::At(root.path())).unwrap();
        assert_eq!(id(), "", "there is no such file");
        let etc = root.path().join("etc");
        let file = etc.join("machine-id");
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(id(), "", "a directory is none");
        fs::remove_dir(&file).unwrap();
        for (text, wants) in [
            ("", true),
            ("uninitialized", true),
            ("uninitialized\n", true),
            ("unitialized\n\n", false),
            ("0123456789abcdef0123456789abcdef\n", false),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(!id().is_empty(), wants, "{text:?}");
        }
        fs::rename(&file, root.path().join("id")).unwrap();
        fs::write(root.path().join("id"), "").unwrap();
        symlink("/id", &file).unwrap();
        assert_ne!(id(), "", "links are the container's own");
    }

    #[test]
    fn ids_are_those_of_systemd() {
        let (one, two) = (fresh().unwrap(), fresh().unwrap());
        assert_ne!(one, two);
        assert!(one.len() == 32 && one.bytes().all(|c| c.is_ascii_hexdigit()));
        assert_eq!(&one[12..13], "4");
    }
}
