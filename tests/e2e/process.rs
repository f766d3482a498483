//! The container's process: what it is given and how it ends.

use std::process::Command;

use bulkhead_tests::{Host, binary, debian, finish};

#[test]
fn a_shell_pipeline_runs_in_a_kernel_of_its_own() {
    let host = Host::new();
    let said = host.sh("uname -s; seq 1000 | grep 7 | wc -l; echo $$").ok();
    assert_eq!(said, "Linux\n271\n1\n", "and the process is PID 1 of its container");
    let here = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot_id");
    let there = host.sh("cat /proc/sys/kernel/random/boot_id").ok();
    assert_ne!(here, there, "another kernel booted");
}

#[test]
fn exit_codes_arrive() {
    let host = Host::new();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 255", 255),
        ("sh -c 'kill -9 $$'; exit $?", 137),
        ("sh -c 'kill -15 $$'; exit $?", 143),
    ] {
        assert_eq!(host.sh(script).code, code, "{script}");
    }
}

#[test]
fn perl_and_python_run_from_a_debian_root() {
    let host = Host::new();
    let run = |command: &[&str]| {
        let mut run = host.bulkhead(["run", "--memory", "256m", "--rootfs"]);
        run.arg(debian()).arg("--").args(command);
        finish(run).ok()
    };
    assert_eq!(run(&["perl", "-e", "print join ',', map { $_ * $_ } 1..5"]), "1,4,9,16,25");
    let script = "import hashlib, json, subprocess\n\
        print(json.dumps({'sha': hashlib.sha256(b'x' * 10**6).hexdigest()[:8]}))\n\
        print(subprocess.check_output(['dpkg-query', '-W', '-f', '${Status}', 'dash']).decode())";
    let said = run(&["python3", "-c", script]);
    assert_eq!(said, "{\"sha\": \"1b977e9f\"}\ninstall ok installed\n");
}

#[test]
fn environment_directory_and_user_are_as_asked() {
    let host = Host::new();
    let options = ["--env", "A=b c", "--workdir", "/home/alice", "--user", "alice:staff"];
    let script = "echo \"$A\"; pwd; id -u; id -g; id -nG; touch made; stat -c %u:%g made";
    let said = finish(host.run(&options, &["sh", "-c", script])).ok();
    assert_eq!(said, "b c\n/home/alice\n1000\n50\nstaff\n1000:50\n");
    let said = finish(host.run(&["--user", "1234:77"], &["sh", "-c", "id -u; id -g"])).ok();
    assert_eq!(said, "1234\n77\n");
}

#[test]
fn what_volumes_bring_goes_before_the_root_s() {
    let host = Host::new();
    let home = |options: &[&str]| finish(host.run(options, &["sh", "-c", "echo $HOME"])).ok();
    assert_eq!(home(&[]), "/root\n");
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("uname");
    std::fs::write(&program, "#!/bin/sh\necho the volume\n").expect("a program");
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, all).expect("a program");
    let passwd = dir.path().join("passwd");
    std::fs::write(&passwd, "root:x:0:0::/elsewhere:/bin/sh\n").expect("a file");
    let passwd = format!("{}:/etc/passwd", passwd.display());
    assert_eq!(home(&["--volume", &passwd]), "/elsewhere\n");
    assert_eq!(finish(host.run(&[], &["uname"])).ok(), "Linux\n");
    let volume = format!("{}:/usr/local/bin", dir.path().display());
    assert_eq!(finish(host.run(&["--volume", &volume], &["uname"])).ok(), "the volume\n");
}

#[test]
fn two_vcpus_both_work() {
    let host = Host::new();
    let script = "nproc; grep -c ^processor /proc/cpuinfo; taskset 1 echo a; taskset 2 echo b";
    assert_eq!(finish(host.run(&["--cpus", "2"], &["sh", "-c", script])).ok(), "2\n2\na\nb\n");
    assert_eq!(host.sh("nproc").ok(), "1\n");
}

#[test]
fn memory_is_the_size_of_the_vm() {
    let host = Host::new();
    let total_mib = |size: &str| -> u64 {
        let script = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
        let said = finish(host.run(&["--memory", size], &["sh", "-c", script])).ok();
        said.trim().parse().expect("a number")
    };
    let (small, large) = (total_mib("128m"), total_mib("512m"));
    assert!((90..=128).contains(&small), "{small} MiB of 128");
    assert!((460..=512).contains(&large), "{large} MiB of 512");
}

#[test]
fn more_memory_than_there_is_kills_the_process_not_the_host() {
    let host = Host::new();
    let script = "head -c 400m /dev/zero | tail -c 399m >/dev/null; echo survived $?";
    let finished = finish(host.run(&["--memory", "128m"], &["sh", "-c", script]));
    assert!(!finished.stdout.contains("survived 0"), "128 MiB hold no 399: {finished:?}");
}

#[test]
fn a_container_is_pid_1_with_namespaces_and_mounts() {
    let host = Host::new();
    let script = "test -c /dev/null && test -w /dev/shm && test -d /dev/pts && test -e /dev/ptmx && \
        grep -q 'cgroup2 /sys/fs/cgroup' /proc/mounts && grep -q mqueue /proc/mounts && \
        ls /proc | grep -c '^[0-9]*$' && hostname";
    let said = finish(host.run(&["--hostname", "box"], &["sh", "-c", script])).ok();
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].parse::<u32>().expect("a count") < 6,
        "it sees no process but its own: {said}"
    );
    assert_eq!(lines[1], "box");
}

#[test]
fn a_kernel_panic_is_a_failure_with_the_kernels_last_lines() {
    let host = Host::new();
    let not_a_program = host.path("init");
    std::fs::write(&not_a_program, "no program").expect("a file can be written");
    let spec = format!(
        r#"{{"name":"panics","vcpus":1,"memory_mib":128,"kernel":{:?},"init":{:?},"cid":3,"vsock":{:?}}}"#,
        binary("vmlinux"),
        not_a_program,
        host.path("vsock.sock"),
    );
    std::fs::write(host.path("spec.json"), spec).expect("a file can be written");
    let mut vmm = Command::new(binary("bulkhead-vmm"));
    vmm.arg("--spec").arg(host.path("spec.json"));
    let finished = finish(vmm);
    assert_eq!(finished.code, 125, "{finished:?}");
    assert!(finished.stderr.contains("the guest restarted"), "{finished:?}");
    assert!(finished.stderr.contains("Kernel panic - not syncing"), "{finished:?}");
}
