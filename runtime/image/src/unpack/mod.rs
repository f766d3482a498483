//! Unpacks a layer into a directory, for use as a lower directory of overlayfs.
//!
//! The archive is hostile. Each step names one file in an open directory, and directories are
//! opened by openat2(2) beneath the layer's own, through no symbolic link ([`beneath`]): nothing is
//! read, written or linked elsewhere, whatever order names and links come in.
//!
//! | in the archive | in the directory |
//! |---|---|
//! | absolute paths | as if relative to the layer's root, as engines take them |
//! | `..` in a path or in a hard link's target | the layer is refused |
//! | a path through a symbolic link of the same layer | refused |
//! | a hard link to what is not in the layer, or is a directory | refused |
//! | symbolic links | kept as they are, wherever they point: only the guest follows them |
//! | owner, mode with setuid and setgid, times | applied |
//! | `security.capability`, `user.*` attributes | applied, but for overlayfs's own `user.overlay.*` |
//! | other attributes, first of all `trusted.overlay.*` | left out |
//! | devices | left out: `/dev` is the guest's own |
//! | `.wh.NAME`, `.wh..wh..opq` (OCI image specification, layer.md) | what overlayfs has for them |

mod beneath;
mod entry;
mod whiteout;

use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::limits::{DEPTH_MAX, ENTRIES_MAX, LAYER_BYTES_MAX};
use crate::tarfile::{Member, Members, TarError};
use beneath::{Cursor, Path};
pub use whiteout::is_opaque;

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive itself.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A path that climbs.
    #[error("{0} leads out of the layer")]
    Outside(String),
    /// A path that no file can have.
    #[error("{0} is no path: it or a name in it is too long, or has a NUL")]
    Name(String),
    /// A path of more than [`DEPTH_MAX`] names.
    #[error("{0} is nested deeper than {DEPTH_MAX} directories")]
    Deep(String),
    /// A path whose directory is a symbolic link, or below one.
    #[error("{0} goes through a symbolic link")]
    ThroughLink(String),
    /// A path whose directory is a file.
    #[error("{0} goes through something that is no directory")]
    ThroughFile(String),
    /// A hard link that cannot be one.
    #[error("the hard link {path} names {target}, which is not a file of the layer")]
    Hardlink {
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// What the layer's own root cannot be.
    #[error("the layer's root is something other than a directory")]
    Root,
    /// More than [`ENTRIES_MAX`].
    #[error("it has more than {ENTRIES_MAX} members")]
    Entries,
    /// More than [`LAYER_BYTES_MAX`].
    #[error("its files hold more than {LAYER_BYTES_MAX} bytes")]
    Bytes,
    /// Users other than root cannot give files away, and root of a user namespace not to everybody.
    #[error(
        "cannot give {0} to its owner, who is none of this user's IDs (/etc/subuid and /etc/subgid)"
    )]
    Owner(String),
    /// A system call failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// What failed.
        source: std::io::Error,
    },
}

impl UnpackError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> Self {
        let path = path.to_string();
        move |errno| Self::Io { action, path, source: errno.into() }
    }
}

/// Unpacks the archive that `source` holds into the empty directory `root`; what the layer itself
/// replaces goes to the directory `trash`. Returns the bytes its files hold.
pub fn unpack(source: impl Read, root: OwnedFd, trash: OwnedFd) -> Result<u64, UnpackError> {
    let mut members = Members::new(source);
    let mut unpacker = Unpacker {
        cursor: Cursor::new(root),
        trash,
        trashed: 0,
        bytes: 0,
        entries: 0,
        directories: Vec::new(),
    };
    while let Some(member) = members.next_member()? {
        unpacker.count(&member)?;
        unpacker.place(&member, &mut members)?;
    }
    unpacker.finish()
}

struct Unpacker {
    cursor: Cursor,
    trash: OwnedFd,
    trashed: u64,
    bytes: u64,
    entries: u64,
    /// Directories whose times are set last, for everything in them changes them.
    directories: Vec<(Vec<u8>, (i64, u32))>,
}

impl Unpacker {
    fn count(&mut self, member: &Member) -> Result<(), UnpackError> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(member.stored());
        match () {
            () if self.entries > ENTRIES_MAX => Err(UnpackError::Entries),
            () if self.bytes > LAYER_BYTES_MAX => Err(UnpackError::Bytes),
            () => Ok(()),
        }
    }

    fn finish(mut self) -> Result<u64, UnpackError> {
        for (path, mtime) in std::mem::take(&mut self.directories) {
            let path = Path::parse(&path)?;
            // One that is gone, or another kind of thing by now, has its own times.
            let Ok(directory) = self.cursor.open(path.names()) else { continue };
            let times = entry::times(mtime);
            rustix::fs::futimens(&*directory, &times).map_err(UnpackError::io("date", &path))?;
        }
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests;
