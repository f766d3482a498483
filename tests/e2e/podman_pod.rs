//! Pods of podman's: containers with the network of the pod, one of them, and kernels of their own.

use bulkhead_tests::podman::{IMAGE, Podman};

#[test]
fn a_pod_has_its_network_and_name_in_one_container_at_a_time() {
    let podman = Podman::new();
    // Not in the pod's cgroup: this podman's own, without systemd, forbids all devices there.
    let create = ["pod", "create", "--name", "pod", "--share-parent=false"];
    podman.call(create).ok();
    let script = "hostname; ip -o -4 addr show eth0; ls /dev/shm";
    let said = podman.call(["run", "--rm", "--pod=pod", IMAGE, "sh", "-c", script]).ok();
    assert!(said.starts_with("pod\n") && said.contains("inet 10.88.0."), "{said}");

    podman.call(["run", "-d", "--pod=pod", "--name=first", IMAGE, "sleep", "1000"]).ok();
    let second = podman.call(["run", "--rm", "--pod=pod", IMAGE, "true"]);
    assert_ne!(second.code, 0);
    assert!(second.stderr.contains("of a pod's containers one has its network"), "{second:?}");
    podman.call(["rm", "-f", "-t", "0", "first"]).ok();
    podman.call(["run", "--rm", "--pod=pod", IMAGE, "ip", "addr", "show", "eth0"]).ok();
    podman.call(["pod", "rm", "-f", "-t", "0", "pod"]).ok();
}
