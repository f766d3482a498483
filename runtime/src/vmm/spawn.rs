//! Starting bulkhead-vmm: what every VM needs from whoever starts it, for a moment or for good.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use bulkhead_vmm::spec::{SnapshotFiles, VmSpec};
use rustix::fs::MemfdFlags;

use super::VmmError;
use crate::short_path::ShortPath;
use crate::state::VmDir;
use crate::templates::{Snapshot, Template};

/// How the VM comes to run.
#[derive(Clone, Copy, Debug)]
pub enum Course<'a> {
    /// It boots.
    Boot,
    /// It goes on where the template stands.
    Clone(&'a Template),
    /// It goes on where the container that was saved stands.
    Restore(&'a Snapshot),
    /// It boots, to become the template in these files.
    Save(&'a Template),
}

impl<'a> Course<'a> {
    /// By clone, if there is a template.
    pub fn by(template: Option<&'a Template>) -> Self {
        template.map_or(Self::Boot, Self::Clone)
    }

    /// The file that the VM's memory will be a mapping of, if it has a name.
    pub fn mapped(self) -> Option<PathBuf> {
        match self {
            Self::Clone(files) => files.snapshot.mapped.clone(),
            Self::Restore(files) => files.mapped.clone(),
            Self::Boot | Self::Save(_) => None,
        }
    }

    fn saves_to(self) -> Option<SnapshotFiles> {
        if let Self::Save(files) = self { Some(snapshot_files(&files.snapshot)) } else { None }
    }

    fn goes_on_from(self) -> Option<SnapshotFiles> {
        match self {
            Self::Clone(files) => Some(snapshot_files(&files.snapshot)),
            Self::Restore(files) => Some(snapshot_files(files)),
            Self::Boot | Self::Save(_) => None,
        }
    }

    fn working_set(self) -> Option<RawFd> {
        if let Self::Clone(files) = self { Some(files.working_set.as_raw_fd()) } else { None }
    }
}

fn snapshot_files(files: &Snapshot) -> SnapshotFiles {
    SnapshotFiles {
        state_fd: files.state.as_raw_fd(),
        memory_fd: files.memory.as_raw_fd(),
        base_fd: files.base.as_ref().map(AsRawFd::as_raw_fd),
    }
}

/// Binds the VM's sockets in `dir` and starts `program` with `spec`, which says already what is the
/// caller's to choose: shares, taps, leash. The VMM's report goes to `report`; `prepare` has the
/// last word on its streams and on what it does before it executes.
pub fn spawn(
    program: &Path,
    spec: VmSpec,
    dir: &VmDir,
    course: Course<'_>,
    report: BorrowedFd<'_>,
    prepare: impl FnOnce(&mut Command),
) -> Result<Child, VmmError> {
    let listener = bind(dir.socket())?;
    let control = bind(dir.control_socket())?;
    let spec = VmSpec {
        vsock_fd: Some(listener.as_raw_fd()),
        control_fd: Some(control.as_raw_fd()),
        report_fd: Some(report.as_raw_fd()),
        keep_fds: spec.keep_fds.iter().copied().chain([dir.lock().as_raw_fd()]).collect(),
        template: course.saves_to(),
        restore: course.goes_on_from(),
        working_set_fd: course.working_set(),
        ..spec
    };
    let json = json_file(&spec).map_err(VmmError::Handover)?;
    let mut command = Command::new(program);
    command.arg("--spec-fd").arg(json.as_raw_fd().to_string());
    prepare(&mut command);
    // Not in the child: std copies our memory for one that has things to do before it executes.
    let inherited = Inherited::new(spec.inherited_fds().chain([json.as_raw_fd()]));
    let _inherited = inherited.map_err(VmmError::Handover)?;
    command.spawn().map_err(|source| VmmError::Spawn { program: program.to_owned(), source })
}

fn bind(path: PathBuf) -> Result<UnixListener, VmmError> {
    let listener = ShortPath::of(&path).and_then(UnixListener::bind);
    listener.map_err(|source| VmmError::Bind { path, source })
}

fn json_file(spec: &VmSpec) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("vm-spec", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(spec)?)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file)
}

/// Descriptors that a program executed meanwhile inherits. No other thread of ours executes one then.
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// These.
    pub fn new(fds: impl Iterator<Item = RawFd>) -> io::Result<Self> {
        let fds = Self(fds.collect());
        fds.set_flags(0).map(|()| fds)
    }

    fn set_flags(&self, flags: i32) -> io::Result<()> {
        for fd in &self.0 {
            // SAFETY: F_SETFD takes a number.
            if unsafe { libc::fcntl(*fd, libc::F_SETFD, flags) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        let _ = self.set_flags(libc::FD_CLOEXEC);
    }
}
