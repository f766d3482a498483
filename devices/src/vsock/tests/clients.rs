//! Unix clients of guest ports, and host programs that guests connect to.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use super::guest::*;
use crate::vsock::caps::Caps;
use crate::vsock::packet::{Key, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

fn guest() -> Guest {
    let mut guest = Guest::new(Ends::default());
    guest.get_ready();
    guest
}

#[test]
fn clients_wait_until_the_guest_is_ready() {
    let mut guest = Guest::new(Ends::default());
    let mut client = UnixStream::connect(&guest.path).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    guest.expect_silence();
    guest.ready.write(1).unwrap();
    assert_eq!(guest.expect(Op::Request).header.dst_port, 1024);
}

#[test]
fn bytes_go_both_ways() {
    let mut guest = guest();
    let (mut client, key) = guest.accepted_client(1024);
    client.write_all(b"ping").unwrap();
    assert_eq!(guest.expect(Op::Data).data, b"ping");
    guest.send_data(key, &[b"pong"]);
    guest.driver.run();
    let mut bytes = [0; 4];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"pong");
}

#[test]
fn what_a_client_sends_early_reaches_the_guest() {
    let mut guest = guest();
    let mut client = UnixStream::connect(&guest.path).unwrap();
    client.write_all(b"CONN").unwrap();
    guest.expect_silence();
    client.write_all(b"ECT 99\nearly").unwrap();
    let request = guest.expect(Op::Request).header;
    assert_eq!(request.dst_port, 99);
    guest.expect_silence();
    guest.send(Key { guest_port: 99, host_port: request.src_port }, Op::Response, 0);
    assert_eq!(guest.expect(Op::Data).data, b"early");
}

#[test]
fn half_closes_go_both_ways() {
    let mut guest = guest();
    let (mut client, key) = guest.accepted_client(1024);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(Op::Shutdown).header.flags, SHUTDOWN_SEND);
    guest.send_data(key, &[b"answer"]);
    guest.send(key, Op::Shutdown, SHUTDOWN_SEND);
    guest.driver.run();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    guest.send(key, Op::Shutdown, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);

    let (mut client, key) = guest.accepted_client(1024);
    guest.send(key, Op::Shutdown, SHUTDOWN_RECEIVE);
    guest.driver.run();
    assert_eq!(client.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    guest.send_data(key, &[b"still"]);
    guest.driver.run();
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).unwrap();
    guest.expect_silence();
}

#[test]
fn a_client_that_leaves_is_shut_down_and_reset() {
    let mut guest = guest();
    let (client, key) = guest.accepted_client(1024);
    drop(client);
    let mut flags = 0;
    while flags != SHUTDOWN_BOTH {
        flags |= guest.expect(Op::Shutdown).header.flags;
    }
    guest.send(key, Op::Reset, 0);
    guest.expect_silence();
    // The port can be used again at once.
    guest.accepted_client(1024);
}

#[test]
fn a_guest_that_refuses_or_resets_closes_the_client() {
    let mut guest = guest();
    let (mut client, key) = guest.client(1024);
    guest.send(key, Op::Reset, 0);
    guest.driver.run();
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 0);

    let (mut client, key) = guest.accepted_client(1024);
    guest.send_data(key, &[b"last"]);
    guest.send(key, Op::Reset, 0);
    guest.driver.run();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last");
    guest.expect_silence();
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut guest = guest();
    let start = std::time::Instant::now();
    let (mut client, key) = guest.client(1024);
    guest.expect(Op::Reset);
    assert!((1.9..4.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 0);
    // An answer that comes too late.
    guest.send(key, Op::Response, 0);
    guest.expect(Op::Reset);
}

#[test]
fn clients_that_do_not_follow_the_convention_are_closed() {
    let mut guest = guest();
    for line in ["HELLO\n", "CONNECT x\n", "\n", "CONNECT 1111111111111111111111111111"] {
        let mut client = UnixStream::connect(&guest.path).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        guest.driver.run();
        // Closed with bytes unread, a Unix socket reports a reset.
        assert!(!matches!(client.read(&mut [0; 9]), Ok(1..)), "{line:?}");
    }
    guest.expect_silence();
}

#[test]
fn guests_reach_host_programs() {
    let mut guest = guest();
    let listener = UnixListener::bind(guest.path.with_file_name("vm_5000")).unwrap();
    let key = guest.connect(1000, 5000);
    let (mut program, _) = listener.accept().unwrap();
    program.write_all(b"to guest").unwrap();
    assert_eq!(guest.expect(Op::Data).data, b"to guest");
    guest.send_data(key, &[b"to host"]);
    guest.send(key, Op::Shutdown, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    let mut bytes = Vec::new();
    program.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"to host");

    guest.send(Key { guest_port: 1001, host_port: 5001 }, Op::Request, 0);
    let refused = guest.expect(Op::Reset).header;
    assert_eq!((refused.src_port, refused.dst_port), (5001, 1001));
}

#[test]
fn a_full_backlog_is_a_refusal_and_not_a_wait() {
    let mut guest = guest();
    let _listener = UnixListener::bind(guest.path.with_file_name("vm_5000")).unwrap();
    rustix::net::listen(&_listener, 0).unwrap();
    guest.connect(1000, 5000);
    guest.send(Key { guest_port: 1001, host_port: 5000 }, Op::Request, 0);
    guest.expect(Op::Reset);
}

#[test]
fn there_is_a_most_of_connections_and_then_room_again() {
    let caps = Caps { connections: 20, ..Caps::default() };
    let mut guest = Guest::new(Ends { caps, ..Ends::default() });
    guest.get_ready();
    let listener = UnixListener::bind(guest.path.with_file_name("vm_5000")).unwrap();
    rustix::net::listen(&listener, 1000).unwrap();
    let mut keys = Vec::new();
    for port in 0..caps.connections {
        keys.push(guest.connect(port, 5000));
    }
    guest.send(Key { guest_port: 9999, host_port: 5000 }, Op::Request, 0);
    guest.expect(Op::Reset);
    // A Unix client waits in the backlog until a connection has ended.
    let mut client = UnixStream::connect(&guest.path).unwrap();
    client.write_all(b"CONNECT 80\n").unwrap();
    guest.expect_silence();
    guest.send(keys[17], Op::Reset, 0);
    assert_eq!(guest.expect(Op::Request).header.dst_port, 80);
}

#[test]
fn a_reset_of_the_device_closes_clients_and_works_again() {
    let mut guest = guest();
    let (mut client, key) = guest.accepted_client(1024);
    guest.driver.initialise(1 << 32);
    guest.driver.run();
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 0);
    guest.refill();
    guest.send_data(key, &[b"who?"]);
    guest.expect(Op::Reset);
    guest.accepted_client(1024);
}

#[test]
fn much_data_arrives_intact_both_ways() {
    const BYTES: usize = 8 << 20;
    let mut guest = guest();
    let (client, key) = guest.accepted_client(1024);
    let pattern = |i: usize| (i ^ i >> 8 ^ i >> 16) as u8;
    let echo = std::thread::spawn(move || {
        let mut reader = client.try_clone().unwrap();
        let mut writer = client;
        let mut chunk = vec![0; 100_000];
        loop {
            let count = reader.read(&mut chunk).unwrap();
            if count == 0 {
                break;
            }
            writer.write_all(&chunk[..count]).unwrap();
        }
    });
    let (mut sent, mut got, mut forwarded) = (0, 0, 0);
    while got < BYTES {
        let credit = BUFFER as usize - (sent - forwarded);
        let len = credit.min(64 << 10).min(BYTES - sent);
        if len > 0 {
            let data: Vec<u8> = (sent..sent + len).map(pattern).collect();
            guest.send_data(key, &data.chunks(4096).collect::<Vec<_>>());
            sent += len;
        } else {
            guest.send(key, Op::CreditUpdate, 0);
        }
        guest.driver.run();
        for packet in guest.all() {
            let told = packet.header.fwd_cnt;
            forwarded += told.wrapping_sub(forwarded as u32) as usize;
            for byte in packet.data {
                assert_eq!(byte, pattern(got), "at {got}");
                got += 1;
            }
        }
    }
    guest.send(key, Op::Shutdown, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    echo.join().unwrap();
}
