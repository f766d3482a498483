//! The container's own /etc/machine-id, for an image that has none: a file of the agent's, mounted over
//! the image's. Nothing is written to the image, and the agent can give a clone another.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::{MountError, Options, Planned};

/// The agent's file.
const FILE: &str = "/machine-id";
const DESTINATION: &str = "/etc/machine-id";

/// Gives the container an ID, or another one: 32 hexadecimal digits.
pub fn write(id: &str) -> rustix::io::Result<()> {
    // In its place: it may be mounted.
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o444).open(FILE);
    file.and_then(|mut file| writeln!(file, "{id}"))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Whether the container was given one.
pub fn is_given() -> bool {
    Path::new(FILE).exists()
}

/// The file, to be mounted once the container's root is ours.
pub fn open() -> Result<OwnedFd, MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, FILE, flags).map_err(|source| planned().failed(source))
}

/// Mounts it, in the container's root.
pub fn mount(file: OwnedFd) -> Result<(), MountError> {
    planned().attach(file.as_fd())
}

fn planned() -> Planned<'static> {
    let options = Options::parse(&["ro", "nosuid", "nodev", "noexec"]);
    Planned { destination: DESTINATION, fstype: "file", source: FILE, options }
}
