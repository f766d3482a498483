//! Without root: a user's own podman, which calls bulkhead as root of its user namespace, and bulkhead with
//! images, which makes one of its own.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use bulkhead_tests::image::Layout;
use bulkhead_tests::{Finished, Host, binary, finish};
use serde_json::json;

/// Makes what a user needs in a directory of theirs ($D), and runs $SCRIPT as that user. Accounts are
/// those of a mount namespace: the host's stay as they are.
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
for file in subuid subgid; do echo "$IDS" >"$D/$file"; touch /etc/$file; done
for file in passwd group subuid subgid; do mount --bind "$D/$file" /etc/$file; done
printf '%s\n' '[containers]' 'log_driver = "k8s-file"' '[engine]' 'cgroup_manager = "cgroupfs"' \
    'events_logger = "file"' '[engine.runtimes]' "bulkhead = [\"$D/bin/bulkhead\"]" >"$D/conf"
cd "$D/home"
exec setpriv --reuid 12345 --regid 12345 --clear-groups env USER=sailor HOME="$D/home" \
    XDG_RUNTIME_DIR="$D/runtime" CONTAINERS_CONF="$D/conf" sh -ec "
podman() { command podman --runtime=bulkhead --storage-driver=vfs \"\$@\"; }
$SCRIPT"
"#;

/// Runs a script as a user who has these further IDs.
fn as_user(host: &Host, script: &str, ids: &str) -> Finished {
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", AS_USER]).env("SCRIPT", script).env("IDS", ids);
    command.env("D", host.dir.path()).env("BIN", binary(""));
    finish(command)
}

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
    let finished = as_user(&host, &script, "sailor:200000:65536");
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

#[test]
fn a_user_s_images_have_files_of_many_owners_if_the_user_has_their_ids() {
    let host = Host::new();
    let file = |name: &str, content: &str| {
        let path = host.path("top").join(name);
        fs::create_dir_all(path.parent().expect("below the tree")).expect("a directory");
        fs::write(path, content).expect("a file");
    };
    for (name, content) in [("etc/.wh.group", ""), ("home/.wh..wh..opq", ""), ("home/new", "new\n")]
    {
        file(name, content);
    }
    std::os::unix::fs::lchown(host.path("top/home/new"), Some(5), Some(6)).expect("root may");
    let mut layout = Layout::new(host.path("layout"));
    let layers = [layout.layer(&host.rootfs), layout.layer(&host.path("top"))];
    layout.image("v1", &layers, &json!({ "User": "7" }));
    let (image, store) = (layout.name("v1"), ".local/share/bulkhead/images");
    let inside = "id -u; ls /home; stat -c %u:%g /home/new; test ! -e /etc/group; \
                  { echo mine >/tmp/x && cat /tmp/x; }";
    let script = format!(
        "bulkhead=$D/bin/bulkhead
         $bulkhead run {image} sh -c '{inside}'
         $bulkhead run --user 0 {image} sh -c 'touch /x; chown 8:9 /x; stat -c %u:%g /x'
         $bulkhead images | wc -l
         $bulkhead rmi {image} >/dev/null; ls {store}/layers {store}/containers {store}/tmp"
    );
    let places = format!("{store}/containers:\n\n{store}/layers:\n\n{store}/tmp:\n");
    let said = as_user(&host, &script, "sailor:200000:65536");
    let ended = format!("2\n{places}");
    assert_eq!(said.ok(), format!("7\nnew\n5:6\nmine\n8:9\n{ended}"));
    // One ID: the files are all its own, and the only user is root.
    let script = format!(
        "$D/bin/bulkhead run --user 0 {image} sh -c 'id -u; cat /home/new; stat -c %u:%g /home/new'"
    );
    let said = as_user(&host, &script, "other:1:1");
    assert_eq!(said.ok(), "0\nnew\n0:0\n");
}
