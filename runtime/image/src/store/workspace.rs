//! Where an image is fetched to before it is imported.

use std::path::Path;

use super::locks::Lock;
use super::{Held, Store, StoreError};
use crate::digest::Digest;
use crate::reference::Name;

/// An empty directory for one image; removed when dropped. While it is there nobody else fetches
/// that image, and the layers that were in the store stay.
#[derive(Debug)]
pub struct Workspace {
    held: Held,
    _turn: Lock,
    _shared: Lock,
}

impl Workspace {
    /// The directory; there is a lock file in it.
    pub fn path(&self) -> &Path {
        self.held.path()
    }
}

impl Store {
    /// Makes a workspace for the image `name`; waits while another process has one for it.
    pub fn workspace(&self, name: &Name) -> Result<Workspace, StoreError> {
        let turn = self.lock_key(&Digest::of(name.to_string().as_bytes()))?;
        let shared = self.share()?;
        let held = self.hold("tmp", &shared)?;
        Ok(Workspace { held, _turn: turn, _shared: shared })
    }

    /// The diff IDs of the layers that are there.
    pub fn layers(&self) -> Vec<Digest> {
        let names = self.names_in("layers");
        let names = names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        names.filter_map(|hex| format!("sha256:{hex}").parse().ok()).collect()
    }
}
