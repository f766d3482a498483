//! What the end-to-end tests share: a root file system of one's own, and `bulkhead run` on it.
//!
//! `make e2e` builds everything and runs the suite where VMs can run.

pub mod bundle;
pub mod image;
pub mod inject;
pub mod podman;
pub mod registry;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longer than anything here takes in the lab; a test that hangs fails with what it printed.
const TIMEOUT: Duration = Duration::from_secs(240);

/// A path from the environment that the test's script has set.
pub fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).map(PathBuf::from).unwrap_or_else(|| {
        panic!("{name} is not set: run the end-to-end tests with `make e2e`, which builds what they need")
    })
}

/// A binary of the build under test.
pub fn binary(name: &str) -> PathBuf {
    variable("BULKHEAD_TEST_BIN").join(name)
}

/// The shared busybox root; writes to it stay in the lab, but other tests see them.
pub fn busybox() -> PathBuf {
    variable("BULKHEAD_TEST_BUSYBOX")
}

/// The shared Debian root; writes to it stay in the lab, but other tests see them.
pub fn debian() -> PathBuf {
    variable("BULKHEAD_TEST_DEBIAN")
}

/// The guest's kernel as a bzImage, as distributions ship theirs.
pub fn bzimage() -> PathBuf {
    variable("BULKHEAD_TEST_BZIMAGE")
}

/// A busybox root file system and a state directory of a test's own.
pub struct Host {
    /// Everything this test has on disk.
    pub dir: TempDir,
    /// The root file system.
    pub rootfs: PathBuf,
    /// bulkhead's state directory.
    pub state: PathBuf,
}

impl Host {
    /// A fresh copy of the busybox root.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("bulkhead-e2e-")
            .tempdir()
            .expect("a temporary directory");
        let (rootfs, state) = (dir.path().join("rootfs"), dir.path().join("state"));
        let copied = Command::new("cp").arg("-a").arg(busybox()).arg(&rootfs).status();
        assert!(copied.expect("cp runs").success(), "the busybox root can be copied");
        Self { dir, rootfs, state }
    }

    /// A path of the host in this test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `bulkhead --root STATE ARGS...`
    pub fn bulkhead<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binary("bulkhead"));
        command.arg("--root").arg(&self.state).args(args).stdin(Stdio::null());
        command
    }

    /// `bulkhead run --rootfs ROOTFS OPTIONS... -- COMMAND...`
    pub fn run(&self, options: &[&str], command: &[&str]) -> Command {
        let mut run = self.bulkhead(["run", "--rootfs"]);
        run.arg(&self.rootfs).args(options).arg("--").args(command);
        run
    }

    /// Runs `script` with the container's shell and no options.
    pub fn sh(&self, script: &str) -> Finished {
        finish(self.run(&[], &["sh", "-c", script]))
    }

    /// What the state directory holds besides the things that stay between containers.
    pub fn leftovers(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.state) else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code, 128 + n for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Asserts success; returns standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "the command succeeds: {self:#?}");
        self.stdout
    }

    /// Asserts that it failed with `code` and one sentence that holds `words`.
    #[track_caller]
    pub fn fails(self, code: i32, words: &str) {
        assert_eq!(self.code, code, "the exit code: {self:#?}");
        let said = self.stderr.lines().filter(|line| line.starts_with("bulkhead")).count();
        assert_eq!(said, 1, "one sentence of bulkhead's own: {self:#?}");
        assert!(self.stderr.contains(words), "it says {words:?}: {self:#?}");
        assert!(!self.stderr.contains("panicked"), "no panic: {self:#?}");
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let signal = || 128 + output.status.signal().unwrap_or(0);
        Self {
            code: output.status.code().unwrap_or_else(signal),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Starts `command` with its streams kept.
pub fn start(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("{command:?} starts: {error}"))
}

/// Runs `command` to its end.
#[track_caller]
pub fn finish(command: Command) -> Finished {
    wait(start(command))
}

/// Runs `command` to its end with `input` as its standard input.
#[track_caller]
pub fn finish_with_input(mut command: Command, input: &[u8]) -> Finished {
    let mut child = start_with_stdin(&mut command);
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let finished = wait(child);
    // A container that ends early closes the pipe: the test looks at what it said.
    let _ = writer.join().expect("the writer does not panic");
    finished
}

fn start_with_stdin(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("{command:?} starts: {error}"))
}

/// Waits for a started command; kills it and fails after a time no test should need.
#[track_caller]
pub fn wait(child: Child) -> Finished {
    let pid = child.id();
    let (done, timed_out) = std::sync::mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        let late = timed_out
            .recv_timeout(TIMEOUT)
            .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            signal(pid, "KILL");
        }
        late
    });
    let output = child.wait_with_output().expect("the child can be waited for");
    drop(done);
    let late = watchdog.join().expect("the watchdog does not panic");
    let finished = Finished::from(output);
    assert!(!late, "the command did not end within {TIMEOUT:?}: {finished:#?}");
    finished
}

/// Sends a signal by name.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(sent.expect("kill runs").success(), "process {pid} can be signalled");
}

/// Waits until `condition` holds; fails with `what` if it never does.
#[track_caller]
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never came to be that {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Processes of bulkhead that run now, as `PID COMMAND`; the caller's own `bulkhead` is among them.
pub fn processes() -> Vec<String> {
    let Ok(proc) = fs::read_dir("/proc") else { return Vec::new() };
    proc.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let pid = path.file_name()?.to_str()?;
        name.starts_with("bulkhead").then(|| format!("{pid} {}", name.trim()))
    })
    .collect()
}

/// Whether a VMM's guest memory is a template's.
pub fn is_cloned(vmm: u32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{vmm}/maps")).expect("a process");
    maps.lines().any(|line| line.contains("templates/") && line.ends_with("/memory"))
}

/// The child of `parent` whose command is `name`.
pub fn child_named(parent: u32, name: &str) -> u32 {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.expect("the kernel lists children");
    let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    let comm = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // The kernel keeps 15 bytes of a command's name.
    let found = pids.into_iter().find(|pid| comm(*pid).trim() == &name[..name.len().min(15)]);
    found.unwrap_or_else(|| panic!("{name} is a child of {parent}"))
}

/// The SHA-256 of every file below `dir`, as `sha256sum` prints them in the order of their names.
pub fn checksums(dir: &Path) -> String {
    let script = "find . -type f | LC_ALL=C sort | xargs sha256sum";
    let output = Command::new("sh").args(["-c", script]).current_dir(dir).output();
    String::from_utf8(output.expect("sha256sum runs").stdout).expect("names are ASCII")
}
