use std::fs::File;
use std::io::{Read, Seek, Write};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::*;

fn read(stream: &HostStream, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let count = stream.read(&[VolatileSlice::from(&mut bytes[..])])?;
    bytes.truncate(count);
    Ok(bytes)
}

fn write(stream: &HostStream, bytes: &[u8]) -> io::Result<usize> {
    stream.write(&[VolatileSlice::from(&mut bytes.to_vec()[..])])
}

fn would_block<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn is_nonblocking(fd: &impl AsFd) -> bool {
    fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
}

/// A stream over `fd` that the caller shares.
fn shared(fd: &impl AsFd, direction: Direction) -> HostStream {
    HostStream::inherited(fd.as_fd().try_clone_to_owned().unwrap(), direction)
}

fn pseudo_terminal() -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let slave = rustix::fs::open(&*path, flags, Mode::empty()).unwrap();
    (master.into(), slave.into())
}

#[test]
fn a_pipe_to_read_does_not_block_and_is_not_changed() {
    let (reader, mut writer) = io::pipe().unwrap();
    let stream = shared(&reader, Direction::Read);
    assert_eq!(stream.kind, Kind::NonBlocking);
    assert!(would_block(read(&stream, 10)));
    assert!(!is_nonblocking(&reader), "the caller's description is as it was");
    writer.write_all(b"hello").unwrap();
    assert_eq!(read(&stream, 10).unwrap(), b"hello");
    assert!(would_block(read(&stream, 10)));
    drop(writer);
    assert_eq!(read(&stream, 10).unwrap(), b"");
}

#[test]
fn a_pipe_to_write_does_not_block_and_breaks() {
    let (mut reader, writer) = io::pipe().unwrap();
    let stream = shared(&writer, Direction::Write);
    let mut written = 0;
    let error = loop {
        match write(&stream, &[7; 10_000]) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(!is_nonblocking(&writer));
    let mut bytes = vec![0; written];
    reader.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7));
    drop(reader);
    assert_eq!(write(&stream, b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn what_cannot_be_reopened_is_polled() {
    let (reader, writer) = io::pipe().unwrap();
    let polled = |fd: OwnedFd, direction| HostStream {
        fd,
        kind: Kind::Polled,
        direction,
        is_half: false,
        watched: false,
    };
    let from = polled(reader.into(), Direction::Read);
    let to = polled(writer.into(), Direction::Write);
    assert!(would_block(read(&from, 10)));
    let mut written = 0;
    while let Ok(count) = write(&to, &[7; 10_000]) {
        assert!(count <= PIPE_BUF);
        written += count;
    }
    assert!(written >= PIPE_BUF && !is_nonblocking(&to));
    assert_eq!(read(&from, 10).unwrap(), [7; 10]);
    drop(to);
    assert_eq!(read(&from, written).unwrap().len(), written - 10);
    assert_eq!(read(&from, 10).unwrap(), b"");
}

#[test]
fn a_socket_does_not_block_and_is_not_changed() {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let from = shared(&socket, Direction::Read);
    let to = shared(&socket, Direction::Write);
    assert!(would_block(read(&from, 10)));
    while write(&to, &[7; 10_000]).is_ok() {}
    assert!(would_block(write(&to, b"x")));
    assert!(!is_nonblocking(&socket));
    peer.write_all(b"hello").unwrap();
    assert_eq!(read(&from, 10).unwrap(), b"hello");
    drop(peer);
    assert_eq!(write(&to, b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_file_keeps_the_caller_s_offset() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    file.seek(io::SeekFrom::Start(4)).unwrap();
    let from = shared(&file, Direction::Read);
    assert_eq!(read(&from, 3).unwrap(), b"456");
    let to = shared(&file, Direction::Write);
    assert_eq!(write(&to, b"abc").unwrap(), 3);
    assert_eq!(read(&from, 3).unwrap(), b"");
    file.rewind().unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "0123456abc");
}

#[test]
fn a_terminal_does_not_block_and_is_not_changed() {
    let (mut master, slave) = pseudo_terminal();
    let from = shared(&slave, Direction::Read);
    let to = shared(&slave, Direction::Write);
    assert_eq!((from.kind, to.kind), (Kind::NonBlocking, Kind::NonBlocking));
    assert!(would_block(read(&from, 10)));
    assert!(!is_nonblocking(&slave));
    master.write_all(b"line\n").unwrap();
    assert_eq!(read(&from, 10).unwrap(), b"line\n");
    write(&to, b"out").unwrap();
    let mut output = [0; 9];
    master.read_exact(&mut output).unwrap();
    assert_eq!(&output, b"line\r\nout", "the echo, then what was written");
}

#[test]
fn buffers_are_filled_in_order() {
    let (reader, mut writer) = io::pipe().unwrap();
    let stream = shared(&reader, Direction::Read);
    writer.write_all(b"abcdef").unwrap();
    let (mut first, mut second) = ([0; 2], [0; 3]);
    let slices = [VolatileSlice::from(&mut first[..]), VolatileSlice::from(&mut second[..])];
    assert_eq!(stream.read(&slices).unwrap(), 5);
    assert_eq!((&first, &second), (b"ab", b"cde"));
}

#[test]
fn more_buffers_than_a_call_takes_are_a_short_write() {
    let (mut reader, writer) = io::pipe().unwrap();
    let stream = shared(&writer, Direction::Write);
    let mut bytes: Vec<u8> = (0..100).collect();
    let slices: Vec<_> = bytes.chunks_mut(1).map(VolatileSlice::from).collect();
    assert_eq!(stream.write(&slices).unwrap(), IOV_MAX);
    let mut out = [0; IOV_MAX];
    reader.read_exact(&mut out).unwrap();
    assert!(out.iter().copied().eq(0..IOV_MAX as u8));
}

#[test]
fn closing_half_a_pair_tells_the_peer() {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let (from, to) = HostStream::pair(socket).unwrap();
    with_events(|ops| to.close(ops));
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "end of file");
    peer.write_all(b"still").unwrap();
    assert_eq!(read(&from, 10).unwrap(), b"still");
}

#[test]
fn what_epoll_refuses_is_always_ready() {
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let file = tempfile::tempfile().unwrap();
    let (reader, _writer) = io::pipe().unwrap();
    with_events(|ops| {
        assert!(shared(&null, Direction::Write).watch(ops, 0).unwrap());
        assert!(shared(&file, Direction::Read).watch(ops, 0).unwrap());
        let mut pipe = shared(&reader, Direction::Read);
        assert!(!pipe.watch(ops, 0).unwrap());
        pipe.close(ops);
        // Its number is free for the next one, in the event manager's books too.
        let mut next = shared(&reader, Direction::Read);
        assert!(!next.watch(ops, 0).unwrap());
    });
}

/// Calls `test` with the means to watch descriptors.
fn with_events(test: impl FnOnce(&mut EventOps)) {
    struct Once<F>(Option<F>);
    impl<F: FnOnce(&mut EventOps)> MutEventSubscriber for Once<F> {
        fn process(&mut self, _: Events, _: &mut EventOps) {}
        fn init(&mut self, ops: &mut EventOps) {
            if let Some(test) = self.0.take() {
                test(ops);
            }
        }
    }
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Arc::new(Mutex::new(Once(Some(test)))));
}
