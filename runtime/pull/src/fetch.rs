//! From a registry to a layout: the index or manifest, what it names for this machine, and those
//! layers that are not here yet, a few at a time.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bulkhead_image::digest::Digest;
use bulkhead_image::limits::{DOCUMENT_MAX, INDEX_DEPTH_MAX};
use bulkhead_image::reference::{Name, ReferenceError};
use bulkhead_image::source::{Blob, Named, SourceError, named_by};
use futures_util::{StreamExt, TryStreamExt};
use oci_client::errors::OciDistributionError;

use crate::credentials::CredentialError;
use crate::registry::Registry;
use crate::report::Report;

/// Layers that come at the same time.
const AT_ONCE: usize = 3;

/// Why an image did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Name(#[from] ReferenceError),
    #[error("the list of layers cannot be read: {0}")]
    Input(#[source] io::Error),
    #[error("no event loop: {0}")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("{}", registry_error(.0))]
    Registry(#[from] OciDistributionError),
    #[error("the registry's connection broke: {0}")]
    Stream(#[source] io::Error),
    #[error(transparent)]
    Document(#[from] SourceError),
    #[error("{0} is not what its digest says; the registry sent something else")]
    Digest(String),
    #[error("{digest} has more than the {size} bytes it should have")]
    Longer { digest: Digest, size: u64 },
    #[error("an index names indexes too deeply")]
    Nested,
    #[error("cannot write {}: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// What a user can do about it comes first.
fn registry_error(error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => {
            let advice = "the registry wants a login, or another one, for this image";
            format!("{advice}; log in with `podman login` or `docker login` ({error})")
        }
        error => chain(error),
    }
}

/// An error and what caused it, in one line: reqwest hides the reason in its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// Fetches `name` into the empty directory `layout`, but for the layers `present`.
pub async fn fetch(
    mut registry: Registry,
    name: &Name,
    layout: &Path,
    present: &HashSet<Digest>,
) -> Result<(), FetchError> {
    let layout = Layout::new(layout)?;
    let pinned = name.digest;
    let (of, by_digest) = match (&pinned, &name.tag) {
        (Some(digest), _) => (digest.to_string(), true),
        (None, tag) => (tag.clone().unwrap_or_default(), false),
    };
    let mut document = registry.manifest(&of, by_digest).await?;
    let top = layout.add(&document, pinned)?;
    let mut depth = 0;
    let (config, layers) = loop {
        match named_by(&document)? {
            Named::Image { config, layers } => break (config, layers),
            Named::Manifest(_) if depth == INDEX_DEPTH_MAX => return Err(FetchError::Nested),
            Named::Manifest(blob) => {
                document = registry.manifest(&blob.digest.to_string(), true).await?;
                layout.add(&document, Some(blob.digest))?;
                depth += 1;
            }
        }
    };
    layout.index(&top)?;
    if config.size > DOCUMENT_MAX {
        return Err(FetchError::Longer { digest: config.digest, size: DOCUMENT_MAX });
    }
    blob(&registry, &layout, &config, false).await?;
    let config = layout.read(&config.digest)?;
    let diff_ids = bulkhead_image::source::layers_of(&config)?;
    let wanted: Vec<Blob> = layers
        .into_iter()
        .zip(diff_ids.into_iter().map(Some).chain(std::iter::repeat(None)))
        .filter(|(_, diff_id)| diff_id.is_none_or(|diff_id| !present.contains(&diff_id)))
        .map(|(layer, _)| layer)
        .collect();
    let mut seen = HashSet::new();
    let wanted = wanted.into_iter().filter(|layer| seen.insert(layer.digest));
    let (registry, layout) = (&registry, &layout);
    let fetched = futures_util::stream::iter(wanted)
        .map(|layer| async move { blob(registry, layout, &layer, true).await });
    fetched.buffer_unordered(AT_ONCE).try_collect::<()>().await
}

/// Fetches a blob; what it really is, is looked at when it is imported.
async fn blob(
    registry: &Registry,
    layout: &Layout,
    blob: &Blob,
    is_layer: bool,
) -> Result<(), FetchError> {
    let (layer, bytes) = (blob.digest, blob.size);
    if is_layer {
        Report::Begin { layer, bytes }.send();
    }
    let mut pieces = registry.blob(&layer.to_string(), bytes).await?;
    let path = layout.path(&layer);
    let failed = |source| FetchError::Write { path: path.clone(), source };
    let mut file = File::create(&path).map_err(failed)?;
    let mut written = 0;
    while let Some(piece) = pieces.try_next().await.map_err(FetchError::Stream)? {
        written += piece.len() as u64;
        if written > bytes {
            return Err(FetchError::Longer { digest: layer, size: bytes });
        }
        file.write_all(&piece).map_err(failed)?;
        if is_layer {
            Report::Advance { layer, bytes: piece.len() as u64 }.send();
        }
    }
    if is_layer {
        Report::End { layer }.send();
    }
    Ok(())
}

/// The layout that is written.
struct Layout {
    dir: PathBuf,
}

impl Layout {
    fn new(dir: &Path) -> Result<Self, FetchError> {
        let layout = Self { dir: dir.to_owned() };
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|source| FetchError::Write { path: blobs, source })?;
        layout.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(layout)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn read(&self, digest: &Digest) -> Result<Vec<u8>, FetchError> {
        let path = self.path(digest);
        fs::read(&path).map_err(|source| FetchError::Write { path, source })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FetchError> {
        let path = self.dir.join(name);
        fs::write(&path, bytes).map_err(|source| FetchError::Write { path, source })
    }

    /// Adds a document that should have the digest `wanted`; returns its descriptor.
    fn add(&self, bytes: &[u8], wanted: Option<Digest>) -> Result<serde_json::Value, FetchError> {
        let digest = Digest::of(bytes);
        if wanted.is_some_and(|wanted| wanted != digest) {
            return Err(FetchError::Digest(wanted.unwrap_or(digest).to_string()));
        }
        self.write(&format!("blobs/sha256/{}", digest.hex()), bytes)?;
        let media_type = bulkhead_image::source::media_type(bytes)?;
        Ok(serde_json::json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
    }

    fn index(&self, descriptor: &serde_json::Value) -> Result<(), FetchError> {
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [descriptor] });
        self.write("index.json", index.to_string().as_bytes())
    }
}
