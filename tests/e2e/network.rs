//! Networks: a namespace with a veth pair, as engines make them, carried into the guest.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use bulkhead_tests::{Finished, Host, checksums, debian, finish, signal, start, until, wait};

/// A network namespace, one end of a veth pair in it, and the other on the host. The container's
/// end has 10.9.N.2 and fd00:9:N::2, the host's 10.9.N.1 and fd00:9:N::1.
struct Wire {
    n: u32,
    namespace: String,
    host: String,
}

/// ip(8), which must succeed.
#[track_caller]
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Wire {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let wire = Self { n, namespace: format!("bh-test{n}"), host: format!("bh-host{n}") };
        ip(&format!("netns add {}", wire.namespace));
        wire.ip("link set lo up");
        wire
    }

    fn with_veth() -> Self {
        let wire = Self::new();
        let Self { n, namespace, host } = &wire;
        ip(&format!("link add {host} type veth peer name eth0 netns {namespace}"));
        ip(&format!("addr add 10.9.{n}.1/24 dev {host}"));
        ip(&format!("-6 addr add fd00:9:{n}::1/64 dev {host} nodad"));
        ip(&format!("link set {host} up"));
        wire.ip(&format!("addr add 10.9.{n}.2/24 brd + dev eth0"));
        wire.ip(&format!("-6 addr add fd00:9:{n}::2/64 dev eth0 nodad"));
        wire.ip("link set eth0 up");
        wire.ip(&format!("route add default via 10.9.{n}.1"));
        wire.ip(&format!("-6 route add default via fd00:9:{n}::1"));
        wire
    }

    /// ip(8) in the namespace.
    #[track_caller]
    fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.namespace))
    }

    fn option(&self) -> String {
        format!("netns:/run/netns/{}", self.namespace)
    }

    /// Runs a shell script in a container with this network.
    #[track_caller]
    fn sh(&self, host: &Host, script: &str) -> Finished {
        finish(host.run(&["--network", &self.option()], &["sh", "-c", script]))
    }

    fn mac(&self, interface: &str) -> String {
        let shown = self.ip(&format!("-o link show {interface}"));
        let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
        words.nth(1).expect("a MAC address").to_owned()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The host's end goes with the namespace.
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}

/// Bytes that no two places of a transfer have in common.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}

#[test]
fn the_guest_has_what_the_namespace_has() {
    let (host, wire) = (Host::new(), Wire::with_veth());
    wire.ip("link set eth0 mtu 1400");
    wire.ip("route add blackhole 10.99.0.0/16");
    wire.ip(&format!("neigh add 10.9.{}.77 lladdr 02:00:00:00:00:77 dev eth0", wire.n));
    let script = "ls /sys/class/net; cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; \
        ip -o addr show eth0; ip route; ip -6 route; ip neigh; \
        cat /sys/class/net/eth0/device/features";
    let said = wire.sh(&host, script).ok();
    let n = wire.n;
    for words in [
        format!("eth0\nlo\n{}\n1400\n", wire.mac("eth0")),
        format!("inet 10.9.{n}.2/24 brd 10.9.{n}.255 scope global eth0"),
        format!("inet6 fd00:9:{n}::2/64 scope global"),
        "inet6 fe80::".to_owned(),
        format!("default via 10.9.{n}.1 dev eth0"),
        format!("default via fd00:9:{n}::1 dev eth0"),
        "blackhole 10.99.0.0/16".to_owned(),
        format!("10.9.{n}.77 dev eth0 lladdr 02:00:00:00:00:77"),
    ] {
        assert!(said.contains(&words), "{words:?} is there: {said}");
    }
    // Bit by bit, the lowest first: checksums, segmentation of TCP both ways, mergeable buffers.
    let features = said.lines().last().expect("features").as_bytes();
    for bit in [0, 1, 7, 8, 11, 12, 15, 29] {
        assert_eq!(features[bit], b'1', "feature {bit} was negotiated: {said}");
    }
    assert!(wire.ip("-o link").contains("eth0") && !wire.ip("-o link").contains("bhtap"));
}

#[test]
fn tcp_arrives_intact_both_ways() {
    const BYTES: usize = 24 << 20;
    let (host, wire) = (Host::new(), Wire::with_veth());
    let out = noise(BYTES);
    for address in [format!("10.9.{}.1", wire.n), format!("fd00:9:{}::1", wire.n)] {
        let listener = TcpListener::bind((address.as_str(), 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let sent = out.clone();
        let server = thread::spawn(move || {
            let (mut to_guest, _) = listener.accept().expect("the first connection");
            to_guest.write_all(&sent).expect("the guest reads it all");
            drop(to_guest);
            let (mut from_guest, _) = listener.accept().expect("the second connection");
            let mut received = Vec::new();
            from_guest.read_to_end(&mut received).expect("the guest sends it all");
            received
        });
        // busybox's nc ends when its input does, before all came back: hence two connections.
        let script = format!(
            "mount -t tmpfs tmpfs /tmp; nc {address} {port} </dev/null >/tmp/in; \
             sha256sum </tmp/in; nc {address} {port} </tmp/in >/dev/null"
        );
        let options = ["--network", &wire.option(), "--memory", "256m", "--cap-add", "SYS_ADMIN"];
        let said = finish(host.run(&options, &["sh", "-c", &script])).ok();
        assert!(server.join().expect("the server") == out, "{address}: what came back");
        let dir = host.path("sent");
        fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join("f"), &out)).expect("a file");
        let sum = checksums(&dir);
        assert_eq!(said.split_whitespace().next(), sum.split_whitespace().next(), "{address}");
    }
}

#[test]
fn datagrams_and_link_local_addresses_work() {
    let (host, wire) = (Host::new(), Wire::with_veth());
    let socket = UdpSocket::bind((format!("10.9.{}.1", wire.n), 0)).expect("a port");
    let port = socket.local_addr().expect("an address").port();
    let echo = thread::spawn(move || {
        let mut bytes = [0; 2000];
        let (len, from) = socket.recv_from(&mut bytes).expect("a datagram");
        socket.send_to(&bytes[..len], from).expect("an answer");
    });
    let own = ip(&format!("-6 -o addr show dev {} scope link", wire.host));
    let own = own.split_whitespace().nth(3).expect("an address").split('/').next().expect("it");
    let n = wire.n;
    let script = format!(
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(20); \
         s.sendto(b'datagram' * 150, ('10.9.{n}.1', {port})); print(s.recv(2000).decode())"
    );
    let mut run = host.bulkhead(["run", "--network", &wire.option(), "-m256m", "--rootfs"]);
    run.arg(debian()).args(["--", "python3", "-c", &script]);
    assert_eq!(finish(run).ok(), "datagram".repeat(150) + "\n");
    let script = format!(
        "ping -6 -c 1 -W 5 {own}%eth0 >/dev/null && echo reached; \
         ping -c 1 -s 1472 -W 5 10.9.{n}.1 >/dev/null && echo full; \
         ping -c 1 -s 9000 -W 5 10.9.{n}.1 >/dev/null && echo fragments"
    );
    assert_eq!(wire.sh(&host, &script).ok(), "reached\nfull\nfragments\n");
    echo.join().expect("the datagram came");
}

#[test]
fn a_namespace_serves_one_vm_at_a_time_and_the_next_afterwards() {
    let (host, wire) = (Host::new(), Wire::with_veth());
    let script = "touch up; while [ ! -e /go ]; do sleep 0.1; done";
    let first = start(host.run(&["--network", &wire.option()], &["sh", "-c", script]));
    until("the first runs", || host.rootfs.join("up").exists());
    let other = Host::new();
    wire.sh(&other, "true").fails(125, "another running VM");
    fs::write(host.rootfs.join("go"), "").expect("a file");
    wait(first).ok();
    let ping = format!("ping -c 1 -W 5 10.9.{}.1 >/dev/null && echo reached", wire.n);
    assert_eq!(wire.sh(&other, &ping).ok(), "reached\n");
    // Killed, a VM leaves its network just as free.
    let vm = start(other.run(&["--network", &wire.option()], &["sh", "-c", "touch up; sleep 99"]));
    until("it runs", || other.rootfs.join("up").exists());
    signal(vm.id(), "KILL");
    wait(vm);
    until("its tap is gone", || !wire.ip("-o link").contains("bhtap"));
    assert_eq!(wire.sh(&other, &ping).ok(), "reached\n");
}

#[test]
fn interfaces_keep_their_names_and_kinds() {
    let (host, wire) = (Host::new(), Wire::new());
    let n = wire.n;
    ip(&format!("link add {} type veth peer name parent{n}", wire.host));
    for interface in [wire.host.as_str(), &format!("parent{n}")] {
        ip(&format!("link set {interface} up"));
    }
    ip(&format!("addr add 10.9.{n}.1/24 dev {}", wire.host));
    // In the kernel's order the guest's eth0 is the first of them, and is to become the second.
    for (name, kind, last) in
        [("eth1", "macvlan mode bridge", 3), ("eth0", "macvlan mode bridge", 4), ("net0", "", 5)]
    {
        match kind {
            "" => wire.ip(&format!("tuntap add {name} mode tap")),
            _ => {
                ip(&format!("link add link parent{n} mv{last} type {kind}"));
                ip(&format!("link set mv{last} netns {} name {name}", wire.namespace))
            }
        };
        wire.ip(&format!("addr add 10.9.{n}.{last}/24 dev {name}"));
        wire.ip(&format!("link set {name} up"));
    }
    let script = format!(
        "ip -o -4 addr | grep -v ' lo ' | sort -k 4 | while read a name c address rest; do \
         echo $name $address; done; ping -c 1 -W 5 -I eth1 10.9.{n}.1 >/dev/null && echo reached"
    );
    let said = wire.sh(&host, &script).ok();
    assert_eq!(
        said,
        format!("eth1 10.9.{n}.3/24\neth0 10.9.{n}.4/24\nnet0 10.9.{n}.5/24\nreached\n")
    );
    ip(&format!("link del {}", wire.host));
}

#[test]
fn ipvlan_works_where_it_resolves_addresses() {
    let (host, wire) = (Host::new(), Wire::new());
    let n = wire.n;
    ip(&format!("link add {} type veth peer name parent{n}", wire.host));
    ip(&format!("link set {} up", wire.host));
    ip(&format!("link set parent{n} up"));
    ip(&format!("addr add 10.9.{n}.1/24 dev {}", wire.host));
    ip(&format!("link add link parent{n} iv{n} type ipvlan mode l2"));
    ip(&format!("link set iv{n} netns {} name eth0", wire.namespace));
    wire.ip(&format!("addr add 10.9.{n}.3/24 dev eth0"));
    wire.ip("link set eth0 up");
    let ping = format!("ping -c 1 -W 5 10.9.{n}.1 >/dev/null && echo reached");
    assert_eq!(wire.sh(&host, &ping).ok(), "reached\n");
    wire.ip("link set eth0 type ipvlan mode l3");
    wire.sh(&host, "true").fails(125, "eth0 (ipvlan)");
    ip(&format!("link del {}", wire.host));
}

#[test]
fn without_a_network_there_is_loopback() {
    let (host, wire) = (Host::new(), Wire::new());
    let script = "ls /sys/class/net; ping -c 1 127.0.0.1 >/dev/null && echo reached";
    assert_eq!(host.sh(script).ok(), "lo\nreached\n");
    assert_eq!(wire.sh(&host, script).ok(), "lo\nreached\n");
}

#[test]
fn networks_that_cannot_be_had_are_refused() {
    let host = Host::new();
    let own = format!("netns:/proc/{}/ns/net", std::process::id());
    for (network, words) in [
        (own.as_str(), "the host's network"),
        ("netns:/run/netns/none", "/run/netns/none"),
        ("netns:/etc/passwd", "/etc/passwd"),
        ("bridge", "netns:PATH"),
    ] {
        finish(host.run(&["--network", network], &["true"])).fails(125, words);
    }
    assert_eq!(host.leftovers(), [] as [&str; 0]);
}

#[test]
fn a_tap_that_is_deleted_is_a_cable_unplugged() {
    let (host, wire) = (Host::new(), Wire::with_veth());
    let script = "touch up; while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done; \
        echo unplugged";
    let vm = start(host.run(&["--network", &wire.option()], &["sh", "-c", script]));
    until("it runs", || host.rootfs.join("up").exists());
    wire.ip("link del bhtap0");
    assert_eq!(wait(vm).ok(), "unplugged\n");
}
