//! `--network passt`: a network without privileges. passt(1), a process of the caller's beside the
//! VM, makes sockets of the host's of what the guest sends, and the other way round.
//!
//! ```text
//!  guest's eth0 ── virtio-net ── Unix stream socket ── passt ── sockets in our network namespace
//! ```
//!
//! Addresses are given, not asked for: the guest needs no DHCP. They are those that other user-mode
//! networks have, and no one else's business: nothing outside sees them.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bulkhead_protocol::rpc::agent::{Interface, InterfaceAddress, NetworkRoute, NetworkSpec};
use bulkhead_vmm::spec::{LinkKind, NetSpec};
use rustix::fs::MemfdFlags;

use super::Network;
use crate::request::Port;
use crate::vmm;

const PROGRAM: &str = "passt";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const PREFIX_LENGTH: u8 = 24;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// What is asked here, passt asks the host's name server.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// A locally administered address (IEEE 802); the wire has no other end than passt's.
const MAC: [u8; 6] = [2, 0, 0, 0, 2, 15];
/// The most of a frame's payload that passt takes: the largest that IPv4 has, in whole words.
const MTU: u16 = 65_520;
/// How long passt may take to be there.
const START_MAX: Duration = Duration::from_secs(10);
/// The longest frame there is, and the most that is read of what passt says.
const FRAME_MAX: usize = 65_550;
const SAID_MAX: u64 = 4096;

/// Why there is no such network.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    #[error("--network passt needs the program passt on PATH (Debian: the package passt)")]
    NotFound,
    #[error("cannot start passt: {0}")]
    Start(#[source] io::Error),
    #[error("passt has ended: {0}")]
    Ended(String),
    #[error("passt does not answer: {0}")]
    Silent(#[source] io::Error),
    #[error("--publish: port {0} of this host is taken, or not for this user: {1}")]
    Taken(SocketAddr, #[source] io::Error),
    #[error("--publish: passt did not take port {0} of this host (below 1024 it may not)")]
    NotTaken(SocketAddr),
}

/// A running passt, which ends with this, or with the VM's end of its socket.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    said: File,
}

impl Passt {
    /// Starts it, with `ports` published, and returns it when it is ready, with the network it makes.
    pub fn start(ports: &[Port]) -> Result<(Self, Network), PasstError> {
        for port in ports {
            bind(port).map_err(|source| PasstError::Taken(address(port), source))?;
        }
        let (ours, theirs) = UnixStream::pair().map_err(PasstError::Start)?;
        let theirs = OwnedFd::from(theirs);
        let said = rustix::fs::memfd_create("passt", MemfdFlags::CLOEXEC)
            .map_err(|error| PasstError::Start(error.into()))?;
        let said = File::from(said);
        let stderr = said.try_clone().map_err(PasstError::Start)?;
        let mut command = Command::new(PROGRAM);
        command.args(options(theirs.as_raw_fd(), ports));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        // What a terminal sends is for the container.
        command.process_group(0);
        let inherited = vmm::Inherited::new([theirs.as_raw_fd()].into_iter());
        let inherited = inherited.map_err(PasstError::Start)?;
        let child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => PasstError::NotFound,
            _ => PasstError::Start(error),
        })?;
        drop((inherited, theirs));
        let mut passt = Self { child, said };
        match greet(&ours) {
            // It says nothing of ports that it does not get.
            Ok(()) => match ports.iter().find(|port| bind(port).is_ok()) {
                Some(port) => Err(PasstError::NotTaken(address(port))),
                None => Ok((passt, network(ours.into()))),
            },
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(PasstError::Ended(passt.last_words()))
            }
            Err(error) => Err(PasstError::Silent(error)),
        }
    }

    /// The last line that it said.
    fn last_words(&mut self) -> String {
        let mut text = Vec::new();
        let from = self.said.rewind();
        let read = from.and_then(|()| (&self.said).take(SAID_MAX).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        // It logs to syslog as well, and complains here where there is none.
        let says = |line: &&str| !line.is_empty() && !line.contains("syslog");
        let last = text.lines().map(str::trim).rfind(says).filter(|_| read.is_ok());
        last.unwrap_or("it did not say why").to_owned()
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// What the container's /etc/resolv.conf says.
pub fn resolv_conf() -> String {
    format!("nameserver {NAME_SERVER}\n")
}

/// For a passt in the foreground that has `socket`. The host's own services, which it would have at
/// the gateway's address, stay out of the guest's reach.
fn options(socket: i32, ports: &[Port]) -> Vec<String> {
    let fixed = format!(
        "--foreground --quiet --fd {socket} --ipv4-only --address {ADDRESS} --netmask \
         {PREFIX_LENGTH} --gateway {GATEWAY} --dns-forward {NAME_SERVER} --no-map-gw --mtu {MTU}"
    );
    let mut options: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
    for (option, udp) in [("--tcp-ports", false), ("--udp-ports", true)] {
        let ports = ports.iter().filter(|port| port.udp == udp);
        let before = options.len();
        options.extend(ports.flat_map(|port| [option.to_owned(), specification(port)]));
        if options.len() == before {
            // Of UDP, it would publish what of TCP is.
            options.extend([option.to_owned(), "none".to_owned()]);
        }
    }
    options
}

fn address(port: &Port) -> SocketAddr {
    SocketAddr::new(port.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port.host)
}

/// Takes a port for a moment.
fn bind(port: &Port) -> io::Result<()> {
    match port.udp {
        true => UdpSocket::bind(address(port)).map(drop),
        false => TcpListener::bind(address(port)).map(drop),
    }
}

fn specification(port: &Port) -> String {
    let address = port.address.map(|address: IpAddr| format!("{address}/")).unwrap_or_default();
    format!("{address}{}:{}", port.host, port.guest)
}

/// Asks who has the gateway's address (RFC 826), and waits for the answer: passt is ready then.
fn greet(mut socket: &UnixStream) -> io::Result<()> {
    let mut frame = Vec::new();
    frame.extend([0xff; 6]);
    frame.extend(MAC);
    // ARP; of Ethernet and IPv4 addresses, of 6 and 4 bytes; a request.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend(ADDRESS.octets());
    frame.extend([0; 6]);
    frame.extend(GATEWAY.octets());
    socket.set_read_timeout(Some(START_MAX))?;
    socket.write_all(&(frame.len() as u32).to_be_bytes()).map_err(ended)?;
    socket.write_all(&frame).map_err(ended)?;
    let mut length = [0; 4];
    socket.read_exact(&mut length).map_err(ended)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    socket.read_exact(&mut vec![0; length]).map_err(ended)?;
    socket.set_read_timeout(None)
}

/// A connection that is lost in whatever way is one that has ended.
fn ended(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => ErrorKind::UnexpectedEof.into(),
        _ => error,
    }
}

fn network(socket: OwnedFd) -> Network {
    let net =
        NetSpec { link_fd: Some(socket.as_raw_fd()), kind: LinkKind::Stream, mac: MAC, mtu: None };
    let address = InterfaceAddress {
        address: ADDRESS.octets().to_vec(),
        prefix_length: PREFIX_LENGTH.into(),
        ..Default::default()
    };
    let interface = Interface {
        name: "eth0".to_owned(),
        mac: MAC.to_vec(),
        mtu: MTU.into(),
        addresses: vec![address],
        ..Default::default()
    };
    let route = NetworkRoute {
        interface: Some(0),
        destination: Ipv4Addr::UNSPECIFIED.octets().to_vec(),
        gateway: GATEWAY.octets().to_vec(),
        kind: libc::RTN_UNICAST.into(),
        ..Default::default()
    };
    let spec =
        NetworkSpec { interfaces: vec![interface], routes: vec![route], ..Default::default() };
    Network { taps: vec![socket], nets: vec![net], spec }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ports: &[&str]) -> String {
        let ports: Vec<Port> = ports.iter().map(|text| text.parse().unwrap()).collect();
        options(7, &ports).join(" ")
    }

    #[test]
    fn nothing_is_published_but_what_is_asked_for() {
        let none = of(&[]);
        assert!(none.contains("--fd 7") && none.contains("--no-map-gw"), "{none}");
        assert!(none.ends_with("--tcp-ports none --udp-ports none"), "{none}");
        let some = of(&["127.0.0.1:8080:80", "53:53/udp", "8081:81"]);
        let end = "--tcp-ports 127.0.0.1/8080:80 --tcp-ports 8081:81 --udp-ports 53:53";
        assert!(some.ends_with(end), "{some}");
    }

    #[test]
    fn one_that_ends_or_talks_nonsense_is_no_network() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(greet(&ours).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[0xff; 8]).unwrap();
        assert_eq!(greet(&ours).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
