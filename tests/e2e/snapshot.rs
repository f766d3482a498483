//! Stopping VMs and letting them go on, over the control socket.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use bulkhead_tests::{Host, start, until, wait};

/// Sends one request to a container's control socket and returns the answer.
fn control(host: &Host, name: &str, request: &str) -> String {
    let mut socket = UnixStream::connect(host.state.join(name).join("control.sock")).expect("a VM");
    writeln!(socket, "{request}").expect("the VM takes requests");
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).expect("the VM answers");
    answer.trim().to_owned()
}

#[test]
fn a_paused_container_stands_still_and_goes_on() {
    for cpus in ["1", "2"] {
        let host = Host::new();
        let script = "i=0; while ! test -e /go; do i=$((i + 1)); echo $i >/count; done; echo on";
        let options = ["--name", "still", "--cpus", cpus];
        let child = start(host.run(&options, &["sh", "-c", script]));
        let count = || fs::read_to_string(host.rootfs.join("count")).unwrap_or_default();
        until("it counts", || !count().is_empty());
        for _ in 0..3 {
            assert_eq!(control(&host, "still", r#"{"verb":"pause"}"#), r#"{"result":"done"}"#);
            // What was on its way to the files arrives.
            thread::sleep(Duration::from_millis(200));
            let stands = count();
            thread::sleep(Duration::from_millis(300));
            assert_eq!(count(), stands, "nothing runs");
            let stats = control(&host, "still", r#"{"verb":"stats"}"#);
            assert!(stats.contains(r#""paused":true"#), "{stats}");
            assert_eq!(control(&host, "still", r#"{"verb":"resume"}"#), r#"{"result":"done"}"#);
            until("it goes on", || count() != stands);
        }
        let stats = control(&host, "still", r#"{"verb":"stats"}"#);
        assert!(stats.contains(r#""paused":false"#), "{stats}");
        assert!(control(&host, "still", "nonsense").contains("refused"));
        fs::write(host.rootfs.join("go"), "").expect("a file");
        assert_eq!(wait(child).ok(), "on\n");
    }
}
