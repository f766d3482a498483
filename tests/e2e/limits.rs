//! A guest that asks more of a device than it may waits; the others do not.

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::{Host, finish};

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
    let limits =
        ["--limit=rng-bytes=8k:1k", "--limit=fs-bytes=1m:64k", "--limit=vsock-bytes=1m:64k"];
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
}

#[test]
fn a_profile_s_limits_hold_for_a_bundle() {
    let script =
        "a=$(cut -d' ' -f1 /proc/uptime); dd if=/dev/zero of=/file bs=64k count=32 2>/dev/null
        b=$(cut -d' ' -f1 /proc/uptime); echo $a $b | awk '{ print $2 - $1 }'";
    let bundle = Bundle::new(script);
    let settings = bundle.host.path("settings.toml");
    let text = "profile = 'slow'\n[profiles.slow]\nlimits = ['fs-bytes=1m:64k']";
    std::fs::write(&settings, text).expect("a file");
    let mut run = bundle.command("run", &[], "slow");
    let said = finish({
        run.env("BULKHEAD_CONFIG", &settings);
        run
    });
    let seconds: f64 = said.ok().trim().parse().expect("a number");
    assert!((1.3..30.0).contains(&seconds), "{seconds}");
}
