//! The container's world: namespaces, mounts, start and end.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use bulkhead_protocol::rpc::agent::{
    CreateContainerRequest, Device, ExecRequest, Mount, Process, Setting, StartContainerRequest,
    StartFailure, WaitRequest,
};

use crate::harness::*;

fn mount(destination: &str, type_: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        type_: type_.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|&o| o.to_owned()).collect(),
        ..Default::default()
    }
}

#[test]
fn output_error_and_exit_code_arrive() {
    let result = run(shell("echo out; echo err >&2; exit 7"));
    assert_eq!(result, outcome(7, "out\n", "err\n"));
}

#[test]
fn streams_that_are_not_joined_are_dev_null() {
    let mut process = shell("read line && exit 1; echo gone >&2; echo seen");
    process.stderr = false;
    assert_eq!(run(process), outcome(0, "seen\n", ""));
}

#[test]
fn the_process_has_namespaces_of_its_own() {
    let result = run(shell("echo $$; hostname; cd /proc; ls -d [0-9]* | wc -l"));
    // The shell and the two ends of the pipe.
    assert_eq!(result, outcome(0, "1\nlighthouse\n3\n", ""));
}

#[test]
fn the_kernels_file_systems_are_there() {
    let script = "grep -v rootfs /proc/mounts | while read s d t o; do echo $d $t; done | sort; \
        ls /dev; readlink /dev/fd; head -c 3 /dev/zero | wc -c; echo lost > /dev/null";
    let result = run(shell(script));
    let seen: Vec<_> = result.stdout.lines().collect();
    for expected in [
        "/dev tmpfs",
        "/dev/mqueue mqueue",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/proc proc",
        "/sys sysfs",
        "full",
        "null",
        "ptmx",
        "random",
        "tty",
        "urandom",
        "zero",
        "stdin",
        "/proc/self/fd",
        "3",
    ] {
        assert!(seen.contains(&expected), "{expected:?} is not in {seen:?}");
    }
    assert_eq!(result.stderr, "");
}

#[test]
fn nothing_of_the_agent_leaks_into_the_process() {
    // The fds of `ls` are the three streams and the directory it lists.
    let result = run(shell("ls /proc/self/fd | tr '\\n' ' '; grep ^Sig /proc/self/status"));
    let lines: Vec<_> = result.stdout.lines().collect();
    let fds = lines[0].split_once("SigQ").unwrap().0;
    assert_eq!(fds, "0 1 2 3 ");
    assert!(lines.contains(&"SigBlk:\t0000000000000000"), "{lines:?}");
    let ignored = lines.iter().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    let ignored = u64::from_str_radix(ignored, 16).unwrap();
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        assert_eq!(ignored >> (signal - 1) & 1, 0, "signal {signal} is ignored");
    }
}

#[test]
fn writes_reach_the_share_and_a_readonly_root_refuses_them() {
    let agent = Agent::start();
    assert_eq!(run_spec(&agent, &spec(shell("echo kept > /tmp/file"))).code, 0);
    assert_eq!(fs::read_to_string(agent.root("tmp/file")).unwrap(), "kept\n");

    let agent = Agent::start();
    let mut spec = spec(shell("echo lost > /tmp/file || echo refused; echo x > /dev/shm/x"));
    spec.root_readonly = true;
    let result = run_spec(&agent, &spec);
    assert_eq!((result.code, result.stdout.as_str()), (0, "refused\n"), "{}", result.stderr);
    assert!(!agent.root("tmp/file").exists());
}

#[test]
fn shares_and_file_systems_are_mounted_in_order() {
    let agent = Agent::start();
    fs::create_dir(agent.share("v0")).unwrap();
    fs::write(agent.share("v0/inside"), "volume\n").unwrap();
    fs::write(agent.share("f0"), "single file\n").unwrap();
    let script = "cat /data/deep/inside; echo no > /data/deep/x 2>/dev/null || echo readonly; \
        cat /etc/single; echo new > /etc/single; stat -f -c %b:%S /scratch/; ls /data/deep/over; \
        grep -c 'noexec' /proc/mounts";
    let mut spec = spec(shell(script));
    spec.mounts = vec![
        mount("/data/deep", "share", "v0", &["rbind", "ro", "rprivate"]),
        mount("/etc/single", "share", "f0", &["bind"]),
        mount("/scratch", "tmpfs", "tmpfs", &["size=64k", "noexec", "nosuid"]),
    ];
    fs::create_dir(agent.share("v0/over")).unwrap();
    let result = run_spec(&agent, &spec);
    assert!(result.stdout.starts_with("volume\nreadonly\nsingle file\n16:4096\n"), "{result:?}");
    assert_eq!(fs::read_to_string(agent.share("f0")).unwrap(), "new\n");
    assert!(agent.root("etc/single").is_file() && agent.root("data/deep").is_dir());
}

#[test]
fn a_mount_of_the_spec_takes_a_defaults_place() {
    let agent = Agent::start();
    let mut spec =
        spec(shell("stat -f -c %b:%S /dev/shm; grep -c ' /dev/shm ' /proc/mounts; ls /dev/null"));
    spec.mounts = vec![mount("/dev/shm", "tmpfs", "shm", &["size=128k"])];
    assert_eq!(run_spec(&agent, &spec).stdout, "32:4096\n1\n/dev/null\n");
    // One that is read-only has what is made in it, and below it.
    let script = "touch /dev/y 2>/dev/null || echo ro; echo x >/dev/null && echo x >/dev/shm/x && ls /dev/shm";
    spec.process = Some(shell(script)).into();
    spec.mounts = vec![mount("/dev", "tmpfs", "tmpfs", &["nosuid", "ro"])];
    assert_eq!(run_spec(&Agent::start(), &spec).stdout, "ro\nx\n");
}

#[test]
fn a_mounts_destination_stays_inside_the_root() {
    let agent = Agent::start();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(agent.share("v0")).unwrap();
    fs::write(agent.share("v0/inside"), "").unwrap();
    symlink(outside.path(), agent.root("link")).unwrap();
    symlink("../../../../../../../../tmp", agent.root("climb")).unwrap();
    symlink("../run/stub/resolv.conf", agent.root("etc/resolv.conf")).unwrap();
    fs::write(agent.share("f0"), "nameserver\n").unwrap();
    let mut spec = spec(shell("ls /link/mnt /tmp/mnt; cat /etc/resolv.conf /run/stub/resolv.conf"));
    spec.mounts = vec![
        // This symlink dangles inside of the root, where its target is made.
        mount("/link/mnt", "share", "v0", &[]),
        mount("/climb/../climb/mnt", "share", "v0", &[]),
        mount("/etc/resolv.conf", "share", "f0", &[]),
    ];
    let expected = "/link/mnt:\ninside\n\n/tmp/mnt:\ninside\nnameserver\nnameserver\n";
    assert_eq!(run_spec(&agent, &spec), outcome(0, expected, ""));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_specs_own_mounts_may_be_all() {
    let agent = Agent::start();
    let script = "grep -v rootfs /proc/mounts | while read s d t o; do echo $d $t; done; ls /dev; \
        stat -c '%a %u %t,%T' /dev/fuse /dev/null; cat /sys/x 2>/dev/null; \
        stat -c '%a %u' /opt /opt/dir /opt/dir/file; readlink /opt/link; cat /opt/dir/file; \
        echo x 2>/dev/null >/opt/y || echo readonly";
    let mut spec = spec(shell(script));
    spec.only_these_mounts = true;
    spec.mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid"]),
        mount("/dev", "tmpfs", "tmpfs", &["size=1m", "mode=755"]),
        mount("/opt", "tmpfs", "tmpfs", &["tmpcopyup", "ro"]),
    ];
    let device = |path: &str| Device {
        path: path.to_owned(),
        mode: libc::S_IFCHR | 0o640,
        major: 10,
        minor: 229,
        uid: 7,
        ..Default::default()
    };
    spec.devices = vec![device("/dev/fuse"), device("/dev/deep/er")];
    fs::create_dir_all(agent.root("opt/dir")).unwrap();
    fs::write(agent.root("opt/dir/file"), "copied\n").unwrap();
    std::os::unix::fs::chown(agent.root("opt/dir/file"), Some(9), Some(9)).unwrap();
    fs::set_permissions(agent.root("opt/dir/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("dir/file", agent.root("opt/link")).unwrap();
    let result = run_spec(&agent, &spec);
    let (mounts, rest) = result.stdout.split_once("deep\n").unwrap();
    let (_root, mounts) = mounts.split_once('\n').unwrap();
    assert_eq!(mounts, "/proc proc\n/dev tmpfs\n/opt tmpfs\n");
    assert!(rest.starts_with("fd\nfull\nfuse\nnull\n"), "{result:?}");
    let tail = "640 7 a,e5\n666 0 1,3\n755 0\n755 0\n4751 9\ndir/file\ncopied\nreadonly\n";
    assert!(rest.ends_with(tail), "{result:?}");
}

#[test]
fn what_must_not_be_read_or_written_is_covered() {
    let agent = Agent::start();
    let script = "cat /etc/secret; ls /opt/secrets; cat /proc/sys/kernel/ostype; \
        echo x >/etc/fixed/file; echo x >/proc/sys/kernel/domainname; grep -c sysrq /proc/mounts";
    let mut spec = spec(shell(script));
    fs::create_dir_all(agent.root("opt/secrets/deep")).unwrap();
    fs::create_dir_all(agent.root("etc/fixed")).unwrap();
    fs::write(agent.root("etc/secret"), "secret\n").unwrap();
    spec.masked_paths =
        ["/etc/secret", "/opt/secrets", "/none", "/etc/secret/x"].map(str::to_owned).to_vec();
    spec.readonly_paths = ["/etc/fixed", "/proc/sys", "/none/x"].map(str::to_owned).to_vec();
    let result = run_spec(&agent, &spec);
    assert_eq!(result.stdout, "Linux\n0\n");
    assert_eq!(result.stderr.matches("Read-only file system").count(), 2, "{result:?}");
    spec.masked_paths = vec!["etc".to_owned()];
    let agent = Agent::start();
    let _host = agent.host();
    assert!(agent.create(&spec).failure.message.contains("absolute path"));
}

#[test]
fn kernel_parameters_are_set_in_the_containers_namespaces() {
    let agent = Agent::start();
    let mut spec = spec(shell("cat /proc/sys/kernel/msgmax /proc/sys/kernel/domainname"));
    spec.domainname = "sea".to_owned();
    let set = |name: &str, value: &str| Setting {
        name: name.to_owned(),
        value: value.to_owned(),
        ..Default::default()
    };
    spec.sysctls = vec![set("kernel.msgmax", "12345")];
    spec.readonly_paths = vec!["/proc/sys".to_owned()];
    assert_eq!(run_spec(&agent, &spec), outcome(0, "12345\nsea\n", ""));
    let agent = Agent::start();
    let _host = agent.host();
    for name in ["kernel.no_such", "../../etc/x", "", "kernel..msgmax", "/etc/passwd"] {
        spec.sysctls = vec![set(name, "1")];
        let message = agent.create(&spec).failure.message.clone();
        assert!(message.contains("cannot set the kernel parameter"), "{name}: {message}");
    }
}

fn failure_of(agent: &Agent, change: impl FnOnce(&mut Process)) -> StartFailure {
    let mut process = shell("true");
    change(&mut process);
    agent.create(&spec(process)).failure.unwrap()
}

#[test]
fn what_cannot_be_run_is_said_and_the_agent_stays() {
    let agent = Agent::start();
    let _host = agent.host();
    fs::write(agent.root("bin/plain"), "#!/bin/sh\n").unwrap();
    fs::write(agent.root("bin/lost"), "#!/no/such/interpreter\n").unwrap();
    fs::write(agent.root("bin/junk"), "\0\0\0\0").unwrap();
    for name in ["lost", "junk"] {
        let path = agent.root("bin").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (program, errno, message) in [
        (
            "foo",
            libc::ENOENT,
            "cannot execute \"foo\": executable file not found in $PATH (/bin:/sbin)",
        ),
        ("/bin/foo", libc::ENOENT, "cannot execute \"/bin/foo\": no such file or directory"),
        ("plain", libc::EACCES, "cannot execute \"plain\": permission denied"),
        ("/tmp", libc::EACCES, "cannot execute \"/tmp\": permission denied"),
        ("/bin/junk", libc::ENOEXEC, "cannot execute \"/bin/junk\": exec format error"),
        (
            "lost",
            libc::ENOENT,
            "cannot execute \"lost\": the interpreter it names does not exist in the container",
        ),
    ] {
        let failure = failure_of(&agent, |process| {
            process.args = vec![program.to_owned()];
            process.env = vec!["PATH=/bin:/sbin".to_owned()];
        });
        assert_eq!((failure.errno, failure.message.as_str()), (errno as u32, message));
    }
    let failure = failure_of(&agent, |process| process.args.clear());
    assert_eq!(failure.message, "the process has no arguments, not even a program");
    let failure = failure_of(&agent, |process| process.cwd = "relative".to_owned());
    assert_eq!(failure.errno, libc::EINVAL as u32);
    let fds = agent.open_fds();
    failure_of(&agent, |process| process.args.clear());
    assert_eq!(agent.open_fds(), fds, "a failed start leaks fds");

    let mut missing = spec(shell("true"));
    missing.root_share = "none".to_owned();
    assert_eq!(agent.create(&missing).failure.errno, libc::ENOENT as u32);
    assert_eq!(run_spec(&agent, &spec(shell("echo fine"))).stdout, "fine\n");
}

#[test]
fn create_and_start_are_two_steps() {
    let agent = Agent::start();
    let _host = agent.host();
    let mut request = CreateContainerRequest::new();
    request.container = Some(spec(shell("nonesuch"))).into();
    request.container.mut_or_insert_default().process.mut_or_insert_default().args[0] =
        "nonesuch".to_owned();
    let response = agent.client.create_container(context(), &request).unwrap();
    assert_eq!(response.failure.errno, libc::ENOENT as u32);

    let host = agent.host();
    request.container = Some(spec(shell("echo running; touch /tmp/ran"))).into();
    let response = agent.client.create_container(context(), &request).unwrap();
    assert!(response.failure.is_none() && response.pid > 1, "{response:?}");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!agent.root("tmp/ran").exists());
    assert!(agent.client.create_container(context(), &request).unwrap().failure.is_some());
    let process = Some(shell("test $$ -gt 1 && echo first >/tmp/first")).into();
    let exec = ExecRequest { id: "x".into(), process, ..Default::default() };
    assert!(agent.client.exec(context(), &exec).unwrap().failure.is_none());
    let wait = WaitRequest { id: "x".into(), ..Default::default() };
    assert_eq!(agent.client.wait(context(), &wait).unwrap().exit_code, 0);
    assert!(agent.root("tmp/first").exists() && !agent.root("tmp/ran").exists());

    let start = StartContainerRequest::new();
    let response = agent.client.start_container(context(), &start).unwrap();
    assert!(response.failure.is_none(), "{response:?}");
    assert_eq!(read_all(host.stdout()), *b"running\n");
    assert_eq!(host.exit().code, 0);
}

#[test]
fn a_created_container_can_be_killed() {
    let agent = Agent::start();
    let host = agent.host();
    let request = CreateContainerRequest {
        container: Some(spec(shell("true"))).into(),
        ..Default::default()
    };
    assert!(agent.client.create_container(context(), &request).unwrap().failure.is_none());
    agent.signal("", libc::SIGKILL, false);
    assert_eq!(host.exit().code, 137);
}

#[test]
fn signals_act_as_on_pid_1() {
    let agent = Agent::start();
    let host = agent.host();
    let script = "trap 'echo got it; exit 3' USR1; echo ready; while :; do sleep 0.01; done";
    agent.create(&spec(shell(script)));
    let mut stdout = host.stdout();
    read_until(&mut stdout, "ready");
    // SIGTERM has no handler there: the kernel drops it.
    agent.signal("", libc::SIGTERM, false);
    agent.signal("", libc::SIGUSR1, false);
    assert_eq!(read_all(stdout), *b"got it\n");
    assert_eq!(host.exit().code, 3);
}

#[test]
fn a_signal_to_all_reaches_children() {
    let agent = Agent::start();
    let host = agent.host();
    let script = "(trap 'echo child; exit' USR1; echo up; while :; do sleep 0.01; done) & \
        trap 'echo parent' USR1; wait; wait; echo end";
    agent.create(&spec(shell(script)));
    let mut stdout = host.stdout();
    read_until(&mut stdout, "up");
    std::thread::sleep(std::time::Duration::from_millis(100));
    agent.signal("", libc::SIGUSR1, true);
    let mut words: Vec<_> =
        String::from_utf8(read_all(stdout)).unwrap().lines().map(str::to_owned).collect();
    words.sort();
    assert_eq!(words, ["child", "end", "parent"]);
    assert_eq!(host.exit().code, 0);
}

#[test]
fn processes_left_behind_end_with_the_container() {
    let start = std::time::Instant::now();
    let result = run(shell("sleep 1000 & (sleep 1000 &) ; echo done"));
    assert_eq!(result, outcome(0, "done\n", ""));
    assert!(start.elapsed().as_secs() < 15);
}

#[test]
fn bad_calls_are_refused() {
    let agent = Agent::start();
    let start = StartContainerRequest::new();
    assert!(agent.client.start_container(context(), &start).is_err());
    let signal = bulkhead_protocol::rpc::agent::SignalRequest { signal: 9, ..Default::default() };
    assert!(agent.client.signal(context(), &signal).is_err());
    let wait = WaitRequest { id: "x".into(), ..Default::default() };
    assert!(agent.client.wait(context(), &wait).is_err());
}
