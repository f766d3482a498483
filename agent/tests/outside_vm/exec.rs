//! Further processes in a running container.

use std::io::Read as _;
use std::net::Shutdown;

use bulkhead_protocol::rpc::agent::{
    ExecRequest, Process, ProcessesRequest, ResizeRequest, Terminal, WaitRequest,
};

use crate::harness::*;

fn running() -> (Agent, Host) {
    let agent = Agent::start();
    let host = agent.host();
    agent.create_sleeper();
    (agent, host)
}

#[test]
fn streams_and_exit_code() {
    let (agent, _host) = running();
    let process = Process { stdin: true, ..shell("cat; echo err >&2; exit 4") };
    let response = agent.exec("a", process);
    assert!(response.failure.is_none() && response.pid > 1, "{response:?}");
    let mut stdin = agent.stream(response.stdin_port);
    let (stdout, stderr) = (agent.stream(response.stdout_port), agent.stream(response.stderr_port));
    write(&mut stdin, "through");
    stdin.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(stdout), *b"through");
    assert_eq!(read_all(stderr), *b"err\n");
    assert_eq!(agent.wait("a"), 4);
}

#[test]
fn it_lives_in_the_container() {
    let (agent, host) = running();
    let script = "hostname; tr '\\0' ' ' < /proc/1/cmdline; ls /; \
        [ $(readlink /proc/1/ns/mnt) = $(readlink /proc/self/ns/mnt) ] && echo same; \
        [ $(readlink /proc/1/ns/pid) = $(readlink /proc/self/ns/pid) ] && echo same";
    let response = agent.exec("a", shell(script));
    let stdout = String::from_utf8(read_all(agent.stream(response.stdout_port))).unwrap();
    assert!(stdout.starts_with("lighthouse\nsleep 1000 bin\n"), "{stdout}");
    assert!(stdout.ends_with("same\nsame\n"), "{stdout}");
    assert_eq!(agent.wait("a"), 0);
    agent.signal("", libc::SIGKILL, false);
    assert_eq!(host.exit().code, 137);
}

#[test]
fn output_waits_for_its_reader() {
    let (agent, _host) = running();
    let response = agent.exec("a", shell("echo early; exit 1"));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(read_all(agent.stream(response.stdout_port)), *b"early\n");
    assert_eq!(agent.wait("a"), 1);
}

#[test]
fn waits_are_answered_whenever_they_come() {
    let (agent, _host) = running();
    agent.exec("a", shell("sleep 0.2; exit 3"));
    std::thread::scope(|scope| {
        let waits = [scope.spawn(|| agent.wait("a")), scope.spawn(|| agent.wait("a"))];
        // Other calls on the same connection are not held up.
        agent.exec("b", shell("exit 5"));
        assert_eq!(agent.wait("b"), 5);
        for wait in waits {
            assert_eq!(wait.join().unwrap(), 3);
        }
    });
    let wait = WaitRequest { id: "a".to_owned(), ..Default::default() };
    assert!(agent.client.wait(context(), &wait).is_err(), "a was forgotten");
}

#[test]
fn signals_reach_it() {
    let (agent, _host) = running();
    agent.exec("a", shell("sleep 1000"));
    agent.signal("a", libc::SIGTERM, false);
    assert_eq!(agent.wait("a"), 128 + 15);
}

#[test]
fn a_terminal_of_its_own() {
    let (agent, _host) = running();
    let size = Terminal { rows: 10, columns: 20, ..Default::default() };
    let script = "tty; stty size; read line; stty size; echo got $line";
    let response = agent.exec("a", Process { terminal: Some(size).into(), ..shell(script) });
    assert_eq!((response.stdout_port, response.stderr_port), (0, 0));
    let mut terminal = agent.stream(response.stdin_port);
    assert_eq!(read_until(&mut terminal, "10 20\r\n"), "/dev/pts/0\r\n10 20\r\n");
    let request = ResizeRequest { id: "a".to_owned(), rows: 30, columns: 40, ..Default::default() };
    agent.client.resize(context(), &request).unwrap();
    write(&mut terminal, "it\n");
    assert_eq!(read_all(terminal), *b"it\r\n30 40\r\ngot it\r\n");
    assert_eq!(agent.wait("a"), 0);
}

#[test]
fn what_cannot_be_run_is_said() {
    let (agent, _host) = running();
    let mut process = shell("");
    process.args = vec!["nonesuch".to_owned()];
    let response = agent.exec("a", process);
    assert_eq!(response.failure.errno, libc::ENOENT as u32);
    assert_eq!(response.stdout_port, 0);
    // The ID is free again.
    assert!(agent.exec("a", shell("exit 0")).failure.is_none());
    assert_eq!(agent.wait("a"), 0);
}

#[test]
fn streams_nobody_connects_to_are_closed() {
    let (agent, _host) = running();
    let fds = agent.open_fds();
    for round in 0..5 {
        let id = format!("p{round}");
        let response = agent.exec(&id, shell("echo unheard"));
        assert!(response.failure.is_none(), "{response:?}");
        assert_eq!(agent.wait(&id), 0);
    }
    wait_until("all fds are closed", || agent.open_fds() == fds);
}

#[test]
fn one_that_ends_the_container_is_still_told_of() {
    let agent = Agent::start();
    let host = agent.host();
    let response = agent.create(&spec(shell("until [ -e /stop ]; do sleep 0.01; done")));
    assert!(response.failure.is_none(), "{response:?}");
    let request = ExecRequest {
        id: "a".to_owned(),
        process: Some(shell("touch /stop; exit 4")).into(),
        kill_on_hangup: true,
        ..Default::default()
    };
    let response = agent.client.exec(context(), &request).unwrap();
    assert!(response.failure.is_none(), "{response:?}");
    // Longer than it takes the container to end.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(agent.wait("a"), 4);
    assert_eq!(host.outcome(true, true).code, 0);
}

#[test]
fn the_containers_end_is_the_end_of_all() {
    let (agent, host) = running();
    let response = agent.exec("a", shell("echo up; sleep 1000"));
    let mut stdout = agent.stream(response.stdout_port);
    read_until(&mut stdout, "up");
    agent.signal("", libc::SIGKILL, false);
    assert_eq!(host.exit().code, 137);
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
}

#[test]
fn it_ends_with_the_connection_it_came_by() {
    let (agent, _host) = running();
    let response = {
        let other = agent.another_client();
        let request = ExecRequest {
            id: "a".to_owned(),
            process: Some(shell("sleep 1000")).into(),
            kill_on_hangup: true,
            ..Default::default()
        };
        other.exec(context(), &request).unwrap()
    };
    assert!(response.failure.is_none(), "{response:?}");
    assert_eq!(agent.wait("a"), 137);
}

#[test]
fn its_output_ends_with_it_though_its_children_live_on() {
    let (agent, _host) = running();
    for (id, terminal) in [("pipes", None), ("terminal", Some(Terminal::default()))] {
        let script = "trap '' HUP; sleep 1000 & head -c 100000 /dev/zero | tr '\\0' x";
        let process = Process { terminal: terminal.into(), ..shell(script) };
        let response = agent.exec(id, process);
        let port =
            if response.stdout_port == 0 { response.stdin_port } else { response.stdout_port };
        let stdout = agent.stream(port);
        assert_eq!(read_all(stdout).len(), 100_000, "{id}");
        assert_eq!(agent.wait(id), 0);
    }
}

#[test]
fn processes_are_listed_as_the_container_counts_them() {
    let (agent, _host) = running();
    let response = agent.exec("a", shell("echo up; exec sleep 77"));
    read_until(&mut agent.stream(response.stdout_port), "up");
    wait_until("it is listed", || {
        let response = agent.client.processes(context(), &ProcessesRequest::default()).unwrap();
        let processes = response.processes;
        assert_eq!((processes[0].pid, processes[0].parent_pid), (1, 0), "{processes:?}");
        processes.len() == 2 && processes[1].command == "sleep 77" && processes[1].uid == 0
    });
}
