//! A bulkhead-vmm that outlives the `bulkhead` that starts it.
//!
//! It has a session of its own and the caller's standard streams, or a terminal. A pipe is its leash
//! (vmm/src/leash.rs): until [`Detached::let_go`], it ends when we end, whatever we die of. Its report
//! goes to a file.

use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bulkhead_vmm::spec::VmSpec;
use rustix::process::Pid;

use super::container::REPORT;
use super::record::HostProcess;
use crate::state::VmDir;
use crate::vmm::{VmmError, bind, json_file};

/// What a VMM is started in.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Becomes its standard streams and its controlling terminal.
    pub terminal: Option<OwnedFd>,
    /// Files by which it enters its cgroups.
    pub cgroups: Vec<OwnedFd>,
}

/// A VMM on its leash.
#[derive(Debug)]
pub struct Detached {
    /// As its child, for whoever waits for it.
    pub child: Child,
    /// Known again by later calls.
    pub process: HostProcess,
    leash: PipeWriter,
}

impl Detached {
    /// Binds the VM's sockets and starts `program` with `spec`.
    pub fn start(
        program: &Path,
        spec: VmSpec,
        dir: &VmDir,
        surroundings: Surroundings,
    ) -> Result<Self, VmmError> {
        let listener = bind(dir.socket())?;
        let control = bind(dir.control_socket())?;
        let report = File::create(dir.path().join(REPORT)).map_err(VmmError::Handover)?;
        let (leash_end, leash) = io::pipe().map_err(VmmError::Handover)?;
        let spec = VmSpec {
            vsock_fd: Some(listener.as_raw_fd()),
            control_fd: Some(control.as_raw_fd()),
            report_fd: Some(report.as_raw_fd()),
            leash_fd: Some(leash_end.as_raw_fd()),
            host_events: true,
            keep_fds: vec![dir.lock().as_raw_fd()],
            ..spec
        };
        let json = json_file(&spec).map_err(VmmError::Handover)?;
        let inherited = [
            listener.as_fd(),
            control.as_fd(),
            report.as_fd(),
            leash_end.as_fd(),
            json.as_fd(),
            dir.lock(),
        ];
        let inherited = inherited.iter().map(|fd| fd.as_raw_fd()).chain(spec.tap_fds()).collect();
        let mut command = Command::new(program);
        command.arg("--spec-fd").arg(json.as_raw_fd().to_string());
        if let Some(terminal) = &surroundings.terminal {
            let copy = || terminal.try_clone().map(Stdio::from).map_err(VmmError::Handover);
            command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
        }
        prepare(&mut command, inherited, &surroundings);
        let failed = |source| VmmError::Spawn { program: program.to_owned(), source };
        let mut child = command.spawn().map_err(failed)?;
        match HostProcess::identify(Pid::from_child(&child)) {
            Ok(process) => Ok(Self { child, process, leash }),
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                Err(failed(error))
            }
        }
    }

    /// Ends the VM, unless it has ended already, and waits for that.
    pub fn kill(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }

    /// Lets the VMM live on without us.
    pub fn let_go(mut self) {
        // If it has ended in the meantime, its exit code tells whoever waits for it.
        let _ = self.leash.write_all(&[1]);
    }
}

/// A new session, signals as a new program expects them, and the descriptors inherited.
fn prepare(command: &mut Command, inherited: Vec<RawFd>, surroundings: &Surroundings) {
    let has_terminal = surroundings.terminal.is_some();
    let cgroups: Vec<RawFd> = surroundings.cgroups.iter().map(AsRawFd::as_raw_fd).collect();
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
            for fd in &inherited {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing, takes no lock, and makes only system calls.
    unsafe { command.pre_exec(in_child) };
}
