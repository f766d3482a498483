//! `--network passt`, on a host of its own: a network namespace with an address, a default route and a name
//! server, none of which lead anywhere.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bulkhead_tests::{Host, finish, start, until, wait};

const NAMESPACE: &str = "bh-passt";
/// Answers every question for an address with 192.0.2.7 (RFC 1035), writes what it is sent to a file,
/// and tells who can reach the host's own services a secret.
const SERVERS: &str = r#"
import shutil, socket, sys, threading

def names():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("10.77.0.2", 53))
    while True:
        q, peer = s.recvfrom(512)
        end = q.index(b"\0", 12) + 5
        address = q[end - 3] == 1
        answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x07" if address else b""
        head = q[:2] + b"\x81\x80\0\x01\0" + bytes([address]) + b"\0\0\0\0"
        s.sendto(head + q[12:end] + answer, peer)

def secrets():
    s = socket.create_server(("127.0.0.1", 7002))
    while True:
        s.accept()[0].sendall(b"secret\n")

for serve in (names, secrets):
    threading.Thread(target=serve, daemon=True).start()
stream = socket.create_server(("10.77.0.2", 7001)).accept()[0].makefile("rb")
with open(sys.argv[1], "wb") as file:
    shutil.copyfileobj(stream, file)
"#;

/// The host, and the process that serves on it.
struct Outside(Option<Child>);

impl Outside {
    fn new(sent: &Path) -> Self {
        let script = format!(
            "n={NAMESPACE}; ip netns add $n; ip -n $n link set lo up
            ip -n $n link add out0 type dummy; ip -n $n link set out0 up
            ip -n $n addr add 10.77.0.2/24 dev out0; ip -n $n route add default via 10.77.0.1
            mkdir -p /etc/netns/$n; echo nameserver 10.77.0.2 >/etc/netns/$n/resolv.conf"
        );
        let made = Command::new("sh").args(["-ec", &script]).status().expect("sh runs");
        assert!(made.success(), "the namespace is made");
        let mut servers = Command::new("python3");
        servers.args(["-c", SERVERS]).arg(sent);
        let outside = Self(Some(start(Self::within(&servers))));
        for port in [7001, 7002] {
            let mut sockets = Command::new("cat");
            sockets.arg("/proc/net/tcp");
            let hex = format!(":{port:04X} ");
            until("the servers listen", || finish(Self::within(&sockets)).ok().contains(&hex));
        }
        outside
    }

    fn within(command: &Command) -> Command {
        let mut within = Command::new("ip");
        within.args(["netns", "exec", NAMESPACE]).arg(command.get_program());
        within.args(command.get_args()).stdin(Stdio::null());
        within
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if let Some(mut servers) = self.0.take() {
            let _ = servers.kill().and_then(|()| servers.wait());
        }
        let _ = Command::new("ip").args(["netns", "del", NAMESPACE]).status();
    }
}

#[test]
fn passt_carries_connections_both_ways_names_and_nothing_else() {
    let host = Host::new();
    let sent = host.path("sent");
    let _outside = Outside::new(&sent);
    let script = "
        ip -4 -o addr show eth0 | grep -o 'inet [^ ]*'
        nslookup example.org | grep -o '192.0.2.7'
        dd if=/dev/urandom of=/sent bs=64k count=32 2>/dev/null; nc 10.77.0.2 7001 </sent
        nc -w 2 10.0.2.2 7002 </dev/null
        echo served >/page; nc -l -p 80 </page >/dev/null";
    let run = |port: &str, script: &str| {
        let options = ["--network", "passt", "-p", port];
        Outside::within(&host.run(&options, &["sh", "-c", script]))
    };
    finish(run("127.0.0.1:7002:80", "true")).fails(125, "port 127.0.0.1:7002");
    let child = start(run("127.0.0.1:8080:80", script));
    let fetch = ["netns", "exec", NAMESPACE, "busybox", "nc", "-w", "5", "127.0.0.1", "8080"];
    let fetch = || Command::new("ip").args(fetch).stdin(Stdio::null()).output().expect("nc runs");
    until("the published port answers", || fetch().stdout == b"served\n");
    assert_eq!(wait(child).ok(), "inet 10.0.2.15/24\n192.0.2.7\n");
    let file = fs::read(host.rootfs.join("sent")).expect("what the container sent");
    until("all of that has arrived", || fs::read(&sent).is_ok_and(|came| came == file));
    let left = || Command::new("pgrep").arg("^passt").output().expect("pgrep runs").stdout;
    until("passt has ended", || left().is_empty());
}
