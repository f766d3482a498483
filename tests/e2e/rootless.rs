//! A user's own podman, without root: bulkhead is called as root of podman's user namespace.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use bulkhead_tests::{Host, binary, finish};

/// Makes what a user needs in a directory of theirs ($D), and runs the script on standard input as that
/// user. Accounts are those of a mount namespace: the host's stay as they are.
const AS_USER: &str = r#"set -e
mkdir -p "$D/bin" "$D/runtime" "$D/home"
cp -L "$BIN"/bulkhead "$BIN"/bulkhead-vmm "$BIN"/bulkhead-agent "$BIN"/vmlinux "$D/bin"
tar -C "$D/rootfs" -cf "$D/root.tar" .
chmod 666 /dev/kvm
chmod 755 "$D"
chown -R 12345:12345 "$D/runtime" "$D/home"
mount --make-rshared /
for file in passwd group; do cp /etc/$file "$D/$file"; done
echo "sailor:x:12345:12345::$D/home:/bin/sh" >>"$D/passwd"
echo "sailor:x:12345:" >>"$D/group"
for file in subuid subgid; do echo "sailor:200000:65536" >"$D/$file"; touch /etc/$file; done
for file in passwd group subuid subgid; do mount --bind "$D/$file" /etc/$file; done
printf '%s\n' '[containers]' 'log_driver = "k8s-file"' '[engine]' 'cgroup_manager = "cgroupfs"' \
    'events_logger = "file"' '[engine.runtimes]' "bulkhead = [\"$D/bin/bulkhead\"]" >"$D/conf"
cd "$D/home"
exec setpriv --reuid 12345 --regid 12345 --clear-groups env USER=sailor HOME="$D/home" \
    XDG_RUNTIME_DIR="$D/runtime" CONTAINERS_CONF="$D/conf" sh -ec "
podman() { command podman --runtime=bulkhead --storage-driver=vfs \"\$@\"; }
$SCRIPT"
"#;

#[test]
fn a_user_s_podman_runs_containers_with_a_network_and_files_of_many_owners() {
    let host = Host::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a connection");
        client.write_all(b"from the host\n").expect("the client reads it");
    });
    // slirp4netns has the host's loopback at 10.0.2.2.
    let inside =
        format!("id -u; touch /x; chown 5:6 /x; stat -c %u:%g /x; nc 10.0.2.2 {port} </dev/null");
    let network = "--network=slirp4netns:allow_host_loopback=true";
    let script = format!(
        "podman import -q $D/root.tar localhost/box >/dev/null
         podman run --rm --network=none --user 7 localhost/box id -u
         podman run --rm {network} localhost/box sh -c '{inside}'
         podman run -d --name=long --network=none localhost/box sleep 1000 >/dev/null
         podman exec long cat /proc/1/cmdline | tr '\\0' ' '
         pgrep -x bulkhead-vmm | while read pid; do grep -E '^(Uid|CapEff)' /proc/$pid/status; done
         podman rm -f -t 0 long >/dev/null"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", AS_USER]).env("SCRIPT", script);
    command.env("D", host.dir.path()).env("BIN", binary(""));
    let finished = finish(command);
    let said: Vec<&str> = finished.stdout.lines().collect();
    assert!(finished.code == 0 && said.len() == 6, "{finished:#?}");
    assert_eq!(
        said[..5],
        ["7", "0", "5:6", "from the host", "sleep 1000 Uid:\t265535\t265535\t265535\t265535"]
    );
    assert_eq!(said[5..], ["CapEff:\t0000000000000000"]);
    server.join().expect("it was called");
    assert!(!fs::exists("/run/bulkhead/long").unwrap_or(true));
}
