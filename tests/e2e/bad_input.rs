//! Bad input: one clear sentence, an exit code, nothing left behind.

use std::fs;

use bulkhead_tests::{Host, binary, finish};

/// Runs with these options and command and expects failure.
#[track_caller]
fn refused(host: &Host, options: &[&str], command: &[&str], code: i32, words: &str) {
    finish(host.run(options, command)).fails(code, words);
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn a_missing_root_is_said() {
    let host = Host::new();
    let run = |root: &str| finish(host.bulkhead(["run", "--rootfs", root, "--", "true"]));
    run("/does/not/exist").fails(125, "/does/not/exist");
    run("/etc/hostname").fails(125, "not a directory");
}

#[test]
fn commands_that_cannot_run_fail_as_in_a_shell() {
    let host = Host::new();
    fs::write(host.rootfs.join("plain"), "no program").expect("a file");
    refused(&host, &[], &["no-such-command"], 127, "no-such-command");
    refused(&host, &[], &["/no/such/path"], 127, "/no/such/path");
    refused(&host, &[], &["/plain"], 126, "/plain");
    refused(&host, &[], &["/etc"], 126, "/etc");
}

#[test]
fn absurd_sizes_are_said() {
    let host = Host::new();
    for (option, value) in [
        ("--cpus", "0"),
        ("--cpus", "1000"),
        ("--memory", "0"),
        ("--memory", "1k"),
        ("--memory", "900t"),
    ] {
        refused(&host, &[option, value], &["true"], 125, "");
    }
}

#[test]
fn kernels_that_are_none_are_said() {
    let host = Host::new();
    let kernel = |bytes: &[u8]| {
        let path = host.path("kernel");
        fs::write(&path, bytes).expect("a file");
        path.display().to_string()
    };
    let vmlinux = fs::read(binary("vmlinux")).expect("the guest kernel");
    for bytes in [&b""[..], b"text", &vmlinux[..1000], &vmlinux[..vmlinux.len() / 3]] {
        refused(&host, &["--kernel", &kernel(bytes)], &["true"], 125, "kernel");
    }
    let busybox = fs::read(host.rootfs.join("bin/busybox")).expect("busybox");
    refused(&host, &["--kernel", &kernel(&busybox)], &["true"], 125, "kernel");
    refused(&host, &["--kernel", "/no/kernel"], &["true"], 125, "/no/kernel");
}

#[test]
fn bad_volumes_names_and_users_are_said() {
    let host = Host::new();
    refused(&host, &["--volume", "/no/such/source:/data"], &["true"], 125, "/no/such/source");
    refused(&host, &["--volume", "/etc:relative"], &["true"], 125, "relative");
    refused(&host, &["--name", "../up"], &["true"], 125, "../up");
    refused(&host, &["--user", "nobody-here"], &["true"], 126, "nobody-here");
    refused(&host, &["--workdir", "/bin/busybox/x"], &["true"], 126, "/bin/busybox/x");
}

#[test]
fn no_kvm_is_one_sentence() {
    let host = Host::new();
    let mut hidden = std::process::Command::new("unshare");
    hidden.args(["-m", "sh", "-c", "mount --bind /dev/null /dev/kvm && exec \"$@\"", "sh"]);
    let run = host.run(&[], &["true"]);
    hidden.arg(run.get_program()).args(run.get_args());
    finish(hidden).fails(125, "/dev/kvm");
}
