//! The cgroup around a container's VMM and fs worker, where the caller asked for it
//! (linux.cgroupsPath): its accounting and the host's limits.
//!
//! Hosts have version 2, version 1, or both: the same path is made in each hierarchy that there is.
//! systemd's form of the path is mapped to the directories that systemd would have used, without
//! asking it: nothing here needs a bus.

mod layout;
mod limits;
mod path;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

pub use layout::Layout;
pub use limits::{Limits, is_host_file};
pub use path::{CgroupPath, PathError};

use layout::Hierarchy;

const PROCS: &str = "cgroup.procs";
/// How long killed processes may take to leave a cgroup.
const EMPTY_MAX: Duration = Duration::from_secs(5);
/// The deepest tree that is removed: what a container could not have made, the host's hands may.
const DEPTH_MAX: usize = 32;

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Its place.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The host's cgroups are unknown.
    #[error("cannot find the host's cgroups in /proc/self/mountinfo: {0}")]
    Layout(#[source] io::Error),
    /// A directory.
    #[error("cannot create the cgroup {}: {source}", .path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit.
    #[error("cannot write {value:?} to {}: {source}", .path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A cgroup that is not empty, or not ours to remove.
    #[error("cannot remove the cgroup {}: {source}", .path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A container's cgroup: a directory in each hierarchy.
#[derive(Debug)]
pub struct HostCgroup {
    dirs: Vec<(Hierarchy, PathBuf)>,
}

impl HostCgroup {
    /// The cgroup at `path`, which need not be there.
    pub fn at(layout: &Layout, path: &CgroupPath) -> Self {
        let dirs =
            layout.0.iter().map(|hierarchy| (hierarchy.clone(), path.below(&hierarchy.root)));
        Self { dirs: dirs.collect() }
    }

    /// Makes it, with the limits. What was made on the way to a failure is removed.
    pub fn create(&self, limits: &Limits) -> Result<(), CgroupError> {
        let made = self.dirs.iter().try_for_each(|(hierarchy, dir)| make(hierarchy, dir));
        made.and_then(|()| self.limit(limits)).inspect_err(|_| drop(self.remove()))
    }

    /// Writes limits. A file that is not there is a controller that the host has not.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        for (hierarchy, dir) in &self.dirs {
            for (file, value) in limits.of(hierarchy) {
                let path = dir.join(file);
                match write(&path, value) {
                    Ok(()) => {}
                    Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => {
                        return Err(CgroupError::Limit { path, value: value.to_owned(), source });
                    }
                }
            }
        }
        Ok(())
    }

    /// The quota of CPU time, -1 for none, and its period, us, as they stand.
    pub fn cpu_quota(&self) -> Option<(i64, u64)> {
        self.dirs.iter().find_map(|(hierarchy, dir)| {
            let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
            let text = match hierarchy.unified {
                true => read("cpu.max")?,
                false => format!("{} {}", read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?),
            };
            let mut words = text.split_whitespace();
            let (quota, period) = (words.next()?, words.next()?);
            Some((if quota == "max" { -1 } else { quota.parse().ok()? }, period.parse().ok()?))
        })
    }

    /// Files for a process to join by writing "0" to each, before it executes the VMM: what that
    /// starts is then in the cgroup as well.
    pub fn entrances(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let open = |(_, dir): &(Hierarchy, PathBuf)| {
            let path = dir.join(PROCS);
            let file = File::options().write(true).open(&path);
            file.map(OwnedFd::from).map_err(|source| CgroupError::Create { path, source })
        };
        self.dirs.iter().map(open).collect()
    }

    /// Kills what is left in it and removes it; not being there is as good.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let until = Instant::now() + EMPTY_MAX;
        for (_, dir) in &self.dirs {
            remove(dir, until, DEPTH_MAX)
                .map_err(|source| CgroupError::Remove { path: dir.clone(), source })?;
        }
        Ok(())
    }
}

/// Makes the directories down to `dir`, each with the controllers of the one above.
fn make(hierarchy: &Hierarchy, dir: &Path) -> Result<(), CgroupError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CgroupError::Create { path, source }
    };
    let below = dir.strip_prefix(&hierarchy.root).unwrap_or(dir);
    let mut at = hierarchy.root.clone();
    for word in below.components() {
        if hierarchy.unified {
            hand_down(&at);
        }
        let parent = at.clone();
        at.push(word);
        match fs::create_dir(&at) {
            Ok(()) if hierarchy.controllers.iter().any(|name| name == "cpuset") => {
                inherit_cpuset(&parent, &at).map_err(failed(&at))?;
            }
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(&at)(error)),
        }
    }
    Ok(())
}

/// Lets the children of a cgroup (version 2) have its controllers, as far as it may.
fn hand_down(dir: &Path) {
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        let _ = write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
    }
}

/// A new cpuset (version 1) is empty, and takes no process until it is not.
fn inherit_cpuset(from: &Path, to: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        write(&to.join(file), fs::read_to_string(from.join(file))?.trim())?;
    }
    Ok(())
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    // Not created, should it be missing: one write to what the kernel made.
    rustix::io::write(File::options().write(true).open(path)?, value.as_bytes())?;
    Ok(())
}

fn remove(dir: &Path, until: Instant, depth: usize) -> io::Result<()> {
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= until || depth == 0 => return Err(error),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            result => return result,
        }
        kill(dir);
        for child in fs::read_dir(dir)?.flatten().filter(|entry| entry.path().is_dir()) {
            remove(&child.path(), until, depth - 1)?;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Kills the processes in a cgroup and, with version 2, below it.
fn kill(dir: &Path) {
    if write(&dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let procs = fs::read_to_string(dir.join(PROCS)).unwrap_or_default();
    let pids = procs.lines().filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?));
    for pid in pids {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests;
