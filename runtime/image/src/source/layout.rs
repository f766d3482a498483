//! OCI image layouts (OCI image specification, image-layout.md), in a directory or an archive:
//! index.json names manifests or further indexes, all else is in blobs/ by its digest. Manifests of
//! docker's schema 2 are read as well: they differ in their media types alone.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;

use super::files::Files;
use super::{Document, Layer, Source, SourceError, diff_ids, platform};
use crate::digest::Digest;
use crate::limits::{DOCUMENT_MAX, INDEX_DEPTH_MAX, LAYERS_MAX};
use crate::reference::Format;

pub const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
pub const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// What layers are called before `+gzip`, `.gzip` and the like.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const LAYER_COMPRESSIONS: [&str; 4] = ["", "+gzip", "+zstd", ".gzip"];
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// On what is beside an image in an index and no image itself: signatures, attestations.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// The content of the file `oci-layout`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciLayout {
    image_layout_version: String,
}

pub fn image(files: Files, format: Format, tag: Option<&str>) -> Result<Source, SourceError> {
    let layout: OciLayout = parse("oci-layout", &files.document("oci-layout")?)?;
    if !layout.image_layout_version.starts_with("1.") {
        return Err(SourceError::Version(layout.image_layout_version));
    }
    let index: ImageIndex = parse("index.json", &files.document("index.json")?)?;
    let tagged = tagged(&index, tag)?;
    let descriptor = find(&files, tagged, 0)?;
    let (digest, bytes) = document(&files, &descriptor)?;
    let (name, manifest) = (digest.to_string(), parse(&digest.to_string(), &bytes)?);
    let (config, layers) = contents(&files, &name, manifest)?;
    Ok(Source { files, format, manifest: Some((digest, bytes)), config, layers })
}

fn contents(
    files: &Files,
    name: &str,
    manifest: ImageManifest,
) -> Result<(Document, Vec<Layer>), SourceError> {
    let config_type = manifest.config().media_type().to_string();
    if !CONFIG_TYPES.contains(&&*config_type) {
        return Err(SourceError::NotAContainer(config_type));
    }
    if manifest.layers().len() > LAYERS_MAX {
        return Err(SourceError::Layers(manifest.layers().len()));
    }
    let config = document(files, manifest.config())?;
    let diff_ids = diff_ids(name, &config.1, manifest.layers().len())?;
    let layers = manifest.layers().iter().zip(diff_ids).map(|(descriptor, diff_id)| {
        let media_type = descriptor.media_type().to_string();
        let known = LAYER_TYPES.iter().any(|known| {
            media_type.strip_prefix(known).is_some_and(|rest| LAYER_COMPRESSIONS.contains(&rest))
        });
        if !known {
            return Err(SourceError::LayerType(media_type));
        }
        let digest = digest(descriptor)?;
        Ok(Layer { file: blob(&digest), blob: Some((digest, descriptor.size())), diff_id })
    });
    Ok((config, layers.collect::<Result<_, _>>()?))
}

/// The entries of index.json that are meant.
fn tagged(index: &ImageIndex, tag: Option<&str>) -> Result<Vec<Descriptor>, SourceError> {
    let name = |descriptor: &Descriptor| {
        let annotations = descriptor.annotations().as_ref();
        annotations.and_then(|annotations| annotations.get(REF_NAME)).cloned()
    };
    let images: Vec<_> = index.manifests().iter().filter(|d| is_image(d)).cloned().collect();
    let mut names: Vec<String> = images.iter().filter_map(name).collect();
    names.sort();
    names.dedup();
    let listed = match names.len() {
        0 => "no name in it".to_owned(),
        _ => names.join(", "),
    };
    let Some(tag) = tag else {
        return match names.len() {
            0 | 1 => Ok(images),
            _ => Err(SourceError::Several(listed)),
        };
    };
    let of_tag = |descriptor: &Descriptor| {
        name(descriptor).is_some_and(|name| name == tag || name.ends_with(&format!(":{tag}")))
    };
    let found: Vec<_> = images.into_iter().filter(of_tag).collect();
    match found.is_empty() {
        true => Err(SourceError::Tag { tag: tag.to_owned(), has: listed }),
        false => Ok(found),
    }
}

pub fn is_image(descriptor: &Descriptor) -> bool {
    let media_type = descriptor.media_type().to_string();
    let annotations = descriptor.annotations().as_ref();
    let aside = annotations.is_some_and(|annotations| annotations.contains_key(REFERENCE_TYPE));
    !aside && (INDEX_TYPES.contains(&&*media_type) || MANIFEST_TYPES.contains(&&*media_type))
}

/// The manifest among `entries`, or in an index among them, that suits this machine best.
fn find(files: &Files, entries: Vec<Descriptor>, depth: usize) -> Result<Descriptor, SourceError> {
    if depth > INDEX_DEPTH_MAX {
        return Err(SourceError::Nested);
    }
    let best = best(&entries.iter().collect::<Vec<_>>())?;
    if !INDEX_TYPES.contains(&&*best.media_type().to_string()) {
        return Ok(best.clone());
    }
    let (digest, bytes) = document(files, best)?;
    let index: ImageIndex = parse(&digest.to_string(), &bytes)?;
    let entries = index.manifests().iter().filter(|entry| is_image(entry)).cloned().collect();
    find(files, entries, depth + 1)
}

/// The first of those that suit this machine best.
pub fn best<'a>(entries: &[&'a Descriptor]) -> Result<&'a Descriptor, SourceError> {
    let level = platform::host_level();
    let rank = |entry: &Descriptor| platform::rank(entry.platform().as_ref(), level);
    let suitable = entries.iter().copied().filter(|entry| rank(entry).is_some());
    suitable.rev().max_by_key(|entry| rank(entry)).ok_or_else(|| {
        let names: Vec<_> = entries.iter().map(|entry| platform::name(entry)).collect();
        let none = "no platform at all".to_owned();
        SourceError::Platform(if names.is_empty() { none } else { names.join(", ") })
    })
}

/// A document by its descriptor, verified.
fn document(files: &Files, descriptor: &Descriptor) -> Result<Document, SourceError> {
    let digest = digest(descriptor)?;
    let name = digest.to_string();
    if descriptor.size() > DOCUMENT_MAX {
        return Err(SourceError::Large { name, size: descriptor.size() });
    }
    let bytes = files.document(&blob(&digest))?;
    match bytes.len() as u64 == descriptor.size() && Digest::of(&bytes) == digest {
        true => Ok((digest, bytes)),
        false => Err(SourceError::Digest { name }),
    }
}

pub fn digest(descriptor: &Descriptor) -> Result<Digest, SourceError> {
    Ok(descriptor.digest().to_string().parse()?)
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

pub fn parse<'de, T: Deserialize<'de>>(name: &str, bytes: &'de [u8]) -> Result<T, SourceError> {
    serde_json::from_slice(bytes)
        .map_err(|source| SourceError::Json { name: name.to_owned(), source })
}
