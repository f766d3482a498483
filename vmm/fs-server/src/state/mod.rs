//! What a server knows of its guest, as plain data: for the next server, whose guest was restored
//! from a snapshot and remembers node IDs and handles.
//!
//! ```text
//!  SAVE ──▶ State ──▶ state file ──▶ State, checked ──▶ the next server
//! ```
//!
//! Files are saved by their place, a tree of names below each share, as the host's kernel gives it
//! at that moment: a rename since the guest's lookup is no harm. The next server walks the tree with
//! the same steps as a LOOKUP, one checked name at a time, and takes a file for the saved one only
//! if it is the same ([`Identity`]). What is not there any more or is another file, and what had no
//! name (unlinked while open, O_TMPFILE), is lost to the guest: ESTALE for its node ID, EIO for its
//! handles.
//!
//! The state file comes from a snapshot and may say anything. Numbers are checked here, names
//! where they are walked; descriptors are counted as for a guest that asks for them.

mod client;
mod restore;
mod save;

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{Statx, StatxFlags};
use serde::{Deserialize, Serialize};

pub use self::client::save;
use crate::ServeError;
use crate::inodes::Numbers;
use crate::wire::ROOT_ID;

/// Grows with every change of [`State`] or of what it means.
const VERSION: u32 = 2;

/// The longest state, bytes: about 60 for a file of a shallow tree, so that of a million files.
pub const STATE_MAX: usize = 64 << 20;

/// Numbers end here: at a million a second, after 140 thousand years.
const NUMBER_MAX: u64 = 1 << 62;

/// Everything a guest can refer to. Untrusted; enters by [`State::decode`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Node IDs and handles up to these were given out.
    numbers: Numbers,
    /// The shares; the guest finds them again by name.
    shares: Vec<SavedShare>,
    files: Vec<SavedFile>,
    handles: Vec<SavedHandle>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedShare {
    name: Vec<u8>,
    id: u64,
}

/// A file, or a directory on the way to one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedFile {
    /// What it lies in: the shares in order, then the files in order.
    parent: u32,
    name: Vec<u8>,
    /// `None` if the guest does not know it.
    known: Option<SavedInode>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedInode {
    id: u64,
    lookups: u64,
    /// See [`crate::inodes::Inode`].
    cached_ctime: u64,
    /// The guest maps it.
    dax: bool,
    identity: Identity,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedHandle {
    number: u64,
    /// The file's node ID.
    node: u64,
    opened: Opened,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Opened {
    /// A regular file, with these flags.
    File { flags: u32 },
    /// A directory. Where reading stands the guest says with each READDIR.
    Dir,
    /// Its file has no name.
    Lost,
}

/// What makes a file found in a saved file's place that same file: type, inode number and time of
/// birth; of a [copy](crate::ShareRoot::copied) the type. The device is looked at only where there are no times of birth: overlays, btrfs and others
/// get another number with each mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    file_type: u16,
    ino: u64,
    born: Born,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Born {
    At { seconds: i64, ns: u32 },
    UnknownOn { device: (u32, u32) },
}

impl Identity {
    /// What [`Identity::of`] needs to know.
    fn mask() -> StatxFlags {
        StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
    }

    fn of(stat: &Statx) -> Self {
        let born = if stat.stx_mask & StatxFlags::BTIME.bits() != 0 {
            Born::At { seconds: stat.stx_btime.tv_sec, ns: stat.stx_btime.tv_nsec }
        } else {
            Born::UnknownOn { device: (stat.stx_dev_major, stat.stx_dev_minor) }
        };
        Self { file_type: stat.stx_mode & libc::S_IFMT as u16, ino: stat.stx_ino, born }
    }
}

impl State {
    /// Reads the state file, if there is one.
    pub fn read(file: Option<&File>) -> Result<Self, ServeError> {
        let Some(file) = file else { return Ok(Self::default()) };
        let len = file.metadata().map_err(ServeError::StateFile)?.len();
        if len > STATE_MAX as u64 {
            return Err(ServeError::State("it is too long"));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).map_err(ServeError::StateFile)?;
        Self::decode(&bytes)
    }

    /// Reads a state; an empty one is that of a server that has never been asked anything.
    fn decode(bytes: &[u8]) -> Result<Self, ServeError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let state = match postcard::take_from_bytes::<Self>(bytes) {
            Ok((state, [])) => state,
            _ => return Err(ServeError::State("it does not decode")),
        };
        if state.version != VERSION {
            return Err(ServeError::State("it has another version's format"));
        }
        let Numbers { last_node, last_handle } = state.numbers;
        let shares = state.shares.iter().map(|share| share.id);
        let files = state.files.iter().filter_map(|file| Some(file.known.as_ref()?.id));
        if shares.chain(files).any(|id| id <= ROOT_ID || id > last_node)
            || state.handles.iter().any(|handle| handle.number > last_handle)
            || last_node.max(last_handle) > NUMBER_MAX
        {
            return Err(ServeError::State("its numbers are out of range"));
        }
        Ok(state)
    }

    fn encode(&self) -> Option<Vec<u8>> {
        postcard::to_stdvec(self).ok().filter(|bytes| bytes.len() <= STATE_MAX)
    }

    /// The numbers given out so far.
    pub fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// The node ID that the guest knows the share called `name` by.
    pub fn share(&self, name: &[u8]) -> Option<u64> {
        self.shares.iter().find(|share| share.name == name).map(|share| share.id)
    }
}
