//! Puts one member of an archive in its place.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fsetxattr,
    linkat, mkfifoat, openat, renameat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::beneath::{self, Path, text};
use super::whiteout::{self, Marker};
use super::{UnpackError, Unpacker};
use crate::tarfile::{Kind, Member, Members};
use crate::user;

impl Unpacker {
    pub(super) fn place<R: Read>(
        &mut self,
        member: &Member,
        members: &mut Members<R>,
    ) -> Result<(), UnpackError> {
        let path = Path::parse(&member.path)?;
        let Some((name, parents)) = path.names().split_last() else {
            return self.root(member, &path);
        };
        if member.kind == Kind::Device {
            return Ok(());
        }
        let parent = self.cursor.make(parents)?;
        if let Some(marker) = whiteout::marker(name) {
            return hide(&parent, marker, &path);
        }
        match member.kind {
            Kind::Directory => {
                self.clear(&parent, name, &path, true)?;
                beneath::make(&parent, name).map_err(UnpackError::io("make directory", &path))?;
                self.directories.push((member.path.clone(), member.mtime));
            }
            Kind::Hardlink => return self.link(member, &parent, name, &path),
            kind => {
                self.clear(&parent, name, &path, false)?;
                match kind {
                    Kind::Symlink => symlinkat(&member.link[..], &parent, *name),
                    Kind::Fifo => mkfifoat(&parent, *name, Mode::empty()),
                    _ => return self.file(member, members, &parent, name, &path),
                }
                .map_err(UnpackError::io("make", &path))?;
            }
        }
        attributes(member, &parent, name, &path)
    }

    fn file<R: Read>(
        &mut self,
        member: &Member,
        members: &mut Members<R>,
        parent: &OwnedFd,
        name: &[u8],
        path: &Path,
    ) -> Result<(), UnpackError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        let file = openat(parent, name, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o600));
        let mut file = File::from(file.map_err(UnpackError::io("make", path))?);
        members.copy(member, &mut file)?;
        attributes(member, parent, name, path)
    }

    /// The layer's own root: it may be described, and nothing else.
    fn root(&mut self, member: &Member, path: &Path) -> Result<(), UnpackError> {
        if member.kind != Kind::Directory {
            return Err(UnpackError::Root);
        }
        let root = self.cursor.open(&[])?;
        self.directories.push((Vec::new(), member.mtime));
        attributes(member, &root, b".", path)
    }

    fn link(
        &mut self,
        member: &Member,
        parent: &OwnedFd,
        name: &[u8],
        path: &Path,
    ) -> Result<(), UnpackError> {
        let target = Path::parse(&member.link)?;
        if target == *path {
            return Ok(());
        }
        let missing = || {
            let (path, target) = (path.to_string(), target.to_string());
            UnpackError::Hardlink { path, target }
        };
        let (last, parents) = target.names().split_last().ok_or_else(missing)?;
        let from = self.cursor.open(parents).map_err(|error| match error {
            UnpackError::Io { .. } => missing(),
            error => error,
        })?;
        self.clear(parent, name, path, false)?;
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link is one to the link itself.
        match linkat(&from, *last, parent, name, AtFlags::empty()) {
            Err(Errno::NOENT | Errno::PERM) => Err(missing()),
            linked => linked.map_err(UnpackError::io("link", path)),
        }
    }

    /// Takes away what an earlier member put there; with `keep`, a directory or whiteout stays.
    fn clear(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &Path,
        keep: bool,
    ) -> Result<(), UnpackError> {
        let failed = || UnpackError::io("replace", path);
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat.map_err(failed())?,
        };
        let is_directory = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
        if keep && (is_directory || whiteout::is(parent, name)) {
            return Ok(());
        }
        if !is_directory {
            return unlinkat(parent, name, AtFlags::empty()).map_err(failed());
        }
        self.cursor.forget();
        self.trashed += 1;
        renameat(parent, name, &self.trash, self.trashed.to_string()).map_err(failed())
    }
}

fn hide(parent: &OwnedFd, marker: Marker, path: &Path) -> Result<(), UnpackError> {
    let hidden = match marker {
        Marker::Opaque => whiteout::set_opaque(parent),
        Marker::Aufs => Ok(()),
        Marker::Hides(name) if !whiteout::can_hide(name) => {
            return Err(UnpackError::Outside(path.to_string()));
        }
        Marker::Hides(name) => whiteout::make(parent, name),
    };
    hidden.map_err(UnpackError::io("hide", path))
}

/// Owner, mode, attributes and times of what was just made. Nobody else writes to a layer that is
/// being unpacked, so the name still means it.
fn attributes(
    member: &Member,
    parent: &OwnedFd,
    name: &[u8],
    path: &Path,
) -> Result<(), UnpackError> {
    let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
    // First: it takes setuid, setgid and capabilities away.
    match chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        // All files are the one user's there is.
        Err(Errno::INVAL) if user::is_only_one() => {}
        Err(Errno::PERM | Errno::INVAL) => return Err(UnpackError::Owner(path.to_string())),
        owned => owned.map_err(UnpackError::io("chown", path))?,
    }
    if member.kind != Kind::Symlink {
        let mode = Mode::from_raw_mode(member.mode);
        chmodat(parent, name, mode, AtFlags::empty()).map_err(UnpackError::io("chmod", path))?;
    }
    if matches!(member.kind, Kind::Regular | Kind::Directory) {
        let wanted = member.xattrs.iter().filter(|(name, _)| is_wanted(name));
        for (attribute, value) in wanted {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(parent, name, flags, Mode::empty());
            let set = file.and_then(|file| {
                fsetxattr(file.as_fd(), &attribute[..], value, XattrFlags::empty())
            });
            let action = "set an extended attribute of";
            set.map_err(|errno| UnpackError::Io {
                action,
                path: format!("{path} ({})", text(attribute)),
                source: errno.into(),
            })?;
        }
    }
    let times = times(member.mtime);
    utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(UnpackError::io("date", path))
}

/// Attributes that mean the same in every container. Not those of overlayfs (`trusted.overlay.`,
/// `user.overlay.`), with which a layer could redirect names, of security modules, or of the host.
fn is_wanted(name: &[u8]) -> bool {
    let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    !name.contains(&0) && (user || name == b"security.capability")
}

pub fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
