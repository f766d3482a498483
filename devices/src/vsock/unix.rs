//! Firecracker's convention for Unix sockets: how host programs reach guest ports and the other way
//! round.
//!
//! - host to guest: connect to the VM's socket, send `CONNECT <port>\n`, read `OK <port>\n`, where
//!   the second port is the host's end of the connection;
//! - guest to host port `P`: the VMM connects to the socket `<path>_P`,
//!   to which whoever listens there lets the directory's group, which is the VM's, write.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

/// "CONNECT 4294967295\n" and some room for a client that is not very tidy.
const GREETING_MAX: usize = 32;

/// What a client's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// The line is not complete yet.
    Incomplete,
    /// The client wants this guest port.
    Connect(u32),
}

/// Reads a client's first line, and not a byte more: what follows is for the guest. An error is a
/// client that left or does not follow the convention.
pub fn read_greeting(socket: impl AsFd) -> io::Result<Greeting> {
    let mut bytes = [0; GREETING_MAX];
    let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let len = match rustix::net::recv(&socket, &mut bytes, peek) {
        Ok((len, _)) => len,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Greeting::Incomplete),
        Err(error) => return Err(error.into()),
    };
    let Some(end) = bytes[..len].iter().position(|byte| *byte == b'\n') else {
        let hopeless = len == 0 || len == GREETING_MAX;
        return if hopeless { Err(malformed()) } else { Ok(Greeting::Incomplete) };
    };
    let port = parse(&bytes[..end]).ok_or_else(malformed)?;
    rustix::net::recv(&socket, &mut bytes[..=end], RecvFlags::DONTWAIT)?;
    Ok(Greeting::Connect(port))
}

fn parse(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let port = line.trim_end_matches('\r').strip_prefix("CONNECT ")?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| port.parse().ok()).flatten()
}

fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// The answer to a greeting whose connection has host port `port`.
pub fn answer(port: u32) -> Vec<u8> {
    format!("OK {port}\n").into_bytes()
}

/// Connects to the program that listens for `port`, without waiting.
pub fn connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut full = path.as_os_str().to_owned();
    full.push(format!("_{port}"));
    let address = SocketAddrUnix::new(PathBuf::from(full))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::STREAM;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn greetings_are_read_to_the_newline_and_no_further() {
        let (mut client, mut socket) = UnixStream::pair().unwrap();
        assert_eq!(read_greeting(&socket).unwrap(), Greeting::Incomplete);
        client.write_all(b"CONNECT 10").unwrap();
        assert_eq!(read_greeting(&socket).unwrap(), Greeting::Incomplete);
        client.write_all(b"24\nGET /").unwrap();
        assert_eq!(read_greeting(&socket).unwrap(), Greeting::Connect(1024));
        let mut rest = [0; 5];
        socket.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"GET /");
    }

    #[test]
    fn clients_that_leave_are_noticed() {
        let (client, socket) = UnixStream::pair().unwrap();
        drop(client);
        assert!(read_greeting(&socket).is_err());
    }

    #[test]
    fn only_the_convention_is_understood() {
        for (line, port) in [
            ("CONNECT 0", Some(0)),
            ("CONNECT 4294967295\r", Some(u32::MAX)),
            ("CONNECT 4294967296", None),
            ("CONNECT -1", None),
            ("CONNECT +1", None),
            ("CONNECT ", None),
            ("CONNECT 1 ", None),
            ("connect 1", None),
            ("", None),
        ] {
            assert_eq!(parse(line.as_bytes()), port, "{line:?}");
        }
    }

    #[test]
    fn a_guest_reaches_the_socket_of_its_port_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm");
        let listener = UnixListener::bind(directory.path().join("vm_77")).unwrap();
        let mut ours = connect(&path, 77).unwrap();
        ours.write_all(b"hi").unwrap();
        let mut bytes = [0; 2];
        listener.accept().unwrap().0.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hi");
        assert!(connect(&path, 78).is_err());
        assert!(connect(Path::new(&"x".repeat(200)), 77).is_err());
    }

    proptest! {
        #[test]
        fn no_greeting_panics(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            let (mut client, socket) = UnixStream::pair().unwrap();
            client.write_all(&bytes).unwrap();
            let _ = read_greeting(&socket);
        }
    }
}
