//! Mount points that a read-only root lacks. The guest cannot make them: its file server refuses
//! every write, from the first one on. So they are made here, as runc does, before the VM is there.
//!
//! The tree may be anybody's, and full of symlinks: each step is resolved by the kernel as if the
//! root were "/" (openat2(2), RESOLVE_IN_ROOT), so none leads out of it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::{Bundle, BundleError, Kind, Source};

/// As many symlinks as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

impl Bundle {
    /// Makes the mount points that are missing, if the root is to be read-only. Those below another
    /// mount are in what that mount shows.
    pub fn make_mount_points(&self) -> Result<(), BundleError> {
        if !self.readonly() {
            return Ok(());
        }
        let failed =
            |source: Errno| BundleError::Root { path: self.rootfs.clone(), source: source.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &self.rootfs, flags, Mode::empty()).map_err(failed)?;
        let mut covered: Vec<PathBuf> = Vec::new();
        for (mount, source) in self.spec.mounts().iter().flatten().zip(&self.sources) {
            let destination = mount.destination();
            if !covered.iter().any(|above| destination.starts_with(above)) {
                let directory =
                    !matches!(source, Source::Host { kind: Kind::File | Kind::Special, .. });
                make(root.as_fd(), destination, directory).map_err(|source| {
                    BundleError::MountPoint {
                        destination: destination.display().to_string(),
                        source: io::Error::from(source),
                    }
                })?;
            }
            covered.push(destination.clone());
        }
        Ok(())
    }
}

/// Makes `path` below `root`: a directory, or an empty file; directories on the way to it.
fn make(root: BorrowedFd<'_>, path: &Path, directory: bool) -> rustix::io::Result<()> {
    if open(root, path, OFlags::empty()).is_ok() {
        return Ok(());
    }
    let mut left = words(path);
    let mut done = PathBuf::from("/");
    let mut links = 0;
    while let Some(word) = left.pop_front() {
        if word == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&word);
        match open(root, &next, OFlags::NOFOLLOW) {
            Ok(found) => match rustix::fs::readlinkat(&found, c"", Vec::new()) {
                Ok(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP);
                    }
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        done = "/".into();
                    }
                    left = words(&target).into_iter().chain(left).collect();
                }
                Err(_) => done = next,
            },
            Err(Errno::NOENT) => {
                make_one(root, &done, &word, directory || !left.is_empty())?;
                done = next;
            }
            Err(error) => return Err(error),
        }
    }
    // Whoever changed the tree meanwhile will not have made it better.
    let kind =
        FileType::from_raw_mode(rustix::fs::fstat(open(root, &done, OFlags::empty())?)?.st_mode);
    if directory == kind.is_dir() { Ok(()) } else { Err(Errno::NOTDIR) }
}

fn make_one(
    root: BorrowedFd<'_>,
    parent: &Path,
    name: &OsStr,
    directory: bool,
) -> rustix::io::Result<()> {
    let parent = open(root, parent, OFlags::DIRECTORY)?;
    if directory {
        return rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755));
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, Mode::empty(), resolve)
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
    use std::fs;
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;
    use crate::oci::testing::TestBundle;

    fn bundle(readonly: bool) -> TestBundle {
        let bundle = TestBundle::new(|config| {
            config["root"]["readonly"] = json!(readonly);
            config["mounts"] = json!([
                {"destination": "/dev", "type": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts"},
                {"destination": "/etc/resolv.conf", "type": "bind", "source": "config.json"},
                {"destination": "/deep/../deep/dir", "type": "bind", "source": "rootfs"},
                {"destination": "/out/side", "type": "tmpfs"},
            ]);
        });
        fs::create_dir(bundle.path("rootfs/etc")).expect("a directory");
        symlink("../../../run/stub", bundle.path("rootfs/etc/resolv.conf")).expect("a link");
        symlink(bundle.path("escaped"), bundle.path("rootfs/out")).expect("a link");
        bundle
    }

    #[test]
    fn what_is_missing_is_made_inside_the_root() {
        let bundle = bundle(true);
        let loaded = Bundle::load(bundle.dir()).expect("a bundle");
        loaded.make_mount_points().expect("made");
        loaded.make_mount_points().expect("made already");
        assert!(bundle.path("rootfs/dev").is_dir());
        assert!(!bundle.path("rootfs/dev/pts").exists(), "that is in the tmpfs");
        assert!(bundle.path("rootfs/run/stub").is_file());
        assert!(bundle.path("rootfs/deep/dir").is_dir());
        let escaped = bundle.path("escaped");
        assert!(!escaped.exists(), "no link leads out of the root");
        let inside = escaped.strip_prefix("/").expect("absolute");
        assert!(bundle.path("rootfs").join(inside).join("side").is_dir());
    }

    #[test]
    fn a_root_that_can_be_written_is_left_to_the_guest() {
        let bundle = bundle(false);
        Bundle::load(bundle.dir()).expect("a bundle").make_mount_points().expect("nothing to do");
        assert!(!bundle.path("rootfs/dev").exists());
    }

    #[test]
    fn what_cannot_be_made_is_said() {
        let bundle = bundle(true);
        fs::write(bundle.path("rootfs/dev"), "").expect("a file");
        fs::remove_file(bundle.path("rootfs/out")).expect("a link");
        symlink("out", bundle.path("rootfs/out")).expect("a link");
        for (destination, words) in [("/out/x", "/out/x"), ("/dev/x", "/dev/x")] {
            bundle.change(|config| {
                config["mounts"] = json!([{"destination": destination, "type": "tmpfs"}]);
            });
            let loaded = Bundle::load(bundle.dir()).expect("a bundle");
            let sentence = loaded.make_mount_points().expect_err("refused").to_string();
            assert!(sentence.contains(words) && !sentence.contains('\n'), "{sentence}");
        }
    }
}
