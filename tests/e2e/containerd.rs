//! Debian's containerd with bulkhead in the place of its runc: `ctr` through io.containerd.runc.v2.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use bulkhead_tests::podman::{IMAGE, Podman};
use bulkhead_tests::{Finished, binary, finish, until};
use tempfile::TempDir;

const RUNTIME: &str = "io.containerd.runc.v2";

/// A containerd with state of its own, ended when dropped.
pub struct Containerd {
    dir: TempDir,
    daemon: Child,
    namespace: &'static str,
}

impl Containerd {
    /// One with this added to its configuration, of which [`Self::ctr`] sees one namespace.
    pub fn start(more: &str, namespace: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("bh-ctd-").tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n{more}\n[grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("sock"),
        );
        fs::write(path("config.toml"), config).expect("a file");
        let log = fs::File::create(path("log")).expect("a file");
        let mut daemon = Command::new("containerd");
        daemon.arg("-c").arg(path("config.toml")).args(["-l", "error"]);
        let daemon = daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let daemon = daemon.expect("containerd starts");
        let containerd = Self { dir, daemon, namespace };
        until("containerd answers", || containerd.ctr(&["version"]).code == 0);
        containerd
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where it is called.
    pub fn socket(&self) -> PathBuf {
        self.path("sock")
    }

    /// Takes images over from `podman`.
    pub fn import(&self, podman: &Podman, images: &[&str]) {
        let archive = self.path("images.tar");
        let archive = archive.to_str().expect("ASCII");
        podman.call([&["save", "-q", "-m", "-o", archive], images].concat()).ok();
        self.ctr(&["image", "import", archive]).ok();
    }

    #[track_caller]
    pub fn ctr(&self, args: &[&str]) -> Finished {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a").arg(self.socket()).args(["-n", self.namespace]).args(args);
        ctr.stdin(Stdio::null());
        finish(ctr)
    }

    /// `ctr run OPTION IMAGE NAME sh -c SCRIPT`
    #[track_caller]
    fn run(&self, option: &str, name: &str, script: &str) -> Finished {
        let bulkhead = binary("bulkhead").display().to_string();
        let start = ["run", "--runtime", RUNTIME, "--runc-binary", &bulkhead, option];
        self.ctr(&[&start, &["localhost/busybox:latest", name, "sh", "-c", script][..]].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[test]
fn ctr_runs_executes_pauses_kills_and_removes() {
    let containerd =
        Containerd::start("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]", "default");
    containerd.import(&Podman::new(), &[IMAGE]);
    let finished = containerd.run("--rm", "one", "echo out; echo err >&2; uname -r; exit 7");
    assert_eq!((finished.code, &*finished.stderr), (7, "err\n"), "{finished:#?}");
    let here = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let (out, there) = finished.stdout.split_once('\n').expect("two lines");
    assert!(out == "out" && there != here, "a kernel of its own: {finished:#?}");

    containerd.run("-d", "two", "trap 'exit 5' TERM; while :; do sleep 0.1; done").ok();
    let exec = ["task", "exec", "--exec-id", "e", "two", "sh", "-c", "echo in; exit 3"];
    let finished = containerd.ctr(&exec);
    assert_eq!((finished.code, &*finished.stdout), (3, "in\n"), "{finished:#?}");
    let listed = containerd.ctr(&["task", "ps", "two"]).ok();
    let pid = listed.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("a PID");
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).expect("a process of the host");
    assert_eq!(name, "bulkhead-vmm\n");
    assert!(containerd.ctr(&["task", "metrics", "two"]).ok().contains("memory.usage"));
    let status = || containerd.ctr(&["task", "ls"]).ok();
    containerd.ctr(&["task", "pause", "two"]).ok();
    assert!(status().contains("PAUSED"), "{}", status());
    containerd.ctr(&["task", "resume", "two"]).ok();
    containerd.ctr(&["task", "kill", "-s", "TERM", "two"]).ok();
    until("it has stopped", || status().contains("STOPPED"));
    let removed = containerd.ctr(&["task", "rm", "two"]);
    assert!(removed.stderr.contains("exit code 5"), "{removed:#?}");
    containerd.ctr(&["container", "rm", "two"]).ok();
}
