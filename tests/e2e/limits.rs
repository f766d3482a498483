//! A guest that asks more of a device than it may waits; the others do not.

use std::process::Command;

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::{Host, child_named, finish, is_cloned, start, until, wait};
use serde_json::json;

/// Seconds that each of three devices took for what was asked of it.
const SCRIPT: &str = "
mknod /dev/hwrng c 10 183
now() { cut -d' ' -f1 /proc/uptime; }
took() { echo \"$1 $2 $3\" | awk '{ print $1, $3 - $2 }' >&2; }
a=$(now); dd if=/dev/hwrng of=/dev/null bs=1024 count=16 2>/dev/null
b=$(now); dd if=/dev/zero of=/file bs=64k count=32 2>/dev/null
c=$(now); dd if=/dev/zero bs=64k count=32 2>/dev/null
d=$(now); took rng $a $b; took fs $b $c; took vsock $c $d";

#[test]
fn each_device_is_held_to_its_rate() {
    let host = Host::new();
    let limits = [
        "--limit=rng-bytes=8k:1k",
        "--limit=fs-bytes=1m:64k",
        "--limit=vsock-bytes=1m:64k",
        // The least there can be; the output is whole all the same.
        "--limit=vsock-connections=8",
        "--limit=vsock-buffer=4k",
    ];
    let limited = finish(host.run(&limits, &["sh", "-c", SCRIPT]));
    let seconds = |name: &str| {
        let line = limited.stderr.lines().find_map(|line| line.strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("{name} is there: {:?}", limited.stderr));
        line.trim().parse::<f64>().expect("a number")
    };
    assert_eq!(limited.stdout.len(), 2 << 20, "late, and whole");
    // 16 KiB at 8, 2 MiB at 1, 2 MiB at 1 a second, but for what comes at once and what is on its way.
    for name in ["rng", "fs", "vsock"] {
        assert!((1.3..30.0).contains(&seconds(name)), "{name}: {:?}", limited.stderr);
    }
    let refused = finish(host.run(&["--limit=fs-bytes=fast"], &["true"]));
    refused.fails(125, "fs-bytes=fast");
    finish(host.run(&["--limit=vsock-connections=7"], &["true"])).fails(125, "7 vsock connections");
}

/// `command` on a host whose profile says this.
fn with_profile(host: &Host, mut command: Command, profile: &str) -> Command {
    let settings = host.path("settings.toml");
    let text = format!("profile = 'p'\n[profiles.p]\n{profile}");
    std::fs::write(&settings, text).expect("a file");
    command.env("BULKHEAD_CONFIG", &settings);
    command
}

#[test]
fn a_profile_s_limits_hold_for_a_bundle() {
    let script =
        "a=$(cut -d' ' -f1 /proc/uptime); dd if=/dev/zero of=/file bs=64k count=32 2>/dev/null
        b=$(cut -d' ' -f1 /proc/uptime); echo $a $b | awk '{ print $2 - $1 }'";
    let bundle = Bundle::new(script);
    let said = finish(with_profile(
        &bundle.host,
        bundle.command("run", &[], "slow"),
        "limits = ['fs-bytes=1m:64k']",
    ));
    let seconds: f64 = said.ok().trim().parse().expect("a number");
    assert!((1.3..30.0).contains(&seconds), "{seconds}");
}

#[test]
fn a_profile_s_shape_and_jail_hold_whatever_the_bundle_says() {
    let profile = "memory = '96m'\ncpus = 1";
    // It asks for nothing: for one CPU, then, and 512 MiB.
    let script =
        "sed -n 's/MemTotal: *//p' /proc/meminfo; touch /up; until test -e /go; do sleep 0.1; done";
    let bundle =
        Bundle::new(script).with("/annotations", json!({"dev.bulkhead.profile": "hostile"}));
    let run = |name| with_profile(&bundle.host, bundle.command("run", &[], name), profile);
    let child = start(run("held"));
    until("the container is up", || bundle.host.rootfs.join("up").exists());
    let vmm = child_named(child.id(), "bulkhead-vmm");
    assert!(!is_cloned(vmm), "a sealed VM shares no memory with another");
    let cgroup = std::fs::read_to_string(format!("/proc/{vmm}/cgroup")).expect("its cgroup");
    let cgroup = cgroup.trim().trim_start_matches("0::");
    let max = std::fs::read_to_string(format!("/sys/fs/cgroup{cgroup}/cpu.max"));
    assert_eq!(max.expect("a limit"), "100000 100000\n");
    std::fs::write(bundle.host.rootfs.join("go"), "").expect("a file");
    let said = wait(child).ok();
    let kib: u64 = said.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib < 96 << 10, "{said}");

    let asks = bundle.with("/linux/resources", json!({"memory": {"limit": 1 << 30}}));
    let run = with_profile(&asks.host, asks.command("run", &[], "refused"), profile);
    finish(run).fails(1, "1024 MiB of memory asked for; profile p with hostile allows 96");
    let (host, sealed) = (&asks.host, format!("{profile}\njail = 'sealed'"));
    for (options, words) in [
        (&["--memory=96m", "--jail=off"], "profile p has its VMs sealed"),
        (&["--memory=96m", "--cpus=2"], "2 CPUs asked for; profile p allows 1"),
    ] {
        finish(with_profile(host, host.run(options, &["true"]), &sealed)).fails(125, words);
    }
}
