//! What a monitor or a file worker cannot do once somebody else's code runs in it, and what is left
//! when one is gone.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use bulkhead_tests::inject::{Outcome, TEXT, before_its_filter, inject};
use bulkhead_tests::{Host, binary, processes, signal, until};

use crate::jail::Waiting;

const AF_UNIX: u64 = libc::AF_UNIX as u64;
const AF_INET: u64 = libc::AF_INET as u64;
const AF_NETLINK: u64 = libc::AF_NETLINK as u64;
const STREAM: u64 = libc::SOCK_STREAM as u64;
const RAW: u64 = libc::SOCK_RAW as u64;
const KILLED: Outcome = Outcome::Killed(libc::SIGSYS);

/// The thread of `pid` that is called `name`.
fn thread(pid: u32, name: &str) -> u32 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let mut tasks = tasks.map(|task| task.path());
    let found = tasks
        .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name));
    let found = found.unwrap_or_else(|| panic!("{pid} has a thread {name}"));
    found
        .file_name()
        .and_then(|tid| tid.to_str())
        .and_then(|tid| tid.parse().ok())
        .expect("a number")
}

/// What a thread calls itself, in the innermost of its PID namespaces.
fn own_number(tid: u32) -> i64 {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).expect("a thread");
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("numbers");
    numbers.split_whitespace().next_back().and_then(|own| own.parse().ok()).expect("a number")
}

#[test]
fn who_was_taken_over_cannot_signal_siblings_open_a_network_socket_or_execute() {
    let sibling = Waiting::start(&[]);
    let neighbour = u64::from(sibling.vmm);
    let term = libc::SIGTERM as u64;
    type Of = fn(&Waiting) -> u32;
    let (event_loop, vcpu, worker): (Of, Of, Of) =
        (|w| w.vmm, |w| thread(w.vmm, "vcpu0"), |w| w.worker);
    for (of, number, args) in [
        // No network socket of any family.
        (event_loop, libc::SYS_socket, [AF_INET, STREAM, 0]),
        (event_loop, libc::SYS_socket, [AF_NETLINK, RAW, 0]),
        (vcpu, libc::SYS_socket, [AF_UNIX, STREAM, 0]),
        (worker, libc::SYS_socket, [AF_INET, STREAM, 0]),
        // No signal to a sibling, another container's monitor.
        (event_loop, libc::SYS_kill, [neighbour, term, 0]),
        (event_loop, libc::SYS_tgkill, [neighbour, neighbour, term]),
        (worker, libc::SYS_kill, [neighbour, term, 0]),
        (worker, libc::SYS_execve, [0, 0, 0]),
    ] {
        let waiting = Waiting::start(&[]);
        // The tool itself works, and the thread goes on.
        let said = inject(of(&waiting), libc::SYS_gettid, [0; 3]).expect("a call");
        assert_eq!(said, Outcome::Returned(own_number(of(&waiting))));
        let outcome = inject(of(&waiting), number, args).expect("a call");
        assert_eq!(outcome, KILLED, "system call {number} {args:?}");
        waiting.fails();
    }
    sibling.end();
}

/// A filter may have a hole. Landlock is what refuses to open what is there, the empty root what is not,
/// the user to signal, and what was given up all that takes a privilege.
#[test]
fn without_its_filter_the_other_walls_stand() {
    let sibling = Waiting::start(&[]);
    let (neighbour, term) = (u64::from(sibling.vmm), libc::SIGTERM as u64);
    let (here, attach) = (libc::AT_FDCWD as u64, u64::from(libc::PTRACE_ATTACH));
    let mounts = libc::CLONE_NEWNS as u64;
    let (calls, refusals): (Vec<_>, Vec<_>) = [
        ((libc::SYS_openat, [here, TEXT, 0], c"/"), libc::EACCES),
        ((libc::SYS_openat, [here, TEXT, 0], c"/sockets"), libc::EACCES),
        ((libc::SYS_openat, [here, TEXT, 0], c"/etc/passwd"), libc::ENOENT),
        ((libc::SYS_openat, [here, TEXT, 0], c"../../proc/1/root"), libc::ENOENT),
        ((libc::SYS_execve, [TEXT, 0, 0], c"/proc/self/exe"), libc::ENOENT),
        ((libc::SYS_mkdir, [TEXT, 0o777, 0], c"/new"), libc::EROFS),
        ((libc::SYS_umount2, [TEXT, 0, 0], c"/sockets"), libc::EPERM),
        ((libc::SYS_unshare, [mounts, 0, 0], c""), libc::EPERM),
        ((libc::SYS_setuid, [0, 0, 0], c""), libc::EPERM),
        ((libc::SYS_kill, [neighbour, term, 0], c""), libc::EPERM),
        ((libc::SYS_kill, [1, term, 0], c""), libc::EPERM),
        ((libc::SYS_ptrace, [attach, neighbour, 0], c""), libc::EPERM),
    ]
    .into_iter()
    .unzip();
    let host = Host::new();
    let sockets = host.path("sockets");
    fs::create_dir(&sockets).expect("a directory");
    fs::set_permissions(&sockets, Permissions::from_mode(0o700)).expect("a mode");
    let (vsock, shares) = (sockets.join("vsock.sock"), serde_json::json!([]));
    let spec = serde_json::json!({
        "name": "taken-over", "vcpus": 1, "memory_mib": 128, "kernel": binary("vmlinux"),
        "init": binary("bulkhead-agent"), "cid": 3, "vsock": vsock, "shares": shares,
    });
    fs::write(host.path("spec"), spec.to_string()).expect("a file");
    let mut monitor = Command::new(binary("bulkhead-vmm"));
    monitor.arg("--spec").arg(host.path("spec")).stdin(Stdio::null());
    let returned = before_its_filter(monitor, &calls).expect("the monitor gets so far");
    for ((call, refusal), returned) in calls.iter().zip(refusals).zip(returned) {
        assert_eq!(returned, -i64::from(refusal), "{call:?}");
    }
    sibling.end();
}

#[test]
fn a_killed_file_worker_ends_its_container_and_leaves_nothing() {
    let before = processes();
    let waiting = Waiting::start(&[]);
    signal(waiting.worker, "KILL");
    let host = waiting.fails();
    until("the VM is gone", || processes() == before);
    host.sh("true").ok();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}
