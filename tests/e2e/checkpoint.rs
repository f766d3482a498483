//! Running containers saved, restored and forked.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::{finish, start, until, wait};

/// Counts into a file that it keeps open, serves a port, and ends when it is told to.
const COUNTER: &str = r#"
    exec 3>>/log 4</kept 5</replaced
    (while :; do nc -l -p 7777 -e echo still here; done) &
    i=0
    until test -e /go; do i=$((i + 1)); echo $i >&3; sleep 0.1; done
    echo counted; cat <&4; cat <&5 2>&1
    exit 7
"#;

/// Runs a command that leaves a VM behind, which keeps its streams.
#[track_caller]
fn leave(mut command: Command) {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().expect("bulkhead runs").success(), "{command:?}");
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// Saves a container that was restored, as what has changed since; returns where.
fn save_difference(bundle: &Bundle) -> PathBuf {
    let difference = bundle.host.path("difference");
    let mut again = bundle.host.bulkhead(["checkpoint", "--image-path"]);
    again.arg(&difference).arg("one");
    finish(again).ok();
    let blocks = |path: &Path| fs::metadata(path).expect("a file").blocks();
    let (whole, changed) = (blocks(&difference.join("base")), blocks(&difference.join("memory")));
    assert!(changed * 3 < whole, "{changed} of {whole} blocks");
    difference
}

fn other_bases_are_refused(bundle: &Bundle, difference: &Path, options: &[&str]) {
    let base = difference.join("base");
    let other = bundle.host.path("other");
    fs::copy(&base, &other).and_then(|_| fs::rename(&other, &base)).expect("a copy");
    let file = fs::File::options().write(true).open(&base).expect("a file");
    file.write_all_at(b"x", 20 << 20).expect("a byte");
    let restore = || finish(bundle.command("restore", options, "two"));
    restore().fails(1, "was changed since it was made");
    fs::remove_file(&base).expect("it was there");
    restore().fails(1, "its base, which is not there");
}

#[test]
fn a_saved_container_goes_on_where_it_was() {
    let bundle = Bundle::new(COUNTER);
    let (rootfs, image) = (bundle.host.rootfs.clone(), bundle.host.path("image"));
    let image = image.to_str().expect("a plain path");
    for name in ["kept", "replaced"] {
        fs::write(rootfs.join(name), format!("{name}\n")).expect("a file");
    }
    leave(bundle.command("run", &["--detach"], "one"));
    let log = rootfs.join("log");
    until("it counts", || lines(&log) > 2);
    let save = |options: &[&str]| {
        let mut command = bundle.host.bulkhead(["checkpoint", "--image-path", image]);
        command.args(options).arg("one");
        finish(command)
    };
    save(&[]).ok();
    assert_eq!(bundle.host.leftovers(), [""; 0], "it is gone");
    save(&[]).fails(1, "container one does not exist");
    let counted = lines(&log);
    // Another file in the place of one that is open.
    fs::remove_file(rootfs.join("replaced")).expect("it was there");
    fs::write(rootfs.join("replaced"), "another\n").expect("a file");

    let restore = |options: &[&str]| {
        let options = [&["--image-path", image][..], options].concat();
        bundle.command("restore", &options, "one")
    };
    leave(restore(&["--detach"]));
    until("it goes on", || lines(&log) > counted + 2);
    let difference = save_difference(&bundle);
    let options = ["--image-path", difference.to_str().expect("a plain path")];
    let counted = lines(&log);

    let restored = start(bundle.command("restore", &options, "one"));
    until("it goes on", || lines(&log) > counted + 2);
    let exec = |script: &str| {
        finish(bundle.host.bulkhead(["exec", "one", "sh", "-c", script])).ok().trim().to_owned()
    };
    assert_eq!(exec("nc 127.0.0.1 7777"), "still here");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    let before = now();
    let theirs: u64 = exec("date +%s").parse().expect("a number");
    assert!((before - 2..=now() + 2).contains(&theirs), "{theirs} there, {before} here before");
    fs::write(rootfs.join("go"), "").expect("a file");
    let ended = wait(restored);
    assert_eq!(ended.code, 7, "{ended:#?}");
    assert_eq!(ended.stdout, "counted\nkept\ncat: read error: Stale file handle\n");
    // Each number once: nothing was lost or done again.
    let numbers: Vec<usize> =
        fs::read_to_string(&log).expect("a log").lines().filter_map(|n| n.parse().ok()).collect();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());

    other_bases_are_refused(&bundle, &difference, &options);
    let state = Path::new(image).join("state");
    let whole = fs::read(&state).expect("a state file");
    fs::write(&state, &whole[..whole.len() - 1]).expect("a shorter one");
    let restore = || finish(bundle.command("restore", &["--image-path", image], "two"));
    restore().fails(1, "the snapshot is damaged");
    fs::remove_file(&state).expect("it was there");
    restore().fails(1, "cannot open");
    assert_eq!(bundle.host.leftovers(), [""; 0]);
}

/// Draws random numbers when it is asked to, and says who it is.
const DRAWER: &str = r#"
    i=0
    until test -e /go; do
        i=$((i + 1))
        if test -e /ask && ! test -e /answer-$(hostname); then
            { head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; echo $i
            } >/answer.$(hostname)
            mv /answer.$(hostname) /answer-$(hostname)
        fi
        echo $i >/count-$(hostname)
    done
"#;

#[test]
fn a_fork_is_another_container_from_then_on() {
    let bundle = Bundle::new(DRAWER);
    let rootfs = bundle.host.rootfs.clone();
    fs::write(rootfs.join("etc/machine-id"), "").expect("a file");
    leave(bundle.command("run", &["--detach"], "one"));
    let count = |name: &str| -> usize {
        let text = fs::read_to_string(rootfs.join(format!("count-{name}")));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    until("it counts", || count("lighthouse") > 3);
    leave(bundle.host.bulkhead(["clone", "one", "two"]));
    leave(bundle.host.bulkhead(["clone", "two", "three"]));
    fs::write(rootfs.join("ask"), "").expect("a file");
    let answer = |name: &str| fs::read_to_string(rootfs.join(format!("answer-{name}")));
    let names = ["lighthouse", "two", "three"];
    until("all answer", || names.iter().all(|name| answer(name).is_ok()));
    let answers: Vec<Vec<String>> = names
        .iter()
        .map(|name| answer(name).expect("an answer").lines().map(str::to_owned).collect())
        .collect();
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert_ne!(answers[a][0], answers[b][0], "random numbers");
        assert_ne!(answers[a][1], answers[b][1], "UUIDs");
    }
    let machine_id =
        |name: &str| finish(bundle.host.bulkhead(["exec", name, "cat", "/etc/machine-id"])).ok();
    let ids: BTreeSet<String> = ["one", "two", "three"].map(machine_id).into();
    assert!(ids.len() == 3 && ids.iter().all(|id| id.len() == 33), "{ids:?}");
    // They did not begin anew.
    assert!(answers.iter().all(|answer| answer[2].parse::<usize>().expect("a number") > 3));
    finish(bundle.host.bulkhead(["delete", "--force", "two"])).ok();
    let before = ["lighthouse", "three"].map(&count);
    until("the others go on", || count("lighthouse") > before[0] && count("three") > before[1]);
    for name in ["one", "three"] {
        finish(bundle.host.bulkhead(["delete", "--force", name])).ok();
    }
    assert_eq!(bundle.host.leftovers(), [""; 0]);
}
