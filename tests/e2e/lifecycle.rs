//! Containers beside and after one another, and what they leave behind.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use bulkhead_tests::{Host, bzimage, child_named, finish, processes, signal, start, until, wait};

#[test]
fn sigterm_reaches_the_process() {
    let host = Host::new();
    let script = "trap 'echo caught; exit 7' TERM; touch /up; while :; do sleep 0.1; done";
    let child = start(host.run(&[], &["sh", "-c", script]));
    until("the container is up", || host.rootfs.join("up").exists());
    signal(child.id(), "TERM");
    let finished = wait(child);
    assert_eq!((finished.code, finished.stdout.as_str()), (7, "caught\n"), "{finished:?}");
}

#[test]
fn a_user_s_own_bzimage_boots() {
    let host = Host::new();
    let kernel = bzimage();
    let kernel = kernel.to_str().expect("an ASCII path");
    let command = ["sh", "-c", "nproc; uname -s"];
    let said = finish(host.run(&["--kernel", kernel, "--cpus", "2"], &command)).ok();
    assert_eq!(said, "2\nLinux\n");
}

#[test]
fn a_timeout_ends_a_container_that_does_not_listen() {
    let host = Host::new();
    let before = processes();
    let script = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    let run = host.run(&[], &["sh", "-c", script]);
    // SIGTERM after 12 s, which the container ignores; SIGKILL 2 s later.
    let mut timeout = Command::new("timeout");
    timeout.args(["-k", "2", "12"]).arg(run.get_program()).args(run.get_args());
    let finished = finish(timeout);
    assert_eq!((finished.code, finished.stdout.as_str()), (137, "up\n"), "{finished:?}");
    until("the VM is gone with its caller", || processes() == before);
    host.sh("true").ok();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn two_containers_run_side_by_side() {
    let host = Host::new();
    let other = Host::new();
    let script = |mine: &str, file: &str| {
        format!("echo {mine} >/mine; while ! test -e /{file}; do sleep 0.1; done; cat /mine")
    };
    let first = start(host.run(&["--name", "first"], &["sh", "-c", &script("one", "go")]));
    let second = start(other.run(&["--name", "second"], &["sh", "-c", &script("two", "go")]));
    until("both are up", || {
        host.rootfs.join("mine").exists() && other.rootfs.join("mine").exists()
    });
    fs::write(host.rootfs.join("go"), "")
        .and_then(|()| fs::write(other.rootfs.join("go"), ""))
        .expect("files");
    assert_eq!((wait(first).ok().as_str(), wait(second).ok().as_str()), ("one\n", "two\n"));
}

#[test]
fn twenty_in_a_row_leave_nothing_behind() {
    let host = Host::new();
    let mounts = || fs::read_to_string("/proc/self/mounts").expect("mounts");
    let (before, mounted) = (processes(), mounts());
    for number in 0..20 {
        assert_eq!(host.sh(&format!("exit {number}")).code, number);
    }
    assert_eq!(processes(), before, "no process stays");
    assert_eq!(mounts(), mounted, "no mount stays");
    assert_eq!(host.leftovers(), Vec::<String>::new(), "no state or socket stays");
}

#[test]
fn a_second_container_of_a_name_is_refused_while_the_first_lives() {
    let host = Host::new();
    let command = ["sh", "-c", "touch /up; while ! test -e /go; do sleep 0.1; done"];
    let first = start(host.run(&["--name", "twin"], &command));
    until("the first is up", || host.rootfs.join("up").exists());
    finish(host.run(&["--name", "twin"], &["true"])).fails(125, "twin");
    fs::write(host.rootfs.join("go"), "").expect("a file");
    wait(first).ok();
    finish(host.run(&["--name", "twin"], &["true"])).ok();
}

#[test]
fn a_killed_vmm_is_a_failure_and_leaves_nothing_the_next_call_does_not_clean() {
    let host = Host::new();
    let script = "touch /up; sleep 1000";
    let child = start(host.run(&["--name", "victim"], &["sh", "-c", script]));
    until("the container is up", || host.rootfs.join("up").exists());
    signal(child_named(child.id(), "bulkhead-vmm"), "KILL");
    wait(child).fails(125, "bulkhead");

    fs::remove_file(host.rootfs.join("up")).expect("a file");
    let child = start(host.run(&["--name", "victim"], &["sh", "-c", script]));
    until("the container is up", || host.rootfs.join("up").exists());
    let vmm = child_named(child.id(), "bulkhead-vmm");
    signal(child.id(), "KILL");
    assert_eq!(wait(child).code, 137);
    until("the VM went with its runtime", || !fs::exists(format!("/proc/{vmm}")).unwrap_or(true));
    finish(host.run(&["--name", "another"], &["true"])).ok();
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn the_timeline_names_the_phases_in_order() {
    let host = Host::new();
    let finished = finish(host.run(&["--cold", "--timeline"], &["echo", "hello"]));
    assert_eq!(finished.stdout, "hello\n");
    let mut rest = finished.stderr.as_str();
    for phase in ["vmm_main", "first_run", "init", "agent_ready", "started"] {
        let at =
            rest.find(phase).unwrap_or_else(|| panic!("{phase} is next in {}", finished.stderr));
        rest = &rest[at..];
    }
    assert!(finished.stderr.contains("first_output"), "{}", finished.stderr);
}

#[test]
fn the_console_is_joined_when_asked_for() {
    let host = Host::new();
    let finished = finish(host.run(&["--console"], &["echo", "hello"]));
    assert_eq!(finished.stdout, "hello\n");
    assert!(finished.stderr.contains("Linux version"), "{finished:?}");
}

#[test]
fn other_verbs_find_a_container_of_run_while_it_runs() {
    let host = Host::new();
    let options = ["--name", "web", "--env", "A=b", "--workdir", "/tmp", "--user", "7:8"];
    let script = "trap 'exit 9' TERM; touch /up; while :; do sleep 0.1; done";
    fs::set_permissions(&host.rootfs, fs::Permissions::from_mode(0o777)).expect("its own");
    let child = start(host.run(&options, &["sh", "-c", script]));
    until("the container is up", || host.rootfs.join("up").exists());
    let exec = |args: &[&str]| finish(host.bulkhead([&["exec"], args].concat()));
    let said = exec(&["web", "sh", "-c", "echo $A; pwd; id -u; id -g; pidof sh >&2; exit 4"]);
    assert_eq!((said.code, &*said.stdout), (4, "b\n/tmp\n7\n8\n"), "{said:?}");
    assert_eq!(exec(&["--user", "0", "web", "id", "-u"]).ok(), "0\n");
    assert!(finish(host.bulkhead(["list"])).ok().contains("web"), "it is listed");
    assert!(finish(host.bulkhead(["ps", "web"])).ok().contains("sleep"), "processes are");
    finish(host.bulkhead(["pause", "web"])).ok();
    exec(&["web", "true"]).fails(255, "web is paused");
    finish(host.bulkhead(["resume", "web"])).ok();
    finish(host.bulkhead(["kill", "web", "TERM"])).ok();
    assert_eq!(wait(child).code, 9);
    assert_eq!(host.leftovers(), Vec::<String>::new());
    exec(&["web", "true"]).fails(255, "does not exist");
}

/// KiB of memory of its own that a process has in the host's.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("a number of kB")
}

#[test]
fn memory_that_the_guest_has_freed_goes_back_to_the_host() {
    const KIB: u64 = 40 << 10;
    let host = Host::new();
    let script = "dd if=/dev/zero of=/dev/shm/big bs=1M count=40 2>/dev/null; touch /full
        read line; rm /dev/shm/big; read line";
    let mut run = host.run(&["-i"], &["sh", "-c", script]);
    run.stdin(Stdio::piped());
    let mut run = start(run);
    until("the guest has filled its memory", || host.rootfs.join("full").exists());
    let vmm = child_named(run.id(), "bulkhead-vmm");
    let full = resident_kib(vmm);
    assert!(full > KIB, "{full} KiB");
    let mut stdin = run.stdin.take().expect("a pipe");
    stdin.write_all(b"empty\n").unwrap();
    // What lies scattered is not reported: blocks of 4 MiB are.
    until("the host has the memory again", || resident_kib(vmm) + KIB / 2 < full);
    drop(stdin);
    assert_eq!(wait(run).code, 1, "the second read is at the end");
}
