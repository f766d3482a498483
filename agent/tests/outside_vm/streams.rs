//! Bytes on their way: volume, half close, terminals.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use bulkhead_protocol::HostEvent;
use bulkhead_protocol::rpc::agent::{CreateContainerRequest, Process, ResizeRequest, Terminal};

use crate::harness::*;

fn with_stdin(script: &str) -> Process {
    Process { stdin: true, ..shell(script) }
}

fn with_terminal(script: &str) -> Process {
    let size = Terminal { rows: 33, columns: 77, ..Default::default() };
    Process { terminal: Some(size).into(), ..shell(script) }
}

/// Bytes that differ everywhere.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn much_goes_through_intact() {
    let sent = pattern(64 << 20);
    let agent = Agent::start();
    let host = agent.host();
    agent.create(&spec(with_stdin("exec cat")));
    let (mut stdin, mut stdout) = (host.stdin(), host.stdout());
    let mut received = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&sent).unwrap();
            stdin.shutdown(Shutdown::Write).unwrap();
        });
        stdout.read_to_end(&mut received).unwrap();
    });
    assert!(received == sent, "{} bytes sent, {} received", sent.len(), received.len());
    assert_eq!(host.exit().code, 0);
}

#[test]
fn a_slow_reader_loses_nothing_after_the_end() {
    let agent = Agent::start();
    let host = agent.host();
    agent.create(&spec(shell("seq 1 30000; exit 5")));
    let stdout = host.stdout();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let received = String::from_utf8(read_all(stdout)).unwrap();
    assert_eq!(received.lines().count(), 30000);
    assert!(received.ends_with("29999\n30000\n"));
    assert_eq!(host.exit().code, 5);
}

#[test]
fn the_end_of_stdin_reaches_the_process() {
    let agent = Agent::start();
    let host = agent.host();
    agent.create(&spec(with_stdin("cat; echo end")));
    let (mut stdin, mut stdout) = (host.stdin(), host.stdout());
    write(&mut stdin, "first ");
    read_until(&mut stdout, "first ");
    stdin.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(stdout), *b"end\n");
}

#[test]
fn a_process_that_closes_stdin_stops_the_host() {
    let agent = Agent::start();
    let host = agent.host();
    agent.create(&spec(with_stdin("exec 0<&-; echo closed; sleep 1000")));
    let (mut stdin, mut stdout) = (host.stdin(), host.stdout());
    read_until(&mut stdout, "closed");
    assert_eq!(stdin.read(&mut [0]).unwrap(), 0);
    wait_until("writes are refused", || stdin.write(b"unwanted").is_err());
}

#[test]
fn a_host_that_closes_stdout_breaks_the_pipe() {
    let agent = Agent::start();
    let host = agent.host();
    agent.create(&spec(shell(
        "trap '' PIPE; echo one; while echo two; do sleep 0.01; done; exit 9",
    )));
    let mut stdout = host.stdout();
    read_until(&mut stdout, "one");
    drop(stdout);
    assert_eq!(host.exit().code, 9);
}

#[test]
fn an_idle_agent_uses_no_time() {
    let agent = Agent::start();
    let host = agent.host();
    agent.create(&spec(with_stdin("echo up; cat")));
    let (stdin, mut stdout) = (host.stdin(), host.stdout());
    read_until(&mut stdout, "up");
    let before = agent.cpu_ticks();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(agent.cpu_ticks() - before < 5);
    drop(stdin);
}

#[test]
fn a_terminal_is_a_terminal() {
    let agent = Agent::start();
    let host = agent.host();
    let script = "tty; stty size; [ -t 0 ] && [ -t 2 ] && echo all; ls -l /dev/console | cut -c1; \
        echo up > /dev/console; read line; echo got $line";
    agent.create(&spec(with_terminal(script)));
    let mut terminal = host.terminal();
    let seen = read_until(&mut terminal, "up\r\n");
    assert_eq!(seen, "/dev/pts/0\r\n33 77\r\nall\r\nc\r\nup\r\n");
    write(&mut terminal, "a line\n");
    assert_eq!(read_all(terminal), *b"a line\r\ngot a line\r\n");
    assert_eq!(host.exit().code, 0);
}

#[test]
fn a_terminal_controls_and_resizes() {
    let agent = Agent::start();
    let host = agent.host();
    let script = "trap 'echo INT' INT; trap 'stty size' WINCH; echo up; \
        until read line; do :; done; echo $line";
    agent.create(&spec(with_terminal(script)));
    let mut terminal = host.terminal();
    read_until(&mut terminal, "up");
    let request = ResizeRequest { rows: 12, columns: 34, ..Default::default() };
    agent.client.resize(context(), &request).unwrap();
    read_until(&mut terminal, "12 34");
    write(&mut terminal, "\x03");
    read_until(&mut terminal, "INT");
    write(&mut terminal, "end\n");
    read_until(&mut terminal, "end\r\nend\r\n");
    assert_eq!(host.exit().code, 0);
}

#[test]
fn much_output_of_a_terminal_arrives_whole() {
    let agent = Agent::start();
    let host = agent.host();
    agent.create(&spec(with_terminal("seq 1 20000")));
    let seen = String::from_utf8(read_all(host.terminal())).unwrap();
    assert_eq!(seen.lines().count(), 20000);
    assert_eq!(host.exit().code, 0);
}

#[test]
fn an_ordinary_user_owns_its_terminal() {
    let agent = Agent::start();
    let host = agent.host();
    let mut process = with_terminal("stat -c %u:%g:%a $(tty); echo mine > /dev/tty");
    process.user.mut_or_insert_default().uid = 1000;
    agent.create(&spec(process));
    assert_eq!(read_all(host.terminal()), *b"1000:5:620\r\nmine\r\n");
}

#[test]
fn what_happens_to_the_vmm_happens_to_the_container() {
    let agent = Agent::start();
    let host = agent.host();
    let script = "trap 'stty size' WINCH; trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done";
    let request = CreateContainerRequest {
        container: Some(spec(with_terminal(script))).into(),
        start: true,
        host_events: true,
        ..Default::default()
    };
    let response = agent.client.create_container(context(), &request).unwrap();
    assert!(response.failure.is_none(), "{response:?}");
    let (mut terminal, mut events) = (host.terminal(), host.events());
    read_until(&mut terminal, "up");
    // In pieces, with one between them that nobody knows.
    let window = HostEvent::Window { rows: 40, columns: 120 }.to_bytes();
    events.write_all(&window[..3]).unwrap();
    events.write_all(&window[3..]).unwrap();
    events.write_all(&[0xff; HostEvent::LEN]).unwrap();
    read_until(&mut terminal, "40 120");
    events.write_all(&HostEvent::Signal(15).to_bytes()).unwrap();
    assert_eq!(host.exit().code, 9);
}

#[test]
fn a_container_that_waits_to_be_started_can_be_ended() {
    let agent = Agent::start();
    let host = agent.host();
    let request = CreateContainerRequest {
        container: Some(spec(shell("exit 0"))).into(),
        ..Default::default()
    };
    agent.client.create_container(context(), &request).unwrap();
    agent.signal("", libc::SIGTERM, false);
    assert_eq!(host.exit().code, 137);
}
