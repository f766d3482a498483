//! A container's root file system: the layers of its image below, a writable one on top, for as
//! long as the container lives.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use super::{Held, Record, Store, StoreError, failed};
use crate::config::ImageConfig;
use crate::overlay;
use crate::unpack;

/// In a container's directory: the ID of the image it holds on to.
pub const IMAGE: &str = "image";
/// What directories are that an image names and does not have.
const DIRECTORY_MODE: u32 = 0o755;

/// A container's root file system; its writable layer is removed when this is dropped. After
/// SIGKILL the next one that adds or takes away something removes it.
#[derive(Debug)]
pub struct Container {
    /// What the image says about its processes.
    pub config: ImageConfig,
    root: OwnedFd,
    _held: Held,
}

impl Container {
    /// The root directory: a detached mount (`O_PATH`), which is gone when the last descriptor of
    /// it is closed.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Makes a directory in the container's root if nothing is there. Symbolic links are those of
    /// the container: they lead nowhere else.
    pub fn make_directory(&self, path: &str) -> Result<(), StoreError> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &str| openat2(&self.root, path, flags, Mode::empty(), resolve);
        let mut parent = open("/").map_err(failed("open", path.as_ref()))?;
        let mut upto = String::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            upto = format!("{upto}/{name}");
            let next = match open(&upto) {
                Err(Errno::NOENT) if name != ".." => {
                    match mkdirat(&parent, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
                        Err(Errno::EXIST) => Err(Errno::NOENT),
                        made => made.and_then(|()| open(&upto)),
                    }
                }
                opened => opened,
            };
            parent = next.map_err(failed("make directory (in the image)", upto.as_ref()))?;
        }
        Ok(())
    }
}

impl Store {
    /// A root file system of `image`. Nothing can be written to it if it is `read_only`.
    pub fn container(&self, image: &Record, read_only: bool) -> Result<Container, StoreError> {
        let incomplete = || StoreError::Incomplete(image.name.clone());
        let shared = self.share()?;
        let config = self.read_blob(&image.id).map_err(|_| incomplete())?;
        let config = ImageConfig::parse(&config)?;
        let held = self.hold("containers", &shared)?;
        let file = held.path().join(IMAGE);
        fs::write(&file, image.id.to_string()).map_err(failed("write", &file))?;
        // From here on the layers are kept by the container itself.
        drop(shared);
        let mut lower = Vec::new();
        for diff_id in config.diff_ids.iter().rev() {
            let path = self.layer(diff_id).join("root");
            let layer: OwnedFd = File::open(path).map_err(|_| incomplete())?.into();
            let covers_all = unpack::is_opaque(&layer);
            lower.push(layer);
            if covers_all {
                break;
            }
        }
        if lower.is_empty() {
            // An image without layers: overlayfs wants one all the same.
            let empty = held.make("empty")?;
            lower.push(File::open(&empty).map_err(failed("open", &empty))?.into());
        }
        let open = |path: PathBuf| File::open(&path).map_err(failed("open", &path));
        let (upper, work) = (open(held.make("upper")?)?, open(held.make("work")?)?);
        // The root directory's own: what the topmost layer has.
        let stat = rustix::fs::fstat(&lower[0]).map_err(failed("examine", held.path()))?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        let (uid, gid) = (Some(stat.st_uid), Some(stat.st_gid));
        let (uid, gid) = (uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw));
        rustix::fs::fchown(&upper, uid, gid).map_err(failed("chown", held.path()))?;
        rustix::fs::fchmod(&upper, mode).map_err(failed("chmod", held.path()))?;
        let root = overlay::mount(&lower, upper.as_fd(), work.as_fd(), read_only)?;
        Ok(Container { config, root, _held: held })
    }
}
