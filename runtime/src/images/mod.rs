//! Images on the command line: finds what was named, in files, in the store or in a registry, and
//! makes a container's root of it.

mod fetch;
mod progress;

use std::fs;
use std::io;
use std::path::PathBuf;

use bulkhead_image::config::ConfigError;
use bulkhead_image::import::{ImportError, import};
use bulkhead_image::reference::{Format, Location, Name, Reference, ReferenceError};
use bulkhead_image::source::{Source, SourceError};
use bulkhead_image::store::{Container, Record, Store, StoreError};

use crate::assets::{self, AssetError, Dirs};
use crate::oci::signal::SignalError;
pub use fetch::Access;
use fetch::FetchError;
use progress::Bars;

/// Why there is no such image, or no container of it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("image {}: {source}", .path.display())]
    Path {
        /// As typed.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Asset(#[from] AssetError),
    #[error("the image's StopSignal: {0}")]
    StopSignal(#[from] SignalError),
}

/// The image that `text` names, from the store if it is there, else from its files or a registry.
pub fn obtain(store: &Store, text: &str, dirs: &Dirs) -> Result<Record, ImageError> {
    match text.parse()? {
        Reference::Local(location) => import_files(store, location),
        Reference::Name(name) => match store.find(text) {
            Err(StoreError::Unknown(_)) => pull_name(store, &name, &Access::default(), dirs, true),
            found => Ok(found?),
        },
    }
}

/// Brings the image that `text` names into the store, whether or not it is there.
pub fn pull(store: &Store, text: &str, access: &Access, dirs: &Dirs) -> Result<Record, ImageError> {
    match text.parse()? {
        Reference::Local(location) => import_files(store, location),
        Reference::Name(name) => pull_name(store, &name, access, dirs, false),
    }
}

/// A container's root of `image`; with it the directories of its volumes.
pub fn container(store: &Store, image: &Record, read_only: bool) -> Result<Container, ImageError> {
    let container = store.container(image, read_only)?;
    if !read_only {
        for volume in &container.config.volumes {
            container.make_directory(volume)?;
        }
    }
    Ok(container)
}

fn import_files(store: &Store, location: Location) -> Result<Record, ImageError> {
    let failed = |source| ImageError::Path { path: location.path.clone(), source };
    let path = fs::canonicalize(&location.path).map_err(failed)?;
    let location = Location { path, ..location };
    let source = Source::open(&location)?;
    let bars = Bars::new("unpacking");
    Ok(import(store, &source, &file_name(&location, source.format), &|event| bars.imported(event))?)
}

/// What an image out of files is called in the store: after the files, never after what they say.
/// Else an archive could take the place of another image.
fn file_name(location: &Location, format: Format) -> String {
    let prefix = match format {
        Format::Layout => "oci",
        Format::OciArchive => "oci-archive",
        Format::DockerArchive => "docker-archive",
    };
    let tag = location.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    format!("{prefix}:{}{tag}", location.path.display())
}

/// With `unless_there`, one that another process has pulled meanwhile will do.
fn pull_name(
    store: &Store,
    name: &Name,
    access: &Access,
    dirs: &Dirs,
    unless_there: bool,
) -> Result<Record, ImageError> {
    let program = dirs.program(assets::PULL)?;
    store.create()?;
    let workspace = store.workspace(name)?;
    if let Some(found) = store.find_name(name).filter(|_| unless_there) {
        return Ok(found);
    }
    fetch::fetch(&program, name, access, workspace.path(), &store.layers())?;
    let location =
        Location { format: Some(Format::Layout), path: workspace.path().into(), tag: None };
    let source = Source::open(&location)?;
    let bars = Bars::new("unpacking");
    let image = import(store, &source, &name.to_string(), &|event| bars.imported(event))?;
    // The workspace kept what the name meant before from being collected.
    drop((source, workspace));
    store.collect()?;
    Ok(image)
}
