//! Where the files are that bulkhead needs beside itself.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// The monitor.
pub const VMM: &str = "bulkhead-vmm";
/// The guest's PID 1.
pub const AGENT: &str = "bulkhead-agent";
/// What talks to registries.
pub const PULL: &str = "bulkhead-pull";
/// The guest's kernel.
pub const KERNEL: &str = "vmlinux";
/// Names a directory that is looked in first.
pub const LIBDIR_VARIABLE: &str = "BULKHEAD_LIBDIR";
/// Where packages put files.
const SYSTEM_DIRS: [&str; 2] = ["/usr/local/lib/bulkhead", "/usr/lib/bulkhead"];

/// Why a file was not found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssetError {
    #[error("no {name} found in {}; {LIBDIR_VARIABLE} can name its directory", list(looked_in))]
    Missing {
        /// The file's name.
        name: &'static str,
        /// The directories tried.
        looked_in: Vec<PathBuf>,
    },
    #[error("{} cannot be executed; set its mode (chmod +x)", .0.display())]
    NotExecutable(PathBuf),
}

fn list(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The directories that are looked in, best first.
pub struct Dirs(Vec<PathBuf>);

impl Dirs {
    /// The directories of this process: `$BULKHEAD_LIBDIR`, the program's own, `../lib/bulkhead`
    /// beside it, and the system's.
    pub fn of_this_process() -> Self {
        Self::new(env::var_os(LIBDIR_VARIABLE).as_deref(), env::current_exe().ok().as_deref())
    }

    fn new(libdir: Option<&OsStr>, program: Option<&Path>) -> Self {
        let mut dirs = Vec::new();
        dirs.extend(libdir.filter(|dir| !dir.is_empty()).map(PathBuf::from));
        if let Some(own) = program.and_then(Path::parent) {
            dirs.push(own.to_owned());
            dirs.extend(own.parent().map(|prefix| prefix.join("lib/bulkhead")));
        }
        dirs.extend(SYSTEM_DIRS.map(PathBuf::from));
        Self(dirs)
    }

    /// Finds a file.
    pub fn file(&self, name: &'static str) -> Result<PathBuf, AssetError> {
        let found = self.0.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| AssetError::Missing { name, looked_in: self.0.clone() })
    }

    /// Finds a file that can be executed.
    pub fn program(&self, name: &'static str) -> Result<PathBuf, AssetError> {
        let path = self.file(name)?;
        match access(&path, Access::EXEC_OK) {
            Ok(()) => Ok(path),
            Err(_) => Err(AssetError::NotExecutable(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_named_directory_wins() {
        let [named, own] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let dirs = Dirs::new(Some(named.path().as_os_str()), Some(&own.path().join("bulkhead")));
        fs::write(own.path().join(KERNEL), "").unwrap();
        assert_eq!(dirs.file(KERNEL), Ok(own.path().join(KERNEL)));
        fs::write(named.path().join(KERNEL), "").unwrap();
        assert_eq!(dirs.file(KERNEL), Ok(named.path().join(KERNEL)));
    }

    #[test]
    fn an_installed_prefix_is_found() {
        let prefix = tempfile::tempdir().unwrap();
        let lib = prefix.path().join("lib/bulkhead");
        fs::create_dir_all(&lib).unwrap();
        fs::write(lib.join(KERNEL), "").unwrap();
        let dirs = Dirs::new(None, Some(&prefix.path().join("bin/bulkhead")));
        assert_eq!(dirs.file(KERNEL), Ok(lib.join(KERNEL)));
    }

    #[test]
    fn what_is_missing_is_told_with_every_place() {
        let dirs = Dirs::new(Some(OsStr::new("/nowhere")), Some(Path::new("/opt/bin/bulkhead")));
        let sentence = dirs.file("no-such-asset").unwrap_err().to_string();
        for place in ["/nowhere", "/opt/bin", "/opt/lib/bulkhead", "/usr/lib/bulkhead"] {
            assert!(sentence.contains(place), "{sentence}");
        }
    }

    #[test]
    fn a_program_must_be_executable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(VMM);
        fs::write(&path, "").unwrap();
        let dirs = Dirs::new(Some(dir.path().as_os_str()), None);
        assert_eq!(dirs.program(VMM), Err(AssetError::NotExecutable(path)));
    }
}
