//! Ports that the VMM answers itself: the container's streams and its exit report.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::atomic::Ordering;

use super::guest::*;
use crate::vsock::packet::{Header, Key, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

fn stdin(reader: impl Into<std::os::fd::OwnedFd>) -> Guest {
    Guest::new(Ends { stdin: Some(reader.into()), ..Ends::default() })
}

fn stdout(writer: impl Into<std::os::fd::OwnedFd>) -> Guest {
    Guest::new(Ends { stdout: Some(writer.into()), ..Ends::default() })
}

/// Fills a pipe until it takes no more, and returns how much it took.
fn fill_pipe(guest: &mut Guest, key: Key) -> usize {
    let mut sent = 0;
    // A pipe holds 64 KiB; the rest is the device's buffer.
    while sent < (64 << 10) + BUFFER as usize {
        guest.send_data(key, &[&[sent as u8; 1 << 10]]);
        guest.driver.run();
        sent += 1 << 10;
    }
    sent
}

#[test]
fn stdin_flows_to_the_guest_and_ends() {
    let (reader, mut writer) = io::pipe().unwrap();
    let mut guest = stdin(reader);
    let key = guest.connect(1000, STDIN);
    guest.expect_silence();
    writer.write_all(b"hello").unwrap();
    assert_eq!(guest.expect(Op::Data).data, b"hello");
    drop(writer);
    assert_eq!(guest.expect(Op::Shutdown).header.flags, SHUTDOWN_SEND);
    guest.send(key, Op::Shutdown, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    guest.expect_silence();
}

#[test]
fn a_handshake_costs_one_interrupt() {
    let (reader, _writer) = io::pipe().unwrap();
    let mut guest = stdin(reader);
    guest.connect(1000, STDIN);
    assert_eq!(guest.driver.interrupts.count(), 1);
}

#[test]
fn a_port_is_given_away_once() {
    let (reader, _writer) = io::pipe().unwrap();
    let mut guest = stdin(reader);
    guest.connect(1000, STDIN);
    guest.send(Key { guest_port: 1001, host_port: STDIN }, Op::Request, 0);
    guest.expect(Op::Reset);
}

#[test]
fn a_large_read_fills_many_buffers_and_keeps_order() {
    let (reader, mut writer) = io::pipe().unwrap();
    let mut guest = stdin(reader);
    guest.connect(1000, STDIN);
    let bytes: Vec<u8> = (0..60_000u32).map(|i| (i * 7 / 3) as u8).collect();
    writer.write_all(&bytes).unwrap();
    drop(writer);
    let mut got = Vec::new();
    let end = loop {
        let packet = guest.next();
        if packet.op() != Op::Data {
            break packet;
        }
        got.extend(packet.data);
    };
    assert_eq!(end.op(), Op::Shutdown);
    assert!(got == bytes);
}

#[test]
fn the_guest_s_credit_is_honoured() {
    let (reader, mut writer) = io::pipe().unwrap();
    let mut guest = stdin(reader);
    guest.buf_alloc = 1000;
    let key = guest.connect(1000, STDIN);
    writer.write_all(&[7; 2500]).unwrap();
    assert_eq!(guest.expect(Op::Data).data.len(), 1000);
    guest.expect_silence();
    guest.send(key, Op::CreditUpdate, 0);
    assert_eq!(guest.expect(Op::Data).data.len(), 1000);
    guest.send(key, Op::CreditUpdate, 0);
    assert_eq!(guest.expect(Op::Data).data.len(), 500);
}

#[test]
fn data_waits_in_the_host_for_receive_buffers() {
    let (reader, mut writer) = io::pipe().unwrap();
    let mut guest = stdin(reader);
    guest.rx_buffers = 0;
    // The buffers posted at start are used up by resets.
    for _ in 0..256 {
        guest.send(Key::default(), Op::CreditUpdate, 0);
        guest.driver.run();
        guest.expect(Op::Reset);
    }
    let key = Key { guest_port: 1000, host_port: STDIN };
    guest.send(key, Op::Request, 0);
    writer.write_all(b"late").unwrap();
    guest.expect_silence();
    guest.rx_buffers = 1;
    guest.refill();
    guest.expect(Op::Response);
    assert_eq!(guest.expect(Op::Data).data, b"late");
}

#[test]
fn a_file_is_read_to_its_end() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[5; 300_000]).unwrap();
    file.rewind().unwrap();
    let mut guest = stdin(file);
    let key = guest.connect(1000, STDIN);
    let mut got = 0;
    loop {
        let packet = guest.next();
        if packet.op() == Op::Shutdown {
            break;
        }
        got += packet.data.len();
        guest.send(key, Op::CreditUpdate, 0);
    }
    assert_eq!(got, 300_000);
}

#[test]
fn dev_null_is_an_empty_stdin() {
    let mut guest = stdin(File::open("/dev/null").unwrap());
    guest.connect(1000, STDIN);
    assert_eq!(guest.expect(Op::Shutdown).header.flags, SHUTDOWN_SEND);
}

#[test]
fn stdout_is_written_straight_through() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut guest = stdout(writer);
    let key = guest.connect(1000, STDOUT);
    assert_eq!(guest.told.first_outputs.load(Ordering::SeqCst), 0);
    guest.send_data(key, &[b"one ", b"", b"two ", b"three"]);
    guest.driver.run();
    let mut bytes = [0; 13];
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"one two three");
    guest.send_data(key, &[b"more"]);
    guest.driver.run();
    assert_eq!(guest.told.first_outputs.load(Ordering::SeqCst), 1);
    guest.send(key, Op::Shutdown, SHUTDOWN_SEND);
    guest.driver.run();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"more", "and then the end of file");
    guest.send(key, Op::Shutdown, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
}

#[test]
fn a_packet_may_come_in_any_number_of_descriptors() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut guest = stdout(writer);
    let key = guest.connect(1000, STDOUT);
    let data: Vec<u8> = (0..100).collect();
    let header = guest.header(key, Op::Data);
    let header = Header { len: 100, ..header }.to_bytes();
    let packet = [&header[..], &data].concat();
    // The header and the data split anywhere, 100 descriptors at once being more than one writev.
    for split in [1, 20, 43, 44, 45, 143] {
        guest.send_raw(&[&packet[..split], &packet[split..]]);
    }
    guest.send_raw(&packet.chunks(1).collect::<Vec<_>>());
    guest.driver.run();
    let mut got = vec![0; 700];
    reader.read_exact(&mut got).unwrap();
    assert!(got.chunks(100).all(|chunk| chunk == data));
}

#[test]
fn a_slow_reader_gets_everything_and_credit_follows() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut guest = stdout(writer);
    let key = guest.connect(1000, STDOUT);
    let sent = fill_pipe(&mut guest, key);
    guest.expect_silence_but(Op::CreditUpdate);
    let mut got = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    while got.len() < sent {
        let count = reader.read(&mut chunk).unwrap();
        got.extend_from_slice(&chunk[..count]);
        guest.driver.run();
    }
    assert!(got.iter().enumerate().all(|(i, byte)| *byte == (i / 1024 * 1024) as u8));
    let update = guest.last_of(Op::CreditUpdate);
    assert!(update.header.fwd_cnt as usize >= sent - BUFFER as usize / 2);
}

#[test]
fn more_than_the_credit_is_a_reset() {
    let (_reader, writer) = io::pipe().unwrap();
    let mut guest = stdout(writer);
    let key = guest.connect(1000, STDOUT);
    fill_pipe(&mut guest, key);
    guest.expect_silence_but(Op::CreditUpdate);
    guest.send_data(key, &[b"x"]);
    guest.expect(Op::Reset);
}

#[test]
fn a_reader_that_leaves_stops_the_guest() {
    let (reader, writer) = io::pipe().unwrap();
    let mut guest = stdout(writer);
    let key = guest.connect(1000, STDOUT);
    guest.expect_silence();
    drop(reader);
    assert_eq!(guest.expect(Op::Shutdown).header.flags, SHUTDOWN_BOTH);
    // What was under way is dropped, and the guest's end is answered.
    guest.send_data(key, &[b"lost"]);
    guest.send(key, Op::Shutdown, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
}

#[test]
fn a_terminal_s_directions_end_one_by_one() {
    let (reader, mut input) = io::pipe().unwrap();
    let (output, writer) = io::pipe().unwrap();
    let terminal = Some((reader.into(), writer.into()));
    let mut guest = Guest::new(Ends { terminal, ..Ends::default() });
    let key = guest.connect(1000, TERMINAL);
    guest.send_data(key, &[b"prompt"]);
    input.write_all(b"command").unwrap();
    assert_eq!(guest.expect(Op::Data).data, b"command");
    drop(output);
    assert_eq!(guest.expect(Op::Shutdown).header.flags, SHUTDOWN_RECEIVE);
    input.write_all(b"more").unwrap();
    assert_eq!(guest.expect(Op::Data).data, b"more");
    drop(input);
    assert_eq!(guest.expect(Op::Shutdown).header.flags, SHUTDOWN_BOTH);
    guest.send(key, Op::Reset, 0);
    guest.expect_silence();
}

#[test]
fn the_exit_report_comes_after_all_output() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut guest = stdout(writer);
    let output = guest.connect(1000, STDOUT);
    let sent = fill_pipe(&mut guest, output);
    guest.expect_silence_but(Op::CreditUpdate);
    let exit = guest.connect(1001, EXIT);
    // In two pieces, with something after it.
    guest.send_data(exit, &[b"exit-"]);
    guest.send_data(exit, &[b"report and more"]);
    // The guest is gone as far as it can be.
    guest.send(exit, Op::Reset, 0);
    guest.send(output, Op::Shutdown, SHUTDOWN_BOTH);
    guest.send(output, Op::Reset, 0);
    guest.driver.run();
    guest.driver.reset();
    guest.driver.run();
    let mut got = 0;
    let mut chunk = vec![0; 10_000];
    while got < sent {
        // All but what fits the pipe is still the device's to write.
        let waiting = got + (64 << 10) < sent;
        assert_eq!(guest.told.messages.lock().unwrap().is_empty(), waiting, "{got} of {sent}");
        got += reader.read(&mut chunk).unwrap();
        guest.driver.run();
    }
    assert_eq!(*guest.told.messages.lock().unwrap(), [b"exit-report "]);
    assert_eq!(reader.read(&mut chunk).unwrap(), 0, "closed after the last byte");
}

#[test]
fn the_exit_report_does_not_wait_for_a_broken_reader() {
    let (reader, writer) = io::pipe().unwrap();
    let mut guest = stdout(writer);
    let output = guest.connect(1000, STDOUT);
    fill_pipe(&mut guest, output);
    guest.expect_silence_but(Op::CreditUpdate);
    let exit = guest.connect(1001, EXIT);
    guest.send_data(exit, &[&[1; EXIT_BYTES]]);
    guest.driver.run();
    assert!(guest.told.messages.lock().unwrap().is_empty());
    drop(reader);
    guest.driver.run();
    assert_eq!(*guest.told.messages.lock().unwrap(), [[1; EXIT_BYTES]]);
}

#[test]
fn an_incomplete_report_is_not_delivered() {
    let mut guest = Guest::new(Ends::default());
    let exit = guest.connect(1001, EXIT);
    guest.send_data(exit, &[&[1; EXIT_BYTES - 1]]);
    guest.send(exit, Op::Shutdown, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    assert!(guest.told.messages.lock().unwrap().is_empty());
}

#[test]
fn an_endless_stdin_leaves_room_for_others() {
    let (mut reader, writer) = io::pipe().unwrap();
    let zeros = File::open("/dev/zero").unwrap();
    let mut guest = Guest::new(Ends {
        stdin: Some(zeros.into()),
        stdout: Some(writer.into()),
        ..Ends::default()
    });
    let stdin = guest.connect(1000, STDIN);
    let stdout = Key { guest_port: 1001, host_port: STDOUT };
    guest.send(stdout, Op::Request, 0);
    // The guest takes all it is given, and gives credit for as much again.
    let mut taken = 0;
    while !guest.all().iter().any(|packet| {
        taken += packet.data.len();
        packet.op() == Op::Response
    }) {
        assert!(taken < 4 << 20, "the other connection was starved");
        guest.send(stdin, Op::CreditUpdate, 0);
    }
    guest.send_data(stdout, &[b"through"]);
    guest.driver.run();
    let mut bytes = [0; 7];
    reader.read_exact(&mut bytes).unwrap();
}

#[test]
fn a_full_transmit_queue_is_served_in_turns() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut guest = stdout(writer);
    let key = guest.connect(1000, STDOUT);
    for round in 0..3 {
        let header = Header { len: 1, ..guest.header(key, Op::Data) }.to_bytes();
        while guest.driver.queue(TX).take_used().is_some() {}
        for _ in 0..128 {
            guest.driver.queue(TX).post(&[&header, &[round]], &[]);
        }
        guest.driver.kick(TX);
        guest.driver.run();
        let mut bytes = [9; 128];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [round; 128]);
    }
}
