//! What the host says about a request: the paths it means, the sizes it allows.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::termios::Winsize;

use crate::assets::{self, AssetError, Dirs};
use crate::request::{Request, Root};
use crate::settings::{Settings, SettingsError, WallError, Walls};
use crate::terminal;

/// Why the host cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum FactError {
    #[error("--rootfs {}: {}", .path.display(), reason(source))]
    Rootfs {
        /// As typed.
        path: PathBuf,
        /// Why it cannot be used.
        source: io::Error,
    },
    #[error("--volume {}: {}", .path.display(), reason(source))]
    Volume {
        /// As typed.
        path: PathBuf,
        /// Why it cannot be used.
        source: io::Error,
    },
    #[error("--kernel {}: {}", .path.display(), reason(source))]
    Kernel {
        /// As typed.
        path: PathBuf,
        /// Why it cannot be used.
        source: io::Error,
    },
    #[error("--memory: {asked} MiB asked for, but this host has {has} MiB")]
    Memory {
        /// MiB.
        asked: u32,
        /// MiB.
        has: u64,
    },
    #[error(transparent)]
    Asset(#[from] AssetError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Wall(#[from] WallError),
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file or directory".to_owned(),
        io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        io::ErrorKind::IsADirectory => "a directory, not a file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// What an image says, once a container's root was made of it.
#[derive(Clone, Debug, Default)]
pub struct ImageFacts {
    /// The root, a detached mount: the descriptor's number.
    pub root_fd: i32,
    pub args: Vec<String>,
    /// Names and values.
    pub env: Vec<(String, String)>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    /// What asks the process to end, if not SIGTERM.
    pub stop_signal: Option<i32>,
}

/// What the host says; all paths absolute.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The directory, or for an image the name it was asked for by.
    pub rootfs: PathBuf,
    pub image: Option<ImageFacts>,
    /// One for each of the request's volumes.
    pub volumes: Vec<PathBuf>,
    pub vmm: PathBuf,
    pub agent: PathBuf,
    pub kernel: PathBuf,
    /// The size a terminal of the container starts with, if it was asked for.
    pub window: Option<Winsize>,
    /// What its settings hold a VM to; the jail is as was asked for.
    pub walls: Walls,
    /// The values of the variables that are passed on, as far as they are set.
    pub passed_on: Vec<(String, String)>,
}

impl Facts {
    /// Asks the host.
    pub fn gather(request: &Request, dirs: &Dirs) -> Result<Self, FactError> {
        let has = host_memory_mib();
        if u64::from(request.memory_mib) > has {
            return Err(FactError::Memory { asked: request.memory_mib, has });
        }
        let mut walls = Settings::load()?.walls(&BTreeMap::new())?;
        walls.admit(Some(request.vcpus.into()), Some(request.memory_mib.into()))?;
        walls.jail = walls.jail(request.jail)?;
        let passed_on = request.env.iter().filter(|variable| variable.value.is_none());
        let value = |name: &String| Some((name.clone(), std::env::var(name).ok()?));
        Ok(Self {
            rootfs: match &request.root {
                Root::Directory(dir) => rootfs(dir)?,
                Root::Image(name) => name.into(),
            },
            image: None,
            volumes: request
                .volumes
                .iter()
                .map(|volume| source(&volume.host))
                .collect::<Result<_, _>>()?,
            vmm: dirs.program(assets::VMM)?,
            agent: dirs.program(assets::AGENT)?,
            kernel: kernel(request.kernel.as_deref(), dirs)?,
            window: request.tty.then(terminal::window),
            walls,
            passed_on: passed_on.filter_map(|variable| value(&variable.name)).collect(),
        })
    }
}

/// Memory of the machine, MiB.
pub fn host_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) >> 20
}

fn rootfs(path: &Path) -> Result<PathBuf, FactError> {
    let absolute = fs::canonicalize(path).and_then(|absolute| match absolute.is_dir() {
        true => Ok(absolute),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    absolute.map_err(|source| FactError::Rootfs { path: path.to_owned(), source })
}

fn source(path: &Path) -> Result<PathBuf, FactError> {
    fs::canonicalize(path).map_err(|source| FactError::Volume { path: path.to_owned(), source })
}

fn kernel(asked: Option<&Path>, dirs: &Dirs) -> Result<PathBuf, FactError> {
    let Some(path) = asked else { return Ok(dirs.file(assets::KERNEL)?) };
    let absolute = fs::canonicalize(path).and_then(|absolute| match absolute.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(absolute),
    });
    absolute.map_err(|source| FactError::Kernel { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rootfs_is_an_existing_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(rootfs(dir.path()).is_ok());
        let not_a_directory = rootfs(&file).unwrap_err().to_string();
        assert!(not_a_directory.ends_with("not a directory"), "{not_a_directory}");
        let missing = rootfs(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.ends_with("there is no such file or directory"), "{missing}");
        assert!(rootfs(&dir.path().join("file/x")).is_err());
    }

    #[test]
    fn a_kernel_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = kernel(Some(dir.path()), &Dirs::of_this_process()).unwrap_err().to_string();
        assert!(error.ends_with("a directory, not a file"), "{error}");
    }

    #[test]
    fn this_host_has_memory() {
        assert!(host_memory_mib() > 16);
    }
}
