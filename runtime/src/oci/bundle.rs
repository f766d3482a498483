//! [`Bundle`]: a directory with a config.json, read and checked.
//!
//! Loading changes nothing. Whatever the file holds, the answer is a bundle or one sentence: sizes
//! are bounded, paths are absolute and resolved, what the specification demands is demanded here.

mod check;
mod points;
mod sources;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

pub use check::CheckError;
pub use sources::{Kind, Source, options};

/// The file's name (OCI runtime specification, bundle.md).
pub const CONFIG: &str = "config.json";
/// The largest config.json that is read, bytes: the longest argument list the kernel takes and a
/// large seccomp profile, several times over.
const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// Why a directory is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The directory itself.
    #[error("cannot use {} as a bundle: {source}", .path.display())]
    Directory {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than any container needs.
    #[error("{} is larger than {} MiB; nothing a container needs is", .0.display(), CONFIG_BYTES_MAX >> 20)]
    Size(PathBuf),
    /// The file is not what the specification describes.
    #[error("{} is not a container configuration: {source}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Which field, and where.
        source: serde_json::Error,
    },
    /// A field says what cannot be.
    #[error("{}: {source}", .path.display())]
    Check {
        /// The file.
        path: PathBuf,
        /// Which one.
        source: Box<CheckError>,
    },
    /// The root file system.
    #[error("cannot use {} as the container's root: {source}", .path.display())]
    Root {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A root file system that is a symlink may be something else a moment later.
    #[error("the container's root {} is a symlink; give the directory it names", .0.display())]
    RootIsSymlink(PathBuf),
    /// A relative path that does not stay in the bundle.
    #[error("the container's root {} is relative but leads out of the bundle", .0.display())]
    RootOutside(PathBuf),
    /// A mount point that is missing and cannot be made.
    #[error("cannot create the mount point {destination} in the container's root: {source}")]
    MountPoint {
        /// In the container.
        destination: String,
        /// Why.
        source: io::Error,
    },
    /// An overlay of nothing.
    #[error("mounts: the overlay at {destination} has no lowerdir")]
    NoLayers {
        /// In the container.
        destination: String,
    },
    /// What a mount is to show.
    #[error("cannot use {} for the mount at {destination}: {source}", .path.display())]
    Source {
        /// On the host.
        path: PathBuf,
        /// In the container.
        destination: String,
        /// Why.
        source: io::Error,
    },
}

/// A checked bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Its directory, absolute, without symlinks.
    pub dir: PathBuf,
    /// The configuration, checked.
    pub spec: Spec,
    /// The root file system's directory, absolute, without symlinks.
    pub rootfs: PathBuf,
    /// What each of the configuration's mounts shows, in their order.
    pub sources: Vec<Source>,
}

impl Bundle {
    /// Reads and checks the bundle at `dir`.
    pub fn load(dir: &Path) -> Result<Self, BundleError> {
        let dir = fs::canonicalize(dir)
            .map_err(|source| BundleError::Directory { path: dir.to_owned(), source })?;
        let path = dir.join(CONFIG);
        let text = read(&path)?;
        let spec: Spec = serde_json::from_slice(&text)
            .map_err(|source| BundleError::Parse { path: path.clone(), source })?;
        check::spec(&spec)
            .map_err(|source| BundleError::Check { path, source: Box::new(source) })?;
        let rootfs = rootfs(&dir, &spec)?;
        let mounts = spec.mounts().iter().flatten();
        let sources = mounts.map(|mount| Source::of(mount, &dir)).collect::<Result<_, _>>()?;
        Ok(Self { dir, spec, rootfs, sources })
    }

    /// What its maker says about it, by name.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let annotations = self.spec.annotations().iter().flatten();
        annotations.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The root file system is to be read-only.
    pub fn readonly(&self) -> bool {
        self.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    let mut text = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text))
        .map_err(|source| BundleError::Read { path: path.to_owned(), source })?;
    if read as u64 > CONFIG_BYTES_MAX {
        return Err(BundleError::Size(path.to_owned()));
    }
    Ok(text)
}

fn rootfs(bundle: &Path, spec: &Spec) -> Result<PathBuf, BundleError> {
    let given = spec.root().as_ref().map(|root| root.path().as_path()).unwrap_or(Path::new(""));
    let path = bundle.join(given);
    let failed = |source| BundleError::Root { path: path.clone(), source };
    // "dir/" would follow the link.
    let plain: PathBuf = path.components().collect();
    if fs::symlink_metadata(&plain).map_err(failed)?.is_symlink() {
        return Err(BundleError::RootIsSymlink(path));
    }
    let absolute = fs::canonicalize(&plain).map_err(failed)?;
    if !absolute.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    if given.is_relative() && !absolute.starts_with(bundle) {
        return Err(BundleError::RootOutside(path));
    }
    Ok(absolute)
}

#[cfg(test)]
mod tests;
