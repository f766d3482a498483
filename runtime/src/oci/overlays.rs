//! Overlays among a bundle's mounts. Their directories are the host's, so that they are made here: each
//! a descriptor (`bulkhead_image::overlay`) that becomes a share of the VM's.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use bulkhead_image::overlay::{self, OverlayError, Upper};
use bulkhead_vmm::spec::Share;
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::bundle::{Bundle, Source};
use super::plan;

/// Why a bundle's overlays cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OverlaysError {
    /// A directory of one.
    #[error("cannot open {}, a directory of an overlay among the mounts: {source}", .path.display())]
    Open {
        /// On the host.
        path: PathBuf,
        /// Why.
        source: rustix::io::Errno,
    },
    /// One that two containers would write to.
    #[error(
        "a clone cannot have the overlay whose upperdir is {}: what is written there is the other \
         container's, and overlayfs takes it once", .0.display()
    )]
    Shared(PathBuf),
    /// overlayfs.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
}

/// Those of a bundle, by the names of their shares. The VMM inherits the descriptors.
#[derive(Debug)]
pub struct Overlays(Vec<(String, OwnedFd)>);

impl Overlays {
    /// Makes those of `bundle`, for a container that is its only one or, as a `clone`, one more.
    pub fn mount(bundle: &Bundle, clone: bool) -> Result<Self, OverlaysError> {
        let mut made = Vec::new();
        for (index, source) in bundle.sources.iter().enumerate() {
            if let Source::Overlay { lower, upper } = source {
                let shared = upper.as_ref().filter(|_| clone);
                if let Some((upper, _)) = shared {
                    return Err(OverlaysError::Shared(upper.clone()));
                }
                made.push((plan::share(index), mount(lower, upper.as_ref())?));
            }
        }
        Ok(Self(made))
    }

    /// Gives the shares their descriptors.
    pub fn give_to(&self, shares: &mut [Share]) {
        for share in shares {
            let own = self.0.iter().find(|(name, _)| *name == share.name);
            share.fd = own.map_or(share.fd, |(_, overlay)| Some(overlay.as_raw_fd()));
        }
    }
}

fn mount(lower: &[PathBuf], upper: Option<&(PathBuf, PathBuf)>) -> Result<OwnedFd, OverlaysError> {
    let lower = lower.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let Some((upper, work)) = upper else { return Ok(overlay::mount(&lower, None, true)?) };
    let (upper, work) = (open(upper)?, open(work)?);
    // It may be meant to be kept.
    let upper = Upper { upper: upper.as_fd(), work: work.as_fd(), volatile: false };
    Ok(overlay::mount(&lower, Some(upper), false)?)
}

fn open(path: &Path) -> Result<OwnedFd, OverlaysError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .map_err(|source| OverlaysError::Open { path: path.to_owned(), source })
}
