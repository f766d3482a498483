//! `bulkhead` as a user meets it, with examples/fake-vmm.rs in the VMM's place.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const BULKHEAD: &str = env!("CARGO_BIN_EXE_bulkhead");

/// A host on which the probe has found KVM good, with a root file system and all assets.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["rootfs", "lib", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let host = Self { dir };
        symlink(fake_vmm(), host.path("lib/bulkhead-vmm")).unwrap();
        symlink("/bin/true", host.path("lib/bulkhead-agent")).unwrap();
        fs::write(host.path("lib/vmlinux"), "").unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let kvm = match fs::metadata("/dev/kvm") {
            Ok(kvm) => format!("{} {} {}", kvm.rdev(), kvm.ino(), kvm.ctime()),
            Err(_) => "missing".to_owned(),
        };
        let key = format!("{} {} {kvm}\n", env!("CARGO_PKG_VERSION"), boot.trim());
        fs::write(host.path("state/.kvm"), key).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bulkhead(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BULKHEAD);
        command.arg("--root").arg(self.path("state")).args(args);
        command.env("BULKHEAD_LIBDIR", self.path("lib"));
        command.env("BULKHEAD_IMAGES", self.path("images"));
        command.env("BULKHEAD_TEMPLATES", self.path("templates"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A container that boots: its VMM is the only one that is started.
    fn run(&self, args: &[&str]) -> Command {
        let mut command = self.cloned();
        command.arg("--cold").args(args);
        command
    }

    fn cloned(&self) -> Command {
        let mut command = self.bulkhead(&["run", "--rootfs"]);
        command.arg(self.path("rootfs"));
        command
    }

    fn output(&self, args: &[&str]) -> (i32, String, String) {
        said(self.run(args).output().unwrap())
    }

    /// What is left of VMs.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("state")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

fn fake_vmm() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples/fake-vmm");
    assert!(
        path.exists(),
        "{} is not built: run `cargo test -p bulkhead` as a whole",
        path.display()
    );
    path
}

fn said(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A running `bulkhead run`; killed when dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            self.0.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// The VMM's process, once it is there.
    fn vmm(&self) -> Pid {
        let children = format!("/proc/{0}/task/{0}/children", self.0.id());
        wait_for(|| {
            let pid: i32 = fs::read_to_string(&children).ok()?.split(' ').next()?.parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "bulkhead-vmm").then(|| Pid::from_raw(pid))?
        })
    }

    fn code(&mut self) -> i32 {
        let status = self.0.wait().unwrap();
        status.code().unwrap_or_else(|| -status.signal().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_exit_code_is_the_command_s() {
    let host = Host::new();
    for code in [0, 1, 125, 255] {
        let (got, stdout, stderr) = host.output(&["exit", &code.to_string()]);
        assert_eq!((got, &*stdout, &*stderr), (code, "", ""));
    }
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn a_command_that_cannot_be_executed_is_127_or_126() {
    let host = Host::new();
    for (command, expected) in [("missing", 127), ("bad", 126)] {
        let (code, _, stderr) = host.output(&[command]);
        assert_eq!((code, &*stderr), (expected, &*format!("bulkhead: cannot execute {command}\n")));
    }
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn a_vm_that_fails_is_125_with_its_reason() {
    let host = Host::new();
    let (code, _, stderr) = host.output(&["panic"]);
    let expected = "bulkhead: the guest panicked\n  Kernel panic - not syncing: test\n";
    assert_eq!((code, &*stderr), (125, expected));
    let (code, _, stderr) = host.output(&["die"]);
    let expected = "bulkhead: bulkhead-vmm ended with code 3 and no report\n";
    assert_eq!((code, &*stderr), (125, expected));
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn input_is_passed_on_only_if_asked_for() {
    let host = Host::new();
    for (args, expected) in [(&["-i", "cat"][..], "hello"), (&["cat"], "")] {
        let mut child = host.run(args).stdin(Stdio::piped()).spawn().unwrap();
        // Nobody reads it without -i.
        let _ = child.stdin.take().unwrap().write_all(b"hello");
        let (code, stdout, _) = said(child.wait_with_output().unwrap());
        assert_eq!((code, &*stdout), (0, expected));
    }
}

#[test]
fn signals_reach_the_command() {
    let host = Host::new();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1] {
        let mut running = Running::start(host.run(&["signal"]));
        assert_eq!(running.line(), "ready\n");
        running.send(signal);
        assert_eq!(running.code(), 128 + signal.as_raw());
    }
    let mut running = Running::start(host.run(&["ignore"]));
    assert_eq!(running.line(), "ready\n");
    for signal in [Signal::INT, Signal::TERM, Signal::INT] {
        running.send(signal);
        assert_eq!(running.line(), format!("got {}\n", signal.as_raw()));
    }
}

#[test]
fn a_vm_that_never_gets_up_can_be_interrupted() {
    let host = Host::new();
    let mut running = Running::start(host.run(&["--name", "deaf", "exit", "0"]));
    running.vmm();
    running.send(Signal::INT);
    assert_eq!(running.code(), 130);
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn a_name_is_refused_while_its_vm_lives() {
    let host = Host::new();
    let mut first = Running::start(host.run(&["--name", "web", "ignore"]));
    first.vmm();
    let (code, _, stderr) = host.output(&["--name", "web", "exit", "0"]);
    let expected = "bulkhead: a VM named web is running already; choose another --name\n";
    assert_eq!((code, &*stderr), (125, expected));
    assert_eq!(host.left(), ["web"]);
    assert_eq!(host.output(&["--name", "db", "exit", "4"]).0, 4);
    kill_process(first.vmm(), Signal::KILL).unwrap();
    assert_eq!(first.code(), 125);
    assert_eq!(host.output(&["--name", "web", "exit", "5"]).0, 5);
}

#[test]
fn the_first_of_a_shape_makes_a_template() {
    let host = Host::new();
    for code in [3, 4] {
        let output = host.cloned().args(["exit", &code.to_string()]).output().unwrap();
        assert_eq!(said(output), (code, String::new(), String::new()));
        let entries = fs::read_dir(host.path("templates")).unwrap().flatten();
        assert_eq!(entries.filter(|entry| entry.path().is_dir()).count(), 1);
    }
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn a_killed_vmm_leaves_nothing() {
    let host = Host::new();
    let mut running = Running::start(host.run(&["ignore"]));
    kill_process(running.vmm(), Signal::KILL).unwrap();
    assert_eq!(running.code(), 125);
    let mut stderr = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "bulkhead: bulkhead-vmm was killed by signal 9\n");
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn a_killed_bulkhead_takes_its_vm_along_and_the_next_call_cleans_up() {
    let host = Host::new();
    let mut running = Running::start(host.run(&["--name", "web", "ignore"]));
    let vmm = running.vmm();
    running.send(Signal::KILL);
    assert_eq!(running.code(), -9);
    wait_for(|| kill_process(vmm, Signal::URG).is_err().then_some(()));
    assert_eq!(host.left(), ["web"]);
    let _ = host.bulkhead(&["doctor"]).output().unwrap();
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn the_timeline_has_marks_of_host_and_guest() {
    let host = Host::new();
    let (code, stdout, stderr) = host.output(&["--timeline", "exit", "6"]);
    assert_eq!((code, &*stdout), (6, ""));
    for phase in ["spawned", "connected", "start_confirmed", "init"] {
        assert!(stderr.lines().any(|line| line.starts_with(phase)), "{stderr}");
    }
    assert!(stderr.lines().any(|line| line.starts_with("init") && line.ends_with(" 42")));
}

#[test]
fn bad_input_is_one_sentence_and_leaves_nothing() {
    let host = Host::new();
    let file = host.path("lib/vmlinux");
    let file = file.to_str().unwrap();
    for (args, part) in [
        (&["run", "--rootfs", "/nonexistent", "sh"][..], "/nonexistent"),
        (&["run", "--rootfs", file, "sh"], "not a directory"),
        (&["run", "--rootfs", "/", "--cpus", "0", "sh"], "--cpus 0"),
        (&["run", "--rootfs", "/", "--memory", "1k", "sh"], "--memory 1k"),
        (&["run", "--rootfs", "/", "--memory", "1048576m", "sh"], "MiB"),
        (&["run", "--rootfs", "/", "-v", "/nonexistent:/x", "sh"], "--volume /nonexistent"),
        (&["run", "--rootfs", "/", "-v", "/:x", "sh"], "absolute"),
        (&["run", "--rootfs", "/", "--name", "../x", "sh"], "--name"),
        (&["run", "--rootfs", "/", "--kernel", "/nonexistent", "sh"], "--kernel /nonexistent"),
        (&["run", "--rootfs", "/"], "IMAGE|CMD"),
        (&["run", "--rootfs", "/", "--nonsense", "sh"], "--nonsense"),
        (&["fly"], "fly"),
        (&["run", "sh"], "no bulkhead-pull found"),
        (&["run", "./nonexistent"], "./nonexistent"),
        (&["run", "--rootfs", "/", "--entrypoint", "x", "sh"], "--entrypoint"),
        (&["run", "No Name"], "No Name"),
        (&["rmi", "sh"], "no image sh"),
    ] {
        let (code, stdout, stderr) = said(host.bulkhead(args).output().unwrap());
        assert_eq!((code, &*stdout), (125, ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with("bulkhead: ") && stderr.contains(part), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
    assert_eq!(host.left(), [""; 0]);
}

#[test]
fn missing_files_are_named_with_where_they_were_looked_for() {
    let host = Host::new();
    // The program's own directory is looked in too: use one that holds nothing else.
    let program = host.path("bulkhead");
    fs::copy(BULKHEAD, &program).unwrap();
    for asset in ["vmlinux", "bulkhead-agent", "bulkhead-vmm"] {
        fs::remove_file(host.path("lib").join(asset)).unwrap();
        let mut command = Command::new(&program);
        command.arg("--root").arg(host.path("state")).args(["run", "--rootfs", "/", "sh"]);
        let output = command.env("BULKHEAD_LIBDIR", host.path("lib")).output().unwrap();
        let (code, _, stderr) = said(output);
        let expected = format!("bulkhead: no {asset} found in {}", host.path("lib").display());
        assert_eq!(code, 125);
        assert!(stderr.starts_with(&expected) && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn doctor_gives_a_verdict() {
    let host = Host::new();
    let (code, stdout, _) = said(host.bulkhead(&["doctor", "--json"]).output().unwrap());
    let diagnosis: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(diagnosis["can_host"].as_bool(), Some(code == 0));
    let (text_code, stdout, _) = said(host.bulkhead(&["doctor"]).output().unwrap());
    assert_eq!(text_code, code);
    let last = stdout.lines().last().unwrap();
    let expected = if code == 0 { "This host can run" } else { "This host cannot run" };
    assert!(last.starts_with(expected), "{stdout}");
    if code != 0 {
        // The same check keeps `run` from trying.
        fs::remove_file(host.path("state/.kvm")).unwrap_or_default();
        let (code, _, stderr) = host.output(&["exit", "0"]);
        assert_eq!((code, stderr.lines().count()), (125, 1));
        assert!(stderr.starts_with("bulkhead: this host cannot run micro-VMs: "), "{stderr}");
        assert_eq!(host.left(), [""; 0]);
    }
}

/// A terminal: our end, and the container's caller's.
fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (ours.into(), theirs.into())
}

/// Whether the terminal behind this end passes on what is typed as it comes.
fn is_raw(ours: &File) -> bool {
    use rustix::termios::{LocalModes, tcgetattr};
    !tcgetattr(ours).unwrap().local_modes.contains(LocalModes::ICANON)
}

/// Starts a container at a terminal; nobody but its caller holds the other end.
fn at_terminal(host: &Host, ours: &File, theirs: OwnedFd, args: &[&str]) -> Running {
    assert!(!is_raw(ours));
    let mut command = host.run(args);
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs);
    Running::start(command)
}

#[test]
fn a_terminal_is_raw_while_the_container_has_it_and_sized_like_it() {
    use rustix::termios::{Winsize, tcsetwinsize};
    let host = Host::new();
    let (ours, theirs) = terminal();
    let size =
        |rows, columns| Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&ours, size(30, 100)).unwrap();
    let mut running = at_terminal(&host, &ours, theirs, &["-it", "size"]);
    let mut lines = BufReader::new(ours.try_clone().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap().trim(), "30x100");
    wait_for(|| is_raw(&ours).then_some(()));
    tcsetwinsize(&ours, size(40, 120)).unwrap();
    running.send(Signal::WINCH);
    assert_eq!(lines.next().unwrap().unwrap().trim(), "40x120");
    assert_eq!(running.code(), 0);
    assert!(!is_raw(&ours));
}

#[test]
fn a_vm_that_dies_leaves_the_terminal_as_it_was() {
    let host = Host::new();
    let (ours, theirs) = terminal();
    let mut running = at_terminal(&host, &ours, theirs, &["-it", "ignore"]);
    wait_for(|| is_raw(&ours).then_some(()));
    kill_process(running.vmm(), Signal::KILL).unwrap();
    assert_eq!(running.code(), 125);
    assert!(!is_raw(&ours));
}

#[test]
fn a_terminal_without_a_terminal_has_the_usual_size() {
    let host = Host::new();
    let mut running = Running::start(host.run(&["-t", "size"]));
    assert_eq!(running.line(), "24x80\n");
}
