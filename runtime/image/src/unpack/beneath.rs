//! Paths of a layer and the directories they lead through.

use std::fmt;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat2, unlinkat};
use rustix::io::Errno;

use super::{UnpackError, whiteout};
use crate::limits::{DEPTH_MAX, PATH_MAX};

/// What a directory that no member describes is: root's, like all that engines make.
const DEFAULT_MODE: u32 = 0o755;

/// A path below a layer's root, checked: plain names, no "..", none of them too long.
#[derive(Debug, PartialEq, Eq)]
pub struct Path<'a>(Vec<&'a [u8]>);

impl<'a> Path<'a> {
    /// Takes `path` apart. Empty for the root itself.
    pub fn parse(path: &'a [u8]) -> Result<Self, UnpackError> {
        let text = || text(path);
        let names: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .collect();
        match () {
            () if names.contains(&&b".."[..]) => Err(UnpackError::Outside(text())),
            () if names.len() > DEPTH_MAX => Err(UnpackError::Deep(text())),
            () if path.len() as u64 > PATH_MAX || path.contains(&0) => {
                Err(UnpackError::Name(text()))
            }
            () if names.iter().any(|name| name.len() > 255) => Err(UnpackError::Name(text())),
            () => Ok(Self(names)),
        }
    }

    pub fn names(&self) -> &[&'a [u8]] {
        &self.0
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&text(&self.0.join(&b'/')))
    }
}

/// A hostile path for a sentence: one line, not too long.
pub fn text(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let short: String = text.chars().take(200).collect();
    format!("{short:?}")
}

/// Opens directories beneath the layer's root; remembers the last one, for most members are beside
/// the one before.
pub struct Cursor {
    root: Rc<OwnedFd>,
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl Cursor {
    pub fn new(root: OwnedFd) -> Self {
        Self { root: Rc::new(root), last: None }
    }

    /// Opens a directory that is there.
    pub fn open(&mut self, names: &[&[u8]]) -> Result<Rc<OwnedFd>, UnpackError> {
        let path = names.join(&b'/');
        let opened = match &path[..] {
            b"" => Ok(self.root.clone()),
            path => directory(&self.root, path).map(Rc::new),
        };
        opened.map_err(|errno| failed(errno, &path))
    }

    /// Opens a directory; makes it, and those above it, if need be.
    pub fn make(&mut self, names: &[&[u8]]) -> Result<Rc<OwnedFd>, UnpackError> {
        let path = names.join(&b'/');
        if let Some((last, directory)) = &self.last
            && *last == path
        {
            return Ok(directory.clone());
        }
        let directory = match self.open(names) {
            Ok(directory) => directory,
            Err(_) => self.walk(names)?,
        };
        self.last = Some((path, directory.clone()));
        Ok(directory)
    }

    /// To be called when a directory may have gone from its place.
    pub fn forget(&mut self) {
        self.last = None;
    }

    fn walk(&mut self, names: &[&[u8]]) -> Result<Rc<OwnedFd>, UnpackError> {
        let mut at = self.root.clone();
        for (index, name) in names.iter().enumerate() {
            let made = make(&at, name);
            at = Rc::new(made.map_err(|errno| failed(errno, &names[..=index].join(&b'/')))?);
        }
        Ok(at)
    }
}

fn failed(errno: Errno, path: &[u8]) -> UnpackError {
    let path = text(path);
    match errno {
        Errno::LOOP => UnpackError::ThroughLink(path),
        Errno::NOTDIR => UnpackError::ThroughFile(path),
        errno => UnpackError::Io { action: "open directory", path, source: errno.into() },
    }
}

/// Opens a directory below `at`. ELOOP for a symbolic link anywhere in the path.
fn directory(at: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    openat2(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Opens the directory `name`; makes it if it is not there. One in the place of a whiteout hides
/// what the layers below have there: it is opaque.
pub fn make(at: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let mode = Mode::from_raw_mode(DEFAULT_MODE);
    match directory(at, name) {
        Err(Errno::NOENT) => {
            mkdirat(at, name, mode)?;
            directory(at, name)
        }
        Err(Errno::NOTDIR) if whiteout::is(at, name) => {
            unlinkat(at, name, AtFlags::empty())?;
            mkdirat(at, name, mode)?;
            let made = directory(at, name)?;
            whiteout::set_opaque(&made)?;
            Ok(made)
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_plain_names_or_refused() {
        let names = |path: &'static str| Path::parse(path.as_bytes()).map(|path| path.0);
        assert_eq!(names("./a//b/./c/").unwrap(), [b"a", b"b", b"c"]);
        assert_eq!(names("/etc/passwd").unwrap(), [&b"etc"[..], b"passwd"]);
        for root in ["", ".", "/", "./"] {
            assert_eq!(names(root).unwrap(), [b""; 0]);
        }
        for outside in ["..", "../x", "a/..", "/../x", "a/../../x"] {
            assert!(matches!(names(outside), Err(UnpackError::Outside(_))), "{outside}");
        }
        assert!(matches!(names("a\0b"), Err(UnpackError::Name(_))));
        let (long, deep) = ("x".repeat(256), "x/".repeat(DEPTH_MAX + 1));
        assert!(matches!(Path::parse(long.as_bytes()), Err(UnpackError::Name(_))));
        assert!(matches!(Path::parse(deep.as_bytes()), Err(UnpackError::Deep(_))));
    }
}
