//! Mount points that an image lacks.
//!
//! The process is inside of the container's root already, so no path leads out of it; what is left
//! to do is to follow symlinks that lead nowhere yet, as those of /etc/resolv.conf often do.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

/// As many symlinks as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Makes a mount point of the kind a mount needs: a directory, or an empty file.
pub fn make(path: &str, kind: FileType) -> rustix::io::Result<()> {
    let path = resolve(Path::new(path))?;
    if kind == FileType::Directory {
        return directories(&path);
    }
    if let Some(parent) = path.parent() {
        directories(parent)?;
    }
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// mkdir -p, mode 0755.
pub fn directories(path: &Path) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(0o755);
    let result = match rustix::fs::mkdir(path, mode) {
        Err(Errno::NOENT) => {
            path.parent().map_or(Err(Errno::NOENT), directories)?;
            rustix::fs::mkdir(path, mode)
        }
        result => result,
    };
    match result {
        Err(Errno::EXIST) if rustix::fs::stat(path).is_ok_and(|s| is_directory(s.st_mode)) => {
            Ok(())
        }
        result => result,
    }
}

fn is_directory(mode: u32) -> bool {
    FileType::from_raw_mode(mode) == FileType::Directory
}

/// The path without "..", and with the symlinks replaced by what they name, there or not.
fn resolve(path: &Path) -> rustix::io::Result<PathBuf> {
    let mut left: VecDeque<OsString> = words(path);
    let mut done = PathBuf::from("/");
    let mut links = 0;
    while let Some(word) = left.pop_front() {
        if word == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&word);
        match rustix::fs::readlinkat(CWD, &next, Vec::new()) {
            Ok(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP);
                }
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    done = PathBuf::from("/");
                }
                left = words(&target).into_iter().chain(left).collect();
            }
            // No symlink, or nothing at all.
            Err(Errno::INVAL | Errno::NOENT) => done = next,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn words(path: &Path) -> VecDeque<OsString> {
    let words = path.components().filter_map(|component| match component {
        Component::Normal(word) => Some(word.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_to_nowhere_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("../run/dangling", at("link")).unwrap();
        std::fs::create_dir(at("etc")).unwrap();
        symlink("../run/deep/file", at("etc/resolv.conf")).unwrap();
        assert_eq!(resolve(&at("etc/resolv.conf")), Ok(at("run/deep/file")));
        assert_eq!(resolve(&at("etc/../none/x/..")), Ok(at("none")));
        make(at("etc/resolv.conf").to_str().unwrap(), FileType::RegularFile).unwrap();
        assert!(at("run/deep/file").is_file());
        make(at("a/b/c").to_str().unwrap(), FileType::Directory).unwrap();
        assert!(at("a/b/c").is_dir());
        assert_eq!(
            make(at("run/deep/file/x").to_str().unwrap(), FileType::Directory),
            Err(Errno::NOTDIR)
        );
    }

    #[test]
    fn links_in_a_circle_end() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert_eq!(resolve(&dir.path().join("a/x")), Err(Errno::LOOP));
    }
}
