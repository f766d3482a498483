//! Templates: VMs saved when their agent waits for a container, and cloned for each container.
//!
//! ```text
//! TEMPLATES/KEY.lock            held while KEY is made: the first user makes it, the others wait
//! TEMPLATES/KEY.new/            a template in the making
//! TEMPLATES/KEY/state, memory   a snapshot (see bulkhead_vmm::snapshot)
//! TEMPLATES/KEY/pages           which of the memory a clone writes to first
//! ```
//!
//! TEMPLATES is /var/lib/bulkhead/templates for root, else `$XDG_CACHE_HOME/bulkhead/templates` or
//! ~/.cache/bulkhead/templates; `$BULKHEAD_TEMPLATES` names another. The key says all a template
//! depends on, so one that fits nothing any more is never used again, and goes when newer ones take
//! its place. A damaged one is made anew. All of it may be deleted at any time.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bulkhead_vmm::snapshot::{self, Cpu, SnapshotError, WorkingSet};
use bulkhead_vmm::spec::VmSpec;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::user;

const VARIABLE: &str = "BULKHEAD_TEMPLATES";
const SYSTEM_DIR: &str = "/var/lib/bulkhead/templates";
const BELOW_CACHE: &str = "bulkhead/templates";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const PAGES: &str = "pages";
/// Templates kept, each some 40 MiB on disk: one for every shape of VM a host is likely to use.
const KEPT_MAX: usize = 16;

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("no place to keep templates: set HOME or {VARIABLE}")]
    NoDir,
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the VM to be saved did not get there: {0}")]
    Build(String),
}

fn failed<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> TemplateError {
    move |source| TemplateError::Io { action, path: path.to_owned(), source: source.into() }
}

/// A snapshot's files, open.
#[derive(Debug)]
pub struct Snapshot {
    /// The state file.
    pub state: File,
    /// The memory file.
    pub memory: File,
    /// What the memory file is, or may be, the difference from.
    pub base: Option<File>,
    /// Where the file is that memory made from it is a mapping of, if it has a name.
    pub mapped: Option<PathBuf>,
}

/// A template's files, open.
#[derive(Debug)]
pub struct Template {
    /// The VM.
    pub snapshot: Snapshot,
    /// The [`WorkingSet`] of its clones.
    pub working_set: File,
}

/// Where templates are kept.
#[derive(Clone, Debug)]
pub struct Templates(PathBuf);

impl Templates {
    /// This user's place.
    pub fn of_this_user() -> Result<Self, TemplateError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(dir) = set(VARIABLE) {
            return Ok(Self(dir));
        }
        if user::is_host_root() {
            return Ok(Self(SYSTEM_DIR.into()));
        }
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        Ok(Self(cache.ok_or(TemplateError::NoDir)?.join(BELOW_CACHE)))
    }

    /// The template for VMs like `vm`, run by the program `vmm`. If there is none, or a damaged one,
    /// `build` has to save a VM to the files it is given, while other users wait.
    pub fn get(
        &self,
        vm: &VmSpec,
        vmm: &Path,
        build: impl FnOnce(&Template) -> Result<(), TemplateError>,
    ) -> Result<Template, TemplateError> {
        let dir = self.0.join(key(vm, vmm)?);
        if let Ok(template) = Template::open(&dir, vm) {
            return Ok(template);
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.0).map_err(failed("make directory", &self.0))?;
        let _lock = lock(&dir.with_extension("lock"))?;
        if let Ok(template) = Template::open(&dir, vm) {
            return Ok(template);
        }
        let new = dir.with_extension("new");
        remove(&new)?;
        builder.create(&new).map_err(failed("make directory", &new))?;
        build(&Template::create(&new)?)?;
        remove(&dir)?;
        fs::rename(&new, &dir).map_err(failed("rename", &new))?;
        self.forget_oldest(&dir);
        let template = Template::open(&dir, vm)?;
        template.share_huge_pages(vm)?;
        Ok(template)
    }

    /// Empty files that have no name, for a snapshot that only the VMs made from it need.
    pub fn nameless(&self) -> Result<Snapshot, TemplateError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.0).map_err(failed("make", &self.0))?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let create = || {
            let file = rustix::fs::open(&self.0, flags, Mode::from(0o600));
            file.map(File::from).map_err(failed("make a file in", &self.0))
        };
        Ok(Snapshot { state: create()?, memory: create()?, base: None, mapped: None })
    }

    /// Removes what has been there longest, beyond a number; who uses it has it open.
    fn forget_oldest(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        let made = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let mut dirs: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_none() && path != newest)
            .filter_map(|path| Some((made(&path)?, path)))
            .collect();
        dirs.sort();
        let surplus = (dirs.len() + 1).saturating_sub(KEPT_MAX);
        for (_, dir) in &dirs[..surplus] {
            // What cannot be removed now is the next build's to try.
            let _ = fs::remove_dir_all(dir);
            let _ = fs::remove_file(dir.with_extension("lock"));
        }
    }
}

impl Snapshot {
    /// Its files in a directory.
    pub fn files(dir: &Path) -> [PathBuf; 2] {
        [STATE, MEMORY].map(|name| dir.join(name))
    }

    /// Opens one. Whether it is whole, and of the right VM, is for the VMM to see.
    pub fn open(dir: &Path) -> Result<Self, TemplateError> {
        let [state, memory] = Self::files(dir);
        let mapped = Some(memory.clone());
        Ok(Self { state: open(state)?, memory: open(memory)?, base: None, mapped })
    }

    /// Makes empty files for one.
    pub fn create(dir: &Path) -> Result<Self, TemplateError> {
        let [state, memory] = Self::files(dir);
        Ok(Self { state: create(state)?, memory: create(memory)?, base: None, mapped: None })
    }
}

impl Template {
    /// Opens a template that is whole.
    fn open(dir: &Path, vm: &VmSpec) -> Result<Self, TemplateError> {
        let template = Self { snapshot: Snapshot::open(dir)?, working_set: open(dir.join(PAGES))? };
        let Snapshot { state, memory, .. } = &template.snapshot;
        let len = memory.metadata().map_err(failed("examine", dir))?.len();
        if len != u64::from(vm.memory_mib) << 20 {
            return Err(SnapshotError::Damaged("its memory has not the length of a VM's").into());
        }
        snapshot::verify(state)?;
        snapshot::verify(&template.working_set)?;
        Ok(template)
    }

    /// Has clones share huge pages where they write nothing. Those last as long as the host's page cache
    /// keeps them.
    fn share_huge_pages(&self, vm: &VmSpec) -> Result<(), TemplateError> {
        if let Some(set) = WorkingSet::read(&self.working_set, vm.memory_mib)? {
            snapshot::share_huge_pages(&self.snapshot.memory, &set);
        }
        Ok(())
    }

    /// Makes empty files for one.
    fn create(dir: &Path) -> Result<Self, TemplateError> {
        Ok(Self { snapshot: Snapshot::create(dir)?, working_set: create(dir.join(PAGES))? })
    }
}

fn open(path: PathBuf) -> Result<File, TemplateError> {
    open_plain(&path).map_err(failed("open", &path))
}

/// Opens a file of a snapshot that may come from anywhere: a link there could make any file of the host
/// a guest's memory, and a FIFO would be waited for.
pub fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

fn create(path: PathBuf) -> Result<File, TemplateError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(&path).map_err(failed("make", &path))
}

fn lock(path: &Path) -> Result<File, TemplateError> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(path).map_err(failed("open", path))?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
        .map_err(failed("lock", path))?;
    Ok(file)
}

fn remove(dir: &Path) -> Result<(), TemplateError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Everything a template depends on, as one name. Programs count by what tells one file from another
/// without reading it: any change of contents changes the time of change too.
fn key(vm: &VmSpec, vmm: &Path) -> Result<String, TemplateError> {
    let mut hasher = DefaultHasher::new();
    for path in [vm.kernel.as_path(), &vm.init, vmm] {
        let file = fs::metadata(path).map_err(failed("examine", path))?;
        (file.dev(), file.ino(), file.size()).hash(&mut hasher);
        (file.ctime(), file.ctime_nsec()).hash(&mut hasher);
    }
    Cpu::of_this_host().hash(&mut hasher);
    // KVM's own version.
    let host = rustix::system::uname();
    (host.release().to_bytes(), host.version().to_bytes()).hash(&mut hasher);
    let (vcpus, mib, nets) = (vm.vcpus, vm.memory_mib, vm.nets.len());
    (vcpus, mib, nets, vm.net_places, vm.window_mib(), vm.cid, &vm.cmdline).hash(&mut hasher);
    vm.nets.iter().for_each(|net| net.kind.hash(&mut hasher));
    Ok(format!("{vcpus}cpu-{mib}m-{nets}net-{:016x}", hasher.finish()))
}

#[cfg(test)]
#[path = "templates_tests.rs"]
mod tests;
