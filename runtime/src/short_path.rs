//! Paths of Unix sockets, which hold 107 bytes: fewer than an engine's directory and a container's
//! ID may have.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// The most bytes of a Unix socket's path: `sun_path` of linux/un.h without its final NUL.
const PATH_MAX: usize = 107;

/// Another path to the same file, short enough; for this process alone, and while this lives.
#[derive(Debug)]
pub struct ShortPath {
    path: PathBuf,
    _dir: Option<OwnedFd>,
}

impl ShortPath {
    /// A path to the file that `path` names, whose directory must be there.
    pub fn of(path: &Path) -> io::Result<Self> {
        let parts = path.parent().zip(path.file_name());
        let Some((dir, name)) = parts.filter(|_| path.as_os_str().as_bytes().len() > PATH_MAX)
        else {
            return Ok(Self { path: path.to_owned(), _dir: None });
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        Ok(Self { path, _dir: Some(dir) })
    }
}

impl AsRef<Path> for ShortPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_is_bound_and_found_however_long_its_path() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["short", &"x".repeat(120)] {
            let socket = dir.path().join(name).join("vsock.sock");
            assert!(ShortPath::of(&socket).is_ok() == (name == "short"));
            std::fs::create_dir(socket.parent().unwrap()).unwrap();
            let _listener = UnixListener::bind(ShortPath::of(&socket).unwrap()).unwrap();
            assert!(socket.exists());
            UnixStream::connect(ShortPath::of(&socket).unwrap()).unwrap();
        }
    }
}
