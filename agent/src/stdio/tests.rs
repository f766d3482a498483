use super::*;
use proptest::prelude::*;
use std::io::Write as _;
use std::os::unix::net::UnixStream;

/// A non-blocking socket and its peer.
fn socket() -> (OwnedFd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours.into(), theirs)
}

/// A pump between two sockets, which splice(2) does not join.
fn between_sockets() -> (UnixStream, Pump, UnixStream) {
    let ((source, from), (sink, to)) = (socket(), socket());
    (from, Pump::new(source, sink, Direction::In), to)
}

/// A pump from a socket to a pipe, and the pipe's other end.
fn to_pipe() -> (UnixStream, Pump, std::fs::File) {
    let (source, from) = socket();
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
    (from, Pump::new(source, write, Direction::In), read.into())
}

fn read_some(from: &mut impl std::io::Read) -> Vec<u8> {
    let mut bytes = [0; 1 << 16];
    let n = from.read(&mut bytes).unwrap();
    bytes[..n].to_vec()
}

#[test]
fn bytes_and_their_end_arrive() {
    let (mut from, mut pump, mut to) = between_sockets();
    assert_eq!(pump.run(), Progress::Blocked);
    from.write_all(b"abc").unwrap();
    assert_eq!(pump.run(), Progress::Blocked);
    assert_eq!(read_some(&mut to), b"abc");
    drop(from);
    assert_eq!(pump.run(), Progress::Finished);
    assert_eq!(read_some(&mut to), b"");

    let (mut from, mut pump, mut to) = to_pipe();
    from.write_all(b"abc").unwrap();
    assert_eq!(pump.run(), Progress::Blocked);
    assert_eq!(read_some(&mut to), b"abc");
    drop(from);
    assert_eq!(pump.run(), Progress::Finished);
    drop(pump);
    assert_eq!(read_some(&mut to), b"");
}

#[test]
fn a_sink_that_is_gone_ends_it() {
    let (mut from, mut pump, to) = between_sockets();
    drop(to);
    from.write_all(b"abc").unwrap();
    assert_eq!(pump.run(), Progress::Finished);
}

#[test]
fn one_pump_does_not_hold_up_the_others() {
    let null = rustix::fs::open("/dev/null", OFlags::WRONLY, Mode::empty()).unwrap();
    let mut pump = Pump::new(
        rustix::fs::open("/dev/zero", OFlags::RDONLY, Mode::empty()).unwrap(),
        null,
        Direction::Out,
    );
    assert_eq!(pump.run(), Progress::More);
}

#[test]
fn a_terminals_size_fits_its_type() {
    let devpts = rustix::fs::open("/dev/pts", OFlags::DIRECTORY, Mode::empty()).unwrap();
    let size = Terminal { rows: 7, columns: 70_000, ..Default::default() };
    let (slave, _master) = open_terminal(&size, devpts.as_fd()).unwrap();
    let size = rustix::termios::tcgetwinsize(slave).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (7, u16::MAX));
}

/// Sends bytes through a pump, writing and reading as many at a time as `steps` say; returns what
/// arrived.
fn send_through(
    mut from: UnixStream,
    mut pump: Pump,
    mut to: impl std::io::Read,
    sent: &[u8],
    steps: &[(usize, usize)],
) -> Vec<u8> {
    let (mut rest, mut received) = (sent, Vec::new());
    let mut step = |from: &mut UnixStream, pump: &mut Pump, write: usize, read: usize| {
        let n = from.write(&rest[..write.min(rest.len())]).unwrap_or(0);
        rest = &rest[n..];
        let progress = pump.run();
        let mut bytes = vec![0; read];
        let n = to.read(&mut bytes).unwrap_or(0);
        received.extend_from_slice(&bytes[..n]);
        (progress, rest.is_empty())
    };
    for &(write, read) in steps {
        step(&mut from, &mut pump, write, read);
    }
    while !step(&mut from, &mut pump, usize::MAX, 1 << 16).1 {}
    drop(from);
    while pump.run() != Progress::Finished {
        let mut bytes = vec![0; 1 << 16];
        let n = to.read(&mut bytes).unwrap_or(0);
        received.extend_from_slice(&bytes[..n]);
    }
    drop(pump);
    loop {
        let mut bytes = vec![0; 1 << 16];
        match to.read(&mut bytes) {
            Ok(0) | Err(_) => return received,
            Ok(n) => received.extend_from_slice(&bytes[..n]),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn nothing_is_lost_or_doubled(
        length in 0usize..1_500_000,
        steps in prop::collection::vec((0usize..300_000, 0usize..100_000), 0..20),
    ) {
        let sent: Vec<u8> = (0..length as u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
        let (from, pump, to) = between_sockets();
        prop_assert!(send_through(from, pump, to, &sent, &steps) == sent, "between sockets");
        let (from, pump, to) = to_pipe();
        prop_assert!(send_through(from, pump, to, &sent, &steps) == sent, "into a pipe");
    }
}
