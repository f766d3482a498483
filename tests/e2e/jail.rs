//! The jail as it is in force: what /proc says of the processes of a running container.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Child;

use bulkhead_tests::{Host, binary, child_named, finish, start, until, wait};

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, SETFCAP: vmm/src/jail/worker.rs.
const WORKER_CAPABILITIES: &str = "00000000800000db";
/// The users of VMMs: vmm/src/jail/mod.rs.
const FIRST_USER: u32 = 0x7000_0000;

/// A container that waits for /go, and its processes.
pub struct Waiting {
    host: Host,
    child: Child,
    /// The monitor's process.
    pub vmm: u32,
    /// The file worker's.
    pub worker: u32,
}

impl Waiting {
    /// Starts it.
    pub fn start(options: &[&str]) -> Self {
        let host = Host::new();
        let command = ["sh", "-c", "touch /up; while ! test -e /go; do sleep 0.1; done; echo went"];
        let child = start(host.run(options, &command));
        until("the container is up", || host.rootfs.join("up").exists());
        let vmm = child_named(child.id(), "bulkhead-vmm");
        let worker = child_named(vmm, "bulkhead-fs");
        Self { host, child, vmm, worker }
    }

    /// Waits for it to fail, whatever became of its processes, in one sentence.
    pub fn fails(self) -> Host {
        wait(self.child).fails(125, "bulkhead");
        self.host
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Lets it go on to its end, as if nothing had been.
    pub fn end(self) {
        fs::write(self.host.rootfs.join("go"), "").expect("a file");
        assert_eq!(wait(self.child).ok(), "went\n");
    }
}

/// A field of every thread's status.
fn field(pid: u32, name: &str) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let value = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    statuses.map(|status| value(status).unwrap_or_else(|| panic!("no {name}"))).collect()
}

fn all_are(pid: u32, name: &str, value: &str) {
    assert_eq!(field(pid, name), BTreeSet::from([value.to_owned()]), "{name} of {pid}");
}

fn namespace(pid: &str, name: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a namespace");
    link.to_string_lossy().into_owned()
}

fn names(dir: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{dir}: {error}")).flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn no_thread_has_a_capability_or_is_without_a_filter() {
    let waiting = Waiting::start(&["--cpus", "2"]);
    for pid in [waiting.vmm, waiting.worker] {
        all_are(pid, "Seccomp", "2");
        all_are(pid, "NoNewPrivs", "1");
        for set in ["CapInh", "CapAmb"] {
            all_are(pid, set, "0000000000000000");
        }
    }
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        all_are(waiting.vmm, set, "0000000000000000");
        all_are(waiting.worker, set, WORKER_CAPABILITIES);
    }
    waiting.end();
}

#[test]
fn every_vmm_is_a_user_of_its_own() {
    let [one, two] = [(); 2].map(|()| Waiting::start(&[]));
    let user = |waiting: &Waiting| (FIRST_USER + waiting.vmm).to_string();
    for waiting in [&one, &two] {
        let user = user(waiting);
        all_are(waiting.vmm, "Uid", &format!("{user} {user} {user} {user}"));
        all_are(waiting.vmm, "Gid", &format!("{user} {user} {user} {user}"));
        all_are(waiting.worker, "Uid", &format!("{user} 0 0 0"));
        all_are(waiting.vmm, "Groups", "");
    }
    assert_ne!(user(&one), user(&two));
    one.end();
    two.end();
}

#[test]
fn namespaces_are_the_vm_s_own() {
    let waiting = Waiting::start(&[]);
    let (vmm, worker) = (waiting.vmm.to_string(), waiting.worker.to_string());
    for name in ["mnt", "net", "ipc", "uts"] {
        let host = namespace("self", name);
        assert_ne!(namespace(&vmm, name), host, "{name} of the VMM");
        assert_ne!(namespace(&worker, name), host, "{name} of the worker");
    }
    assert_ne!(namespace(&worker, "mnt"), namespace(&vmm, "mnt"));
    assert_ne!(namespace(&worker, "pid"), namespace("self", "pid"));
    waiting.end();
}

#[test]
fn the_root_is_empty_and_read_only() {
    let waiting = Waiting::start(&[]);
    let root = |pid: u32| format!("/proc/{pid}/root");
    assert_eq!(names(&format!("{}/", root(waiting.worker))), BTreeSet::new());
    let vmm = format!("{}/", root(waiting.vmm));
    assert_eq!(names(&vmm), BTreeSet::from(["sockets".to_owned()]));
    let sockets = names(&format!("{vmm}sockets"));
    assert!(sockets.contains("vsock.sock"), "{sockets:?}");
    for pid in [waiting.vmm, waiting.worker] {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).expect("mounts");
        let options = mounts.lines().map(|line| line.split(' ').nth(3).unwrap_or_default());
        for options in options {
            for option in ["ro", "nosuid", "nodev", "noexec"] {
                assert!(options.split(',').any(|has| has == option), "{option}: {mounts}");
            }
        }
        assert!(mounts.lines().count() <= 2, "{mounts}");
    }
    waiting.end();
}

#[test]
fn only_what_is_needed_stays_open() {
    // What a careless caller leaves open.
    let leak = fs::File::open("/proc/version").expect("a file");
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).expect("a flag");
    let waiting = Waiting::start(&[]);
    let links = |pid: u32| {
        let open = names(&format!("/proc/{pid}/fd"));
        let link = |fd: &String| fs::read_link(format!("/proc/{pid}/fd/{fd}"));
        let links = open.iter().filter_map(|fd| link(fd).ok());
        links.map(|link| link.to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    for link in links(waiting.vmm) {
        let known =
            ["anon_inode:", "socket:[", "pipe:[", "/dev/null", "/dev/kvm", "/memfd:fs-state"];
        let lock = link.ends_with("/lock") || link.ends_with("/vmlinux");
        assert!(lock || known.iter().any(|known| link.starts_with(known)), "the VMM has {link}");
    }
    for link in links(waiting.worker) {
        // Its shares are mounts without a path: they, and all below, show as relative to their top.
        let known = ["/", "socket:[", "pipe:[", "/dev/null"];
        assert!(known.iter().any(|known| link.starts_with(known)), "the worker has {link}");
        assert!(!link.contains("bulkhead-e2e") && !link.contains("version"), "{link}");
    }
    for pid in [waiting.vmm, waiting.worker] {
        let environment = fs::read(format!("/proc/{pid}/environ")).expect("an environment");
        assert!(environment.iter().all(|byte| *byte == 0), "{environment:?}");
    }
    waiting.end();
}

#[test]
fn limits_hold_for_files_memory_and_threads() {
    let waiting = Waiting::start(&[]);
    let limit = |pid: u32, name: &str| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let line = limits.lines().find(|line| line.starts_with(name)).expect("the limit");
        line[name.len()..].split_whitespace().next().map(str::to_owned)
    };
    assert_eq!(limit(waiting.vmm, "Max open files").as_deref(), Some("1536"));
    assert_eq!(limit(waiting.vmm, "Max processes").as_deref(), Some("9"));
    for pid in [waiting.vmm, waiting.worker] {
        assert_eq!(limit(pid, "Max core file size").as_deref(), Some("0"));
        assert_ne!(limit(pid, "Max data size").as_deref(), Some("unlimited"));
    }
    waiting.end();
}

#[test]
fn the_state_directory_stays_closed_to_everybody_else() {
    let waiting = Waiting::start(&["--name", "walled"]);
    let metadata = waiting.host.state.join("walled").metadata().expect("a directory");
    assert_eq!(metadata.mode() & 0o777, 0o710);
    assert_eq!((metadata.uid(), metadata.gid()), (0, FIRST_USER + waiting.vmm));
    let lock = waiting.host.state.join("walled/lock").metadata().expect("a lock");
    assert_eq!((lock.uid(), lock.mode() & 0o777), (0, 0o600));
    waiting.end();
}

#[test]
fn device_nodes_are_refused_and_other_files_made() {
    let host = Host::new();
    let script = "mknod /n c 1 3; echo $?; mknod /p p; echo $?; chmod 4755 /bin/busybox; echo $?";
    let finished = finish(host.run(&["--cap-add", "MKNOD"], &["sh", "-c", script]));
    assert_eq!(finished.stdout, "1\n0\n0\n", "{finished:?}");
    assert!(!host.rootfs.join("n").exists());
}

#[test]
fn a_jail_can_be_left_off_to_find_out_what_fails() {
    let host = Host::new();
    finish(host.run(&["--jail", "off"], &["true"])).ok();
    finish(host.run(&["--jail", "half"], &["true"])).fails(125, "--jail");
}

#[test]
fn doctor_shows_the_walls_of_running_vms() {
    let clone = Waiting::start(&["--name", "clone"]);
    let cold = Waiting::start(&["--cold"]);
    // A call of exec has the caller's rights and no walls: it is in the table as little as `run`.
    let mut exec = start(clone.host.bulkhead(["exec", "clone", "tail", "-f", "/dev/null"]));
    let runs = || finish(clone.host.bulkhead(["ps", "clone"])).ok().contains("tail");
    until("exec runs", runs);
    let finished = finish(clone.host.bulkhead(["doctor", "--security"]));
    assert_eq!(finished.code, 0, "{finished:?}");
    let json = finish(clone.host.bulkhead(["doctor", "--security", "--json"])).ok();
    let said: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(said["walls_stand"], true, "{json}");
    assert_eq!(said["walls"].as_array().map(Vec::len), Some(4), "{json}");
    for (pid, program) in
        [(clone.vmm, "vmm"), (clone.worker, "fs"), (cold.vmm, "vmm"), (cold.worker, "fs")]
    {
        let line = finished.stdout.lines().find(|line| line.starts_with(&format!("{pid} ")));
        assert!(line.is_some_and(|line| line.ends_with("stand")), "{}", finished.stdout);
        let walls = said["walls"].as_array().expect("a list");
        let walls = walls.iter().find(|walls| walls["pid"] == pid).expect("its walls");
        // As /proc has them.
        let one = |name: &str| field(pid, name).into_iter().next().expect("a value");
        assert_eq!(walls["program"], format!("bulkhead-{program}"));
        assert_eq!(walls["capabilities"], one("CapEff"));
        assert_eq!(
            Some(&*walls["user"].to_string()),
            one("Uid").split(' ').nth(1).map(|uid| format!("{uid:?}")).as_deref()
        );
        assert_eq!((&walls["threads"], &walls["no_new_privs"]), (&walls["filtered"], &true.into()));
        assert_eq!(
            walls["namespaces"].as_array().map(Vec::len),
            Some(if program == "fs" { 5 } else { 4 })
        );
    }
    // What becomes of a call of exec that is killed.
    exec.kill().expect("it is killed");
    exec.wait().expect("and reaped");
    until("its process went with it", || !runs());
    cold.end();
    clone.end();
    let off = Waiting::start(&["--jail", "off"]);
    let finished = finish(off.host.bulkhead(["doctor", "--security"]));
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stdout.contains("MISSING"), "{finished:?}");
    off.end();
}

#[test]
fn without_root_a_user_namespace_does_the_same() {
    let host = Host::new();
    let user = "12345";
    // Copied, because the checkout may lie where only root may go.
    let open =
        "mkdir \"$0/bin\"; cp -L \"$1\"/{bulkhead,bulkhead-vmm,bulkhead-agent,vmlinux} \"$0/bin\";
        chmod 666 /dev/kvm; chown -R 12345:12345 \"$0\"; chmod 755 \"$0\"";
    let mut prepare = std::process::Command::new("bash");
    let prepared = prepare.args(["-c", open]).arg(host.dir.path()).arg(binary("")).status();
    assert!(prepared.expect("bash runs").success());
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    command.arg(host.path("bin/bulkhead")).arg("--root").arg(&host.state).arg("run");
    command.arg("--rootfs").arg(&host.rootfs).arg("--");
    let script = "touch /up; while ! test -e /go; do sleep 0.1; done; echo went";
    let child = start({
        command.args(["sh", "-c", script]);
        command
    });
    until("the container is up", || host.rootfs.join("up").exists());
    let vmm = child_named(child.id(), "bulkhead-vmm");
    let worker = child_named(vmm, "bulkhead-fs");
    for pid in [vmm, worker] {
        all_are(pid, "Uid", &format!("{user} {user} {user} {user}"));
        for set in ["CapPrm", "CapEff"] {
            all_are(pid, set, "0000000000000000");
        }
        all_are(pid, "Seccomp", "2");
        for name in ["user", "mnt", "net", "ipc", "uts"] {
            assert_ne!(namespace(&pid.to_string(), name), namespace("self", name));
        }
        assert!(!names(&format!("/proc/{pid}/root/")).contains("etc"));
    }
    fs::write(host.rootfs.join("go"), "").expect("a file");
    assert_eq!(wait(child).ok(), "went\n");
}
