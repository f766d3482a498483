//! Debian's podman with bulkhead as its runtime: its commands do what they do with runc.
//!
//! Starting a container takes seconds on the lab's emulated CPU, so each asserts much.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_tests::podman::{IMAGE, Podman};
use bulkhead_tests::until;

/// One storage for all tests, one at a time: the image is imported once.
fn podman() -> MutexGuard<'static, Podman> {
    static PODMAN: OnceLock<Mutex<Podman>> = OnceLock::new();
    let podman = PODMAN.get_or_init(|| Mutex::new(Podman::new()));
    podman.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn exit_codes_and_streams_are_the_commands() {
    let podman = podman();
    let finished = podman.run(&[], "echo out; echo err >&2; exit 7");
    assert_eq!((finished.code, &*finished.stdout, &*finished.stderr), (7, "out\n", "err\n"));
    let input = ["run", "--rm", "-i", "--network=none", IMAGE, "sha256sum"];
    let said = podman.call_with_input(input, &vec![b'x'; 1 << 20]).ok();
    assert!(said.starts_with("8f990ba0b577b51c"), "a MiB through standard input: {said}");
    for (command, code, words) in [
        ("nonesuch", 127, "executable file not found in $PATH"),
        ("/etc", 126, "cannot execute \"/etc\": permission denied"),
    ] {
        let finished = podman.call(["run", "--rm", "--network=none", IMAGE, command]);
        assert_eq!(finished.code, code, "{finished:#?}");
        assert!(finished.stderr.contains(words), "{finished:#?}");
    }
    assert_eq!(podman.left(), [""; 0]);
}

#[test]
fn the_process_is_as_asked() {
    let podman = podman();
    let options = [
        "--env=A=b c",
        "--user=1000:50",
        "--workdir=/var/tmp",
        "--hostname=box",
        "--ulimit=nofile=100:200",
        "--cap-drop=all",
        "--memory=192m",
    ];
    let script = "echo $A; id -u; id -g; pwd; hostname; ulimit -n; ulimit -Hn; echo $$; \
        grep CapBnd /proc/self/status; awk '/MemTotal/ { print ($2 < 300 * 1024) }' /proc/meminfo";
    let said = podman.run(&options, script).ok();
    let expected = "b c\n1000\n50\n/var/tmp\nbox\n100\n200\n1\nCapBnd:\t0000000000000000\n1\n";
    assert_eq!(said, expected);
}

#[test]
fn volumes_and_read_only_roots_hold() {
    let podman = podman();
    let path = |name: &str| podman.path(name).display().to_string();
    fs::create_dir_all(podman.path("rw"))
        .and_then(|()| fs::create_dir_all(podman.path("ro")))
        .expect("directories");
    fs::write(podman.path("ro/kept"), "kept").expect("a file");
    fs::write(podman.path("one"), "one\n").expect("a file");
    let volumes = [
        format!("--volume={}:/rw", path("rw")),
        format!("--volume={}:/ro:ro", path("ro")),
        format!("--volume={}:/etc/one:ro", path("one")),
    ];
    let [rw, ro, one] = volumes.each_ref().map(String::as_str);
    let script = "echo in >/rw/made; cat /etc/one; echo t >/scratch/t && cat /scratch/t; \
        for f in /ro/kept /etc/one /root-is-read-only; do echo x >$f; done 2>/dev/null; \
        rm /ro/kept 2>/dev/null || echo refused";
    let said = podman.run(&["--read-only", "--tmpfs=/scratch", rw, ro, one], script).ok();
    assert_eq!(said, "one\nt\nrefused\n");
    let read = |name: &str| fs::read_to_string(podman.path(name)).expect("a file");
    assert_eq!((&*read("rw/made"), &*read("ro/kept"), &*read("one")), ("in\n", "kept", "one\n"));
}

#[test]
fn a_terminal_is_one() {
    let podman = podman();
    let conversation = r#"
expect(b'# ')
send(b'stty size; echo a$((1+1))\n'); expect(b'30 100'); expect(b'a2')
resize(40, 120); time.sleep(1)
send(b'stty size; echo b$((1+1))\n'); expect(b'40 120'); expect(b'b2')
send(b'sleep 100\n'); time.sleep(1); send(b'\x03'); expect(b'# ')
send(b'exit 6\n')
"#;
    let run = ["run", "-it", "--rm", "--network=none", IMAGE, "sh"];
    assert_eq!(podman.on_a_terminal(&run, conversation), 6);
    podman.start("terminal", &[], "exec sleep 1000");
    assert_eq!(podman.on_a_terminal(&["exec", "-it", "terminal", "sh"], conversation), 6);
    podman.call(["rm", "-f", "-t", "0", "terminal"]).ok();
}

#[test]
fn a_container_lives_through_all_its_verbs() {
    let podman = podman();
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    podman.start("life", &[], script);
    until("it is up", || podman.call(["logs", "life"]).stdout.contains("up"));
    let finished = podman.call(["exec", "life", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((finished.code, &*finished.stdout, &*finished.stderr), (3, "out\n", "err\n"));
    assert_eq!(podman.call_with_input(["exec", "-i", "life", "cat"], b"through").ok(), "through");
    podman.call(["exec", "-d", "life", "sh", "-c", "echo $A >/made; exec sleep 77"]).ok();
    until("exec -d runs", || podman.call(["top", "life", "-ef"]).stdout.contains("sleep 77"));
    let finished = podman.call(["exec", "life", "nonesuch"]);
    assert_eq!(finished.code, 127, "{finished:#?}");
    let stats = podman.call(["stats", "--no-stream", "--format={{.CPU}}", "life"]).ok();
    assert!(stats.trim().parse::<f64>().is_ok_and(|percent| percent > 0.0), "{stats}");

    podman.call(["pause", "life"]).ok();
    let status = || podman.call(["inspect", "--format={{.State.Status}}", "life"]).ok();
    assert_eq!(status(), "paused\n");
    podman.call(["unpause", "life"]).ok();
    assert_eq!(podman.call(["exec", "life", "echo", "again"]).ok(), "again\n");

    podman.call(["stop", "life"]).ok();
    let code = || podman.call(["inspect", "--format={{.State.ExitCode}}", "life"]).ok();
    assert_eq!((&*status(), &*code()), ("exited\n", "5\n"));
    assert!(podman.call(["logs", "life"]).ok().ends_with("bye\n"));
    podman.call(["start", "life"]).ok();
    podman.call(["restart", "-t", "5", "life"]).ok();
    assert_eq!(status(), "running\n");
    podman.call(["kill", "life"]).ok();
    podman.call(["wait", "life"]).ok();
    assert_eq!(code(), "137\n");
    podman.call(["rm", "life"]).ok();
    assert_eq!(podman.left(), [""; 0]);
}

#[test]
fn a_monitor_that_is_killed_is_a_container_that_was() {
    let podman = podman();
    podman.start("victim", &[], "exec sleep 1000");
    let pid = podman.call(["inspect", "--format={{.State.Pid}}", "victim"]).ok();
    bulkhead_tests::signal(pid.trim().parse().expect("a process ID"), "KILL");
    assert_eq!(podman.call(["wait", "victim"]).ok(), "137\n");
    podman.call(["rm", "victim"]).ok();
    assert_eq!(podman.left(), [""; 0]);
}

#[test]
fn healthchecks_are_run_inside() {
    let podman = podman();
    let options = ["--health-cmd=test -e /well", "--health-interval=disable"];
    podman.start("patient", &options, "exec sleep 1000");
    assert_eq!(podman.call(["healthcheck", "run", "patient"]).code, 1);
    podman.call(["exec", "patient", "touch", "/well"]).ok();
    podman.call(["healthcheck", "run", "patient"]).ok();
    podman.call(["rm", "-f", "-t", "0", "patient"]).ok();
}

#[test]
fn images_are_built_with_it() {
    let podman = podman();
    let context = podman.path("context");
    fs::create_dir_all(&context).expect("a directory");
    // The build makes each step's network after it created the container.
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a connection");
        client.write_all(b"built\n").expect("the client reads it");
    });
    let fetch = format!("nc $(ip route | head -n 1 | cut -d ' ' -f 3) {port} </dev/null");
    let steps = format!("FROM {IMAGE}\nRUN uname -r > /kernel && {fetch} > /made\nCMD cat /made\n");
    fs::write(context.join("Containerfile"), steps).expect("a file");
    let runtime = format!("--runtime={}", bulkhead_tests::binary("bulkhead").display());
    let build = ["build", "--isolation=oci", "-q", "-t", "made"];
    let mut command = podman.command(build);
    command.arg(runtime).arg(&context);
    bulkhead_tests::finish(command).ok();
    server.join().expect("it was called");
    assert_eq!(podman.call(["run", "--rm", "--network=none", "made"]).ok(), "built\n");
    let here = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let there = podman.call(["run", "--rm", "--network=none", "made", "cat", "/kernel"]).ok();
    assert_ne!(there, here, "the step ran in a kernel of its own");
    podman.call(["rmi", "made"]).ok();
}

#[test]
fn hosts_seccomp_profiles_new_limits_and_the_wall_are_as_asked() {
    let podman = podman();
    let profile = podman.path("seccomp.json");
    let rules = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    fs::write(&profile, rules).expect("a file");
    let profile = format!("--security-opt=seccomp={}", profile.display());
    let script =
        "grep harbour /etc/hosts; mkdir /x 2>/dev/null || echo denied; touch /y && echo made";
    let said = podman.run(&["--add-host=harbour:10.1.2.3", &profile], script).ok();
    assert_eq!(
        said.split_whitespace().collect::<Vec<_>>(),
        ["10.1.2.3", "harbour", "denied", "made"]
    );

    podman.start("limited", &["--memory=200m"], "exec sleep 1000");
    podman.call(["update", "--memory=100m", "--cpus=0.5", "limited"]).ok();
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    let limits = podman.call(["exec", "limited", "sh", "-c", script]).ok();
    assert_eq!(limits, "104857600\n50000 100000\n");
    podman.call(["rm", "-f", "-t", "0", "limited"]).ok();

    let here = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let wall = ["--runtime-flag=isolation=process", "run", "--rm", "--network=none"];
    assert_eq!(podman.call([&wall[..], &[IMAGE, "uname", "-r"]].concat()).ok(), here);
}

#[test]
#[ignore = "two minutes on an emulated CPU: make e2e-long"]
fn twenty_run_at_once() {
    let podman = podman();
    let start = Instant::now();
    for number in 0..20 {
        podman.start(&format!("n{number}"), &["--memory=64m"], "exec sleep 1000");
    }
    let running = podman.call(["ps", "-q"]).ok();
    assert_eq!(running.lines().count(), 20, "{running}");
    assert_eq!(podman.call(["exec", "n19", "echo", "here"]).ok(), "here\n");
    podman.call(["rm", "-fa", "-t", "0"]).ok();
    assert_eq!(podman.left(), [""; 0]);
    assert!(start.elapsed() < Duration::from_secs(600), "{:?}", start.elapsed());
}

#[test]
fn images_and_directories_are_mounted_as_overlays() {
    let podman = podman();
    let dir = podman.path("lower");
    fs::create_dir(&dir).expect("a directory");
    fs::write(dir.join("file"), "old\n").expect("a file");
    let image = format!("--mount=type=image,src={IMAGE},dst=/image");
    let written = format!("{image}-rw,rw=true");
    let volume = format!("--volume={}:/volume:O", dir.display());
    let script =
        "test -x /image/bin/sh; ! touch /image/x 2>/dev/null; echo x >/image-rw/x; cat /image-rw/x
        cat /volume/file; echo new >/volume/file; cat /volume/file; test ! -e /image/x";
    let said = podman.run(&[&image, &written, &volume], &format!("set -e; {script}")).ok();
    assert_eq!(said, "x\nold\nnew\n");
    assert_eq!(fs::read_to_string(dir.join("file")).expect("a file"), "old\n");
}
