//! Podman's networks, as it makes them: bridges, names, ports.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use bulkhead_tests::podman::{IMAGE, Podman};
use bulkhead_tests::{Finished, until};

const V4: &str = "10.99.1";
const V6: &str = "fd00:99:1:";
const PORT: u16 = 18080;

/// `podman run --rm --network NETWORK IMAGE sh -c SCRIPT`
#[track_caller]
fn run(podman: &Podman, network: &str, script: &str) -> Finished {
    podman.call(["run", "--rm", "--network", network, IMAGE, "sh", "-c", script])
}

/// What an HTTP server says to a request; nothing if it cannot be reached.
fn fetch(address: &str, port: u16) -> String {
    let mut said = String::new();
    if let Ok(mut stream) = TcpStream::connect((address, port)) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
        let _ = stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_string(&mut said);
    }
    said
}

#[test]
fn containers_have_names_ports_and_ways_out() {
    let podman = Podman::new();
    let (v4, v6, port) = (format!("{V4}.0/24"), format!("{V6}:/64"), format!("{PORT}:80"));
    podman.call(["network", "create", "--ipv6", "--subnet", &v4, "--subnet", &v6, "lan"]).ok();
    let serve = "mkdir /www; echo from the web container >/www/index.html; exec httpd -f -h /www";
    let web = ["run", "-d", "--name", "web", "--network", "lan", "-p", &port];
    podman.call([&web[..], &[IMAGE, "sh", "-c", serve]].concat()).ok();
    until("the server answers through its port", || {
        fetch("127.0.0.1", PORT).contains("from the web container")
    });
    let inspect = ["inspect", "-f", "{{.NetworkSettings.Networks.lan.IPAddress}}", "web"];
    let address = podman.call(inspect).ok().trim().to_owned();
    assert!(fetch(&address, 80).contains("from the web container"), "at {address}");

    let listener = TcpListener::bind((format!("{V4}.1"), 0)).expect("a port at the gateway");
    let outside = listener.local_addr().expect("an address").port();
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a connection");
        client.write_all(b"from the host\n").expect("the client reads it");
    });
    let script = format!(
        "wget -qO- http://web/index.html; nslookup web; \
         nc {V4}.1 {outside} </dev/null; ping -6 -c 1 -W 9 web >/dev/null && echo pinged; \
         ip -o -4 addr show eth0 | cut -d ' ' -f 7; ip route"
    );
    let said = run(&podman, "lan", &script).ok();
    server.join().expect("the server");
    for words in [
        "from the web container\n",
        &address,
        "from the host\n",
        "pinged\n",
        &format!("{V4}.3/24"),
        &format!("default via {V4}.1 dev eth0"),
    ] {
        assert!(said.contains(words), "{words:?} is said: {said}");
    }
    let said = run(&podman, "container:web", "wget -qO- http://127.0.0.1/index.html").ok();
    assert_eq!(said, "from the web container\n");
    podman.call(["restart", "-t", "1", "web"]).ok();
    until("it serves again after a restart", || {
        fetch("127.0.0.1", PORT).contains("from the web container")
    });
    podman.call(["rm", "-f", "-t", "0", "web"]).ok();
    assert_eq!(fetch("127.0.0.1", PORT), "");
}

#[test]
fn the_default_bridge_and_no_network_are_as_with_other_runtimes() {
    let podman = Podman::new();
    let said = run(&podman, "podman", "ip -o addr; cat /etc/resolv.conf; cat /etc/hosts").ok();
    assert!(said.contains("eth0") && said.contains("inet 10.88.0."), "{said}");
    let said = run(&podman, "none", "ls /sys/class/net").ok();
    assert_eq!(said, "lo\n");
    let finished = run(&podman, "host", "true");
    assert_ne!(finished.code, 0);
    assert!(finished.stderr.contains("the host's network"), "{finished:?}");
    assert!(fs::read_dir("/run/netns").is_ok_and(|left| left.count() == 0), "no namespace is left");
}
