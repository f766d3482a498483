//! Reading directories: getdents64(2) in batches, resumable at any entry.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes read at once: about 200 entries, which take the guest ten requests.
const BATCH_LEN: usize = 8 << 10;

/// The most batches that wait for the next request, 8 MiB: a guest may have many more directories open,
/// which read again what a request left over.
const KEPT_MAX: usize = 1024;

/// Length of `struct linux_dirent64` before the name.
const NAME_OFFSET: usize = 19;

/// Where reading of one open directory stands.
#[derive(Debug, Default)]
pub struct Dirents {
    /// What was read last; allocated at the first read.
    batch: Vec<u8>,
    /// The part of `batch` not handed out yet.
    start: usize,
    end: usize,
    /// What lets `batch` wait for the next request.
    place: Option<Place>,
    /// The cookie (`d_off`) to go on from: that of the last entry handed out; `None` if the descriptor
    /// stands elsewhere.
    next: Option<u64>,
}

/// Counts the batches that wait.
#[derive(Clone, Debug, Default)]
pub struct Batches(Arc<AtomicUsize>);

/// One of them; counted until it is dropped.
#[derive(Debug)]
struct Place(Batches);

impl Batches {
    fn place(&self) -> Option<Place> {
        let more = |kept: usize| (kept < KEPT_MAX).then_some(kept + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An entry as the host's kernel lists it.
#[derive(Clone, Copy, Debug)]
pub struct Dirent<'a> {
    /// The host's inode number.
    pub ino: u64,
    /// The cookie of the entry after this one.
    pub next: u64,
    /// `DT_REG` and so on.
    pub file_type: u8,
    /// The name, "." and ".." included.
    pub name: &'a CStr,
    record_len: usize,
}

impl Dirents {
    /// Goes to `cookie`: 0 or the `next` of an entry. Free if reading stands there.
    pub fn seek(&mut self, dir: impl AsFd, cookie: u64) -> Result<(), Errno> {
        if self.next != Some(cookie) || cookie == 0 {
            seek(dir, SeekFrom::Start(cookie))?;
            (self.start, self.end, self.next) = (0, 0, Some(cookie));
        }
        Ok(())
    }

    /// The entry reading stands at; `None` at the end.
    pub fn peek(&mut self, dir: impl AsFd) -> Result<Option<Dirent<'_>>, Errno> {
        if self.start == self.end {
            self.batch.resize(BATCH_LEN, 0);
            self.end = getdents(dir, &mut self.batch)?;
            self.start = 0;
            if self.end == 0 {
                return Ok(None);
            }
        }
        let record = self.batch.get(self.start..self.end).and_then(parse);
        // The kernel writes whole records.
        record.map(Some).ok_or(Errno::IO)
    }

    /// Goes on to the entry after the one that had `record_len` and `next`.
    pub fn advance(&mut self, (record_len, next): (usize, u64)) {
        self.start = (self.start + record_len).min(self.end);
        self.next = Some(next);
    }

    /// A request has been answered: keeps what is left of the batch, if there is a place for it.
    pub fn settle(&mut self, batches: &Batches) {
        let left = self.start != self.end;
        if left && self.place.is_none() {
            self.place = batches.place();
        }
        if self.place.is_none() || !left {
            let next = if left { None } else { self.next };
            *self = Self { next, ..Self::default() };
        }
    }
}

impl Dirent<'_> {
    /// What [`Dirents::advance`] takes.
    pub fn position(&self) -> (usize, u64) {
        (self.record_len, self.next)
    }
}

/// The first record of `bytes`.
fn parse(bytes: &[u8]) -> Option<Dirent<'_>> {
    let record_len = usize::from(u16::from_le_bytes(*bytes.get(16..)?.first_chunk()?));
    let record = bytes.get(..record_len)?;
    Some(Dirent {
        ino: u64::from_le_bytes(*record.first_chunk()?),
        next: u64::from_le_bytes(*record.get(8..)?.first_chunk()?),
        file_type: *record.get(18)?,
        name: CStr::from_bytes_until_nul(record.get(NAME_OFFSET..)?).ok()?,
        record_len,
    })
}

/// Fills `buffer` with records and returns their length; 0 at the end of the directory.
fn getdents(dir: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let fd = dir.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
    let len = unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) };
    usize::try_from(len)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::fs::{CWD, Mode, OFlags, openat};

    use super::*;

    fn names_from(dir: &impl AsFd, entries: &mut Dirents, cookie: u64) -> Vec<(String, u64)> {
        entries.seek(dir, cookie).unwrap();
        let mut names = Vec::new();
        while let Some(entry) = entries.peek(dir).unwrap() {
            names.push((entry.name.to_str().unwrap().to_owned(), entry.next));
            let position = entry.position();
            entries.advance(position);
        }
        names
    }

    #[test]
    fn reading_resumes_at_any_cookie() {
        let temp = tempfile::tempdir().unwrap();
        for i in 0..700 {
            std::fs::write(temp.path().join(format!("file-{i}")), "").unwrap();
        }
        let dir = openat(CWD, temp.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut entries = Dirents::default();
        let all = names_from(&dir, &mut entries, 0);
        assert_eq!(all.len(), 702);
        assert_eq!(names_from(&dir, &mut entries, 0), all, "rewound");
        for i in [0, 1, 333, 700] {
            assert_eq!(names_from(&dir, &mut entries, all[i].1), all[i + 1..], "from {i}");
        }
    }

    #[test]
    fn batches_without_a_place_are_read_again() {
        let temp = tempfile::tempdir().unwrap();
        for i in 0..30 {
            std::fs::write(temp.path().join(format!("file-{i}")), "").unwrap();
        }
        let dir = openat(CWD, temp.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let all = names_from(&dir, &mut Dirents::default(), 0);
        let batches = Batches::default();
        let places: Vec<_> = std::iter::from_fn(|| batches.place()).collect();
        assert_eq!(places.len(), KEPT_MAX);
        let mut entries = Dirents::default();
        let (mut names, mut cookie) = (Vec::new(), 0);
        // One entry a request, and nothing is kept in between.
        loop {
            entries.seek(&dir, cookie).unwrap();
            let Some(entry) = entries.peek(&dir).unwrap() else { break };
            names.push((entry.name.to_str().unwrap().to_owned(), entry.next));
            let position = entry.position();
            (_, cookie) = position;
            entries.advance(position);
            entries.settle(&batches);
            assert_eq!(entries.batch.capacity(), 0);
        }
        assert_eq!(names, all);
        drop(places);
        entries.seek(&dir, 0).unwrap();
        entries.peek(&dir).unwrap();
        entries.settle(&batches);
        assert_eq!(batches.0.load(Ordering::Relaxed), 1);
        drop(entries);
        assert_eq!(batches.0.load(Ordering::Relaxed), 0);
    }

    proptest! {
        #[test]
        fn parsing_garbage_is_safe(bytes: Vec<u8>) {
            if let Some(entry) = parse(&bytes) {
                prop_assert!(entry.record_len <= bytes.len());
                prop_assert!(entry.name.count_bytes() < entry.record_len);
            }
        }
    }
}
