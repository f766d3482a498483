//! What a monitor or a file worker cannot do once somebody else's code runs in it, and what is left
//! when one is gone.

use std::fs;

use bulkhead_tests::inject::{Outcome, inject};
use bulkhead_tests::{processes, signal, until};

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
