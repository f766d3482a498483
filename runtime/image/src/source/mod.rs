//! Images as files: which image is meant, what it consists of, and where its layers are. Every
//! document is bounded and, where its digest is known, verified before it is parsed.

mod docker;
mod documents;
mod files;
mod layout;
mod platform;

use std::io::{self, Read};
use std::path::PathBuf;

use oci_spec::image::{Arch, ImageConfiguration, Os};

use crate::digest::Digest;
use crate::limits::LAYERS_MAX;
use crate::reference::{Format, Location};
use crate::tarfile::TarError;
pub use documents::{Blob, Named, layers_of, media_type, named_by};
use files::Files;

/// Why files hold no image that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The directory or archive itself.
    #[error("cannot open {}: {source}", .path.display())]
    Open {
        /// The host path.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// Neither of the known kinds.
    #[error("{} is no image: not an OCI image layout, not an archive of one, not a docker archive", .0.display())]
    NotAnImage(PathBuf),
    /// Not what its prefix says.
    #[error("{} is not what its prefix says; leave the prefix out to have it found out", .0.display())]
    OtherFormat(PathBuf),
    /// A compressed archive.
    #[error("{} is compressed as a whole; decompress it first (gunzip, unzstd)", .0.display())]
    Compressed(PathBuf),
    /// The tar file.
    #[error("{} is a broken archive: {source}", .path.display())]
    Archive {
        /// The host path.
        path: PathBuf,
        /// What is wrong.
        source: TarError,
    },
    /// An archive of more than [`crate::limits::MEMBERS_MAX`] files.
    #[error("{} has more files than any image", .0.display())]
    Members(PathBuf),
    /// A file of the image.
    #[error("cannot read {name} of the image: {source}")]
    File {
        /// Its name within the image.
        name: String,
        /// What failed.
        source: io::Error,
    },
    /// A document larger than [`crate::limits::DOCUMENT_MAX`].
    #[error("{name} of the image has {size} bytes; {max} are the most", max = crate::limits::DOCUMENT_MAX)]
    Large {
        /// Its name within the image.
        name: String,
        /// As announced.
        size: u64,
    },
    /// A document that is not what it should be.
    #[error("{name} of the image is malformed: {source}")]
    Json {
        /// Its name within the image.
        name: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Other bytes than the digest says.
    #[error("{name} of the image is not what its digest says; the image is damaged or forged")]
    Digest {
        /// Its name within the image.
        name: String,
    },
    /// A digest of an unknown kind.
    #[error(transparent)]
    UnknownDigest(#[from] crate::digest::DigestError),
    /// A layout of another version.
    #[error("the image layout has version {0:?}; only 1.x is known")]
    Version(String),
    /// No image of that tag, or none at all.
    #[error("there is no image {tag:?}; there is {has}")]
    Tag {
        /// What was asked for.
        tag: String,
        /// What there is.
        has: String,
    },
    /// A tag is needed.
    #[error("there are several images; name one by PATH:TAG: {0}")]
    Several(String),
    /// None for this machine.
    #[error("the image is for {0}; bulkhead runs linux/amd64 images")]
    Platform(String),
    /// Index in index in index.
    #[error("the image's indexes are nested too deeply")]
    Nested,
    /// Something else that registries hold.
    #[error("this is no container image but {0:?}")]
    NotAContainer(String),
    /// A layer of an unknown kind.
    #[error("a layer of the image is of an unknown kind, {0:?}")]
    LayerType(String),
    /// More than [`LAYERS_MAX`].
    #[error("the image has {0} layers; {LAYERS_MAX} are the most")]
    Layers(usize),
    /// Manifest and configuration disagree.
    #[error("the image has {layers} layers, but its configuration names {diff_ids}")]
    Count {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
}

/// A document's digest and its bytes.
pub type Document = (Digest, Vec<u8>);

/// An image in its files.
pub struct Source {
    files: Files,
    /// What kind of files these are.
    pub format: Format,
    /// The manifest; docker archives have none.
    pub manifest: Option<Document>,
    /// The configuration; its digest is the image's ID.
    pub config: Document,
    /// From the lowest to the highest.
    pub layers: Vec<Layer>,
}

/// A layer in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its file within the image.
    pub(crate) file: String,
    /// Digest and bytes of the file, if the manifest says.
    pub blob: Option<(Digest, u64)>,
    /// Digest of the archive in it: the layer's name in the store.
    pub diff_id: Digest,
}

impl Source {
    /// Finds the image that `location` means.
    pub fn open(location: &Location) -> Result<Self, SourceError> {
        let files = Files::open(&location.path)?;
        let format =
            files.format().ok_or_else(|| SourceError::NotAnImage(location.path.clone()))?;
        let format = match location.format {
            // `docker save` writes archives that are both.
            Some(Format::DockerArchive) if files.has("manifest.json") => Format::DockerArchive,
            Some(asked) if asked != format => {
                return Err(SourceError::OtherFormat(location.path.clone()));
            }
            _ => format,
        };
        match format {
            Format::DockerArchive => docker::image(files, location.tag.as_deref()),
            format => layout::image(files, format, location.tag.as_deref()),
        }
    }

    /// Opens a layer's file; returns it with its size.
    pub fn open_layer(&self, layer: &Layer) -> Result<(impl Read, u64), SourceError> {
        let section = self.files.open_file(&layer.file)?;
        let size = section.size();
        Ok((section, size))
    }
}

/// Checks a configuration; returns the layers' diff IDs.
fn diff_ids(name: &str, config: &[u8], layers: usize) -> Result<Vec<Digest>, SourceError> {
    let json = |source| SourceError::Json { name: name.to_owned(), source };
    let config: ImageConfiguration = serde_json::from_slice(config).map_err(json)?;
    if (config.os(), config.architecture()) != (&Os::Linux, &Arch::Amd64) {
        return Err(SourceError::Platform(format!("{}/{}", config.os(), config.architecture())));
    }
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != layers {
        return Err(SourceError::Count { layers, diff_ids: diff_ids.len() });
    }
    if layers > LAYERS_MAX {
        return Err(SourceError::Layers(layers));
    }
    Ok(diff_ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests;
