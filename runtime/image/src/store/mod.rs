//! Where images are kept: a directory whose content names itself.
//!
//! ```text
//! DIR/lock                 shared by whoever adds or uses, exclusive for whoever takes away
//! DIR/busy                 byte n is locked while a layer or image whose hash begins with n is fetched or unpacked
//! DIR/names/HEX            a name of an image and what it means, as JSON; HEX is the name's hash
//! DIR/blobs/sha256/HEX     manifests and configurations as they came
//! DIR/layers/HEX/root/     a layer, unpacked: a lower directory of overlays
//! DIR/layers/HEX/bytes     how many its files hold
//! DIR/tmp/RANDOM/          something in the making
//! DIR/containers/RANDOM/   a container's writable layer, and the image it holds on to
//! ```
//!
//! What is in `names`, `blobs` and `layers` got there by one rename(2) and never changes. What is in
//! `tmp` and `containers` has a lock file that its owner holds; without an owner it is swept by the
//! next that takes something away or adds something. So a crash at any point leaves nothing that
//! stays. Layers that no name and no container needs go when a name is removed or moved on.

mod collect;
mod container;
mod held;
mod locks;
mod names;
mod workspace;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::user;
pub use container::Container;
pub(crate) use held::Held;
pub use names::Record;
pub use workspace::Workspace;

/// Names the directory, before the defaults.
pub const VARIABLE: &str = "BULKHEAD_IMAGES";
const SYSTEM_DIR: &str = "/var/lib/bulkhead/images";

/// Why the store cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nowhere to keep images.
    #[error("no place to keep images: set XDG_DATA_HOME or HOME, or name one by {VARIABLE}")]
    NoPlace,
    /// A file of the store.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// There is no such image.
    #[error("there is no image {0} in the store; `bulkhead images` lists what is there")]
    Unknown(String),
    /// An ID that could be several images'.
    #[error("{0} begins the ID of several images; give more of it")]
    Ambiguous(String),
    /// Something of an image is not there any more.
    #[error("image {0} is not complete in the store; pull or import it again")]
    Incomplete(String),
    /// A configuration that was checked when it came, and is broken now.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The overlay.
    #[error(transparent)]
    Overlay(#[from] crate::overlay::OverlayError),
}

pub(crate) fn failed<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> StoreError {
    move |source| StoreError::Io { action, path: path.to_owned(), source: source.into() }
}

/// A store of images.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The store that the environment names, or this user's own. It may not exist yet.
    pub fn choose() -> Result<Self, StoreError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(dir) = variable(VARIABLE) {
            return Ok(Self::at(dir));
        }
        if user::is_host_root() {
            return Ok(Self::at(SYSTEM_DIR));
        }
        let data = variable("XDG_DATA_HOME").map(PathBuf::from);
        let data = data.or_else(|| Some(Path::new(&variable("HOME")?).join(".local/share")));
        data.map(|data| Self::at(data.join("bulkhead/images"))).ok_or(StoreError::NoPlace)
    }

    /// The store in `dir`.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes what is not there yet, for this user alone.
    pub fn create(&self) -> Result<(), StoreError> {
        for name in ["names", "blobs/sha256", "layers", "tmp", "containers"] {
            let path = self.dir.join(name);
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(&path).map_err(failed("make directory", &path))?;
        }
        Ok(())
    }

    /// Whether a layer is there.
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer(diff_id).join("bytes").exists()
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join("layers").join(diff_id.hex())
    }

    pub(crate) fn layer_bytes(&self, diff_id: &Digest) -> u64 {
        let bytes = fs::read_to_string(self.layer(diff_id).join("bytes"));
        bytes.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn add_blob(
        &self,
        digest: &Digest,
        bytes: &[u8],
        tmp: &Held,
    ) -> Result<(), StoreError> {
        self.write(&self.blob(digest), bytes, tmp)
    }

    /// A manifest or configuration.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob(digest);
        fs::read(&path).map_err(failed("read", &path))
    }

    /// Writes a file that appears whole or not at all, also after a power failure.
    fn write(&self, path: &Path, bytes: &[u8], tmp: &Held) -> Result<(), StoreError> {
        use std::io::Write;
        let new = tmp.path().join("new");
        let mut file = File::create(&new).map_err(failed("make", &new))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
        fs::rename(&new, path).map_err(failed("make", path))
    }

    fn names_in(&self, dir: &str) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(self.dir.join(dir)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    }
}

#[cfg(test)]
mod tests;
