//! Podman with bulkhead as its runtime, with storage and networks of its own.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::{Finished, binary, busybox, finish, finish_with_input};

/// The image all tests run.
pub const IMAGE: &str = "localhost/busybox";

/// A podman that knows one image and one runtime. Its storage is on tmpfs where /tmp is, as in the
/// lab; overlayfs needs a file system that is no overlay itself.
pub struct Podman {
    dir: TempDir,
}

impl Podman {
    /// Fresh storage with [`IMAGE`] made of the busybox root.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("bulkhead-podman-").tempdir();
        let podman = Self { dir: dir.expect("a temporary directory") };
        // What the README tells users to put there, and no init system.
        let conf = format!(
            "[network]\nnetwork_backend = \"netavark\"\n[containers]\nlog_driver = \"k8s-file\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             runtime_supports_json = [\"bulkhead\"]\n\
             [engine.runtimes]\nbulkhead = [{:?}]\n",
            binary("bulkhead"),
        );
        fs::write(podman.path("containers.conf"), conf).expect("a file");
        let tar = podman.path("root.tar");
        let packed =
            Command::new("tar").arg("-C").arg(busybox()).arg("-cf").arg(&tar).arg(".").status();
        assert!(packed.expect("tar runs").success(), "the busybox root is packed");
        podman.call(["import", "-q", tar.to_str().expect("ASCII"), IMAGE]).ok();
        fs::remove_file(tar).expect("the archive is there");
        podman
    }

    /// A path of the host in this podman's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `podman ARGS...`
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("podman");
        let option = |name: &str, value: &Path| format!("--{name}={}", value.display());
        command
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .arg("--runtime=bulkhead")
            .arg(option("root", &self.path("storage")))
            .arg(option("runroot", &self.path("run")))
            .arg(option("tmpdir", &self.path("tmp")))
            .arg(option("network-config-dir", &self.path("networks")))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs `podman ARGS...` to its end.
    #[track_caller]
    pub fn call<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        finish(self.command(args))
    }

    /// The same with `input` as its standard input.
    #[track_caller]
    pub fn call_with_input<const N: usize>(&self, args: [&str; N], input: &[u8]) -> Finished {
        finish_with_input(self.command(args), input)
    }

    /// `podman run --rm OPTIONS... IMAGE sh -c SCRIPT`
    #[track_caller]
    pub fn run(&self, options: &[&str], script: &str) -> Finished {
        self.call(
            [&["run", "--rm", "--network=none"], options, &[IMAGE, "sh", "-c", script]].concat(),
        )
    }

    /// `podman run -d --name NAME OPTIONS... IMAGE sh -c SCRIPT`
    #[track_caller]
    pub fn start(&self, name: &str, options: &[&str], script: &str) {
        let start = ["run", "-d", "--network=none", "--name", name];
        self.call([&start, options, &[IMAGE, "sh", "-c", script]].concat()).ok();
    }

    /// Containers that bulkhead still knows.
    pub fn left(&self) -> Vec<String> {
        // Not one of our own: podman passes --runtime-flag to all calls but those that clean up.
        let Ok(entries) = fs::read_dir("/run/bulkhead") else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// Runs podman on a pseudo-terminal and has a Python `script` speak to it: `send(bytes)`,
    /// `expect(bytes)`, `resize(rows, columns)`. Returns podman's exit code.
    #[track_caller]
    pub fn on_a_terminal(&self, args: &[&str], script: &str) -> i32 {
        let command = self.command(args);
        let driver = self.path("terminal.py");
        let mut file = fs::File::create(&driver).expect("a file");
        file.write_all(TERMINAL.as_bytes())
            .and_then(|()| file.write_all(script.as_bytes()))
            .and_then(|()| file.write_all(TERMINAL_END.as_bytes()))
            .expect("a script");
        let mut python = Command::new("python3");
        python.arg(driver).arg(command.get_program()).args(command.get_args());
        python.env("CONTAINERS_CONF", self.path("containers.conf")).stdin(Stdio::null());
        let finished = finish(python);
        assert!(finished.stderr.is_empty(), "{finished:#?}");
        finished.code
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Whatever a failed test left: its mounts would keep the directory.
        let _ = self.command(["rm", "-fa", "-t", "0"]).output();
        let _ = self.command(["rmi", "-fa"]).output();
    }
}

const TERMINAL: &str = r#"
import fcntl, os, pty, select, struct, sys, termios, time
pid, master = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
said = b''
def resize(rows, columns):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
def send(text):
    os.write(master, text)
def expect(text):
    global said
    end = time.time() + 60
    while text not in said:
        ready, _, _ = select.select([master], [], [], max(0, end - time.time()))
        if not ready:
            sys.exit(f'never said {text!r}, only {said!r}')
        try:
            said += os.read(master, 4096)
        except OSError:
            sys.exit(f'ended without {text!r}: {said!r}')
    said = said[said.index(text) + len(text):]
resize(30, 100)
"#;

const TERMINAL_END: &str = r#"
try:
    while os.read(master, 4096): pass
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;
