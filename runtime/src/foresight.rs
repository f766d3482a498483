//! What the host can say of a container's files before there is a container: where PATH has nothing of the
//! program's name, and what is in /etc/passwd and /etc/group. Each of these is a file or two that the guest
//! need not ask the file server for.
//!
//! The container is the same without it, so only what is certain is said. It is said of places that no
//! mount of the container can cover and that are reached through no symbolic link; and nothing at all
//! if it cannot be told where the mounts will be, because they lie in one another or behind links.

use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use bulkhead_protocol::rpc::agent::{ContainerSpec, Foreseen, Process};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::machine_id::{Root, reopen};

/// Where every container has file systems of its kernel's, with more in them.
const KERNEL_S: [&str; 3] = ["/proc", "/sys", "/dev"];
const MACHINE_ID: &str = "/etc/machine-id";
/// The most directories of PATH that are looked at.
const DIRECTORIES_MAX: usize = 16;
/// The longest file that is sent along, bytes: some hundreds of users.
const TEXT_MAX: u64 = 32 << 10;

/// Adds to `container`, which has this root, what can be foreseen.
pub fn add(root: Root<'_>, mut container: ContainerSpec) -> ContainerSpec {
    let foreseen = root.look(|root| {
        let view = View::new(root, &container);
        Ok(view.map(|view| view.foresee(container.process.get_or_default())))
    });
    // Without an answer the guest looks itself.
    if let (Ok(Some(foreseen)), Some(process)) = (foreseen, container.process.as_mut()) {
        process.foreseen = Some(foreseen).into();
    }
    container
}

/// A root, and where it will be covered.
struct View<'a> {
    root: BorrowedFd<'a>,
    covered: Vec<&'a Path>,
}

/// What is at a path.
enum Sight {
    Nothing,
    There(OwnedFd),
    /// The guest may see something else.
    Unclear,
}

impl<'a> View<'a> {
    /// `None` if it is not clear where all mounts will be.
    fn new(root: BorrowedFd<'a>, container: &'a ContainerSpec) -> Option<Self> {
        let machine_id = (!container.machine_id.is_empty()).then_some(MACHINE_ID);
        let mounts = container.mounts.iter().map(|mount| mount.destination.as_str());
        let covered = KERNEL_S.into_iter().chain(machine_id).chain(mounts);
        let view = Self { root, covered: covered.map(Path::new).collect() };
        let clear = |(index, place): (usize, &&Path)| {
            let others = view.covered.iter().enumerate().filter(|(other, _)| *other != index);
            is_plain(place)
                && others.into_iter().all(|(_, other)| !place.starts_with(other))
                && matches!(view.open(place, OFlags::empty()), Ok(_) | Err(Errno::NOENT))
        };
        view.covered.iter().enumerate().all(clear).then_some(view)
    }

    fn foresee(&self, process: &Process) -> Foreseen {
        let by_name = !process.user_name.is_empty();
        let has_home = process.env.iter().any(|variable| variable.starts_with("HOME="));
        let text = |wanted: bool, path| wanted.then(|| self.text(path)).flatten();
        Foreseen {
            path_without: self.path_without(process),
            passwd: text(by_name || !has_home, "/etc/passwd"),
            group: text(by_name, "/etc/group"),
            ..Default::default()
        }
    }

    /// How many directories of PATH, from its beginning, have nothing of the program's name.
    fn path_without(&self, process: &Process) -> u32 {
        let path = process.env.iter().find_map(|variable| variable.strip_prefix("PATH="));
        let (Some(path), Some(name)) = (path, process.args.first()) else { return 0 };
        if name.contains('/') {
            return 0;
        }
        let directories = path.split(':').take(DIRECTORIES_MAX);
        let without = directories.take_while(|directory| {
            matches!(self.look(&Path::new(directory).join(name)), Sight::Nothing)
        });
        without.count() as u32
    }

    /// What a file says; nothing if there is none.
    fn text(&self, path: &str) -> Option<Vec<u8>> {
        let file = match self.look(Path::new(path)) {
            Sight::Nothing => return Some(Vec::new()),
            Sight::There(file) => file,
            Sight::Unclear => return None,
        };
        let stat = rustix::fs::fstat(&file).ok()?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return None;
        }
        let mut text = Vec::new();
        reopen(&file).ok()?.take(TEXT_MAX + 1).read_to_end(&mut text).ok()?;
        (text.len() as u64 <= TEXT_MAX).then_some(text)
    }

    fn look(&self, path: &Path) -> Sight {
        if !is_plain(path) || self.covered.iter().any(|place| path.starts_with(place)) {
            return Sight::Unclear;
        }
        match self.open(path, OFlags::NOFOLLOW) {
            Ok(file) => Sight::There(file),
            Err(Errno::NOENT | Errno::NOTDIR) => Sight::Nothing,
            Err(_) => Sight::Unclear,
        }
    }

    /// Without following links or leaving the root's file system.
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let path = path.strip_prefix("/").unwrap_or(path);
        openat2(self.root, path, flags, Mode::empty(), resolve)
    }
}

/// Absolute, and neither the root nor by way of a parent.
fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    let absolute = components.next() == Some(Component::RootDir);
    let mut names = components.peekable();
    absolute && names.peek().is_some() && names.all(|name| matches!(name, Component::Normal(_)))
}

#[cfg(test)]
#[path = "foresight_tests.rs"]
mod tests;
