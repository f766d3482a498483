//! A guest that goes on from a snapshot: its streams are joined to the next VMM's, its other
//! connections are reset.

use std::io::{self, Read, Write};

use proptest::prelude::*;

use super::guest::{BUFFER, Ends, Guest, STDIN, STDOUT};
use crate::virtio::VirtioDevice;
use crate::vsock::credit::Credit;
use crate::vsock::packet::{Key, Op, SHUTDOWN_SEND};
use crate::vsock::saved::{ConnectionState, JoinedState, VsockState};

#[test]
fn streams_go_on_and_what_waited_comes_first() {
    let (stuck, writer) = io::pipe().unwrap();
    let (stdin, mut keyboard) = io::pipe().unwrap();
    let ends = Ends { stdout: Some(writer.into()), stdin: Some(stdin.into()), ..Ends::default() };
    let mut guest = Guest::new(ends);
    let (output, input) = (guest.connect(1000, STDOUT), guest.connect(1001, STDIN));
    keyboard.write_all(b"before").unwrap();
    guest.driver.run();
    assert_eq!(guest.next().data, b"before");
    // Nobody reads: a pipe's worth, and then all the credit there is.
    let mut sent = 0u32;
    while sent < (64 << 10) + BUFFER {
        guest.send_data(output, &[&[(sent >> 10) as u8; 1024]]);
        guest.driver.run();
        sent += 1024;
    }
    guest.all();

    let (mut reader, writer) = io::pipe().unwrap();
    let (stdin, mut keyboard) = io::pipe().unwrap();
    let ends = Ends { stdout: Some(writer.into()), stdin: Some(stdin.into()), ..Ends::default() };
    guest.restore(ends).unwrap();
    let mut got = vec![0; BUFFER as usize];
    let mut read = 0;
    while read < got.len() {
        read += reader.read(&mut got[read..]).unwrap();
        guest.driver.run();
    }
    let expected = (64..64 + BUFFER / 1024).flat_map(|kib| [kib as u8; 1024]);
    assert!(got.iter().copied().eq(expected), "the backlog, once and in order");
    assert!(guest.last_of(Op::CreditUpdate).header.fwd_cnt >= sent - BUFFER / 2);
    guest.send_data(output, &[b"after"]);
    guest.driver.run();
    reader.read_exact(&mut got[..5]).unwrap();
    assert_eq!(&got[..5], b"after");
    keyboard.write_all(b"typed").unwrap();
    guest.driver.run();
    let typed = guest.next();
    assert_eq!((typed.data.as_slice(), typed.header.dst_port), (&b"typed"[..], input.guest_port));
    drop(keyboard);
    guest.driver.run();
    assert_eq!(guest.expect(Op::Shutdown).header.flags & SHUTDOWN_SEND, SHUTDOWN_SEND);
    drop(stuck);
}

#[test]
fn other_connections_are_reset_and_their_ports_not_used_again() {
    let (_reader, writer) = io::pipe().unwrap();
    let mut guest = Guest::new(Ends { stdout: Some(writer.into()), ..Ends::default() });
    guest.get_ready();
    let (_client, key) = guest.accepted_client(1024);
    let output = guest.connect(1000, STDOUT);
    guest.all();
    // The next VMM has no such stream, or it is a client's.
    guest.restore(Ends::default()).unwrap();
    let resets: Vec<_> =
        guest.all().iter().map(|packet| (packet.op(), packet.header.dst_port)).collect();
    assert_eq!(resets.len(), 2, "{resets:?}");
    for port in [key.guest_port, output.guest_port] {
        assert!(resets.contains(&(Op::Reset, port)), "{resets:?}");
    }
    guest.get_ready();
    let (_client, next) = guest.accepted_client(1024);
    assert_ne!(next.host_port, key.host_port);
    guest.expect_silence();
}

fn joined(waiting: u32, backlog: usize, flags: u32) -> VsockState {
    let mut credit = Credit::new(BUFFER);
    let _ = credit.received(waiting);
    let joined = JoinedState {
        credit,
        backlog: vec![b'x'; backlog],
        unanswered: false,
        guest_shutdown: flags,
        told_shutdown: 0,
    };
    let key = Key { guest_port: 1000, host_port: STDOUT };
    let connections = vec![ConnectionState { key, joined: Some(joined) }];
    VsockState { next_client_port: 1 << 30, connections }
}

#[test]
fn states_that_never_were_are_refused() {
    let refused = |state: &VsockState| {
        let (_reader, writer) = io::pipe().unwrap();
        let mut device = Guest::bare(Ends { stdout: Some(writer.into()), ..Ends::default() });
        device.restore(&state.to_bytes()).is_err()
    };
    assert!(!refused(&joined(5, 5, 0)));
    assert!(refused(&joined(5, 4, 0)), "credit for bytes that are not there");
    assert!(refused(&joined(5, 5, 4)), "a direction that is none");
    assert!(refused(&VsockState { next_client_port: 0, ..joined(0, 0, 0) }));
    let mut many = joined(0, 0, 0);
    many.connections = (0..2000)
        .map(|guest_port| ConnectionState { key: Key { guest_port, host_port: 1 }, joined: None })
        .collect();
    assert!(refused(&many));
}

proptest! {
    #[test]
    fn damaged_states_never_panic(
        backlog in 0usize..2000,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = joined(backlog as u32, backlog, 0).to_bytes();
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        let _ = Guest::bare(Ends::default()).restore(&bytes);
    }
}
