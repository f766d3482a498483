//! A container's root file system: the layers of its image below, a writable one on top, for as
//! long as the container lives.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid, mkdirat, openat2};
use rustix::io::Errno;

use super::{Held, Record, Store, StoreError, failed};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::overlay::{self, Upper};
use crate::{copy, unpack};

/// In a container's directory: the ID of the image it holds on to.
pub const IMAGE: &str = "image";
/// In a container's directory: what was written.
const UPPER: &str = "upper";
/// What directories are that an image names and does not have.
const DIRECTORY_MODE: u32 = 0o755;

/// A container's root file system; its writable layer is removed when this is dropped. After
/// SIGKILL the next one that adds or takes away something removes it.
#[derive(Debug)]
pub struct Container {
    /// What the image says about its processes.
    pub config: ImageConfig,
    root: OwnedFd,
    held: Held,
}

impl Container {
    /// The root directory: a detached mount (`O_PATH`), which is gone when the last descriptor of
    /// it is closed.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Its directory in the store, for [`Store::copy`].
    pub fn path(&self) -> &Path {
        self.held.path()
    }

    /// The descriptor that keeps it from being swept.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.held.lock().as_fd()
    }

    /// Leaves it to whoever has inherited that.
    pub fn leave(self) {
        self.held.leave();
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
        self.assemble(image.id, &image.name, read_only, |lower, upper| {
            // The root directory's own: what the topmost layer has.
            let stat = rustix::fs::fstat(lower)?;
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            rustix::fs::fchown(upper, Some(uid), Some(gid))?;
            Ok(rustix::fs::fchmod(upper, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
        })
    }

    /// A root file system like that of the container which [has](Container::path) `original`, with a
    /// copy of what that has written. It must stand still.
    pub fn copy(&self, original: &Path, read_only: bool) -> Result<Container, StoreError> {
        let file = original.join(IMAGE);
        let image = fs::read_to_string(&file).map_err(failed("read", &file))?;
        let damaged = |_| failed("read", &file)(io::Error::from(io::ErrorKind::InvalidData));
        let image = image.trim().parse::<Digest>().map_err(damaged)?;
        let written = File::open(original.join(UPPER)).map_err(failed("open", original))?;
        self.assemble(image, &image.to_string(), read_only, |_, upper| {
            copy::copy(written.as_fd(), upper.as_fd())
        })
    }

    /// Puts a root file system together, with what `fill` makes of the writable layer, given the
    /// topmost of the image's.
    fn assemble(
        &self,
        image: Digest,
        name: &str,
        read_only: bool,
        fill: impl FnOnce(&OwnedFd, &File) -> io::Result<()>,
    ) -> Result<Container, StoreError> {
        let incomplete = || StoreError::Incomplete(name.to_owned());
        let shared = self.share()?;
        let config = self.read_blob(&image).map_err(|_| incomplete())?;
        let config = ImageConfig::parse(&config)?;
        let held = self.hold("containers", &shared)?;
        let file = held.path().join(IMAGE);
        fs::write(&file, image.to_string()).map_err(failed("write", &file))?;
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
        let (upper, work) = (open(held.make(UPPER)?)?, open(held.make("work")?)?);
        fill(&lower[0], &upper).map_err(failed("fill the writable layer", held.path()))?;
        let written = Upper { upper: upper.as_fd(), work: work.as_fd(), volatile: true };
        let root = overlay::mount(&lower, Some(written), read_only)?;
        Ok(Container { config, root, held })
    }
}
