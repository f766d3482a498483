//! The base of a checkpoint: the memory file that it is but the difference from, as `base` beside it, a
//! hard link that takes no room and outlives whatever else has the file, a template above all. Where that
//! cannot be, on another file system, the checkpoint is whole.
//!
//! `base.crc32` says what it must be: the sum over its pages that are not zero, with their places.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::templates::open_plain;

const BASE: &str = "base";
const SUM: &str = "base.crc32";
const PAGE: u64 = 4096;
const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
/// Length of what `SUM` holds, bytes, and a line's end.
const SUM_MAX: u64 = 10;
/// Bytes read together.
const CHUNK: u64 = 1 << 20;

/// Why a base is none.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// Something of it cannot be read.
    #[error("cannot {action} the checkpoint's base {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// It is not what it was.
    #[error("the checkpoint's base {} was changed since it was made; make the checkpoint anew", .0.display())]
    Changed(PathBuf),
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BaseError {
    move |source| BaseError::Io { action, path: path.to_owned(), source }
}

/// Its path in a checkpoint's directory.
pub fn path(dir: &Path) -> PathBuf {
    dir.join(BASE)
}

/// Links the memory file at `memory` into a checkpoint's directory; `None` if that cannot be.
pub fn link(memory: &Path, dir: &Path) -> Option<File> {
    fs::hard_link(memory, path(dir)).ok()?;
    File::open(path(dir)).ok()
}

/// Writes down what the base is.
pub fn seal(dir: &Path, base: &File) -> Result<(), BaseError> {
    let sum = sum(base).map_err(failed("read", &path(dir)))?;
    let file = dir.join(SUM);
    fs::write(&file, format!("{sum:08x}\n")).map_err(failed("write the sum of", &file))
}

/// Removes it: the checkpoint is whole, or none.
pub fn forget(dir: &Path) {
    for name in [BASE, SUM] {
        let _ = fs::remove_file(dir.join(name));
    }
}

/// Opens the base of a checkpoint, if there is one, and makes sure that it is what it was.
pub fn open(dir: &Path) -> Result<Option<File>, BaseError> {
    let path = path(dir);
    let base = match open_plain(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        base => base.map_err(failed("open", &path))?,
    };
    let file = dir.join(SUM);
    let mut expected = String::new();
    let read = open_plain(&file).and_then(|sum| sum.take(SUM_MAX).read_to_string(&mut expected));
    read.map_err(failed("read the sum of", &file))?;
    let found = sum(&base).map_err(failed("read", &path))?;
    match u32::from_str_radix(expected.trim(), 16) {
        Ok(expected) if expected == found => Ok(Some(base)),
        _ => Err(BaseError::Changed(path)),
    }
}

/// Holes and pages of zeros are the same: a copy may have either.
fn sum(file: &File) -> io::Result<u32> {
    let len = file.metadata()?.len();
    let mut sum = crc32fast::Hasher::new();
    sum.update(&len.to_le_bytes());
    let mut chunk = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < len {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            start => start? / PAGE * PAGE,
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(len);
        for place in (start..end).step_by(CHUNK as usize) {
            let bytes = &mut chunk[..CHUNK.min(end - place) as usize];
            file.read_exact_at(bytes, place)?;
            for (page, place) in bytes.chunks(PAGE as usize).zip((place..).step_by(PAGE as usize)) {
                if page != &ZEROS[..page.len()] {
                    sum.update(&place.to_le_bytes());
                    sum.update(page);
                }
            }
        }
        at = end.max(start + 1);
    }
    Ok(sum.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_known_again_and_a_changed_one_is_not() {
        let (templates, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let memory = templates.path().join("memory");
        let file = File::create(&memory).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"kernel", 3 << 20).unwrap();
        assert!(open(dir.path()).unwrap().is_none());
        let base = link(&memory, dir.path()).unwrap();
        seal(dir.path(), &base).unwrap();
        fs::remove_file(&memory).unwrap();
        assert!(open(dir.path()).unwrap().is_some(), "it outlives the template");
        let copy = fs::read(path(dir.path())).unwrap();
        fs::remove_file(path(dir.path())).unwrap();
        fs::write(path(dir.path()), &copy).unwrap();
        assert!(open(dir.path()).unwrap().is_some(), "a copy without holes is the same");
        let file = File::options().write(true).open(path(dir.path())).unwrap();
        for (bytes, place) in [(b"x", 3 << 20), (b"x", 5 << 20)] {
            fs::write(path(dir.path()), &copy).unwrap();
            file.write_all_at(bytes, place).unwrap();
            assert!(matches!(open(dir.path()), Err(BaseError::Changed(_))), "at {place}");
        }
        fs::write(path(dir.path()), &copy).unwrap();
        for name in [SUM, BASE] {
            let file = dir.path().join(name);
            fs::remove_file(&file).unwrap();
            std::os::unix::fs::symlink("/proc/version", &file).unwrap();
            assert!(matches!(open(dir.path()), Err(BaseError::Io { .. })), "a linked {name}");
        }
        forget(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
