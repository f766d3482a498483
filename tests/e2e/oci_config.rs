//! config.json honoured: what the specification's own validation suite (runtime-tools) asks of a
//! runtime, case by case, with the container's own eyes.
//!
//! The comments name that suite's cases; tests/oci-validation.md has the whole list.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::{Host, finish, finish_with_input, start, until, wait};
use serde_json::{Value, json};

/// hostname, default: domainname too.
#[test]
fn names() {
    let bundle =
        Bundle::new("hostname; cat /proc/sys/kernel/domainname; hostname other && hostname")
            .with("/domainname", json!("sea"));
    assert_eq!(bundle.run().ok(), "lighthouse\nsea\nother\n");
    let bundle = Bundle::new("hostname").with("/hostname", Value::Null);
    assert_eq!(bundle.run().ok(), "test\n");
}

/// process, process_user, process_rlimits, process_oom_score_adj, process_capabilities,
/// linux_process_apparmor_profile (ignored).
#[test]
fn the_process_is_who_it_should_be() {
    let script = "pwd; id -u; id -g; id -G; umask; echo $A; ulimit -n; ulimit -H -n; \
        cat /proc/self/oom_score_adj; grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status; echo \"$@\"";
    let mut bundle = Bundle::new(script);
    bundle.set("/process/args", json!(["sh", "-c", script, "zero", "one", "two three"]));
    bundle.set("/process/cwd", json!("/made/for/it"));
    bundle.set("/process/env", json!(["PATH=/bin", "A=x=y"]));
    let user = json!({"uid": 10, "gid": 11, "additionalGids": [12, 5], "umask": 0o27});
    bundle.set("/process/user", user);
    let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    bundle.set("/process/rlimits", limit);
    bundle.set("/process/oomScoreAdj", json!(77));
    bundle.set("/process/noNewPrivileges", json!(true));
    bundle.set("/process/apparmorProfile", json!("none-such"));
    let kill = json!(["CAP_KILL"]);
    bundle.set(
        "/process/capabilities",
        json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": kill, "permitted": kill,
            "inheritable": kill, "ambient": kill}),
    );
    let said = bundle.run().ok();
    let expected = "/made/for/it\n10\n11\n11 5 12\n0027\nx=y\n100\n200\n77\n\
        CapInh:\t0000000000000020\nCapPrm:\t0000000000000020\nCapEff:\t0000000000000020\n\
        CapBnd:\t0000000000000021\nCapAmb:\t0000000000000020\nNoNewPrivs:\t1\nSeccomp:\t0\n\
        one two three\n";
    assert_eq!(said.replace("11 12 5", "11 5 12"), expected);
}

/// default filesystems, default_devices, default symlinks, linux_devices.
#[test]
fn devices_and_links_are_there() {
    let script = "for d in null zero full random urandom tty fuse own; do \
        stat -c '%n %F %t,%T %a %u' /dev/$d; done; \
        for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; \
        echo x >/dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; \
        echo x >/dev/full; stat -f -c %T /dev/mqueue /dev/pts /dev/shm /proc /sys";
    let devices = json!([
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 3},
        {"path": "/dev/own", "type": "b", "major": 7, "minor": 300, "fileMode": 384},
    ]);
    let finished = Bundle::new(script).with("/linux/devices", devices).run();
    assert!(finished.stderr.contains("No space left"), "{finished:?}");
    let char = "character special file";
    let expected = format!(
        "/dev/null {char} 1,3 666 0\n/dev/zero {char} 1,5 666 0\n/dev/full {char} 1,7 666 0\n\
         /dev/random {char} 1,8 666 0\n/dev/urandom {char} 1,9 666 0\n/dev/tty {char} 5,0 666 0\n\
         /dev/fuse {char} a,e5 666 3\n/dev/own block special file 7,12c 600 0\n\
         /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n4\n4\n"
    );
    assert!(finished.stdout.starts_with(&expected), "{finished:?}");
    assert!(finished.stdout.ends_with("UNKNOWN\ndevpts\ntmpfs\nproc\nsysfs\n"), "{finished:?}");
}

/// mounts, mounts_recursive, linux_mount_label (ignored).
#[test]
fn binds_file_systems_and_their_options() {
    let script = "cat /data/in; echo x 2>/dev/null >/ro/x || echo ro; echo new >/data/out; \
        echo x 2>/dev/null >/one || echo ro; cat /one; cat /data/below/deep; ls -A /flat/below; \
        grep -E ' /(data|ro|small) ' /proc/mounts | cut -d' ' -f2-4; \
        df -k /small | tail -1 | tr -s ' ' | cut -d' ' -f2; stat -c %a /small; \
        cat /etc/resolv.conf; /noexec/true 2>/dev/null || echo noexec";
    let bundle = Bundle::new(script);
    let at = |name: &str| bundle.host.path(name);
    for dir in ["data", "data/below"] {
        fs::create_dir(at(dir)).expect("a directory");
    }
    fs::write(at("data/in"), "in\n").expect("a file");
    fs::write(at("one"), "single\n").expect("a file");
    symlink("../run/none/resolv.conf", bundle.host.rootfs.join("etc/resolv.conf")).expect("a link");
    let below = at("data/below");
    let mounted = |command: &str, args: &[&str]| {
        let done = std::process::Command::new(command).args(args).arg(&below).status();
        assert!(done.expect("it runs").success(), "{command}");
    };
    mounted("mount", &["-t", "tmpfs", "below"]);
    fs::write(below.join("deep"), "below\n").expect("a file");
    let bind = |destination: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": "bind", "source": source, "options": options});
    let bundle = bundle
        .mount(bind("/data", "data", &["rbind", "nosuid", "nodev"]))
        .mount(bind("/ro", "data", &["rbind", "ro"]))
        .mount(bind("/flat", "data", &["bind"]))
        .mount(bind("/one", "one", &["bind", "ro"]))
        .mount(bind("/etc/resolv.conf", "one", &["bind"]))
        .mount(bind("/noexec", "rootfs/bin", &["rbind", "noexec"]))
        .mount(json!({"destination": "/small", "type": "tmpfs", "source": "tmpfs",
            "options": ["noexec", "size=1m", "mode=711"]}));
    let said = bundle.run();
    mounted("umount", &[]);
    assert_eq!(
        said.ok(),
        "in\nro\nro\nsingle\nbelow\n\
         /data virtiofs rw,nosuid,nodev,relatime\n/ro virtiofs ro,relatime\n\
         /small tmpfs rw,noexec,relatime,size=1024k,mode=711\n1024\n711\nsingle\nnoexec\n"
    );
    assert_eq!(fs::read_to_string(bundle.host.path("data/out")).expect("written"), "new\n");
}

/// root_readonly_true. The host enforces it too: a guest that remounts gets no further.
#[test]
fn a_read_only_root_has_its_mount_points_and_stays_as_it_is() {
    let script = "touch /x 2>/dev/null || echo ro; mount -o remount,rw / ; touch /x 2>/dev/null || \
        echo ro; touch /run/deep/ok && echo ok; ls /made";
    let bundle = Bundle::new(script)
        .with("/root/readonly", json!(true))
        .mount(json!({"destination": "/run/deep", "type": "tmpfs", "source": "tmpfs"}))
        .mount(json!({"destination": "/made", "type": "bind", "source": "config.json",
            "options": ["bind", "ro"]}));
    assert_eq!(bundle.run().ok(), "ro\nro\nok\n/made\n");
    assert!(!bundle.host.rootfs.join("x").exists());
}

/// linux_masked_paths, linux_readonly_paths, linux_rootfs_propagation.
#[test]
fn paths_are_masked_read_only_and_mounts_propagate() {
    let script = "cat /secret; ls /secrets; echo x 2>/dev/null >/fixed/x || echo ro; \
        echo x 2>/dev/null >/proc/sys/kernel/hostname || echo ro; \
        grep ' / ' /proc/self/mountinfo | grep -o 'shared:' | head -1";
    let bundle = Bundle::new(script)
        .with("/linux/maskedPaths", json!(["/secret", "/secrets", "/not-there"]))
        .with("/linux/readonlyPaths", json!(["/fixed", "/proc/sys", "/not-there"]))
        .with("/linux/rootfsPropagation", json!("shared"));
    for dir in ["secrets/deep", "fixed"] {
        fs::create_dir_all(bundle.host.rootfs.join(dir)).expect("a directory");
    }
    fs::write(bundle.host.rootfs.join("secret"), "secret").expect("a file");
    assert_eq!(bundle.run().ok(), "ro\nro\nshared:\n");
}

/// linux_sysctl: any, for the kernel is the container's own.
#[test]
fn kernel_parameters_are_the_containers_own() {
    let script = "cd /proc/sys; cat net/ipv4/ip_forward kernel/msgmax vm/overcommit_memory";
    let sysctl = json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "4321",
        "vm.overcommit_memory": "1"});
    let bundle = Bundle::new(script).with("/linux/sysctl", sysctl);
    assert_eq!(bundle.run().ok(), "1\n4321\n1\n");
}

/// linux_seccomp.
#[test]
fn system_calls_are_filtered() {
    let script = "mkdir /d; chmod 700 /bin 2>&1; hostname x && echo named; \
        grep Seccomp: /proc/self/status";
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 18},
            {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"},
        ]
    });
    let finished = Bundle::new(script).with("/linux/seccomp", profile).run();
    assert!(finished.stderr.contains("/d': Invalid cross-device link"), "{finished:?}");
    assert!(finished.stdout.contains("Operation not permitted"), "{finished:?}");
    assert!(finished.stdout.ends_with("named\nSeccomp:\t2\n"), "{finished:?}");
}

/// linux_cgroups_devices, and what `update` makes of it. The devices are the guest's.
#[test]
fn devices_are_denied() {
    let script = "mknod /dev/kmsg c 1 11; echo x >/dev/null && echo up; sleep 1000";
    let rules = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let bundle = Bundle::new(script).with("/linux/resources", rules);
    let mut command = bundle.command("run", &[], "devices");
    command.stdout(std::process::Stdio::piped());
    let child = start(command);
    let exec = |script: &str| {
        let exec = ["exec", "devices", "sh", "-c", script];
        finish(bundle.host.bulkhead(exec))
    };
    let update = |rules: Value| {
        let command = bundle.host.bulkhead(["update", "-r", "-", "devices"]);
        finish_with_input(command, json!({"devices": rules}).to_string().as_bytes()).ok();
    };
    let denied = |script: &str| {
        let finished = exec(script);
        assert!(finished.stderr.ends_with("Operation not permitted\n"), "{finished:?}");
    };
    until("the node is there", || exec("test -c /dev/kmsg").code == 0);
    denied("head -c 1 /dev/kmsg");
    let terminal =
        "exec <>/dev/ptmx; head -c 9 /dev/urandom | wc -c; mknod /dev/loop b 7 0 && echo node";
    assert_eq!(exec(terminal).ok(), "9\nnode\n");
    let kmsg = |access: &str| json!([{"allow": false}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": access}]);
    update(kmsg("r"));
    denied("head -c 1 /dev/kmsg >/dev/null && echo x >/dev/kmsg");
    update(kmsg("rw"));
    exec("echo x >/dev/kmsg; head -c 1 /dev/kmsg").ok();
    update(json!([{"allow": true}]));
    exec("head -c 1 /dev/kmsg").ok();
    finish(bundle.host.bulkhead(["delete", "--force", "devices"])).ok();
    wait(child);
}

/// linux_cgroups_memory, linux_cgroups_cpus, linux_cgroups_pids, linux_cgroups_blkio,
/// linux_cgroups_relative_memory: in the guest, in the VM's shape, and on the host.
#[test]
fn limits_are_set_inside_and_around() {
    let script = "cd /sys/fs/cgroup; cat memory.max memory.low pids.max cpu.max hugetlb.2MB.max; nproc; \
        awk '/MemTotal/ {print ($2 > 240000 && $2 < 290000)}' /proc/meminfo; cat /proc/self/cgroup; \
        read line";
    let disk = fs::read_dir("/sys/block").expect("block devices").flatten().next().expect("one");
    let disk = fs::read_to_string(disk.path().join("dev")).expect("its number");
    let (major, minor) = disk.trim().split_once(':').expect("two numbers");
    let [major, minor] = [major, minor].map(|number| number.parse::<i64>().expect("a number"));
    let resources = json!({
        "blockIO": {"throttleWriteBpsDevice": [{"major": major, "minor": minor, "rate": 1 << 20}]},
        "memory": {"limit": 256 << 20, "reservation": 128 << 20},
        "cpu": {"quota": 150_000, "period": 100_000, "shares": 512},
        "pids": {"limit": 30},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        "unified": {"memory.high": "250000000"},
    });
    let bundle = Bundle::new(script)
        .with("/linux/resources", resources)
        .with("/linux/cgroupsPath", json!("/bulkhead-e2e/limits"));
    let mut command = bundle.command("run", &[], "test");
    command.stdin(std::process::Stdio::piped());
    let mut child = start(command);
    let stdin = child.stdin.take();
    let cgroup = Path::new("/sys/fs/cgroup/bulkhead-e2e/limits");
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    until("the VMM and its worker are in the cgroup", || read("cgroup.procs").lines().count() >= 2);
    assert_eq!(read("cpu.max"), "150000 100000\n");
    assert_eq!(read("cpu.weight"), "20\n");
    let max: u64 = read("memory.max").trim().parse().expect("a number");
    assert!(max > 300 << 20 && max < 500 << 20, "{max}");
    assert!(read("pids.max").trim().parse::<u32>().is_ok());
    let io = format!("{major}:{minor} rbps=max wbps=1048576 riops=max wiops=max\n");
    assert_eq!(read("io.max"), io);
    drop(stdin);
    let said = wait(child).stdout;
    let limits = "268435456\n134217728\n30\n150000 100000\n4194304\n";
    // In the lab a host of one CPU has no second one to give.
    let nproc = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
    assert_eq!(said, format!("{limits}{nproc}\n1\n0::/\n"));
    assert!(!cgroup.exists(), "the cgroup goes with the container");
}

/// linux_uid_mappings, linux_gid_mappings.
#[test]
fn a_user_namespace_maps_the_owners_of_files() {
    let script = "id -u; tr -s ' ' </proc/self/uid_map; touch /tmp/mine && stat -c %u /tmp/mine; \
        touch /bin/x 2>/dev/null || echo no; stat -c %u /dev/shm; \
        mount -t tmpfs none /tmp && echo mounted";
    let mapping = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 65536}]);
    let bundle = Bundle::new(script)
        .with("/linux/uidMappings", mapping(100_000))
        .with("/linux/gidMappings", mapping(200_000))
        .with("/linux/namespaces/2", json!({"type": "user"}));
    let tmp = bundle.host.rootfs.join("tmp");
    std::os::unix::fs::chown(&tmp, Some(100_000), Some(200_000)).expect("chown");
    assert_eq!(bundle.run().ok(), "0\n 0 100000 65536\n0\nno\n0\nmounted\n");
    let owner = fs::metadata(tmp.join("mine")).expect("made");
    assert_eq!((owner.uid(), owner.gid()), (100_000, 200_000));
}

/// The same with files whose owners stay: an ID-mapped mount, by the container's mappings and by others.
#[test]
fn a_mount_can_have_owners_of_its_own() {
    let dir = Host::new();
    // A file system that maps IDs, whatever the lab's own does.
    let files = dir.path("files");
    let prepare = "mkdir $0 && mount -t tmpfs mapped $0 && touch $0/roots && chown 7:8 $0";
    let prepared = Command::new("sh").args(["-c", prepare]).arg(&files).status();
    assert!(prepared.expect("sh runs").success());
    let mapping = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1000}]);
    let mount = |to: &str, options: Value| json!({"destination": to, "type": "bind", "source": files, "options": options});
    let mut other = mount("/other", json!(["rbind"]));
    other["uidMappings"] = mapping(100_040);
    other["gidMappings"] = mapping(100_050);
    let script = "cd /same; stat -c %u:%g . roots; touch new; chown 3:4 new; stat -c %u:%g /other /other/new";
    let said = Bundle::new(script)
        .with("/linux/uidMappings", mapping(100_000))
        .with("/linux/gidMappings", mapping(100_000))
        .with("/linux/namespaces/2", json!({"type": "user"}))
        .mount(mount("/same", json!(["rbind", "idmap"])))
        .mount(other)
        .run();
    let owner = fs::metadata(files.join("new")).map(|new| (new.uid(), new.gid()));
    let unmounted = Command::new("umount").arg("-l").arg(&files).status();
    assert!(unmounted.expect("umount runs").success());
    assert_eq!(said.ok(), "7:8\n0:0\n47:58\n43:54\n");
    assert_eq!(owner.expect("made"), (3, 4));
}

/// A container that takes more than its limit is killed, and that is reported.
#[test]
fn too_much_memory_ends_the_process() {
    let script = "x=$(head -c 200m /dev/zero | tr '\\0' x)";
    let mut bundle =
        Bundle::new(script).with("/linux/resources", json!({"memory": {"limit": 64 << 20}}));
    assert_eq!(bundle.run().code, 137);
    bundle.set("/process/args", json!(["sh", "-c", "head -c 10m /dev/zero | tail -c 1 | wc -c"]));
    assert_eq!(bundle.run().ok(), "1\n");
}

/// linux_ns_path, linux_ns_path_type, linux_uid_mappings, linux_time_ns, and hostile ones: one
/// sentence each, and nothing is left.
#[test]
fn what_cannot_be_is_refused() {
    for (pointer, value, words) in [
        (
            "/linux/namespaces/0",
            json!({"type": "pid", "path": "/proc/1/ns/pid"}),
            "cannot be joined",
        ),
        ("/linux/namespaces/2", json!({"type": "pid"}), "pid twice"),
        ("/linux/timeOffsets", json!({"boottime": {"secs": 1, "nanosecs": 0}}), "timeOffsets"),
        ("/process/args", json!([]), "process.args"),
        ("/process/cwd", json!("."), "process.cwd"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 1}]),
            "soft limit",
        ),
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/root/path", json!("../.."), "out of the bundle"),
        ("/mounts/0", json!({"destination": "/x", "type": "bind", "source": "/none"}), "/none"),
        ("/mounts/0", json!({"destination": "/proc", "type": "no-such-fs"}), "no-such-fs"),
        ("/mounts/0", json!({"destination": "/bin/busybox/x", "type": "tmpfs"}), "/bin/busybox/x"),
        ("/linux/sysctl", json!({"kernel.no_such": "1"}), "kernel.no_such"),
        ("/linux/sysctl", json!({"../../etc/passwd": "1"}), "../../etc/passwd"),
        ("/linux/resources", json!({"unified": {"memory.no": "1"}}), "memory.no"),
        ("/linux/cgroupsPath", json!("/../../etc"), ".."),
        ("/linux/rootfsPropagation", json!("sideways"), "sideways"),
    ] {
        let bundle = Bundle::new("echo ran").with(pointer, value);
        let finished = bundle.run();
        let said: Vec<&str> = finished.stderr.lines().collect();
        assert!(finished.code != 0 && finished.stdout.is_empty(), "{pointer}: {finished:?}");
        assert!(said.len() == 1 && said[0].contains(words), "{pointer}: {finished:?}");
        assert_eq!(bundle.host.leftovers(), [""; 0], "{pointer}");
        assert!(!bundle.host.rootfs.join("etc/passwd.new").exists());
    }
}

/// A symlink in the image never leads a mount out of the root.
#[test]
fn symlinks_of_the_image_stay_inside() {
    let bundle = Bundle::new("ls /out/in; cat /up/../up/f");
    let outside = bundle.host.path("outside");
    fs::create_dir(&outside).expect("a directory");
    fs::write(bundle.host.path("file"), "inside\n").expect("a file");
    symlink(&outside, bundle.host.rootfs.join("out")).expect("a link");
    symlink("../../../../../../up-here", bundle.host.rootfs.join("up")).expect("a link");
    let bundle = bundle
        .mount(json!({"destination": "/out/in", "type": "bind", "source": "file",
            "options": ["bind"]}))
        .mount(json!({"destination": "/up/f", "type": "bind", "source": "file",
            "options": ["bind"]}));
    assert_eq!(bundle.run().ok(), "/out/in\ninside\n");
    assert_eq!(fs::read_dir(&outside).expect("there").count(), 0);
    let made = fs::symlink_metadata(bundle.host.rootfs.join("up-here/f")).expect("made inside");
    assert!(made.is_file() && made.permissions().mode() & 0o777 == 0o644 && made.len() == 0);
    assert!(!made.file_type().is_fifo() && made.uid() == 0);
}

/// startContainer hooks are programs of the container, run in it before its process.
#[test]
fn hooks_of_the_container_run_in_it_first() {
    let hook = |script: &str| {
        json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"],
            "env": ["PATH=/bin", "A=b"], "timeout": 20}]})
    };
    let mut bundle = Bundle::new("cat /hooked; grep -o created /state");
    bundle.set("/hooks", hook("cat >/state; hostname >/hooked; echo $A $1 $$ >>/hooked"));
    let said = bundle.run().ok();
    assert!(said.starts_with("lighthouse\nb one ") && said.ends_with("created\n"), "{said}");
    bundle.set("/hooks", hook("exit 3"));
    bundle.run().fails(1, "the startContainer hook /bin/sh ended with code 3");
    bundle.set("/hooks", json!({"startContainer": [{"path": "/no/such"}]}));
    bundle.run().fails(1, "/no/such");
}
