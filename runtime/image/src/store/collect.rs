//! Takes away what nothing needs.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use super::container::IMAGE;
use super::{Store, StoreError};
use crate::config::ImageConfig;
use crate::digest::Digest;

impl Store {
    /// Sweeps what the dead left and removes blobs and layers that no name and no living container
    /// needs; nothing while somebody adds something or starts to use it.
    pub fn collect(&self) -> Result<(), StoreError> {
        let Some(own) = self.try_own()? else { return Ok(()) };
        self.sweep(&own);
        let (mut blobs, mut layers) = (HashSet::new(), HashSet::new());
        let images = self.images();
        let named = images.iter().flat_map(|image| [Some(image.id), image.manifest]).flatten();
        let used = self.names_in("containers").filter_map(|path| {
            fs::read_to_string(path.join(IMAGE)).ok()?.trim().parse::<Digest>().ok()
        });
        for digest in named.chain(used) {
            blobs.insert(digest.hex());
        }
        for id in &blobs {
            // Manifests are among them; they name no layers by diff ID.
            let config = fs::read(self.dir.join("blobs/sha256").join(id));
            if let Ok(config) = config.map(|bytes| ImageConfig::parse(&bytes)) {
                layers.extend(config.into_iter().flat_map(|c| c.diff_ids).map(|id| id.hex()));
            }
        }
        self.remove_others("blobs/sha256", &blobs);
        self.remove_others("layers", &layers);
        Ok(())
    }

    fn remove_others(&self, dir: &str, needed: &HashSet<String>) {
        for path in self.names_in(dir) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if name.is_some_and(|name| needed.contains(&name)) {
                continue;
            }
            self.remove_whole(path);
        }
    }

    /// Under another name first: half a layer must not be found under its own.
    fn remove_whole(&self, path: PathBuf) {
        let gone = self.dir.join("tmp").join(path.file_name().unwrap_or_default());
        // What cannot be removed now is swept by the next one.
        if fs::rename(&path, &gone).is_ok() {
            let _ = fs::remove_dir_all(&gone).or_else(|_| fs::remove_file(&gone));
        }
    }
}
