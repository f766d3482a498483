//! Where running VMs are kept: a directory a VM below the root directory.
//!
//! ```text
//! ROOT/.lock          held while a VM's directory is made, removed or swept
//! ROOT/.kvm           the probe's last good verdict (see verdict.rs)
//! ROOT/NAME/lock      held by `bulkhead run` and by its bulkhead-vmm for as long as either lives
//! ROOT/NAME/vsock.sock
//! ROOT/NAME/control.sock   the monitor's (see bulkhead_vmm::control)
//! ROOT/NAME/run.json  of a container of `bulkhead run`: what other verbs need to know of it
//! ROOT/NAME/process   its process as the agent was given it, for `exec` to begin with
//! ROOT/NAME/resolv.conf   that of a container with passt's network
//! ROOT/ID/state.json  of an OCI container, once it was created: what is known of it (oci/record.rs)
//! ROOT/ID/config.json its configuration, as it was then
//! ROOT/ID/report.json how its VM ended, once it has
//! ```
//!
//! A directory whose `lock` nobody holds belongs to the dead: the next call of `bulkhead` removes
//! it, unless it is that of an OCI container, which stays, stopped, until it is deleted. The lock is a flock(2) on an open file that the VMM inherits, so it cannot outlive its
//! holders, whatever they die of, and there is no process ID that could be another's by now.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::user;

/// The root directory for root.
const SYSTEM_ROOT: &str = "/run/bulkhead";
/// What is kept of an OCI container, in its directory.
pub const RECORD: &str = "state.json";
/// What is kept of a container of `bulkhead run`, which is no longer there when it has ended.
pub const RUN_RECORD: &str = "run.json";
/// The monitor's control socket, in a VM's directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// A VM's vsock socket, in its directory.
pub const SOCKET: &str = "vsock.sock";

/// What names a container's name server, in its VM's directory.
pub const RESOLV_CONF: &str = "resolv.conf";

/// Why a VM's state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("no place to keep running VMs: set XDG_RUNTIME_DIR or give --root DIR")]
    NoRoot,
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    #[error("{} {}; give a --root that only its owner can write to", .path.display(), .what)]
    Untrusted {
        /// The root directory.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    #[error("a VM named {0} is running already; choose another --name")]
    Running(String),
    #[error("a container with the ID {0} exists already")]
    Exists(String),
}

fn failed<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> StateError {
    move |source| StateError::Io { action, path: path.to_owned(), source: source.into() }
}

/// The root directory; it may not exist yet.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The directory asked for, or the default for this user. Refuses one that somebody else could
    /// have prepared: what is opened and removed below it is believed to be ours.
    pub fn choose(asked: Option<PathBuf>) -> Result<Self, StateError> {
        let path = match asked {
            Some(root) => std::path::absolute(&root).map_err(failed("find", &root))?,
            None => Self::usual()?,
        };
        match distrust(&path) {
            Ok(None) => Ok(Self(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self(path)),
            Ok(Some(what)) => Err(StateError::Untrusted { path, what }),
            Err(error) => Err(failed("examine", &path)(error)),
        }
    }

    fn usual() -> Result<PathBuf, StateError> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        match runtime.filter(|_| !user::is_host_root()) {
            Some(dir) => Ok(Path::new(&dir).join("bulkhead")),
            None if rustix::process::geteuid().is_root() => Ok(SYSTEM_ROOT.into()),
            None => Err(StateError::NoRoot),
        }
    }

    /// A file of the root directory itself.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the directory if it is not there, for this user alone.
    pub fn create(&self) -> Result<(), StateError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.0).map_err(failed("make directory", &self.0))
    }

    /// Removes what dead VMs left behind, as far as this user may; does not make the root.
    pub fn sweep(&self) {
        if let Ok(lock) = self.lock() {
            self.sweep_locked(&lock);
        }
    }

    /// Makes the directory of a VM, after a sweep; refuses a name that is in use.
    pub fn claim(&self, name: &str) -> Result<VmDir, StateError> {
        let path = self.0.join(name);
        let lock = self.lock()?;
        self.sweep_locked(&lock);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let name = name.to_owned();
                return Err(match is_container(&path) {
                    true => StateError::Exists(name),
                    false => StateError::Running(name),
                });
            }
            made => made.map_err(failed("make directory", &path))?,
        }
        // From here on an error drops the directory again.
        let file = path.join(VmDir::LOCK);
        let held = open_lock(&file).and_then(|held| {
            flock(&held, FlockOperation::NonBlockingLockExclusive)?;
            Ok(held)
        });
        match held {
            Ok(held) => Ok(VmDir { root: self.clone(), path, lock: held, stays: false }),
            Err(source) => {
                let _ = fs::remove_dir_all(&path);
                Err(failed("lock", &file)(source))
            }
        }
    }

    /// The directories of OCI containers, and of those of `bulkhead run` that live, by name.
    pub fn containers(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let lives = |dir: &Path| dir.join(RUN_RECORD).exists() && !is_dead(dir);
        let containers =
            entries.filter(|entry| is_container(&entry.path()) || lives(&entry.path()));
        let mut names: Vec<String> =
            containers.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Removes the directory of a container. One that is not there is removed.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.0.join(name);
        let _lock = self.lock()?;
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> Result<File, StateError> {
        let path = self.file(".lock");
        let file = open_lock(&path).map_err(failed("open", &path))?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .map_err(failed("lock", &path))?;
        Ok(file)
    }

    fn sweep_locked(&self, _lock: &File) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
        for dir in dirs.map(|entry| entry.path()).filter(|dir| !is_container(dir) && is_dead(dir)) {
            // What cannot be removed now (another user's) is the next call's to try.
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// What is wrong with a root directory that is there, if anything. A symbolic link counts like what
/// it leads to.
fn distrust(path: &Path) -> io::Result<Option<&'static str>> {
    let (link, dir) = (fs::symlink_metadata(path)?, fs::metadata(path)?);
    let ours = |owner: u32| owner == 0 || owner == rustix::process::geteuid().as_raw();
    Ok(match () {
        () if !dir.is_dir() => Some("is not a directory"),
        () if !ours(link.uid()) || !ours(dir.uid()) => Some("belongs to another user"),
        () if dir.mode() & 0o022 != 0 => Some("can be written to by other users"),
        () => None,
    })
}

fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let nofollow = OFlags::NOFOLLOW.bits() as i32;
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(nofollow).open(path)
}

/// Whether nobody holds the lock of a VM's directory. The root's lock keeps half-made ones away, and
/// those who ask do not take each other for holders.
pub fn is_dead(dir: &Path) -> bool {
    match File::open(dir.join(VmDir::LOCK)) {
        Ok(file) => {
            !matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN))
        }
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether a directory is that of an OCI container that was created.
fn is_container(dir: &Path) -> bool {
    dir.join(RECORD).exists()
}

/// The directory of a VM of ours; removed when dropped.
#[derive(Debug)]
pub struct VmDir {
    root: Root,
    path: PathBuf,
    lock: File,
    stays: bool,
}

impl VmDir {
    const LOCK: &str = "lock";

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory to whoever holds its lock, and to `delete`.
    pub fn leave(mut self) {
        self.stays = true;
    }

    /// Path of the VM's vsock socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Path of the VM's control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join(CONTROL_SOCKET)
    }

    /// The lock that says that the VM lives, for the VMM to inherit.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Drop for VmDir {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // Without the root's lock the next VM of this name could be making its directory already.
        // A failure leaves work for the next sweep.
        if let Ok(_root) = self.root.lock() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root(dir.path().join("root"));
        root.create().unwrap();
        (dir, root)
    }

    fn names(root: &Root) -> Vec<String> {
        let entries = fs::read_dir(&root.0).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    #[test]
    fn a_name_is_taken_while_its_vm_lives() {
        let (_dir, root) = root();
        let first = root.claim("web").unwrap();
        assert!(matches!(root.claim("web"), Err(StateError::Running(name)) if name == "web"));
        assert!(root.claim("db").is_ok());
        drop(first);
        assert_eq!(names(&root), [""; 0]);
        assert!(root.claim("web").is_ok());
    }

    #[test]
    fn a_lock_that_another_process_inherited_keeps_the_name_taken() {
        let (_dir, root) = root();
        let mut vm = root.claim("web").unwrap();
        let inherited = vm.lock().try_clone_to_owned().unwrap();
        // What SIGKILL does to `bulkhead run`: descriptors are closed, no destructor runs.
        vm.lock = File::open("/dev/null").unwrap();
        std::mem::forget(vm);
        assert!(matches!(root.claim("web"), Err(StateError::Running(_))));
        drop(inherited);
        assert!(root.claim("web").is_ok());
    }

    #[test]
    fn what_the_dead_left_is_swept_and_the_living_stay() {
        let (_dir, root) = root();
        let living = root.claim("living").unwrap();
        for dead in ["dead", "half-made"] {
            fs::create_dir(root.file(dead)).unwrap();
        }
        fs::write(root.file("dead/lock"), "").unwrap();
        fs::write(root.file("dead/vsock.sock_10"), "").unwrap();
        fs::write(root.file(".kvm"), "kept").unwrap();
        root.sweep();
        assert_eq!(names(&root), ["living"]);
        assert!(root.file(".kvm").exists());
        drop(living);
    }

    #[test]
    fn a_dead_vm_does_not_block_its_name() {
        let (_dir, root) = root();
        fs::create_dir(root.file("web")).unwrap();
        fs::write(root.file("web/lock"), "").unwrap();
        assert!(root.claim("web").is_ok());
    }

    #[test]
    fn a_container_stays_when_its_vm_has_ended() {
        let (_dir, root) = root();
        let container = root.claim("web").unwrap();
        fs::write(container.path().join(RECORD), "{}").unwrap();
        assert!(!is_dead(container.path()) && !is_dead(container.path()));
        container.leave();
        root.sweep();
        assert_eq!(root.containers(), ["web"]);
        assert!(is_dead(&root.file("web")));
        assert!(matches!(root.claim("web"), Err(StateError::Exists(id)) if id == "web"));
        root.remove("web").unwrap();
        root.remove("web").unwrap();
        assert_eq!(names(&root), [""; 0]);
    }

    #[test]
    fn a_root_that_somebody_else_could_have_prepared_is_refused() {
        use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let refusal = |name: &str| match Root::choose(Some(path(name))) {
            Ok(_) => None,
            Err(error) => Some(error.to_string().replace(&path(name).display().to_string(), "")),
        };
        for name in ["own", "open", "theirs"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::set_permissions(path("open"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("own", path("link")).unwrap();
        fs::write(path("file"), "").unwrap();
        for fine in ["own", "link", "not-there-yet"] {
            assert_eq!(refusal(fine), None, "{fine}");
        }
        assert!(refusal("open").unwrap().contains("other users"));
        assert!(refusal("file").unwrap().contains("not a directory"));
        assert!(refusal("file/below").is_some());
        if rustix::process::geteuid().is_root() {
            chown(path("theirs"), Some(1000), None).unwrap();
            symlink("own", path("their-link")).unwrap();
            lchown(path("their-link"), Some(1000), None).unwrap();
            for theirs in ["theirs", "their-link"] {
                assert!(refusal(theirs).unwrap().contains("another user"), "{theirs}");
            }
        }
    }

    #[test]
    fn what_lies_in_the_way_of_a_vm_is_neither_followed_nor_touched() {
        let (dir, root) = root();
        let victim = dir.path().join("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("lock"), "kept").unwrap();
        for (name, target) in [("link", &victim), ("dangling", &dir.path().join("nowhere"))] {
            std::os::unix::fs::symlink(target, root.file(name)).unwrap();
            assert!(root.claim(name).is_err(), "{name}");
        }
        fs::hard_link(victim.join("lock"), root.file("file")).unwrap();
        assert!(root.claim("file").is_err());
        root.sweep();
        assert_eq!(fs::read(victim.join("lock")).unwrap(), b"kept");
        assert!(!dir.path().join("nowhere").exists());
        // Nor a lock that is a link: nobody's file is opened for writing, none is made.
        fs::remove_file(root.file(".lock")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("nowhere"), root.file(".lock")).unwrap();
        assert!(root.claim("web").is_err());
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn sweeping_where_nothing_is_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root(dir.path().join("root"));
        root.sweep();
        assert!(!dir.path().join("root").exists());
    }
}
