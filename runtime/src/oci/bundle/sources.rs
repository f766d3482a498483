//! What a mount shows: a file system of the guest's kernel, or something of the host's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::BundleError;

/// `TMPFS_MAGIC` (linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;
const SHM: &str = "/dev/shm";

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file system that the guest's kernel makes.
    Guest,
    /// A directory or file of the host.
    Host {
        /// Absolute, without symlinks.
        path: PathBuf,
        /// What it is.
        kind: Kind,
        /// What is mounted below it belongs to it (rbind).
        recursive: bool,
    },
    /// An overlay of directories of the host, as podman's `--mount type=image` and `-v DIR:DIR:O` have it.
    Overlay {
        /// The lower ones, topmost first.
        lower: Vec<PathBuf>,
        /// Where what is written goes, and overlayfs's own directory beside it.
        upper: Option<(PathBuf, PathBuf)>,
    },
    /// The memory that engines provide for /dev/shm on the host. Processes share it through their
    /// kernel, so the guest makes one of its own.
    SharedMemory {
        /// Its size, bytes.
        bytes: u64,
    },
}

/// What is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A device, socket or FIFO: the guest sees one of its own kernel's.
    Special,
}

impl Source {
    /// Finds out what `mount` shows. Relative sources are relative to the bundle.
    pub fn of(mount: &Mount, bundle: &Path) -> Result<Self, BundleError> {
        if !is_bind(mount) {
            return if mount.typ().as_deref() == Some("overlay") {
                Self::overlay(mount)
            } else {
                Ok(Self::Guest)
            };
        }
        let given = mount.source().as_deref().unwrap_or(Path::new(""));
        let path = bundle.join(given);
        let failed = |source| BundleError::Source {
            path: path.clone(),
            destination: mount.destination().display().to_string(),
            source,
        };
        if given.as_os_str().is_empty() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "no source is given")));
        }
        let absolute = fs::canonicalize(&path).map_err(failed)?;
        let file_type = fs::metadata(&absolute).map_err(failed)?.file_type();
        let kind = match file_type {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_file() => Kind::File,
            _ => Kind::Special,
        };
        if mount.destination() == Path::new(SHM)
            && let Some(bytes) = tmpfs_bytes(&absolute).map_err(failed)?
        {
            return Ok(Self::SharedMemory { bytes });
        }
        let recursive = options(mount).any(|option| option == "rbind");
        Ok(Self::Host { path: absolute, kind, recursive })
    }

    fn overlay(mount: &Mount) -> Result<Self, BundleError> {
        let named = |key: &str| {
            let values =
                options(mount).filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            values.last()
        };
        let lower = layers(named("lowerdir").unwrap_or_default());
        if lower.is_empty() {
            let destination = mount.destination().display().to_string();
            return Err(BundleError::NoLayers { destination });
        }
        let upper = named("upperdir").zip(named("workdir"));
        Ok(Self::Overlay { lower, upper: upper.map(|(upper, work)| (upper.into(), work.into())) })
    }
}

/// overlayfs's list of paths: between colons, of which those in names stand behind a backslash.
fn layers(list: &str) -> Vec<PathBuf> {
    let mut layers = vec![String::new()];
    let mut letters = list.chars();
    while let Some(letter) = letters.next() {
        match (letter, layers.last_mut()) {
            (':', _) | (_, None) => layers.push(String::new()),
            ('\\', Some(layer)) => layer.extend(letters.next()),
            (letter, Some(layer)) => layer.push(letter),
        }
    }
    layers.retain(|layer| !layer.is_empty());
    layers.into_iter().map(PathBuf::from).collect()
}

/// A mount's options.
pub fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// As runc tells: by type, or by option whatever the type.
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || options(mount).any(|option| matches!(option, "bind" | "rbind"))
}

/// The size of the tmpfs whose root `path` is; `None` if it is something else.
fn tmpfs_bytes(path: &Path) -> io::Result<Option<u64>> {
    let found = rustix::fs::statfs(path)?;
    if found.f_type as i64 != TMPFS_MAGIC || !is_mount_point(path)? {
        return Ok(None);
    }
    Ok(Some(found.f_blocks.saturating_mul(found.f_bsize as u64)))
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}
