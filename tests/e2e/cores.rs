//! Core scheduling, where cores have threads. By hand, for VMs in a lab with a second thread die or hang every
//! other time: `BULKHEAD_LAB_OPTIONS="--threads 2" tests/e2e/run --ignored cores::`.

use std::collections::BTreeSet;
use std::fs;

use bulkhead_tests::finish;
use rustix::process::Pid;
use rustix::thread::{CoreSchedulingScope, core_scheduling_cookie};

use crate::jail::Waiting;

/// The cookies of all of a process's threads: those of one cookie alone share a core at a time.
fn cookies(pid: u32) -> BTreeSet<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
    let ids = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    let cookie = |id| {
        let id = Pid::from_raw(id).expect("a thread");
        core_scheduling_cookie(id, CoreSchedulingScope::Thread).expect("cores have threads here")
    };
    ids.map(cookie).collect()
}

#[test]
#[ignore = "needs cores with threads"]
fn cores_are_shared_with_nobody_else() {
    // Sealed ones refuse a host where they would share.
    let containers =
        ["strict", "sealed"].map(|jail| Waiting::start(&["--cpus", "2", "--jail", jail]));
    let mut own = BTreeSet::new();
    for container in &containers {
        let [vmm, worker] = [container.vmm, container.worker].map(cookies);
        assert_eq!((vmm.len(), &vmm), (1, &worker), "monitor and worker are one");
        own.extend(vmm);
    }
    assert_eq!(own.len(), 2, "each container has its own: {own:?}");
    assert!(!own.contains(&0), "0 is everybody's: {own:?}");
    assert_eq!(cookies(std::process::id()), BTreeSet::from([0]), "the host is not theirs");
    let json = finish(containers[0].host().bulkhead(["doctor", "--security", "--json"])).ok();
    let said: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    let walls = said["walls"].as_array().expect("a list");
    assert!(walls.len() == 4 && walls.iter().all(|walls| walls["core"] == true), "{json}");
    let checks = said["checks"].as_array().expect("a list");
    let threads = checks.iter().find(|check| check["name"] == "hyper-threads").expect("a check");
    assert_eq!(threads["outcome"], "ok", "{json}");
    containers.into_iter().for_each(Waiting::end);
}
