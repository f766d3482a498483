//! Kubernetes' way: containerd's CRI with bulkhead as a runtime class, and a bridge of CNI's plugins.

use std::fs;
use std::process::{Command, Stdio};

use bulkhead_tests::podman::{IMAGE, Podman};
use bulkhead_tests::{binary, finish};

use crate::containerd::Containerd;

/// Debian's, whose grpc module it takes.
const PYTHON: &str = "/usr/bin/python3";
/// A client: the calls of a kubelet, and what has to come of them.
const CLIENT: &str = include_str!("cri.py");
const PAUSE: &str = "localhost/pause";

/// Everything of CNI's is in `dir`.
fn config(dir: &str) -> String {
    format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
           sandbox_image = "{PAUSE}:latest"
           disable_tcp_service = true
           [plugins."io.containerd.grpc.v1.cri".cni]
           bin_dir = "/usr/lib/cni"
           conf_dir = "{dir}"
           [plugins."io.containerd.grpc.v1.cri".containerd]
           default_runtime_name = "bulkhead"
           [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.bulkhead]
           runtime_type = "io.containerd.runc.v2"
           [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.bulkhead.options]
           BinaryName = {:?}"#,
        binary("bulkhead"),
    )
}

fn network(dir: &str) -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "pods", "plugins": [
            {{"type": "bridge", "bridge": "bh-cri0", "isGateway": true, "ipam": {{"type": "host-local",
              "dataDir": "{dir}", "ranges": [[{{"subnet": "10.99.0.0/24"}}]],
              "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#
    )
}

#[test]
fn a_kubelet_s_calls_make_a_pod_and_take_it_away() {
    let cni = tempfile::Builder::new().prefix("bh-cni-").tempdir().expect("a directory");
    let dir = cni.path().to_str().expect("ASCII");
    fs::write(cni.path().join("10-pods.conflist"), network(dir)).expect("a file");
    let podman = Podman::new();
    podman.call(["create", "--name=pause", "--network=none", IMAGE, "true"]).ok();
    podman.call(["commit", "-q", "-c", "CMD [\"sleep\",\"100000\"]", "pause", PAUSE]).ok();
    let containerd = Containerd::start(&config(dir), "k8s.io");
    containerd.import(&podman, &[IMAGE, PAUSE]);

    let mut client = Command::new(PYTHON);
    client.args(["-c", CLIENT]).arg(containerd.socket()).arg(containerd.path("logs"));
    client.stdin(Stdio::null());
    finish(client).ok();
    let _ = Command::new("ip").args(["link", "del", "bh-cri0"]).status();
}
