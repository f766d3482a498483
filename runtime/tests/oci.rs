//! The OCI command line as a container engine calls it, with examples/fake-oci-vmm.rs in the VMM's
//! place and this process as the subreaper that engines put above it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

const BULKHEAD: &str = env!("CARGO_BIN_EXE_bulkhead");

/// A host on which the probe has found KVM good, with all assets.
struct Host {
    dir: tempfile::TempDir,
}

/// How a command ended and what it said.
#[derive(Debug)]
struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Said {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!((self.code, &*self.stderr), (0, ""), "{}", self.stdout);
        self.stdout
    }

    #[track_caller]
    fn fails(self, code: i32, part: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.starts_with("bulkhead: ") && self.stderr.contains(part), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Self { code: output.status.code().unwrap_or(-1), stdout, stderr }
    }
}

impl Host {
    /// These tests need a verdict to be kept, and so a device that it can be kept for.
    fn new() -> Option<Self> {
        let Ok(kvm) = fs::metadata("/dev/kvm") else {
            eprintln!("skipped: there is no /dev/kvm");
            return None;
        };
        // What `create` leaves behind becomes our child, as it becomes conmon's.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let host = Self { dir };
        for name in ["lib", "state"] {
            fs::create_dir(host.path(name)).unwrap();
        }
        symlink(fake_vmm(), host.path("lib/bulkhead-vmm")).unwrap();
        symlink("/bin/true", host.path("lib/bulkhead-agent")).unwrap();
        fs::write(host.path("lib/vmlinux"), "").unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let (version, boot) = (env!("CARGO_PKG_VERSION"), boot.trim());
        let key = format!("{version} {boot} {} {} {}\n", kvm.rdev(), kvm.ino(), kvm.ctime());
        fs::write(host.path("state/.kvm"), key).unwrap();
        Some(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bundle whose process has these arguments; `more` is put into its configuration.
    fn bundle(&self, args: &[&str], more: serde_json::Value) -> PathBuf {
        let bundle = self.path("bundle");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let mut config = serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "annotations": {"org.example.a": "b"},
            // One of its own, for others use the same IDs at the same time.
            "linux": {"cgroupsPath": self.cgroup(), "namespaces": [{"type": "network"}]},
        });
        let fields = more.as_object().cloned().unwrap_or_default();
        config.as_object_mut().unwrap().extend(fields);
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    fn cgroup(&self) -> String {
        let name = self.dir.path().file_name().unwrap().to_str().unwrap();
        format!("/bulkhead-test-{}", name.trim_start_matches('.'))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BULKHEAD);
        // Boots: the container's VMM is the only one that is started.
        command.arg("--root").arg(self.path("state")).arg("--cold").args(args);
        command.env("BULKHEAD_LIBDIR", self.path("lib"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn call(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    /// Creates a container with these arguments; returns its host process.
    #[track_caller]
    fn create(&self, id: &str, args: &[&str]) -> Pid {
        let bundle = self.bundle(args, serde_json::json!({}));
        let pid_file = self.path("pid");
        // Not our pipes: the VMM would hold them open.
        let created = self
            .command(&["create", "--bundle", bundle.to_str().unwrap(), "--pid-file"])
            .arg(&pid_file)
            .arg(id)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(created.success(), "{created}");
        Pid::from_raw(fs::read_to_string(pid_file).unwrap().parse().unwrap()).unwrap()
    }

    fn state(&self, id: &str) -> serde_json::Value {
        serde_json::from_str(&self.call(&["state", id]).ok()).unwrap()
    }

    fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("state")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for id in self.left() {
            let _ = self.call(&["delete", "--force", &id]);
        }
    }
}

fn fake_vmm() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples/fake-oci-vmm")
}

/// Waits for a host process as conmon does; returns what it ended with.
#[track_caller]
fn ended(pid: Pid) -> i32 {
    let start = Instant::now();
    loop {
        if let Some((_, status)) = waitpid(Some(pid), WaitOptions::NOHANG).unwrap() {
            let signal = || status.terminating_signal().map(|signal| 128 + signal);
            return status.exit_status().or_else(signal).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_container_is_created_started_killed_and_deleted() {
    let Some(host) = Host::new() else { return };
    let pid = host.create("web", &["wait"]);
    let state = host.state("web");
    assert_eq!((&state["id"], &state["status"]), (&"web".into(), &"created".into()));
    assert_eq!(state["pid"], pid.as_raw_nonzero().get());
    assert_eq!(state["annotations"]["org.example.a"], "b");
    assert_eq!(state["ociVersion"], "1.0.2");
    host.call(&["start", "web"]).ok();
    assert_eq!(host.status("web"), "running");
    host.call(&["start", "web"]).fails(1, "cannot start container web: it is running");
    host.call(&["kill", "web", "0"]).ok();
    host.call(&["delete", "web"]).fails(1, "not stopped");
    host.call(&["kill", "web", "TERM"]).ok();
    assert_eq!(ended(pid), 143);
    let state = host.state("web");
    assert_eq!((&state["status"], &state["pid"]), (&"stopped".into(), &0.into()));
    host.call(&["kill", "web", "KILL"]).fails(1, "container not running");
    host.call(&["exec", "web", "exit", "0"]).fails(255, "container not running");
    host.call(&["delete", "web"]).ok();
    host.call(&["state", "web"]).fails(1, "does not exist");
    host.call(&["delete", "web"]).fails(1, "does not exist");
    host.call(&["delete", "--force", "web"]).ok();
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn the_exit_code_is_the_container_s_and_it_stays_stopped() {
    let Some(host) = Host::new() else { return };
    let pid = host.create("web", &["exit", "7"]);
    host.call(&["start", "web"]).ok();
    assert_eq!(ended(pid), 7);
    // Calls that clean up after the dead leave it alone.
    let _ = host.call(&["doctor"]);
    assert_eq!(host.status("web"), "stopped");
    assert_eq!(host.call(&["list", "-q"]).ok(), "web\n");
    assert!(host.call(&["list"]).ok().contains("stopped"));
    let listed = host.call(&["list", "--format", "json"]).ok();
    assert!(listed.starts_with("[{\"ociVersion\":\""), "{listed}");
    assert_eq!(host.call(&["ps", "--format", "json", "web"]).ok(), "[]\n");
    assert_eq!(host.call(&["ps", "web"]).ok().lines().count(), 1);
    host.call(&["kill", "--all", "web", "0"]).ok();
    host.call(&["create", "--bundle", host.path("bundle").to_str().unwrap(), "web"])
        .fails(1, "exists already");
    host.call(&["delete", "web"]).ok();
}

#[test]
fn sigkill_needs_no_consent() {
    let Some(host) = Host::new() else { return };
    let pid = host.create("web", &["deaf"]);
    host.call(&["start", "web"]).ok();
    host.call(&["kill", "web", "SIGKILL"]).ok();
    assert_eq!(ended(pid), 137);
    assert_eq!(host.status("web"), "stopped");
}

#[test]
fn a_killed_vmm_is_a_stopped_container() {
    let Some(host) = Host::new() else { return };
    for start in [false, true] {
        let pid = host.create("web", &["wait"]);
        if start {
            host.call(&["start", "web"]).ok();
        }
        kill_process(pid, Signal::KILL).unwrap();
        assert_eq!(ended(pid), 137);
        assert_eq!(host.status("web"), "stopped");
        host.call(&["delete", "web"]).ok();
    }
}

#[test]
fn delete_takes_a_created_one_along_and_a_running_one_by_force() {
    let Some(host) = Host::new() else { return };
    let pid = host.create("web", &["wait"]);
    host.call(&["delete", "web"]).ok();
    assert_eq!(ended(pid), 137);
    let pid = host.create("web", &["deaf"]);
    host.call(&["start", "web"]).ok();
    host.call(&["delete", "--force", "web"]).ok();
    assert_eq!(ended(pid), 137);
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn why_it_ended_is_annotated() {
    let Some(host) = Host::new() else { return };
    for (command, code, name, value) in [
        ("oom", 137, "dev.bulkhead.oom", "true"),
        ("panic", 125, "dev.bulkhead.failure", "the guest panicked"),
    ] {
        let pid = host.create("web", &[command]);
        host.call(&["start", "web"]).ok();
        assert_eq!(ended(pid), code);
        assert_eq!(host.state("web")["annotations"][name], value);
        host.call(&["delete", "web"]).ok();
    }
}

#[test]
fn a_create_that_fails_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    for (command, part) in [
        ("missing", "executable file not found in $PATH"),
        ("die", "bulkhead-vmm ended with code 3 and no report"),
    ] {
        let bundle = host.bundle(&[command], serde_json::json!({}));
        host.call(&["create", "-b", bundle.to_str().unwrap(), "web"]).fails(1, part);
        assert_eq!(host.left(), [""; 0]);
    }
    let bundle = host.bundle(&["wait"], serde_json::json!({}));
    let args = ["create", "-b", bundle.to_str().unwrap(), "--pid-file", "/nonexistent/pid", "web"];
    host.call(&args).fails(1, "/nonexistent/pid");
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn a_create_that_is_killed_takes_its_vmm_along() {
    let Some(host) = Host::new() else { return };
    let hooks = serde_json::json!({
        "hooks": {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "60"]}]}
    });
    let bundle = host.bundle(&["wait"], hooks);
    let mut create = host.command(&["create", "-b", bundle.to_str().unwrap(), "web"]);
    let mut create = create.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let vmm = vmm_of(&create);
    create.kill().unwrap();
    create.wait().unwrap();
    assert_eq!(ended(vmm), 125);
    host.call(&["delete", "--force", "web"]).ok();
    assert_eq!(host.left(), [""; 0]);
}

fn vmm_of(bulkhead: &Child) -> Pid {
    let children = format!("/proc/{0}/task/{0}/children", bulkhead.id());
    let start = Instant::now();
    loop {
        let pids = fs::read_to_string(&children).unwrap_or_default();
        for pid in pids.split_whitespace() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.starts_with("bulkhead-vmm") {
                return Pid::from_raw(pid.parse().unwrap()).unwrap();
            }
        }
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn hooks_run_at_their_points_with_the_state() {
    let Some(host) = Host::new() else { return };
    let out = host.path("hooks");
    let hook = |name: &str| {
        let script =
            format!("echo {name} $(grep -o '\"status\": *\"[a-z]*\"') >> {}", out.display());
        serde_json::json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    let names = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    let hooks: serde_json::Map<_, _> =
        names.map(|name| (name.to_owned(), hook(name))).into_iter().collect();
    let bundle = host.bundle(&["wait"], serde_json::json!({ "hooks": hooks }));
    let mut create = host.command(&["create", "-b", bundle.to_str().unwrap(), "web"]);
    assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let said = || fs::read_to_string(&out).unwrap().replace("\"status\": ", "").replace('"', "");
    assert_eq!(said(), "prestart creating\ncreateRuntime creating\ncreateContainer creating\n");
    host.call(&["start", "web"]).ok();
    assert!(said().ends_with("poststart running\n"), "{}", said());
    host.call(&["delete", "--force", "web"]).ok();
    assert!(said().ends_with("poststop stopped\n"), "{}", said());
}

#[test]
fn exec_joins_streams_signals_and_exit_code() {
    let Some(host) = Host::new() else { return };
    host.create("web", &["wait"]);
    assert_eq!(host.call(&["exec", "web", "exit", "4"]).code, 4, "before the start");
    host.call(&["start", "web"]).ok();
    assert_eq!(host.call(&["exec", "web", "exit", "5"]).code, 5);
    let mut cat = host.command(&["exec", "web", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"through").unwrap();
    let said = Said::from(cat.wait_with_output().unwrap());
    assert_eq!((said.code, &*said.stdout), (0, "through"));
    // Left behind, as an engine's monitor wants it.
    let process = host.path("process.json");
    fs::write(&process, r#"{"args":["hang"],"cwd":"/"}"#).unwrap();
    let pid_file = host.path("exec-pid");
    let mut exec = host.command(&["exec", "--detach", "--process"]);
    exec.arg(&process).arg("--pid-file").arg(&pid_file).arg("web");
    assert!(exec.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let pid = Pid::from_raw(fs::read_to_string(pid_file).unwrap().parse().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(ended(pid), 143);
    host.call(&["delete", "--force", "web"]).ok();
}

#[test]
fn a_bundle_is_run_in_one_go() {
    let Some(host) = Host::new() else { return };
    let bundle = host.bundle(&["exit", "9"], serde_json::json!({}));
    assert_eq!(host.call(&["run", "-b", bundle.to_str().unwrap(), "web"]).code, 9);
    assert_eq!(host.left(), [""; 0]);
    host.bundle(&["panic"], serde_json::json!({}));
    let said = host.call(&["run", "-b", bundle.to_str().unwrap(), "web"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("the guest panicked\n  Kernel panic"), "{said:?}");
    host.bundle(&["wait"], serde_json::json!({}));
    let mut run = host.command(&["run", "-d", "-b", bundle.to_str().unwrap(), "web"]);
    assert!(run.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    assert_eq!(host.status("web"), "running");
    host.call(&["delete", "-f", "web"]).ok();
}

#[test]
fn processes_and_figures_are_the_guest_s() {
    let Some(host) = Host::new() else { return };
    host.create("web", &["wait"]);
    let state: serde_json::Value =
        serde_json::from_str(&host.call(&["state", "web"]).ok()).unwrap();
    let listed = host.call(&["ps", "--format", "json", "web"]).ok();
    assert_eq!(listed, format!("[{}]\n", state["pid"]));
    assert!(host.call(&["ps", "web"]).ok().ends_with(" wait\n"));
    let stats: serde_json::Value =
        serde_json::from_str(&host.call(&["events", "--stats", "web"]).ok()).unwrap();
    assert_eq!(stats["data"]["memory"]["usage"]["usage"], 4096);
    host.call(&["delete", "-f", "web"]).ok();
}

#[test]
fn bad_input_is_one_sentence_and_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let bundle = host.bundle(&["wait"], serde_json::json!({}));
    let bundle = bundle.to_str().unwrap();
    for (args, code, part) in [
        (&["create", "-b", bundle, "a/b"][..], 1, "\"a/b\" is not a container ID"),
        (&["create", "-b", bundle, "../x"], 1, "\"../x\""),
        (&["create", "-b", bundle, ".hidden"], 1, ".hidden"),
        (&["create", "-b", bundle, ""], 1, "\"\""),
        (&["create", "-b", "/nonexistent", "web"], 1, "/nonexistent"),
        (&["create", "-b", bundle, "--console-socket", "/s", "web"], 1, "--console-socket"),
        (&["create", "-b", bundle, "--preserve-fds", "3", "web"], 1, "--preserve-fds 3"),
        (&["create", "-b", bundle], 125, "<ID>"),
        (&["state", "web"], 1, "container web does not exist"),
        (&["state", "a/b"], 1, "a/b"),
        (&["start", "web"], 1, "does not exist"),
        (&["kill", "web", "KILL"], 1, "does not exist"),
        (&["kill", "web", "FLY"], 1, "FLY"),
        (&["exec", "web", "true"], 255, "does not exist"),
        (&["ps", "web"], 1, "does not exist"),
        (&["pause", "web"], 1, "does not exist"),
        (&["list", "--format", "xml"], 1, "xml"),
        (&["run", "-b", bundle, "web", "sh"], 1, "--rootfs"),
        (&["--log-format", "xml", "list"], 125, "--log-format xml"),
    ] {
        let said = host.call(args);
        assert_eq!(said.stdout, "", "{args:?}");
        said.fails(code, part);
    }
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn errors_are_logged_as_engines_read_them() {
    let Some(host) = Host::new() else { return };
    let log = host.path("log.json");
    host.command(&["--log-format=json", "--log", log.to_str().unwrap(), "state", "web"])
        .status()
        .unwrap();
    let entry: serde_json::Value = serde_json::from_str(&fs::read_to_string(log).unwrap()).unwrap();
    assert_eq!(entry["level"], "error");
    assert_eq!(entry["msg"], "container web does not exist");
}

#[test]
fn racing_callers_are_safe() {
    let Some(host) = Host::new() else { return };
    let bundle = host.bundle(&["wait"], serde_json::json!({}));
    let race = |args: &[&str]| -> Vec<bool> {
        let callers: Vec<Child> = (0..4)
            .map(|_| {
                let mut command = host.command(args);
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        callers.into_iter().map(|mut caller| caller.wait().unwrap().success()).collect()
    };
    let won = race(&["create", "-b", bundle.to_str().unwrap(), "web"]);
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "one creates");
    assert_eq!(host.status("web"), "created");
    assert!(race(&["delete", "--force", "web"]).iter().all(|won| *won), "all see it gone");
    assert_eq!(host.left(), [""; 0]);
}
