//! `podman container checkpoint` and `restore`, which ask the runtime, and for no more of criu than that it
//! is there.

use bulkhead_tests::podman::Podman;
use bulkhead_tests::until;

#[test]
fn a_container_that_podman_saves_goes_on_where_it_stood() {
    let podman = Podman::new();
    // The number is in a process's memory, and in a file of the guest's.
    let script = "n=0; while true; do n=$((n + 1)); echo $n >/dev/shm/n; sleep 0.1; done";
    podman.start("counter", &[], script);
    let count = || {
        let said = podman.call(["exec", "counter", "cat", "/dev/shm/n"]).stdout;
        said.trim().parse::<u64>().unwrap_or(0)
    };
    until("it counts", || count() > 20);
    podman.call(["container", "checkpoint", "counter"]).ok();
    let state = ["inspect", "--format", "{{.State.Status}} {{.State.Checkpointed}}", "counter"];
    assert_eq!(podman.call(state).ok(), "exited true\n");
    podman.call(["container", "restore", "counter"]).ok();
    let restored = count();
    assert!(restored > 20, "it goes on, and does not begin anew: {restored}");
    until("it counts on", || count() > restored);
    podman.call(["rm", "-f", "-t", "0", "counter"]).ok();
    assert!(podman.left().is_empty());
}
