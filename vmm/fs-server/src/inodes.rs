//! The files the guest's kernel knows: node IDs and the O_PATH descriptors behind them.
//!
//! ```text
//!  LOOKUP, CREATE, READDIRPLUS...: lookups += 1        FORGET n: lookups -= n
//!  (absent) ─────────────────────────────────▶ known ─────────────────────▶ (absent) at 0
//! ```
//!
//! A descriptor pins its file, so the host cannot give the inode number to another file while the
//! guest knows it. Node IDs count up and are never used twice.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::mapped::slots;
use crate::wire::ROOT_ID;

/// The coarsest clock that file systems take times from (HZ=100).
const CLOCK_TICK: Duration = Duration::from_millis(10);

/// How many files that were written to are remembered as such: more than a guest's kernel looks up at a
/// time.
const WRITTEN_MAX: usize = 1024;

/// A file of a share.
#[derive(Debug)]
pub struct Inode {
    /// What the guest calls it.
    pub id: u64,
    /// The index of its share.
    pub share: usize,
    /// Its share's flag.
    pub readonly: bool,
    /// O_PATH.
    pub fd: OwnedFd,
    /// Regular file, directory and so on; never changes.
    pub file_type: FileType,
    /// The guest is told to map it ([`crate::mapped`]); never changes.
    pub dax: bool,
    /// It has been mapped.
    mapped: AtomicBool,
    /// Mixed into inode numbers; see the crate's documentation.
    ino_tag: u64,
    /// `stx_ctime` in ns of what the guest's page cache holds; 0 if that is not known.
    cached_ctime: AtomicU64,
}

/// The last numbers a server gave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// The node ID; [`crate::wire::ROOT_ID`] at least.
    pub last_node: u64,
    /// The handle.
    pub last_handle: u64,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { last_node: ROOT_ID, last_handle: 0 }
    }
}

impl Inode {
    /// The inode number the guest sees for number `ino` of this file's file system.
    pub fn guest_ino(&self, ino: u64) -> u64 {
        ino ^ self.ino_tag
    }

    /// Notes that the guest maps the file.
    pub fn set_mapped(&self) {
        self.mapped.store(true, Ordering::Relaxed);
    }

    /// The guest has mapped the file.
    pub fn is_mapped(&self) -> bool {
        self.mapped.load(Ordering::Relaxed)
    }

    /// See [`Inode::is_cached`]; 0 if nothing is cached.
    pub fn cached_ctime(&self) -> u64 {
        self.cached_ctime.load(Ordering::Relaxed)
    }

    /// Notes that the guest opens the file as `stat` describes it, and says whether it is what the
    /// guest's page cache holds. A change in the tick of the clock in which the file was opened may
    /// not show in `stx_ctime`; a file changed that lately is never taken for cached.
    pub fn is_cached(&self, stat: &Statx) -> bool {
        let ctime = stat.stx_ctime;
        let ctime = u64::try_from(ctime.tv_sec)
            .map_or(Duration::ZERO, |seconds| Duration::new(seconds, ctime.tv_nsec));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let settled = now.saturating_sub(ctime) >= CLOCK_TICK;
        let stamp = if settled { ctime.as_nanos() as u64 } else { 0 };
        self.cached_ctime.swap(stamp, Ordering::Relaxed) == stamp && stamp != 0
    }
}

/// What makes two looked-up files the same. The mount and the share belong to it because they
/// decide what may be done with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    share: usize,
    mount: u64,
    device: Device,
    ino: u64,
}

type Device = (u32, u32);

#[derive(Debug)]
struct Entry {
    inode: Arc<Inode>,
    key: Key,
    lookups: u64,
    /// A share's root: known as long as there is the share.
    pinned: bool,
    /// Slots of the window that are kept for it.
    slots: u64,
}

/// What an entry begins with.
#[derive(Default)]
struct Beginning {
    lookups: u64,
    pinned: bool,
    cached_ctime: u64,
    dax: bool,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<u64, Entry>,
    by_key: HashMap<Key, u64>,
    /// File systems in the order met; the index is the tag.
    devices: Vec<Device>,
    last_id: u64,
    /// Slots of the window that no file has.
    slots_left: u64,
    /// Files that were mapped until they were written to, the last one first. The guest's kernel looks
    /// one up twice before it tries again, and forgets it in between.
    written: VecDeque<Key>,
    /// Shares that are no more: a request that was under way finds nothing more of them.
    gone: HashSet<usize>,
}

/// All inodes.
#[derive(Debug)]
pub struct Inodes {
    table: Mutex<Table>,
    max: usize,
}

/// A file to be known: what [`Inodes::add`] takes.
#[derive(Debug)]
pub struct Found {
    /// The index of its share.
    pub share: usize,
    /// Its share's flag.
    pub readonly: bool,
    /// O_PATH.
    pub fd: OwnedFd,
    /// Of `fd`, with [`rustix::fs::StatxFlags::MNT_ID`] asked for.
    pub stat: Statx,
}

impl Inodes {
    /// A table for at most `max` inodes, the shares' roots included, whose IDs come after `last_id`.
    /// Those that the guest maps may have `slots` slots of the window.
    pub fn new(max: usize, slots: u64, last_id: u64) -> Self {
        Self { table: Mutex::new(Table { last_id, slots_left: slots, ..Table::default() }), max }
    }

    /// Makes a share's root known for good, by `id` if an earlier server called it that.
    pub fn pin(&self, found: Found, id: Option<u64>) -> Arc<Inode> {
        let mut table = lock(&self.table);
        let id = id.filter(|id| !table.by_id.contains_key(id)).unwrap_or_else(|| table.next_id());
        table.insert(found, id, Beginning { lookups: 1, pinned: true, ..Default::default() })
    }

    /// Makes a file known that an earlier server called `id`; `None` if it or its number is known, or
    /// if too many are.
    pub fn restore(
        &self,
        found: Found,
        id: u64,
        lookups: u64,
        cached_ctime: u64,
        dax: bool,
    ) -> Option<Arc<Inode>> {
        let mut table = lock(&self.table);
        let taken = table.by_id.contains_key(&id) || table.by_key.contains_key(&Key::of(&found));
        let room = table.by_id.len() < self.max;
        let beginning = Beginning { lookups, pinned: false, cached_ctime, dax };
        (room && !taken).then(|| table.insert(found, id, beginning))
    }

    /// Counts one lookup of a file, which becomes known if it was not; ENFILE if too many are, ESTALE if
    /// its share is no more. The guest
    /// maps it if it is `code` and there is room in the window.
    pub fn add(&self, found: Found, code: bool) -> Result<Arc<Inode>, Errno> {
        let mut table = lock(&self.table);
        if table.gone.contains(&found.share) {
            return Err(Errno::STALE);
        }
        let id = table.by_key.get(&Key::of(&found)).copied();
        if let Some(entry) = id.and_then(|id| table.by_id.get_mut(&id)) {
            entry.lookups = entry.lookups.saturating_add(1);
            return Ok(entry.inode.clone());
        }
        if table.by_id.len() >= self.max {
            return Err(Errno::NFILE);
        }
        let id = table.next_id();
        let room = slots(found.stat.stx_size) <= table.slots_left;
        let dax = code && room && !table.written.contains(&Key::of(&found));
        Ok(table.insert(found, id, Beginning { lookups: 1, dax, ..Default::default() }))
    }

    /// Has the next lookup of a known file find a node of another ID, which is not mapped.
    pub fn set_written(&self, id: u64) {
        let mut table = lock(&self.table);
        let Some(key) = table.by_id.get(&id).map(|entry| entry.key) else { return };
        if table.by_key.get(&key) == Some(&id) {
            table.by_key.remove(&key);
            table.written.truncate(WRITTEN_MAX - 1);
            table.written.push_front(key);
        }
    }

    /// The inode `id`; ESTALE if it is not known.
    pub fn get(&self, id: u64) -> Result<Arc<Inode>, Errno> {
        lock(&self.table).by_id.get(&id).map(|entry| entry.inode.clone()).ok_or(Errno::STALE)
    }

    /// Takes `count` lookups back. More than there were are as many as there were.
    pub fn forget(&self, id: u64, count: u64) {
        let forgotten = {
            let mut table = lock(&self.table);
            let Some(entry) = table.by_id.get_mut(&id).filter(|entry| !entry.pinned) else {
                return;
            };
            entry.lookups = entry.lookups.saturating_sub(count);
            if entry.lookups > 0 {
                return;
            }
            let (key, slots) = (entry.key, entry.slots);
            if table.by_key.get(&key) == Some(&id) {
                table.by_key.remove(&key);
            }
            table.slots_left += slots;
            table.by_id.remove(&id)
        };
        // Outside the lock: closing a deleted file's last descriptor takes its time.
        drop(forgotten);
    }

    /// Forgets a share for good, its root and all; returns the IDs.
    pub fn remove_share(&self, share: usize) -> HashSet<u64> {
        let removed: Vec<(u64, Entry)> = {
            let mut table = lock(&self.table);
            table.gone.insert(share);
            table.by_key.retain(|key, _| key.share != share);
            let of_it = |_: &u64, entry: &mut Entry| entry.inode.share == share;
            let removed: Vec<_> = table.by_id.extract_if(of_it).collect();
            table.slots_left += removed.iter().map(|(_, entry)| entry.slots).sum::<u64>();
            removed
        };
        removed.into_iter().map(|(id, _)| id).collect()
    }

    /// Forgets everything but the shares' roots.
    pub fn clear(&self) {
        let forgotten: Vec<Entry> = {
            let mut table = lock(&self.table);
            let entries = std::mem::take(&mut table.by_id);
            let (pinned, rest): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|(_, entry)| entry.pinned);
            table.by_key = pinned.iter().map(|(id, entry)| (entry.key, *id)).collect();
            table.by_id = pinned.into_iter().collect();
            table.slots_left += rest.iter().map(|(_, entry)| entry.slots).sum::<u64>();
            rest.into_iter().map(|(_, entry)| entry).collect()
        };
        drop(forgotten);
    }

    /// The files known but for the shares' roots, their lookups, and whether another lookup would find
    /// them.
    pub fn known(&self) -> Vec<(Arc<Inode>, u64, bool)> {
        let table = lock(&self.table);
        let entries = table.by_id.iter().filter(|(_, entry)| !entry.pinned);
        let found = |(id, entry): (&u64, &Entry)| {
            (entry.inode.clone(), entry.lookups, table.by_key.get(&entry.key) == Some(id))
        };
        entries.map(found).collect()
    }

    /// The last ID given out.
    pub fn last_id(&self) -> u64 {
        lock(&self.table).last_id
    }

    /// How many more may be known.
    pub fn room(&self) -> usize {
        self.max.saturating_sub(lock(&self.table).by_id.len())
    }

    /// How many are known, the shares' roots included.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        lock(&self.table).by_id.len()
    }
}

impl Table {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn insert(&mut self, found: Found, id: u64, beginning: Beginning) -> Arc<Inode> {
        let key = Key::of(&found);
        let Beginning { lookups, pinned, cached_ctime, dax } = beginning;
        // A restored server may have a smaller window; nothing breaks.
        let slots = if dax { slots(found.stat.stx_size).min(self.slots_left) } else { 0 };
        self.slots_left -= slots;
        let inode = Arc::new(Inode {
            id,
            share: found.share,
            readonly: found.readonly,
            fd: found.fd,
            file_type: FileType::from_raw_mode(u32::from(found.stat.stx_mode)),
            dax,
            mapped: AtomicBool::new(false),
            ino_tag: self.ino_tag(key.device),
            cached_ctime: AtomicU64::new(cached_ctime),
        });
        self.by_key.insert(key, inode.id);
        self.by_id.insert(inode.id, Entry { inode: inode.clone(), key, lookups, pinned, slots });
        inode
    }

    /// The number of a file system, in the top 16 bits.
    fn ino_tag(&mut self, device: Device) -> u64 {
        let known = self.devices.iter().position(|&known| known == device);
        let index = known.unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        (index as u64) << 48
    }
}

impl Key {
    fn of(found: &Found) -> Self {
        let stat = &found.stat;
        Self {
            share: found.share,
            mount: stat.stx_mnt_id,
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
        }
    }
}

/// Locks a table. A thread that panicked leaves tables whole: each change is one insert or remove.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, openat};

    use super::*;
    use crate::server::{path_flags, stat};

    fn found(path: &std::path::Path, share: usize) -> Found {
        let fd = openat(CWD, path, path_flags(), Mode::empty()).unwrap();
        let stat = stat(&fd).unwrap();
        Found { share, readonly: false, fd, stat }
    }

    #[test]
    fn lookups_are_counted_and_taken_back() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        std::fs::write(&path, "").unwrap();
        let inodes = Inodes::new(10, 0, ROOT_ID);
        let first = inodes.add(found(&path, 0), false).unwrap().id;
        assert_eq!(inodes.add(found(&path, 0), false).unwrap().id, first);
        inodes.forget(first, 1);
        assert!(inodes.get(first).is_ok());
        inodes.forget(first, u64::MAX);
        assert!(matches!(inodes.get(first), Err(Errno::STALE)));
        inodes.forget(first, 1);
        let second = inodes.add(found(&path, 0), false).unwrap().id;
        assert_ne!(second, first, "node IDs are not used again");
        let elsewhere = inodes.add(found(&path, 1), false).unwrap().id;
        assert_ne!(elsewhere, second, "another share is another file");
        assert_eq!(inodes.len(), 2);
    }

    #[test]
    fn the_budget_holds_and_shares_stay() {
        let temp = tempfile::tempdir().unwrap();
        let inodes = Inodes::new(3, 0, ROOT_ID);
        let root = inodes.pin(found(temp.path(), 0), None);
        for name in ["a", "b", "c"] {
            std::fs::write(temp.path().join(name), "").unwrap();
        }
        let a = inodes.add(found(&temp.path().join("a"), 0), false).unwrap();
        inodes.add(found(&temp.path().join("b"), 0), false).unwrap();
        let refused = inodes.add(found(&temp.path().join("c"), 0), false);
        assert!(matches!(refused, Err(Errno::NFILE)));
        inodes.forget(a.id, 1);
        inodes.add(found(&temp.path().join("c"), 0), false).unwrap();
        inodes.forget(root.id, 100);
        inodes.clear();
        assert_eq!(inodes.len(), 1);
        assert_eq!(inodes.get(root.id).unwrap().id, root.id);
        // Found again by its key.
        assert_eq!(inodes.add(found(temp.path(), 0), false).unwrap().id, root.id);
    }
}
