use std::process::Command;

use super::*;

/// A hierarchy that is only a directory: what the kernel does on its own has to be done here.
fn fake(unified: bool) -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().expect("a directory");
    let controllers = if unified { Vec::new() } else { vec!["cpuset".to_owned()] };
    let hierarchy = Hierarchy { root: dir.path().to_owned(), unified, controllers };
    (dir, Layout(vec![hierarchy]))
}

fn path(path: &str) -> CgroupPath {
    CgroupPath::of(Some(Path::new(path)), "id", false).expect("a path")
}

#[test]
fn directories_are_made_and_controllers_handed_down() {
    let (dir, layout) = fake(true);
    fs::write(dir.path().join("cgroup.controllers"), "cpu").expect("a file");
    fs::write(dir.path().join("cgroup.subtree_control"), "").expect("a file");
    let cgroup = HostCgroup::at(&layout, &path("/a/b"));
    cgroup.create(&Limits::default()).expect("made");
    assert!(dir.path().join("a/b").is_dir());
    let handed = fs::read_to_string(dir.path().join("cgroup.subtree_control")).expect("a file");
    assert_eq!(handed, "+cpu");
    cgroup.create(&Limits::default()).expect("it may be there already");
    cgroup.remove().expect("removed");
    assert!(!dir.path().join("a/b").exists() && dir.path().join("a").is_dir());
    cgroup.remove().expect("it may be gone already");
}

#[test]
fn the_quota_is_read_as_it_stands() {
    for (unified, files, expected) in [
        (true, [("cpu.max", "max 100000\n"), ("x", "")], Some((-1, 100_000))),
        (true, [("cpu.max", "5000 20000\n"), ("x", "")], Some((5000, 20_000))),
        (false, [("cpu.cfs_quota_us", "-1\n"), ("cpu.cfs_period_us", "7000\n")], Some((-1, 7000))),
        (true, [("cpu.max", "much\n"), ("x", "")], None),
        (false, [("x", ""), ("y", "")], None),
    ] {
        let (dir, layout) = fake(unified);
        fs::create_dir(dir.path().join("a")).expect("a directory");
        for (file, text) in files {
            fs::write(dir.path().join("a").join(file), text).expect("a file");
        }
        assert_eq!(HostCgroup::at(&layout, &path("/a")).cpu_quota(), expected);
    }
}

#[test]
fn a_failure_leaves_nothing() {
    let (dir, layout) = fake(false);
    // A cpuset that cannot be filled: there is nothing to inherit.
    let error = HostCgroup::at(&layout, &path("/x")).create(&Limits::default());
    let sentence = error.expect_err("no cpuset").to_string();
    assert!(sentence.contains("cannot create the cgroup"), "{sentence}");
    assert!(!dir.path().join("x").exists());
    fs::write(dir.path().join("file"), "").expect("a file");
    assert!(HostCgroup::at(&layout, &path("/file/x")).create(&Limits::default()).is_err());
}

/// With this machine's own cgroups, whatever version they are, where they may be changed.
#[test]
fn a_process_joins_and_is_killed_with_its_cgroup() {
    let layout = Layout::of_this_host().expect("mounts");
    let place = path(&format!("/bulkhead-test-{}", std::process::id()));
    let cgroup = HostCgroup::at(&layout, &place);
    if cgroup.create(&Limits::default()).is_err() {
        eprintln!("skipped: this machine's cgroups cannot be changed");
        return;
    }
    let entrances = cgroup.entrances().expect("files");
    assert_eq!(entrances.len(), layout.0.len());
    let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
    for (_, dir) in &cgroup.dirs {
        write(&dir.join(PROCS), &child.id().to_string()).expect("joined");
        assert!(cgroup_has(dir, child.id()));
    }
    // Reaped at once: a zombie stays in its cgroup.
    let waiter = thread::spawn(move || child.wait());
    cgroup.remove().expect("removed");
    let status = waiter.join().expect("no panic").expect("waited");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert!(cgroup.dirs.iter().all(|(_, dir)| !dir.exists()));
}

fn cgroup_has(dir: &Path, pid: u32) -> bool {
    let procs = fs::read_to_string(dir.join(PROCS)).expect("a file");
    procs.lines().any(|line| line == pid.to_string())
}
