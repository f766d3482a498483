//! Containers cloned from a template: what `run` does unless told otherwise.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::podman::{IMAGE, Podman};
use bulkhead_tests::{Finished, Host, debian, finish, is_cloned, start, wait};

/// The clock of a clone may be this far off.
const CLOCK_OFF_MAX: Duration = Duration::from_millis(10);

/// `bulkhead run` with a place for templates of the test's own.
fn run(host: &Host, options: &[&str], command: &[&str]) -> Command {
    let mut run = host.run(options, command);
    run.env("BULKHEAD_TEMPLATES", host.path("templates"));
    run
}

/// The templates that are there.
fn templates(host: &Host) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(host.path("templates")) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn boots(stderr: &str) -> bool {
    stderr.lines().any(|line| line.starts_with("init "))
}

#[test]
fn the_first_container_makes_the_template_and_others_use_it() {
    let host = Host::new();
    let first = finish(run(&host, &["--timeline"], &["echo", "one"]));
    assert_eq!(first.stdout, "one\n", "{first:?}");
    let [template] = &templates(&host)[..] else { panic!("one template: {first:?}") };
    // A trial has found out which pages a clone writes to first: more than a few runs of them.
    assert!(fs::metadata(template.join("pages")).unwrap().len() > 100, "{first:?}");
    let made = |file: &str| fs::metadata(template.join(file)).unwrap().modified().unwrap();
    let before = made("state");
    let second = finish(run(&host, &["--timeline"], &["echo", "two"]));
    assert_eq!(second.stdout, "two\n", "{second:?}");
    assert_eq!(made("state"), before);
    assert!(!boots(&first.stderr) && !boots(&second.stderr), "neither boots: {second:?}");
}

#[test]
fn a_cold_container_boots_and_makes_no_template() {
    let host = Host::new();
    let finished = finish(run(&host, &["--cold", "--timeline"], &["echo", "hello"]));
    assert!(boots(&finished.stderr), "{finished:?}");
    assert_eq!(finished.ok(), "hello\n");
    assert_eq!(templates(&host), [""; 0].map(PathBuf::from));
}

#[test]
fn two_first_users_make_one_template() {
    let host = Host::new();
    let racers: Vec<_> = ["a", "b"].map(|name| start(run(&host, &[], &["echo", name]))).into();
    let said: Vec<String> = racers.into_iter().map(|racer| wait(racer).ok()).collect();
    assert_eq!(said, ["a\n", "b\n"]);
    let made = templates(&host);
    assert!(made.len() == 1 && made[0].extension().is_none(), "{made:?}");
}

#[test]
fn a_damaged_template_is_made_anew() {
    let host = Host::new();
    finish(run(&host, &[], &["true"])).ok();
    let template = templates(&host).remove(0);
    let file = |name: &str| {
        fs::OpenOptions::new().read(true).write(true).open(template.join(name)).unwrap()
    };
    let damages: [(&str, &dyn Fn()); 3] = [
        ("a flipped bit", &|| {
            let mut byte = [0];
            file("state").read_exact_at(&mut byte, 1000).unwrap();
            file("state").write_all_at(&[byte[0] ^ 4], 1000).unwrap();
        }),
        ("half a state", &|| file("state").set_len(1000).unwrap()),
        ("half a memory", &|| file("memory").set_len(64 << 20).unwrap()),
    ];
    for (damage, inflict) in damages {
        inflict();
        let finished = finish(run(&host, &["--timeline"], &["echo", damage]));
        assert_eq!(finished.stdout.trim(), damage, "{finished:?}");
        assert!(!boots(&finished.stderr), "{damage}: {finished:?}");
    }
}

/// The checksum of a state file's body (the CRC-32 of zlib), as whoever forges one would fit it.
fn checksum(body: &[u8]) -> u32 {
    !body.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 * (sum & 1)))
    })
}

/// What fits its own checksum is refused for what it says: another host's processor, another format.
#[test]
fn a_template_from_elsewhere_is_refused_in_one_sentence() {
    let host = Host::new();
    finish(run(&host, &[], &["true"])).ok();
    let file = templates(&host).remove(0).join("state");
    let good = fs::read(&file).expect("a state file");
    let forged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut state = good.clone();
        change(&mut state);
        let sum = checksum(&state[24..]).to_le_bytes();
        state[12..16].copy_from_slice(&sum);
        fs::write(&file, state).expect("a file");
        finish(run(&host, &["--timeline"], &["echo", "up"]))
    };
    // The body begins with the processor's maker.
    forged(&|state| state[24..36].copy_from_slice(b"GenuineOther")).fails(125, "another processor");
    forged(&|state| state.truncate(200)).ok();
    let newer = forged(&|state| state[8] = 200);
    assert_eq!((newer.stdout.as_str(), boots(&newer.stderr)), ("up\n", false), "made anew");
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

#[test]
fn clones_share_no_random_numbers() {
    let host = Host::new();
    let machine_id = host.rootfs.join("etc/machine-id");
    fs::write(&machine_id, "uninitialized\n").unwrap();
    let script = "cat /etc/machine-id /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id
        head -c 32 /dev/urandom | sha256sum; head -c 32 /dev/random | sha256sum
        grep -E 'stack|vdso|heap' /proc/self/maps | cut -d- -f1; hostname; mktemp -u";
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for clone in 0..4 {
        let said = host.sh(script).ok();
        let lines: Vec<_> = said.lines().collect();
        assert!(lines.len() >= 8 && lines[0].len() == 32, "{said}");
        for line in lines {
            assert!(seen.insert(line.to_owned()), "clone {clone} says {line:?} again: {seen:#?}");
        }
    }
    assert_eq!(
        fs::read_to_string(&machine_id).unwrap(),
        "uninitialized\n",
        "the image is as it was"
    );
    fs::write(&machine_id, "0123456789abcdef0123456789abcdef\n").unwrap();
    let own = "cat /etc/machine-id; grep -c machine-id /proc/mounts";
    let said = finish(host.run(&[], &["sh", "-c", own]));
    assert_eq!(said.stdout, "0123456789abcdef0123456789abcdef\n0\n", "one with an ID means it");
}

#[test]
fn a_clone_knows_what_time_it_is() {
    let host = Host::new();
    // Some time after the template was made.
    host.sh("true").ok();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let command = ["python3", "-c", "import time; print(time.time_ns())"];
    let mut run = host.bulkhead(["run", "--rootfs"]);
    run.arg(debian()).arg("--").args(command);
    let before = now();
    let said = finish(run).ok();
    let after = now();
    let guest = Duration::from_nanos(said.trim().parse().expect("a number of ns"));
    assert!(guest + CLOCK_OFF_MAX >= before, "{guest:?} is before {before:?}");
    assert!(guest <= after + CLOCK_OFF_MAX, "{guest:?} is after {after:?}");
}

#[test]
fn a_clone_of_two_cpus_uses_both() {
    let host = Host::new();
    let script = "nproc; (i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; echo done) &
        i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; wait; sleep 0.1; grep -c ^processor /proc/cpuinfo";
    for _ in 0..3 {
        let said = finish(host.run(&["--cpus", "2"], &["sh", "-c", script])).ok();
        assert_eq!(said, "2\ndone\n2\n");
    }
}

#[test]
fn clones_see_their_own_files_and_volumes() {
    let (one, two) = (Host::new(), Host::new());
    for (host, word) in [(&one, "one"), (&two, "two")] {
        fs::create_dir(host.path("volume")).unwrap();
        fs::write(host.path("volume/file"), word).unwrap();
        let volume = format!("{}:/v:ro", host.path("volume").display());
        let script = "cat /v/file; echo $(hostname) >/mine; touch /v/x 2>/dev/null || echo ro";
        let options = ["--volume", &volume, "--hostname", word];
        let said = finish(host.run(&options, &["sh", "-c", script])).ok();
        assert_eq!(said, format!("{word}ro\n"));
        let mine = |path: &Path| fs::read_to_string(path.join("mine")).unwrap();
        assert_eq!(mine(&host.rootfs), format!("{word}\n"));
    }
}

#[test]
fn an_engine_s_container_is_cloned_unless_told_otherwise() {
    let bundle = Bundle::new("exec sleep 60");
    let call = |verb: &str, options: &[&str]| -> Finished {
        let mut call = match verb {
            "create" => bundle.command(verb, options, "engine"),
            _ => bundle.host.bulkhead([&[verb], options, &["engine"]].concat()),
        };
        call.env("BULKHEAD_TEMPLATES", bundle.host.path("templates"));
        // The VMM keeps these streams.
        call.stdout(fs::File::create(bundle.host.path("out")).unwrap());
        let code = call.stderr(fs::File::create(bundle.host.path("err")).unwrap()).status();
        let said = |name| fs::read_to_string(bundle.host.path(name)).unwrap();
        Finished { code: code.unwrap().code().unwrap(), stdout: said("out"), stderr: said("err") }
    };
    for (options, cloned) in [(&[][..], true), (&[], true), (&["--cold"], false)] {
        assert_eq!(call("create", options).ok(), "");
        let state: serde_json::Value = serde_json::from_str(&call("state", &[]).ok()).unwrap();
        let pid = state["pid"].as_u64().expect("a process") as u32;
        assert_eq!(is_cloned(pid), cloned, "{options:?}");
        call("start", &[]).ok();
        call("delete", &["--force"]).ok();
    }
    assert_eq!(templates(&bundle.host).len(), 1);
}

#[test]
fn a_container_with_a_network_is_cloned_too() {
    let podman = Podman::new();
    let up =
        "ip -o -4 addr show eth0 | wc -l; cat /sys/class/net/eth0/carrier /sys/class/net/eth0/mtu";
    for name in ["one", "two"] {
        podman.call(["run", "-d", "--name", name, IMAGE, "sleep", "600"]).ok();
        let pid = podman.call(["inspect", "-f", "{{.State.Pid}}", name]).ok();
        assert!(is_cloned(pid.trim().parse().expect("a process")), "{name}");
        assert_eq!(podman.call(["exec", name, "sh", "-c", up]).ok(), "1\n1\n1500\n");
    }
    let mac = |name| podman.call(["exec", name, "cat", "/sys/class/net/eth0/address"]).ok();
    assert_ne!(mac("one"), mac("two"));
    let address = ["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "two"];
    let address = podman.call(address).ok();
    podman.call(["exec", "one", "ping", "-c", "1", "-W", "9", address.trim()]).ok();
}
