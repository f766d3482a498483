//! A guest's vsock driver and the host around it.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use vmm_sys_util::eventfd::EventFd;

use crate::rate_limiter::RateLimits;
use crate::testing::Driver;
use crate::virtio::RestoreError;
use crate::vsock::caps::Caps;
use crate::vsock::packet::{HOST_CID, Header, Key, Op, TYPE_STREAM};
use crate::vsock::{HostEnd, Vsock, VsockConfig};

pub const CID: u64 = 7;
/// What Linux 6.12 posts: a page without the socket buffer's overhead.
pub const RX_BYTES: u32 = 3776;
/// Linux's default buffer for a connection.
pub const GUEST_BUFFER: u32 = 256 << 10;

/// The device's, unless told otherwise.
pub const BUFFER: u32 = 256 << 10;

/// The host ports of [`Guest::new`].
pub const STDIN: u32 = 10;
pub const STDOUT: u32 = 11;
pub const TERMINAL: u32 = 13;
pub const EXIT: u32 = 14;
pub const EXIT_BYTES: usize = 12;

pub const RX: usize = 0;
pub const TX: usize = 1;

pub struct Packet {
    pub header: Header,
    pub data: Vec<u8>,
}

impl Packet {
    pub fn op(&self) -> Op {
        Op::try_from(self.header.op).unwrap()
    }
}

/// What the device told its owner.
#[derive(Default)]
pub struct Told {
    pub messages: Mutex<Vec<Vec<u8>>>,
    pub first_outputs: AtomicUsize,
}

pub struct Guest {
    pub driver: Driver,
    pub told: Arc<Told>,
    pub path: PathBuf,
    pub ready: EventFd,
    /// Bytes received, by connection: what goes out as fwd_cnt.
    forwarded: BTreeMap<Key, u32>,
    packets: VecDeque<Packet>,
    /// Buffers to keep in the receive queue.
    pub rx_buffers: usize,
    pub buf_alloc: u32,
    _directory: TempDir,
}

/// Host ends for the ports; unset ones are left out.
#[derive(Default)]
pub struct Ends {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub terminal: Option<(OwnedFd, OwnedFd)>,
    pub limits: RateLimits,
    pub caps: Caps,
}

impl Guest {
    pub fn new(ends: Ends) -> Self {
        Self::with_rx_buffers(ends, 256)
    }

    /// A guest that keeps so many buffers in the receive queue.
    pub fn with_rx_buffers(ends: Ends, rx_buffers: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm");
        let ready = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let told = Arc::new(Told::default());
        let device = Self::device(ends, &path, &ready, &told);
        let mut guest = Self {
            driver: Driver::start(Box::new(device)),
            told,
            path,
            ready,
            forwarded: BTreeMap::new(),
            packets: VecDeque::new(),
            rx_buffers,
            buf_alloc: GUEST_BUFFER,
            _directory: directory,
        };
        guest.refill();
        guest
    }

    /// Goes on, from a snapshot, with another device.
    pub fn restore(&mut self, ends: Ends) -> Result<(), RestoreError> {
        std::fs::remove_file(&self.path).unwrap();
        let device = Self::device(ends, &self.path, &self.ready, &self.told);
        self.driver.restore_to(Box::new(device))?;
        self.driver.run();
        Ok(())
    }

    /// A device without a guest.
    pub fn bare(ends: Ends) -> Vsock {
        let directory = tempfile::tempdir().unwrap();
        let ready = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Self::device(ends, &directory.path().join("vm"), &ready, &Arc::default())
    }

    fn device(ends: Ends, path: &Path, ready: &EventFd, told: &Arc<Told>) -> Vsock {
        let (limits, caps) = (ends.limits, ends.caps);
        let (message, output) = (told.clone(), told.clone());
        let exit = HostEnd::Message {
            len: EXIT_BYTES,
            deliver: Box::new(move |bytes| message.messages.lock().unwrap().push(bytes.to_vec())),
        };
        let streams = |read, write| HostEnd::Streams { read, write };
        let mut host_ports = vec![(EXIT, exit)];
        host_ports.extend(ends.stdin.map(|fd| (STDIN, streams(Some(fd), None))));
        host_ports.extend(ends.stdout.map(|fd| (STDOUT, streams(None, Some(fd)))));
        let terminal = ends.terminal.map(|(read, write)| streams(Some(read), Some(write)));
        host_ports.extend(terminal.map(|end| (TERMINAL, end)));
        Vsock::new(VsockConfig {
            guest_cid: CID as u32,
            caps,
            listener: UnixListener::bind(path).unwrap(),
            path: path.to_owned(),
            ready: ready.try_clone().unwrap(),
            host_ports,
            on_first_output: Some(Box::new(move || {
                output.first_outputs.fetch_add(1, Ordering::SeqCst);
            })),
        })
        .unwrap()
        .limited(&limits)
        .unwrap()
    }

    /// Keeps the receive queue full, as Linux does.
    pub fn refill(&mut self) {
        while self.driver.queue(RX).outstanding() < self.rx_buffers {
            self.driver.queue(RX).post(&[], &[RX_BYTES]);
        }
        self.driver.kick(RX);
    }

    pub fn header(&self, key: Key, op: Op) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: key.guest_port,
            dst_port: key.host_port,
            kind: TYPE_STREAM,
            op: op as u16,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.forwarded.get(&key).copied().unwrap_or(0),
            ..Header::default()
        }
    }

    /// Sends a packet without data.
    pub fn send(&mut self, key: Key, op: Op, flags: u32) {
        let header = Header { flags, ..self.header(key, op) };
        self.send_raw(&[&header.to_bytes()]);
    }

    /// Sends data in one packet of a header and one buffer a piece.
    pub fn send_data(&mut self, key: Key, pieces: &[&[u8]]) {
        let len = pieces.iter().map(|piece| piece.len()).sum::<usize>() as u32;
        let header = Header { len, ..self.header(key, Op::Data) }.to_bytes();
        let mut buffers: Vec<&[u8]> = vec![&header];
        buffers.extend(pieces);
        self.send_raw(&buffers);
    }

    /// Sends a chain of these buffers and notifies the device if it wants that.
    pub fn send_raw(&mut self, buffers: &[&[u8]]) {
        while self.driver.queue(TX).take_used().is_some() {}
        self.driver.queue(TX).post(buffers, &[]);
        self.driver.kick(TX);
    }

    /// Takes what the device has sent so far.
    fn collect(&mut self) {
        while let Some(used) = self.driver.queue(RX).take_used() {
            assert!(used.bytes.len() >= Header::LEN, "a packet has a header");
            let (header, data) = used.bytes.split_at(Header::LEN);
            let header = Header::from_bytes(header.try_into().unwrap());
            assert_eq!(header.len as usize, data.len());
            assert_eq!(header.dst_cid, CID);
            let key = Key { guest_port: header.dst_port, host_port: header.src_port };
            let forwarded = self.forwarded.entry(key).or_default();
            *forwarded = forwarded.wrapping_add(header.len);
            self.packets.push_back(Packet { header, data: data.to_vec() });
        }
        self.refill();
    }

    /// The next packet from the device.
    pub fn next(&mut self) -> Packet {
        self.collect();
        if self.packets.is_empty() {
            self.driver.wait("a packet", |driver| driver.queue(RX).has_used());
            self.collect();
        }
        self.packets.pop_front().unwrap()
    }

    /// The next packet, which must be `op`.
    #[track_caller]
    pub fn expect(&mut self, op: Op) -> Packet {
        let packet = self.next();
        assert_eq!(packet.op(), op, "{:?}", packet.header);
        packet
    }

    /// Serves all events; the device must have nothing to say.
    #[track_caller]
    pub fn expect_silence(&mut self) {
        self.driver.run();
        self.collect();
        self.driver.run();
        self.collect();
        if let Some(packet) = self.packets.front() {
            panic!("unexpected {:?}", packet.header);
        }
    }

    /// Serves all events and takes all packets there are.
    pub fn all(&mut self) -> Vec<Packet> {
        self.driver.run();
        self.collect();
        self.packets.drain(..).collect()
    }

    /// Serves all events; the device must have nothing to say but `op`.
    #[track_caller]
    pub fn expect_silence_but(&mut self, op: Op) {
        for packet in self.all() {
            assert_eq!(packet.op(), op, "{:?}", packet.header);
        }
    }

    /// The last packet there is, which must be `op`.
    #[track_caller]
    pub fn last_of(&mut self, op: Op) -> Packet {
        let packet = self.all().pop().expect("a packet");
        assert_eq!(packet.op(), op);
        packet
    }

    /// Asks for a connection and returns the next packet, whatever it is.
    pub fn next_after_request(&mut self, key: Key) -> Packet {
        self.send(key, Op::Request, 0);
        self.next()
    }

    /// Starts anew after a reset of the device.
    pub fn restart(&mut self) {
        self.forwarded.clear();
        self.packets.clear();
        self.refill();
    }

    /// Connects from the guest to a host port.
    #[track_caller]
    pub fn connect(&mut self, guest_port: u32, host_port: u32) -> Key {
        let key = Key { guest_port, host_port };
        self.send(key, Op::Request, 0);
        let response = self.expect(Op::Response).header;
        assert_eq!((response.src_port, response.dst_port), (host_port, guest_port));
        assert_eq!((response.src_cid, response.kind), (HOST_CID, TYPE_STREAM));
        assert!(response.buf_alloc > 0);
        key
    }

    /// The guest's agent is up.
    pub fn get_ready(&mut self) {
        self.ready.write(1).unwrap();
        self.driver.run();
    }

    /// A host program connects to a guest port, up to the REQUEST.
    pub fn client(&mut self, guest_port: u32) -> (UnixStream, Key) {
        use std::io::Write;
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        writeln!(client, "CONNECT {guest_port}").unwrap();
        let request = self.expect(Op::Request).header;
        assert_eq!(request.dst_port, guest_port);
        (client, Key { guest_port, host_port: request.src_port })
    }

    /// As [`Guest::client`], and the guest accepts.
    pub fn accepted_client(&mut self, guest_port: u32) -> (UnixStream, Key) {
        let (client, key) = self.client(guest_port);
        self.send(key, Op::Response, 0);
        self.driver.run();
        assert_eq!(read_line(&client), format!("OK {}\n", key.host_port));
        (client, key)
    }
}

/// Reads up to a newline and no further.
pub fn read_line(mut stream: &UnixStream) -> String {
    use std::io::Read;
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && stream.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}
