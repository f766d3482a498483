//! Brings an image from its files into the store.

use std::fs::{self, File};
use std::io::{self, Read};

use crate::config::{ConfigError, ImageConfig};
use crate::digest::Digest;
use crate::layer::{self, LayerError};
use crate::source::{Layer, Source, SourceError};
use crate::store::{Held, Record, Store, StoreError, failed};

/// Why an image did not come into the store. Nothing of it stays there but layers that were whole,
/// for as long as other work keeps them from being collected.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Its files.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What happens during an import, for whoever shows it. Layers are told by their diff IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The layer is in the store already.
    Present(Digest),
    /// It begins to be unpacked from a file of so many bytes.
    Begun(Digest, u64),
    /// So many bytes more of its file were read.
    Read(Digest, u64),
    /// It is in the store.
    Done(Digest),
}

/// Imports `source` under the name `name`, which means this image from then on. Layers that are
/// there are not read; one that another process is just unpacking is waited for.
pub fn import(
    store: &Store,
    source: &Source,
    name: &str,
    progress: &dyn Fn(Progress),
) -> Result<Record, ImportError> {
    store.create()?;
    let shared = store.share()?;
    let imported = store.hold("tmp", &shared).map_err(ImportError::from).and_then(|tmp| {
        ImageConfig::parse(&source.config.1)?;
        let mut bytes = 0;
        for layer in &source.layers {
            bytes += add_layer(store, source, layer, &tmp, progress)?;
        }
        store.add_blob(&source.config.0, &source.config.1, &tmp)?;
        if let Some((digest, manifest)) = &source.manifest {
            store.add_blob(digest, manifest, &tmp)?;
        }
        let manifest = source.manifest.as_ref().map(|(digest, _)| *digest);
        let record = Record::new(name, source.config.0, manifest, bytes);
        store.add_name(&record, &tmp)?;
        Ok(record)
    });
    drop(shared);
    // What the name meant before may be needed no more, nor what failed half-way.
    store.collect()?;
    imported
}

fn add_layer(
    store: &Store,
    source: &Source,
    layer: &Layer,
    tmp: &Held,
    progress: &dyn Fn(Progress),
) -> Result<u64, ImportError> {
    let diff_id = layer.diff_id;
    let _turn = match store.has_layer(&diff_id) {
        true => None,
        false => Some(store.lock_key(&diff_id)?),
    };
    if store.has_layer(&diff_id) {
        progress(Progress::Present(diff_id));
        return Ok(store.layer_bytes(&diff_id));
    }
    let (file, size) = source.open_layer(layer)?;
    progress(Progress::Begun(diff_id, size));
    let file = Watched { file, diff_id, progress };
    let new = tmp.make(&diff_id.hex())?;
    let (root, trash) = (new.join("root"), tmp.make("trash")?);
    fs::create_dir(&root).map_err(failed("make directory", &root))?;
    let open = |path| File::open(path).map_err(failed("open", path));
    let bytes =
        layer::extract(file, layer.blob, diff_id, open(&root)?.into(), open(&trash)?.into())?;
    fs::remove_dir_all(&trash).map_err(failed("remove", &trash))?;
    fs::write(new.join("bytes"), bytes.to_string()).map_err(failed("write", &new))?;
    // On disk before it is found: after a power failure a layer is whole or not there.
    rustix::fs::syncfs(open(&root)?).map_err(failed("sync", &root))?;
    let place = store.layer(&diff_id);
    fs::rename(&new, &place).map_err(failed("make", &place))?;
    progress(Progress::Done(diff_id));
    Ok(bytes)
}

/// Tells how far the reading is.
struct Watched<'a, R> {
    file: R,
    diff_id: Digest,
    progress: &'a dyn Fn(Progress),
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        (self.progress)(Progress::Read(self.diff_id, length as u64));
        Ok(length)
    }
}
