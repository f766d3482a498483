//! SAVE: from what the server knows to a state file.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;

use rustix::fs::readlinkat;
use rustix::io::Errno;

use super::{Identity, Opened, SavedFile, SavedHandle, SavedInode, SavedShare, State, VERSION};
use crate::handles::Handle;
use crate::inodes::{Inode, Numbers};
use crate::server::{Server, proc_name, stat_with};
use crate::wire::{Reply, is_name};

impl Server {
    /// SAVE: writes the state to the state file, and its length to the reply; EBUSY while there are shares
    /// that were added, which the next server would not have. A request that is under
    /// way at the same time may be in it or not: whoever saves waits for replies first.
    pub(crate) fn save(&self, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let file = self.options.state.as_ref().ok_or(Errno::NOSYS)?;
        if self.root.has_added() {
            return Err(Errno::BUSY);
        }
        let bytes = self.state()?.encode().ok_or(Errno::FBIG)?;
        let written = file.set_len(0).and_then(|()| file.write_all_at(&bytes, 0));
        written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        reply.u64s([bytes.len() as u64])
    }

    /// The state; ESTALE if the guest maps a file that the next server could not find.
    pub(super) fn state(&self) -> Result<State, Errno> {
        let shares = self.root.shares().into_iter();
        let shares: Vec<_> =
            shares.map(|(name, inode)| SavedShare { name, id: inode.id }).collect();
        let mut tree = Tree::new(self);
        let mut saved: HashSet<u64> = shares.iter().map(|share| share.id).collect();
        for (inode, lookups, current) in self.inodes.known() {
            if current && tree.add(self, &inode, lookups).is_some() {
                saved.insert(inode.id);
            } else if inode.is_mapped() {
                return Err(Errno::STALE);
            }
        }
        let handles = self.handles.list().into_iter().map(|(number, handle)| {
            let (node, opened) = match handle {
                Handle::File(file) => (file.node, Opened::File { flags: file.flags.bits() }),
                Handle::Dir(dir) => (dir.node, Opened::Dir),
                Handle::Lost => (0, Opened::Lost),
            };
            let opened = if saved.contains(&node) { opened } else { Opened::Lost };
            SavedHandle { number, node, opened }
        });
        let handles = handles.collect();
        let (last_node, last_handle) = (self.inodes.last_id(), self.handles.last_number());
        let numbers = Numbers { last_node, last_handle };
        Ok(State { version: VERSION, numbers, shares, files: tree.files, handles })
    }

    /// Where the host's kernel sees a file now. Only what lies in a share that is a mount of its own
    /// has a path from the share on; any other has one from the process's root.
    fn path(&self, inode: &Inode) -> Option<Vec<u8>> {
        let path = readlinkat(self.proc(), proc_name(&inode.fd), Vec::new());
        path.ok().map(|path| path.into_bytes())
    }
}

/// The files so far, and where in the list each is.
struct Tree {
    files: Vec<SavedFile>,
    places: HashMap<(u32, Vec<u8>), u32>,
    /// The path of each share's root.
    roots: Vec<Option<Vec<u8>>>,
}

impl Tree {
    fn new(server: &Server) -> Self {
        let roots = server.root.inodes().iter().map(|inode| server.path(inode)).collect();
        Self { files: Vec::new(), places: HashMap::new(), roots }
    }

    /// Adds a file and the way to it; `None` if it has none.
    fn add(&mut self, server: &Server, inode: &Inode, lookups: u64) -> Option<()> {
        let stat = stat_with(&inode.fd, Identity::mask()).ok()?;
        // Its path would mislead ("f (deleted)").
        if stat.stx_nlink == 0 {
            return None;
        }
        let path = server.path(inode)?;
        let below = below(&path, self.roots.get(inode.share)?.as_deref()?)?;
        let (id, dax, cached_ctime) = (inode.id, inode.dax, inode.cached_ctime());
        let known = SavedInode { id, lookups, cached_ctime, dax, identity: Identity::of(&stat) };
        let mut place = inode.share as u32;
        for name in below.split(|byte| *byte == b'/') {
            place = self.place(place, is_name(name).then_some(name)?);
        }
        let file = self.files.get_mut(place as usize - self.roots.len())?;
        file.known = Some(known);
        Some(())
    }

    /// The place of `name` in the directory at `parent`.
    fn place(&mut self, parent: u32, name: &[u8]) -> u32 {
        let next = (self.roots.len() + self.files.len()) as u32;
        let place = *self.places.entry((parent, name.to_owned())).or_insert(next);
        if place == next {
            self.files.push(SavedFile { parent, name: name.to_owned(), known: None });
        }
        place
    }
}

/// The part of `path` that leads from `root` to something in it.
fn below<'a>(path: &'a [u8], root: &[u8]) -> Option<&'a [u8]> {
    let root = if root == b"/" { b"" } else { root };
    path.strip_prefix(root)?.strip_prefix(b"/")
}
