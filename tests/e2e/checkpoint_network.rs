//! Saved containers with a network: restored where they were and elsewhere, and forked.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::{finish, until};
use serde_json::json;

/// Makes a bridge with 10.7.0.1, and two network namespaces at it, with 10.7.0.2 and 10.7.0.3.
const BRIDGE: &str = "
    ip link add saved type bridge; ip addr add 10.7.0.1/24 dev saved; ip link set saved up
    for n in 2 3; do
        ip netns add saved$n; ip -n saved$n link set lo up
        ip link add port$n type veth peer name eth0 netns saved$n
        ip link set port$n master saved up
        ip -n saved$n addr add 10.7.0.$n/24 brd + dev eth0; ip -n saved$n link set eth0 up
        ip -n saved$n route add default via 10.7.0.1
    done";

struct Bridge;

impl Bridge {
    fn new() -> Self {
        sh(BRIDGE);
        Self
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // Other tests' engines are to leave no namespace, and find none.
        let script = "ip netns del saved2; ip netns del saved3; ip link del saved";
        let _ = Command::new("sh").args(["-c", script]).status();
    }
}

/// Says on port 7001 where it is, and repeats on port 7002 what it is told, to one client.
const SERVER: &str = r#"
    (while :; do nc -l -p 7002 -e cat; echo over >>/over; done) &
    while :; do
        nc -l -p 7001 -e sh -c 'ip -o -4 addr show eth0; ip route; cat /sys/class/net/eth0/address'
    done"#;

fn sh(script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    finish(command).ok()
}

/// Runs a command that leaves a VM behind, which keeps its streams.
#[track_caller]
fn leave(mut command: Command) {
    command.stdout(Stdio::null());
    assert!(command.status().expect("bulkhead runs").success(), "{command:?}");
}

/// Where the container at this address says it is.
fn place(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect((address, 7001)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    (!said.is_empty()).then_some(said)
}

/// Waits until the container at 10.7.0.N has all of that namespace's network.
#[track_caller]
fn is_at(n: u32) {
    let address = format!("10.7.0.{n}");
    let mac = sh(&format!("ip -n saved{n} -o link show eth0 | sed 's/.*ether \\([^ ]*\\).*/\\1/'"));
    // It listens to one client after another.
    let said = RefCell::default();
    until("it answers", || place(&address).map(|place| said.replace(place)).is_some());
    let said = said.take();
    let inet = format!("inet {address}/24");
    let expected = said.contains(&inet) && said.ends_with(&mac) && said.contains("via 10.7.0.1");
    assert!(expected && said.matches("inet ").count() == 1, "{mac} {said}");
}

#[test]
fn a_network_goes_on_or_is_another() {
    let _bridge = Bridge::new();
    let network = |n: u32| json!({"type": "network", "path": format!("/run/netns/saved{n}")});
    let mut bundle = Bundle::new(SERVER).with("/linux/namespaces/1", network(2));
    let image = bundle.host.path("image");
    let image = image.to_str().expect("a plain path");
    let command = |bundle: &Bundle, verb: &str| {
        leave(bundle.command(verb, &["--detach", "--image-path", image][..], "one"));
    };
    leave(bundle.command("run", &["--detach"], "one"));
    is_at(2);
    let mut kept = TcpStream::connect("10.7.0.2:7002").expect("a connection");
    let mut echo = BufReader::new(kept.try_clone().expect("a descriptor"));
    kept.set_read_timeout(Some(Duration::from_secs(60))).expect("it can wait");
    let mut is_alive = |word: &str| {
        let mut line = String::new();
        kept.write_all(word.as_bytes()).expect("it takes it");
        echo.read_line(&mut line).expect("an answer");
        assert_eq!(line, word);
    };
    is_alive("before\n");

    let clone = |network: &[&str]| {
        let mut command = bundle.host.bulkhead(["clone"]);
        command.args(network).args(["one", "two"]);
        command
    };
    finish(clone(&[])).fails(1, "it belongs to another running VM");
    leave(clone(&["--network", "netns:/run/netns/saved3"]));
    is_at(3);
    is_at(2);
    is_alive("beside a clone\n");
    // The clone has ended its end of that, and nobody else has.
    let over = fs::read_to_string(bundle.host.rootfs.join("over"));
    assert_eq!(over.expect("the server noticed"), "over\n");
    finish(bundle.host.bulkhead(["delete", "--force", "two"])).ok();
    leave(clone(&["--network", "none"]));
    let exec = ["exec", "two", "ip", "-o", "addr", "show", "eth0"];
    let said = finish(bundle.host.bulkhead(exec)).ok();
    assert!(!said.contains("inet"), "it has a cable no more: {said}");
    finish(bundle.host.bulkhead(["delete", "--force", "two"])).ok();

    let checkpoint = ["checkpoint", "--image-path", image, "one"];
    finish(bundle.host.bulkhead(checkpoint)).ok();
    command(&bundle, "restore");
    is_alive("behind a restore\n");
    is_at(2);
    finish(bundle.host.bulkhead(["delete", "--force", "one"])).ok();
    bundle.set("/linux/namespaces/1", network(3));
    command(&bundle, "restore");
    is_at(3);
    sh("ip link add port4 type veth peer name eth1 netns saved2; ip -n saved2 link set eth1 up");
    finish(bundle.host.bulkhead(["delete", "--force", "one"])).ok();
    bundle.set("/linux/namespaces/1", network(2));
    let restore = bundle.command("restore", &["--image-path", image], "one");
    finish(restore).fails(1, "saved with 1 network interfaces");
    assert_eq!(bundle.host.leftovers(), [""; 0]);
}

/// Puts 10.6.0.2 into the network of the container whose state comes on standard input.
const HOOK: &str = r#"
    pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
    ip link add hooked type veth peer name eth0 netns $pid
    ip addr add 10.6.0.1/24 dev hooked; ip link set hooked up
    nsenter -t $pid -n ip addr add 10.6.0.2/24 dev eth0; nsenter -t $pid -n ip link set eth0 up"#;

#[test]
fn a_hook_s_network_is_that_of_the_restored_container() {
    let bundle = Bundle::new(SERVER);
    let hook = bundle.host.path("hook");
    fs::write(&hook, HOOK).expect("a file");
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-e", hook],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]});
    let bundle = bundle.with("/hooks", json!({"createRuntime": [hook]}));
    leave(bundle.command("run", &["--detach"], "one"));
    until("it answers", || place("10.6.0.2").is_some());
    let image = bundle.host.path("image");
    let image = image.to_str().expect("a plain path");
    finish(bundle.host.bulkhead(["checkpoint", "--image-path", image, "one"])).ok();
    assert!(place("10.6.0.2").is_none(), "its network is gone");
    leave(bundle.command("restore", &["--detach", "--image-path", image], "one"));
    until("it answers again", || place("10.6.0.2").is_some());
    finish(bundle.host.bulkhead(["delete", "--force", "one"])).ok();
}
