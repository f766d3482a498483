//! Pods of podman's: containers in one VM, that of the pod's own container, with its network.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bulkhead_tests::podman::{IMAGE, Podman};
use bulkhead_tests::until;

const PORT: u16 = 18081;

/// Processes of this name on the host.
fn count(name: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let is_it = |comm: String| comm.trim_end() == name;
    processes.filter(|p| fs::read_to_string(p.path().join("comm")).is_ok_and(is_it)).count()
}

fn fetch(port: u16) -> String {
    let mut said = String::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(20)));
        let _ = stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_string(&mut said);
    }
    said
}

#[test]
fn a_pod_s_containers_share_its_vm_network_and_name_and_nothing_else() {
    let podman = Podman::new();
    let port = format!("{PORT}:80");
    // Not in the pod's cgroup: this podman's own, without systemd, forbids all devices there.
    let create = ["pod", "create", "--name", "pod", "--share-parent=false", "-p", &port];
    podman.call(create).ok();
    let serve = "echo mine >/here; mkdir -p /www; echo from the first >/www/index.html; \
        exec httpd -f -h /www";
    let first = ["run", "-d", "--pod=pod", "--name=first", "--memory=64m", IMAGE, "sh", "-c"];
    podman.call([&first[..], &[serve]].concat()).ok();
    until("the port of the pod is the first one's", || fetch(PORT).contains("from the first"));
    assert_eq!((count("bulkhead-vmm"), count("bulkhead-member")), (1, 1), "one VM");

    let script = "hostname; wget -qO- http://127.0.0.1/index.html; ip -o -4 addr show eth0; \
        ls /here; exit 9";
    let second = podman.call(["run", "--rm", "--pod=pod", IMAGE, "sh", "-c", script]);
    let said = &second.stdout;
    assert_eq!(second.code, 9, "{second:?}");
    assert!(said.starts_with("pod\nfrom the first\n") && said.contains("inet 10.88.0."), "{said}");
    assert!(second.stderr.contains("/here: No such file"), "a root of its own: {second:?}");

    let exec =
        ["exec", "first", "sh", "-c", "cat /here /sys/fs/cgroup/memory.max; ipcs -q | wc -l"];
    assert!(podman.call(exec).ok().starts_with("mine\n67108864\n"));
    podman.call(["pause", "first"]).ok();
    podman.call(["run", "--rm", "--pod=pod", IMAGE, "true"]).ok();
    podman.call(["unpause", "first"]).ok();
    podman.call(["restart", "-t", "0", "first"]).ok();
    until("it serves again", || fetch(PORT).contains("from the first"));
    podman.call(["kill", "first"]).ok();
    assert_eq!(podman.call(["wait", "first"]).ok(), "137\n");
    podman.call(["pod", "rm", "-f", "-t", "0", "pod"]).ok();
    until("nothing is left", || count("bulkhead-vmm") + count("bulkhead-member") == 0);
}
