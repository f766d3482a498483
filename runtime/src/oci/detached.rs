//! A process that stands for a container and outlives the `bulkhead` that starts it: its bulkhead-vmm, or
//! of a container in another one's VM what stays of ours (member.rs).
//!
//! It has a session of its own and the caller's standard streams, or a terminal. A pipe is its leash
//! (vmm/src/leash.rs): until [`Detached::let_go`], it ends when we end, whatever we die of. Its report
//! goes to a file.

use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use bulkhead_vmm::spec::VmSpec;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};

use super::container::REPORT;
use super::record::HostProcess;
use crate::state::VmDir;
use crate::vmm::{Course, VmmError, spawn};

/// What a VMM is started in.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Becomes its standard streams and its controlling terminal.
    pub terminal: Option<OwnedFd>,
    /// Files by which it enters its cgroups.
    pub cgroups: Vec<OwnedFd>,
}

/// A child of ours on its leash.
#[derive(Debug)]
pub struct Detached {
    /// Known again by later calls.
    pub process: HostProcess,
    pid: Pid,
    leash: PipeWriter,
}

impl Detached {
    /// Binds the VM's sockets and starts `program` with `spec`.
    pub fn start(
        program: &Path,
        spec: VmSpec,
        dir: &VmDir,
        course: Course<'_>,
        surroundings: Surroundings,
    ) -> Result<Self, VmmError> {
        let report = File::create(dir.path().join(REPORT)).map_err(VmmError::Handover)?;
        let (leash_end, leash) = io::pipe().map_err(VmmError::Handover)?;
        let spec = VmSpec { leash_fd: Some(leash_end.as_raw_fd()), ..spec };
        let terminal = surroundings.terminal.as_ref().map(terminal_streams).transpose();
        let terminal = terminal.map_err(VmmError::Handover)?;
        let mut child = spawn(program, spec, dir, course, report.as_fd(), |command| {
            let has_terminal = terminal.is_some();
            if let Some([stdin, stdout, stderr]) = terminal {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
            }
            prepare(command, has_terminal, &surroundings.cgroups);
        })?;
        Self::of(Pid::from_child(&child), leash).map_err(|error| {
            let _ = child.kill().and_then(|()| child.wait());
            VmmError::Spawn { program: program.to_owned(), source: error }
        })
    }

    /// A child, which nobody else waits for, with the end of its leash.
    pub fn of(pid: Pid, leash: PipeWriter) -> io::Result<Self> {
        Ok(Self { process: HostProcess::identify(pid)?, pid, leash })
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        Ok(pidfd_open(self.pid, PidfdFlags::empty())?)
    }

    /// Waits for it to end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let waited = self.reap(WaitOptions::empty())?;
        waited.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// What it ended with, if it has.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap(WaitOptions::NOHANG)
    }

    fn reap(&self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        let waited = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), options))?;
        Ok(waited.map(|(_, status)| ExitStatus::from_raw(status.as_raw())))
    }

    /// Ends it, unless it has ended already, and waits for that.
    pub fn kill(&mut self) {
        // One that was waited for before is another's by now: its number is compared first.
        if let Some(process) = self.process.find() {
            let _ = pidfd_send_signal(process, Signal::KILL);
            let _ = self.wait();
        }
    }

    /// Lets it live on without us.
    pub fn let_go(mut self) {
        // If it has ended in the meantime, its exit code tells whoever waits for it.
        let _ = self.leash.write_all(&[1]);
    }
}

fn terminal_streams(terminal: &OwnedFd) -> io::Result<[Stdio; 3]> {
    let copy = || terminal.try_clone().map(Stdio::from);
    Ok([copy()?, copy()?, copy()?])
}

/// A new session, and signals as a new program expects them.
fn prepare(command: &mut Command, has_terminal: bool, cgroups: &[OwnedFd]) {
    let cgroups: Vec<RawFd> = cgroups.iter().map(AsRawFd::as_raw_fd).collect();
    let in_child = move || {
        // SAFETY: the calls take no pointers but to `set`, a local, and to a constant, and are safe
        // between fork and exec.
        unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&raw mut set);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
            // Ignored signals would stay so, and never be passed on.
            for signal in bulkhead_vmm::signals::PASSED_ON {
                libc::signal(signal, libc::SIG_DFL);
            }
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            if has_terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            for fd in &cgroups {
                // 0 is the writer itself (admin-guide/cgroup-v2.rst, "Processes").
                if libc::write(*fd, b"0".as_ptr().cast(), 1) != 1 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing, takes no lock, and makes only system calls.
    unsafe { command.pre_exec(in_child) };
}
