//! A copy of a writable layer: every file with its owner, mode, times and extended attributes, hard
//! links as such, holes as holes, and overlayfs's whiteouts. Blocks are shared where the file system
//! can (FICLONE).
//!
//! What is copied is a tenant's: each step is one name in a directory opened before, symbolic links are
//! copied and never followed, and nothing is opened but directories and regular files.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

/// Directories within each other; each holds three descriptors while it is copied.
const DEPTH_MAX: usize = 200;
/// The longest list of names, and the longest value, of extended attributes (limits.h).
const XATTR_MAX: usize = 64 << 10;

/// Copies what is in the directory `from` to the empty directory `to`, and what `from` itself is.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut copier = Copier { links: HashMap::new(), root: to };
    let path = Vec::new();
    copier.directory(from, to, &path)
}

struct Copier<'a> {
    /// The copy of each file of several names, by inode number: names from `root` on.
    links: HashMap<u64, Vec<CString>>,
    root: BorrowedFd<'a>,
}

impl Copier<'_> {
    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &[CString],
    ) -> io::Result<()> {
        if path.len() > DEPTH_MAX {
            return Err(Errno::LOOP.into());
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = [path, &[name.to_owned()]].concat();
            self.entry(from, to, name, &path)?;
        }
        attributes(from, to, &rustix::fs::fstat(from)?)
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &[CString],
    ) -> io::Result<()> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !kind.is_dir() && stat.st_nlink > 1 && self.link(&stat, to, name, path)? {
            return Ok(());
        }
        match kind {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let (from, to) = (open(from, name, flags)?, open(to, name, flags)?);
                self.directory(from.as_fd(), to.as_fd(), path)
            }
            FileType::RegularFile => {
                let from = open(from, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
                let stat = rustix::fs::fstat(&from)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let to = open(to, name, flags)?;
                data(&from, &to, stat.st_size as u64)?;
                attributes(from.as_fd(), to.as_fd(), &stat)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(target, to, name)?;
                owner_and_times(to, name, &stat)
            }
            _ => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
                owner_and_times(to, name, &stat)
            }
        }
    }

    /// Makes a file's further names links to the first; false for the first.
    fn link(
        &mut self,
        stat: &Stat,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &[CString],
    ) -> io::Result<bool> {
        let Some(first) = self.links.get(&stat.st_ino) else {
            self.links.insert(stat.st_ino, path.to_vec());
            return Ok(false);
        };
        let Some((last, above)) = first.split_last() else { return Ok(false) };
        let mut directory = self.root.try_clone_to_owned()?;
        for name in above {
            directory = open(directory.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        }
        rustix::fs::linkat(&directory, last, to, name, AtFlags::empty())?;
        Ok(true)
    }
}

fn open(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?)
}

/// Copies a file's contents, which are its blocks if they can be shared, else what is no hole.
fn data(from: &OwnedFd, to: &OwnedFd, len: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    rustix::fs::ftruncate(to, len)?;
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            start => start?,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(len);
        let (mut read, mut written) = (start, start);
        while read < end {
            let wanted = (end - read) as usize;
            let copied =
                rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), wanted);
            if copied? == 0 {
                break;
            }
        }
        at = end.max(start + 1);
    }
    Ok(())
}

/// Owner first: a change of that takes set-user-ID bits and capabilities away.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0; XATTR_MAX];
    let len = match rustix::fs::flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        len => len?,
    };
    let mut value = vec![0; XATTR_MAX];
    for name in names[..len].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let len = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::empty())?;
    }
    rustix::fs::futimens(to, &times(stat))?;
    Ok(())
}

fn owner_and_times(directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(directory, name, Some(uid), Some(gid), flags)?;
    rustix::fs::utimensat(directory, name, &times(stat), flags)?;
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec: i64, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn copied(from: &std::path::Path) -> tempfile::TempDir {
        let to = tempfile::tempdir().unwrap();
        let open = |path| File::open(path).unwrap();
        copy(open(from).as_fd(), open(to.path()).as_fd()).unwrap();
        to
    }

    #[test]
    fn a_copy_is_what_the_original_was_and_its_own() {
        let from = tempfile::tempdir().unwrap();
        let dir = from.path();
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/b/file"), "text").unwrap();
        fs::set_permissions(dir.join("a/b/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(dir.join("a/b/file"), dir.join("other")).unwrap();
        symlink("/nowhere", dir.join("link")).unwrap();
        let sparse = File::create(dir.join("sparse")).unwrap();
        sparse.write_all_at(b"end", 8 << 20).unwrap();
        sparse.set_len(9 << 20).unwrap();
        rustix::fs::fsetxattr(&sparse, "user.x", b"y", XattrFlags::empty()).unwrap();
        let long_ago = Timespec { tv_sec: 1, tv_nsec: 2 };
        let times = Timestamps { last_access: long_ago, last_modification: long_ago };
        rustix::fs::futimens(File::open(dir.join("a")).unwrap(), &times).unwrap();

        let to = copied(dir);
        let at = |name: &str| to.path().join(name);
        let mut list: Vec<_> =
            fs::read_dir(to.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        list.sort();
        assert_eq!(list, ["a", "link", "other", "sparse"]);
        let file = fs::metadata(at("a/b/file")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.nlink()), (0o4751, 2));
        assert_eq!(file.ino(), fs::metadata(at("other")).unwrap().ino());
        assert_eq!(fs::read_link(at("link")).unwrap().to_str(), Some("/nowhere"));
        let copy = File::open(at("sparse")).unwrap();
        let mut end = [0; 4];
        copy.read_exact_at(&mut end, (8 << 20) - 1).unwrap();
        assert_eq!(&end, b"\0end");
        let stat = copy.metadata().unwrap();
        assert!(stat.len() == 9 << 20 && stat.blocks() * 512 < 1 << 20);
        let mut value = [0; 2];
        assert_eq!(rustix::fs::fgetxattr(&copy, "user.x", &mut value[..]), Ok(1));
        let above = fs::metadata(at("a")).unwrap();
        assert_eq!((above.mtime(), above.mtime_nsec()), (1, 2));
        fs::write(at("other"), "changed").unwrap();
        assert_eq!(fs::read_to_string(dir.join("other")).unwrap(), "text");
    }

    #[test]
    fn a_tree_without_end_is_refused() {
        let from = tempfile::tempdir().unwrap();
        let mut path = from.path().to_owned();
        (0..=DEPTH_MAX).for_each(|_| path.push("d"));
        fs::create_dir_all(path).unwrap();
        let to = tempfile::tempdir().unwrap();
        let open = |path| File::open(path).unwrap();
        let error = copy(open(from.path()).as_fd(), open(to.path()).as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
