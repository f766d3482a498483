//! What hides files of the layers below: `.wh.` entries in archives (OCI image specification,
//! layer.md, "Whiteouts"), character devices 0:0 and an attribute on disk
//! (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").

use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, Dev, FileType, Mode, XattrFlags, fgetxattr, fsetxattr, makedev, mknodat, statat,
};
use rustix::io::Errno;

use crate::user;

/// The attribute that makes a directory opaque. In a user namespace overlayfs takes the second
/// (`userxattr`), which layers cannot bring with them.
const OPAQUE_ATTRIBUTES: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
const OPAQUE: &[u8] = b"y";

/// What a member's name says.
#[derive(Debug, PartialEq, Eq)]
pub enum Marker<'a> {
    /// Hides everything the layers below have in its directory.
    Opaque,
    /// Hides one entry of the layers below.
    Hides(&'a [u8]),
    /// Something of aufs's own; without meaning here.
    Aufs,
}

/// What the name of a member says, if it is a whiteout.
pub fn marker(name: &[u8]) -> Option<Marker<'_>> {
    match name.strip_prefix(b".wh.")? {
        b".wh..opq" => Some(Marker::Opaque),
        rest if rest.starts_with(b".wh.") => Some(Marker::Aufs),
        hidden => Some(Marker::Hides(hidden)),
    }
}

/// Whether a name is one that a whiteout can hide: `.wh...` must not become "..".
pub fn can_hide(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".."
}

fn device() -> Dev {
    makedev(0, 0)
}

/// Whether `name` is a whiteout on disk.
pub fn is(directory: &OwnedFd, name: &[u8]) -> bool {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == device()
    })
}

/// Hides `name`. What this same layer has there stays, and hides by itself what is below it.
pub fn make(directory: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), device()) {
        Err(Errno::EXIST) if !is(directory, name) => match super::beneath::make(directory, name) {
            Ok(directory) => set_opaque(&directory),
            Err(_) => Ok(()),
        },
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

fn opaque_attribute() -> &'static str {
    OPAQUE_ATTRIBUTES[usize::from(!user::is_host_root())]
}

/// Hides everything that the layers below have in `directory`.
pub fn set_opaque(directory: &OwnedFd) -> Result<(), Errno> {
    fsetxattr(directory, opaque_attribute(), OPAQUE, XattrFlags::empty())
}

/// Whether nothing of the layers below is seen in `directory`.
pub fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 1];
    matches!(fgetxattr(directory, opaque_attribute(), &mut value), Ok(1)) && value == OPAQUE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_whiteouts() {
        assert_eq!(marker(b"x.wh.y"), None);
        assert_eq!(marker(b".wh.a"), Some(Marker::Hides(b"a")));
        assert_eq!(marker(b".wh..wh..opq"), Some(Marker::Opaque));
        assert_eq!(marker(b".wh..wh.plnk"), Some(Marker::Aufs));
        for name in [&b".wh."[..], b".wh..", b".wh..."] {
            let Some(Marker::Hides(hidden)) = marker(name) else { panic!("no whiteout") };
            assert!(!can_hide(hidden));
        }
    }
}
