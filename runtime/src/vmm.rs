//! The bulkhead-vmm process of a VM: how it is started, and what it says when it ends.

mod spawn;

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use bulkhead_vmm::spec::{Report, VmSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub use self::spawn::{Course, Inherited, spawn};
use crate::state::VmDir;

/// The longest report that is read: the timeline and a kernel's last lines are far shorter.
const REPORT_MAX: u64 = 1 << 20;

/// Why a VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error("cannot bind the VM's socket {}: {source}", .path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    #[error("cannot hand the VM spec over: {0}")]
    Handover(#[source] io::Error),
    #[error("cannot start {}: {source}", .program.display())]
    Spawn {
        /// The VMM.
        program: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

/// What the container's standard input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Ours.
    Inherited,
    /// At its end from the beginning.
    Empty,
    /// Open, but nothing ever comes: a terminal that nobody types at.
    Silent,
}

/// A running VMM.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    pidfd: OwnedFd,
    report: Option<PipeReader>,
    said: Vec<u8>,
    // The writing end of `Input::Silent`.
    _silence: Option<io::PipeWriter>,
}

impl Vmm {
    /// Binds the VM's sockets and starts `program` with `spec`; it dies with us.
    pub fn start(
        program: &Path,
        spec: VmSpec,
        dir: &VmDir,
        input: Input,
        course: Course<'_>,
    ) -> Result<Self, VmmError> {
        let (report, writer) = io::pipe().map_err(VmmError::Handover)?;
        let spec = VmSpec { dies_with: Some(std::process::id()), ..spec };
        let (stdin, silence) = stdin(input).map_err(VmmError::Handover)?;
        let mut child = spawn(program, spec, dir, course, writer.as_fd(), |command| {
            command.stdin(stdin);
            if let Course::Save(_) = course {
                // What becomes a template is nobody's container.
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        })?;
        match pidfd(&child) {
            Ok(pidfd) => {
                let (report, said) = (Some(report), Vec::new());
                Ok(Self { child, pidfd, report, said, _silence: silence })
            }
            Err(source) => {
                let _ = child.kill().and_then(|()| child.wait());
                Err(VmmError::Spawn { program: program.to_owned(), source })
            }
        }
    }

    /// Its process ID, which is nobody else's until it is waited for.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Readable when the VMM has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits for the VMM to end, at most so long; whether it has. [`Vmm::wait`] still has to be called.
    pub fn has_ended_within(&self, time: Duration) -> bool {
        let timeout = Timespec::try_from(time).ok();
        let ended = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], timeout.as_ref());
        matches!(ended, Ok(1..))
    }

    /// Readable when the VMM reports; `None` after that.
    pub fn report_fd(&self) -> Option<BorrowedFd<'_>> {
        self.report.as_ref().map(AsFd::as_fd)
    }

    /// Reads what there is of the report; to be called when [`Vmm::report_fd`] is readable.
    pub fn read_report(&mut self) {
        let Some(report) = &mut self.report else { return };
        let mut buffer = [0; 4096];
        match report.read(&mut buffer) {
            Ok(length @ 1..) if self.said.len() as u64 + (length as u64) <= REPORT_MAX => {
                self.said.extend_from_slice(&buffer[..length]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => self.report = None,
        }
    }

    /// Ends the VM at once.
    pub fn kill(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
    }

    /// Waits for the VMM to end; returns how it did and what it reported, if that makes sense.
    pub fn wait(mut self) -> io::Result<(ExitStatus, Option<Report>)> {
        let status = self.child.wait()?;
        if let Some(report) = self.report.take() {
            // Not until end of file: a process the VMM left behind could hold the other end.
            rustix::io::ioctl_fionbio(&report, true)?;
            let mut rest = Vec::new();
            let _ = report.take(REPORT_MAX).read_to_end(&mut rest);
            self.said.extend(rest);
        }
        Ok((status, serde_json::from_slice(&self.said).ok()))
    }
}

/// How a VMM ended that reported nothing, as one clause.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("bulkhead-vmm was killed by signal {signal}"),
        (code, _) => format!("bulkhead-vmm ended with code {} and no report", code.unwrap_or(0)),
    }
}

fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    let pid = Pid::from_child(child);
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn stdin(input: Input) -> io::Result<(Stdio, Option<io::PipeWriter>)> {
    Ok(match input {
        Input::Inherited => (Stdio::inherit(), None),
        Input::Empty => (Stdio::null(), None),
        Input::Silent => {
            let (reader, writer) = io::pipe()?;
            (reader.into(), Some(writer))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_vmm::spec::Outcome;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    struct Fake {
        dir: tempfile::TempDir,
        root: crate::state::Root,
    }

    impl Fake {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = crate::state::Root::choose(Some(dir.path().join("root"))).unwrap();
            root.create().unwrap();
            Self { dir, root }
        }

        /// Starts a shell script in the VMM's place.
        fn start(&self, script: &str, input: Input) -> (Vmm, VmDir) {
            let program = self.dir.path().join("vmm");
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let dir = self.root.claim("vm").unwrap();
            let vmm = loop {
                match Vmm::start(&program, spec(), &dir, input, Course::Boot) {
                    // Another test's fork may hold the script open for writing for a moment.
                    Err(VmmError::Spawn { source, .. })
                        if source.kind() == io::ErrorKind::ExecutableFileBusy =>
                    {
                        fs::remove_file(dir.socket()).unwrap();
                        fs::remove_file(dir.control_socket()).unwrap();
                    }
                    started => break started.unwrap(),
                }
            };
            (vmm, dir)
        }
    }

    fn spec() -> VmSpec {
        VmSpec {
            name: "vm".to_owned(),
            vcpus: 1,
            memory_mib: 128,
            kernel: "/k".into(),
            init: "/i".into(),
            cmdline: Vec::new(),
            cid: 3,
            vsock: "/v".into(),
            vsock_fd: None,
            control_fd: None,
            template: None,
            restore: None,
            working_set_fd: None,
            shares: Vec::new(),
            window_mib: Some(0),
            nets: Vec::new(),
            net_places: 0,
            limits: Default::default(),
            terminal: false,
            console: false,
            report_fd: None,
            host_events: false,
            leash_fd: None,
            dies_with: None,
            jail: Default::default(),
            keep_fds: Vec::new(),
            timeline_from_ns: None,
        }
    }

    #[test]
    fn the_spec_arrives_and_the_report_comes_back() {
        let fake = Fake::new();
        let script = r#"
            fd=$(sed 's/.*"report_fd":\([0-9]*\).*/\1/' /dev/fd/$2)
            echo '{"outcome":{"exited":{"code":7,"oom_killed":false}}}' > /dev/fd/$fd
            exit 7"#;
        let (vmm, _dir) = fake.start(script, Input::Empty);
        let (status, report) = vmm.wait().unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(report.unwrap().outcome, Outcome::Exited { code: 7, oom_killed: false });
    }

    #[test]
    fn a_vmm_without_a_report_is_described() {
        let fake = Fake::new();
        for (script, clause) in [
            ("exit 3", "bulkhead-vmm ended with code 3 and no report"),
            ("kill -9 $$", "bulkhead-vmm was killed by signal 9"),
        ] {
            let (vmm, _dir) = fake.start(script, Input::Empty);
            let (status, report) = vmm.wait().unwrap();
            assert_eq!((report, describe(status).as_str()), (None, clause));
        }
    }

    #[test]
    fn the_socket_listens_before_the_vmm_does_anything() {
        let fake = Fake::new();
        let (mut vmm, dir) = fake.start("exec sleep 60", Input::Empty);
        assert!(std::os::unix::net::UnixStream::connect(dir.socket()).is_ok());
        vmm.kill();
        assert_eq!(vmm.wait().unwrap().0.signal(), Some(9));
    }

    #[test]
    fn no_input_is_either_at_its_end_or_silent() {
        let fake = Fake::new();
        let (vmm, dir) = fake.start("cat; exit 5", Input::Empty);
        assert_eq!(vmm.wait().unwrap().0.code(), Some(5));
        drop(dir);
        let (mut vmm, _dir) = fake.start("cat; exit 5", Input::Silent);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(vmm.child.try_wait().unwrap().is_none());
        vmm.kill();
        vmm.wait().unwrap();
    }

    #[test]
    fn a_missing_vmm_is_named() {
        let fake = Fake::new();
        let dir = fake.root.claim("vm").unwrap();
        let error =
            Vmm::start(Path::new("/nonexistent/vmm"), spec(), &dir, Input::Empty, Course::Boot);
        assert!(error.unwrap_err().to_string().contains("/nonexistent/vmm"));
    }
}
