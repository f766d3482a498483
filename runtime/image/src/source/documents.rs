//! Manifests, indexes and configurations by themselves, for whoever fetches an image piece by piece.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;

use super::{SourceError, layout};
use crate::digest::Digest;

/// Bytes that are elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Their digest.
    pub digest: Digest,
    /// How many.
    pub size: u64,
}

impl TryFrom<&Descriptor> for Blob {
    type Error = SourceError;

    fn try_from(descriptor: &Descriptor) -> Result<Self, SourceError> {
        Ok(Self { digest: layout::digest(descriptor)?, size: descriptor.size() })
    }
}

/// What a manifest or an index leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// An image's parts.
    Image {
        /// Its configuration.
        config: Blob,
        /// Its layers' files, from the lowest to the highest.
        layers: Vec<Blob>,
    },
    /// The manifest, or further index, that suits this machine best.
    Manifest(Blob),
}

/// Which kind a document is; older ones do not say it themselves.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
}

fn kind(document: &[u8]) -> Result<Kind, SourceError> {
    layout::parse("the manifest", document)
}

/// What `document`, a manifest or an index, leads to.
pub fn named_by(document: &[u8]) -> Result<Named, SourceError> {
    if kind(document)?.manifests.is_some() {
        let index: ImageIndex = layout::parse("the index", document)?;
        let entries: Vec<_> = index.manifests().iter().filter(|d| layout::is_image(d)).collect();
        return Ok(Named::Manifest(layout::best(&entries)?.try_into()?));
    }
    let manifest: ImageManifest = layout::parse("the manifest", document)?;
    let layers = manifest.layers().iter().map(Blob::try_from);
    Ok(Named::Image {
        config: manifest.config().try_into()?,
        layers: layers.collect::<Result<_, _>>()?,
    })
}

/// The media type of a manifest or an index.
pub fn media_type(document: &[u8]) -> Result<String, SourceError> {
    let kind = kind(document)?;
    let guess = match kind.manifests {
        Some(_) => layout::INDEX_TYPES[0],
        None => layout::MANIFEST_TYPES[0],
    };
    Ok(kind.media_type.unwrap_or_else(|| guess.to_owned()))
}

/// The diff IDs that a configuration names.
pub fn layers_of(config: &[u8]) -> Result<Vec<Digest>, SourceError> {
    let config: ImageConfiguration = layout::parse("the configuration", config)?;
    let diff_ids = config.rootfs().diff_ids().iter().map(|id| id.parse());
    Ok(diff_ids.collect::<Result<_, _>>()?)
}
