//! Networks that are set up after `create`, as docker, nerdctl and image builds do it: in the network
//! namespace of the container's process.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::{finish, until};
use serde_json::json;

/// A shell script for the host, which must succeed.
#[track_caller]
fn sh(script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    finish(command).ok()
}

/// A listener on every address that says hello to one client.
fn greeter() -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let greet = move || {
        let (mut client, _) = listener.accept().expect("a client");
        client.write_all(b"hello\n").expect("it listens");
    };
    (port, thread::spawn(greet))
}

/// Makes a veth pair, whose one end is `name` in the namespace of $pid, with addresses in 10.8.N.0/24.
fn veth(n: u32, name: &str) -> String {
    format!(
        "ip link add late{n} type veth peer name {name} netns $pid; ip addr add 10.8.{n}.1/24 dev late{n}
         ip link set late{n} up; nsenter -t $pid -n ip addr add 10.8.{n}.2/24 dev {name}
         nsenter -t $pid -n ip link set {name} mtu 1400 up
         "
    )
}

#[test]
fn a_hook_s_network_is_the_container_s() {
    let (port, greeter) = greeter();
    let script = format!("ls /sys/class/net; nc 10.8.1.1 {port} </dev/null; ip route");
    let bundle = Bundle::new(&script);
    let hook = bundle.host.path("hook");
    let set_up = "nsenter -t $pid -n ip route add default via 10.8.1.1";
    // State as engines' hooks read it.
    let find_pid = r#"pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')"#;
    fs::write(&hook, format!("set -e\n{find_pid}\n{}{set_up}\n", veth(1, "eth0"))).expect("a file");
    let hooks = json!({"prestart": [{"path": "/bin/sh", "args": ["sh", hook],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]});
    let said = bundle.with("/hooks", hooks).run().ok();
    greeter.join().expect("it was called");
    let expected = "eth0\nlo\nhello\ndefault via 10.8.1.1 dev eth0 \n10.8.1.0/24 dev eth0 ";
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn interfaces_that_come_between_create_and_start_are_plugged_in() {
    let (port, greeter) = greeter();
    let script = format!(
        "(ls /sys/class/net; cat /sys/class/net/lan/mtu /sys/class/net/lan/address
         ip -o -4 addr show wan; nc 10.8.2.1 {port}) >/said 2>&1 </dev/null; mv /said /done"
    );
    let bundle = Bundle::new(&script);
    let pid_file = bundle.host.path("pid");
    let pid_file = pid_file.to_str().expect("ASCII");
    let create = || {
        // The container has these streams for as long as it lives.
        let mut create = bundle.command("create", &["--pid-file", pid_file], "late");
        let status = create.stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.expect("bulkhead starts").success());
        format!("pid={}\n", fs::read_to_string(pid_file).expect("a PID"))
    };
    let pid = create();
    sh(&format!("{pid}{}{}", veth(2, "lan"), veth(3, "wan")));
    let mac = r"nsenter -t $pid -n ip -o link show lan | sed 's/.*ether \([^ ]*\).*/\1/'";
    let mac = sh(&format!("{pid}{mac}"));
    finish(bundle.host.bulkhead(["start", "late"])).ok();
    let done = bundle.host.rootfs.join("done");
    until("the container has ended", || done.exists());
    greeter.join().expect("it was called");
    let said = fs::read_to_string(done).expect("what it said");
    assert!(said.starts_with(&format!("lan\nlo\nwan\n1400\n{mac}")), "{mac} {said}");
    assert!(said.contains("inet 10.8.3.2/24") && said.ends_with("hello\n"), "{said}");
    finish(bundle.host.bulkhead(["delete", "--force", "late"])).ok();

    let pid = create();
    sh(&format!("{pid}{}{}{}", veth(4, "if4"), veth(5, "if5"), veth(6, "if6")));
    let finished = finish(bundle.host.bulkhead(["start", "late"]));
    finished.fails(1, "has 3 interfaces; the VM has room for 2");

    // A start that fails behind the taps leaves none, and can be tried again.
    let within = format!("{pid}nsenter -t $pid -n ip");
    sh(&format!("{within} link del if6"));
    let (socket, away) = (bundle.host.state.join("late/control.sock"), bundle.host.path("away"));
    fs::rename(&socket, &away).expect("a socket");
    finish(bundle.host.bulkhead(["start", "late"])).fails(1, "control.sock");
    assert!(!sh(&format!("{within} -o link")).contains("bhtap"), "no tap is left");
    fs::rename(&away, &socket).expect("a socket");
    let done = bundle.host.rootfs.join("done");
    fs::remove_file(&done).expect("the first one's");
    finish(bundle.host.bulkhead(["start", "late"])).ok();
    until("the container has ended", || done.exists());
    let said = fs::read_to_string(done).expect("what it said");
    assert!(said.starts_with("if4\nif5\nlo\n"), "{said}");
    finish(bundle.host.bulkhead(["delete", "--force", "late"])).ok();
    assert_eq!(sh("ip -o link show type veth | grep -c late || true"), "0\n", "none is left");
}
