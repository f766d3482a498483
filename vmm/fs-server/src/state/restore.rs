//! From a state to what the server knows: every file is looked for, every handle opened anew.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::{Identity, Opened, SavedFile, SavedHandle, SavedInode, State};
use crate::dirents::Dirents;
use crate::handles::{Handle, OpenDir, OpenFile};
use crate::inodes::{Found, Inode};
use crate::server::{Server, path_flags, stat_with};
use crate::wire::is_name;

/// What was found in a saved file's place.
enum Place {
    Known(Arc<Inode>),
    /// A directory on the way that the guest does not know.
    Way {
        share: usize,
        readonly: bool,
        fd: OwnedFd,
    },
}

impl Place {
    fn fd(&self) -> &OwnedFd {
        match self {
            Self::Known(inode) => &inode.fd,
            Self::Way { fd, .. } => fd,
        }
    }

    /// The share it lies in, and that share's flag.
    fn share(&self) -> (usize, bool) {
        match self {
            Self::Known(inode) => (inode.share, inode.readonly),
            Self::Way { share, readonly, .. } => (*share, *readonly),
        }
    }
}

impl Server {
    /// Makes what `state` says known; to be called before the first request. What is lost is lost to
    /// the guest alone.
    pub(crate) fn restore(&self, state: &State) {
        let mut places: Vec<Option<Place>> = state
            .shares
            .iter()
            .map(|share| self.inodes.get(share.id).ok().map(Place::Known))
            .collect();
        let mut ways = 0;
        for file in &state.files {
            let parent = places.get(file.parent as usize).and_then(Option::as_ref);
            let place = parent.and_then(|parent| self.find(parent, file, ways));
            ways += usize::from(matches!(place, Some(Place::Way { .. })));
            places.push(place);
        }
        drop(places);
        for handle in &state.handles {
            let opened = self.open_again(handle).unwrap_or(Handle::Lost);
            self.handles.restore(handle.number, opened);
        }
    }

    /// Looks for a file in its place. `ways` descriptors are held for directories on the way.
    fn find(&self, parent: &Place, file: &SavedFile, ways: usize) -> Option<Place> {
        let name = CString::new(is_name(&file.name).then_some(file.name.as_slice())?).ok()?;
        if ways >= self.inodes.room() {
            return None;
        }
        let fd = openat(parent.fd(), name, path_flags(), Mode::empty()).ok()?;
        let (share, readonly) = parent.share();
        match &file.known {
            None => Some(Place::Way { share, readonly, fd }),
            Some(saved) => self.know_again(saved, share, readonly, fd).map(Place::Known),
        }
    }

    fn know_again(
        &self,
        saved: &SavedInode,
        share: usize,
        readonly: bool,
        fd: OwnedFd,
    ) -> Option<Arc<Inode>> {
        let stat = stat_with(&fd, Identity::mask()).ok()?;
        let found = Identity::of(&stat);
        let is_it = match self.root.is_copied(share) {
            true => found.file_type == saved.identity.file_type,
            false => found == saved.identity,
        };
        if !is_it {
            return None;
        }
        let found = Found { share, readonly, fd, stat };
        self.inodes.restore(found, saved.id, saved.lookups, saved.cached_ctime, saved.dax)
    }

    fn open_again(&self, handle: &SavedHandle) -> Result<Handle, Errno> {
        let node = handle.node;
        match handle.opened {
            Opened::Lost => Err(Errno::IO),
            Opened::Dir => {
                let fd = self.open_dir(&*self.inodes.get(node)?)?;
                Ok(Handle::Dir(Arc::new(OpenDir {
                    node,
                    fd,
                    entries: Mutex::new(Dirents::default()),
                })))
            }
            Opened::File { flags } => {
                // What truncated when it was opened does not do so again.
                let flags = crate::io::host_flags(flags) - OFlags::TRUNC;
                let fd = self.open_file(&*self.inodes.get(node)?, flags)?;
                Ok(Handle::File(Arc::new(OpenFile { node, fd, flags })))
            }
        }
    }
}
