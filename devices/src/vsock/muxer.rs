//! All connections of a guest, and the order in which they get its receive buffers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use event_manager::{EventOps, EventSet};

use super::caps::{self, Caps};
use super::connection::{Connection, Served};
use super::host_port::{HostEnd, HostPorts, Port};
use super::output::Output;
use super::packet::{HOST_CID, Header, Key, Op, TYPE_STREAM};
use super::rx::RxQueue;
use super::saved::{ConnectionState, VsockState};
use super::unix;
use crate::host_stream::{Direction, HostStream};
use crate::virtio::RestoreError;
use crate::virtio::buffers::Buffers;

/// Answers to packets that belong to no connection, waiting for receive buffers. Beyond it the
/// guest's packets wait in their queue.
const REPLIES_MAX: usize = 64;
/// Host ports for Unix clients start here, as in Firecracker.
const CLIENT_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

/// All connections of a guest.
pub struct Muxer {
    guest_cid: u64,
    caps: Caps,
    path: PathBuf,
    ports: HostPorts,
    on_first_output: Option<Box<dyn FnMut() + Send>>,
    /// Event data of slot 0; each slot has two.
    first_data: u32,
    slots: Vec<Slot>,
    /// The connections the guest knows.
    by_key: BTreeMap<Key, usize>,
    /// Slots that may have packets for the guest: those with `queued` set.
    serving: VecDeque<usize>,
    replies: VecDeque<Header>,
    next_client_port: u32,
    /// Of a snapshot, not in their slots yet.
    restored: Vec<Connection>,
    /// A message is complete and waits for the outputs to be written.
    message_due: bool,
    is_timed: bool,
}

/// A place for a connection.
#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    /// It is in [`Muxer::serving`]; outlives the connection.
    queued: bool,
}

impl Muxer {
    /// No connections. `first_data` is the first event data for their descriptors.
    pub fn new(
        guest_cid: u64,
        caps: Caps,
        path: PathBuf,
        ports: Vec<(u32, HostEnd)>,
        on_first_output: Option<Box<dyn FnMut() + Send>>,
        first_data: u32,
    ) -> Self {
        Self {
            guest_cid,
            caps,
            path,
            ports: HostPorts::new(ports),
            on_first_output,
            first_data,
            slots: Vec::new(),
            by_key: BTreeMap::new(),
            serving: VecDeque::new(),
            replies: VecDeque::new(),
            next_client_port: CLIENT_PORTS.start,
            restored: Vec::new(),
            message_due: false,
            is_timed: false,
        }
    }

    /// There is room for one more connection.
    pub fn has_room(&self) -> bool {
        self.slots.len() < self.caps.connections as usize || self.slots.iter().any(Slot::is_free)
    }

    /// There is room for the answer to one more packet.
    pub fn takes_packets(&self) -> bool {
        self.replies.len() < REPLIES_MAX
    }

    /// What a snapshot is to hold.
    pub fn save(&self) -> VsockState {
        let connection = |slot: usize| self.slots[slot].connection.as_ref();
        let known = self.by_key.iter().map(|(key, slot)| ConnectionState {
            key: *key,
            joined: connection(*slot).and_then(Connection::saved),
        });
        // A snapshot of a guest that has just been restored.
        let restored = self.restored.iter().map(|connection| ConnectionState {
            key: connection.key(),
            joined: connection.saved(),
        });
        let resets = self.replies.iter().map(|reply| ConnectionState {
            key: Key { guest_port: reply.dst_port, host_port: reply.src_port },
            joined: None,
        });
        let connections = known.chain(restored).chain(resets).collect();
        VsockState { next_client_port: self.next_client_port, connections }
    }

    /// Takes a snapshot's connections over: those to ports of ours go on, the others are reset. Call
    /// [`Muxer::adopt`] as soon as the event loop is at hand.
    pub fn restore(&mut self, state: VsockState) -> Result<(), RestoreError> {
        let foreign = RestoreError::Device { device: "vsock" };
        let most = *caps::CONNECTIONS.end() as usize + REPLIES_MAX;
        if !CLIENT_PORTS.contains(&state.next_client_port) || state.connections.len() > most {
            return Err(foreign);
        }
        self.next_client_port = state.next_client_port;
        for ConnectionState { key, joined } in state.connections {
            // A port is given away once: nobody gets it twice, whatever the state says.
            let port = joined.and_then(|joined| Some((joined, self.ports.take(key.host_port)??)));
            let Some((joined, (input, output))) = port else {
                self.replies.push_back(Header::to_guest(self.guest_cid, key, Op::Reset));
                continue;
            };
            let connection = Connection::restored(key, joined, input, output);
            self.restored.push(connection.ok_or(RestoreError::Device { device: "vsock" })?);
        }
        Ok(())
    }

    /// Puts the connections that [`Muxer::restore`] left in their places.
    pub fn adopt(&mut self, ops: &mut EventOps) {
        for connection in std::mem::take(&mut self.restored) {
            let key = connection.key();
            let slot = self.insert(connection, ops);
            self.by_key.insert(key, slot);
            // Writes what waited.
            let (write, none) = (Direction::Write, EventSet::empty());
            self.with(slot, ops, |connection, ops| connection.host_ready(write, none, ops));
        }
    }

    /// There may be packets for the guest.
    pub fn has_packets(&self) -> bool {
        !self.serving.is_empty() || !self.replies.is_empty()
    }

    /// Some connection has a limited time to be answered: call [`Muxer::tick`].
    pub fn is_timed(&self) -> bool {
        self.is_timed
    }

    /// A packet from the guest, with the bytes that follow its header.
    pub fn packet(&mut self, header: &Header, mut payload: Buffers, ops: &mut EventOps) {
        if header.src_cid != self.guest_cid {
            return;
        }
        let op = Op::try_from(header.op).ok();
        let ours = header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        let slot = self.by_key.get(&header.key()).copied().filter(|_| ours);
        let whole = header.len as usize <= payload.len();
        payload.truncate(header.len as usize);
        match (slot, op) {
            (Some(slot), Some(op)) if whole => {
                self.with(slot, ops, |connection, ops| connection.packet(op, header, payload, ops));
            }
            (Some(slot), _) => self.with(slot, ops, Connection::reset),
            (None, Some(Op::Reset)) => {}
            (None, Some(Op::Request)) if ours && self.has_room() => self.request(header, ops),
            (None, _) => self.replies.push_back(header.reset_for()),
        }
    }

    /// The guest asks for a connection.
    fn request(&mut self, header: &Header, ops: &mut EventOps) {
        match self.host_end(header.dst_port) {
            Ok((input, output)) => {
                let buffer = self.caps.buffer_bytes;
                let connection = Connection::requested_by_guest(header, buffer, input, output);
                let slot = self.insert(connection, ops);
                self.by_key.insert(header.key(), slot);
                self.settle(slot, ops);
            }
            Err(_) => self.replies.push_back(header.reset_for()),
        }
    }

    /// What answers at a host port. An error is what the guest learns as a reset.
    fn host_end(&mut self, port: u32) -> io::Result<Port> {
        match self.ports.take(port) {
            Some(Some(end)) => Ok(end),
            Some(None) => Err(io::ErrorKind::ConnectionRefused.into()),
            None => {
                let (read, write) = HostStream::pair(unix::connect(&self.path, port)?)?;
                Ok((Some(read), Output::to_client(write)))
            }
        }
    }

    /// A Unix client has connected. There must be [room](Muxer::has_room).
    pub fn client(&mut self, socket: UnixStream, ops: &mut EventOps) {
        let Ok((read, write)) = HostStream::pair(socket) else { return };
        let (buffer, output) = (self.caps.buffer_bytes, Output::to_client(write));
        let connection = Connection::requested_by_client(buffer, read, output);
        let slot = self.insert(connection, ops);
        self.greeting(slot, ops);
    }

    fn greeting(&mut self, slot: usize, ops: &mut EventOps) {
        let mut port = None;
        self.with(slot, ops, |connection, ops| port = connection.greeting(ops));
        let Some(guest_port) = port else { return };
        let key = self.free_key(guest_port);
        self.by_key.insert(key, slot);
        self.with(slot, ops, |connection, _| connection.request(key));
    }

    /// A host port that no connection to the guest's port has.
    fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let key = Key { guest_port, host_port: self.next_client_port };
            self.next_client_port += 1;
            if self.next_client_port == CLIENT_PORTS.end {
                self.next_client_port = CLIENT_PORTS.start;
            }
            if !self.by_key.contains_key(&key) {
                return key;
            }
        }
    }

    /// A descriptor of a connection is ready; `data` is the event's.
    pub fn host_ready(&mut self, data: u32, events: EventSet, ops: &mut EventOps) {
        let Some(number) = data.checked_sub(self.first_data) else { return };
        let (slot, is_write) = (number as usize / 2, number % 2 == 1);
        let direction = if is_write { Direction::Write } else { Direction::Read };
        self.with(slot, ops, |connection, ops| connection.host_ready(direction, events, ops));
        if !is_write {
            self.greeting(slot, ops);
        }
    }

    /// Time passes; called at equal intervals.
    pub fn tick(&mut self, ops: &mut EventOps) {
        self.is_timed = false;
        for slot in 0..self.slots.len() {
            self.with(slot, ops, Connection::tick);
        }
    }

    /// The guest has forgotten all connections: it was reset. Call [`Muxer::sweep`] as soon as the
    /// event loop is at hand.
    pub fn forget_guest(&mut self) {
        self.by_key.clear();
        self.replies.clear();
        self.restored.clear();
        for connection in self.slots.iter_mut().filter_map(|slot| slot.connection.as_mut()) {
            connection.forget_guest();
        }
    }

    /// Closes what [`Muxer::forget_guest`] left.
    pub fn sweep(&mut self, ops: &mut EventOps) {
        for slot in 0..self.slots.len() {
            self.with(slot, ops, |connection, ops| {
                if connection.is_orphan() {
                    connection.orphan(ops);
                }
            });
        }
    }

    /// Fills the guest's receive buffers; true if it ran out of them.
    pub fn fill(
        &mut self,
        rx: &mut RxQueue,
        ops: &mut EventOps,
    ) -> Result<bool, virtio_queue::Error> {
        while let Some(reply) = self.replies.front() {
            if !rx.send(reply)? {
                return Ok(true);
            }
            self.replies.pop_front();
        }
        while let Some(slot) = self.serving.front().copied() {
            let guest_cid = self.guest_cid;
            let mut served = Ok(Served::Idle);
            if let Some(connection) = &mut self.slots[slot].connection {
                served = connection.serve(guest_cid, rx, ops);
            }
            if served? == Served::Starved {
                return Ok(true);
            }
            // One at a time, in turn, so that no connection starves another.
            self.serving.pop_front();
            self.slots[slot].queued = false;
            self.settle(slot, ops);
        }
        Ok(false)
    }

    /// Delivers messages, if all that came before them is written; true if there was one.
    pub fn deliver(&mut self, ops: &mut EventOps) -> bool {
        let mut connections = self.slots.iter().filter_map(|slot| slot.connection.as_ref());
        if !self.message_due || connections.any(|connection| connection.output().holds_output()) {
            return false;
        }
        for slot in 0..self.slots.len() {
            self.with(slot, ops, Connection::deliver);
        }
        self.message_due = false;
        true
    }

    fn insert(&mut self, mut connection: Connection, ops: &mut EventOps) -> usize {
        let free = self.slots.iter().position(Slot::is_free);
        let slot = free.unwrap_or(self.slots.len());
        if connection.watch(ops, self.first_data + 2 * slot as u32).is_err() {
            connection.reset(ops);
        }
        if free.is_none() {
            self.slots.push(Slot::default());
        }
        self.slots[slot].connection = Some(connection);
        slot
    }

    /// Calls `change` with the connection at `slot`, if there is one, and draws the conclusions.
    fn with(
        &mut self,
        slot: usize,
        ops: &mut EventOps,
        change: impl FnOnce(&mut Connection, &mut EventOps),
    ) {
        let connection = self.slots.get_mut(slot).and_then(|slot| slot.connection.as_mut());
        if let Some(connection) = connection {
            change(connection, ops);
            self.settle(slot, ops);
        }
    }

    /// Draws the conclusions from a change of the connection at `slot`.
    fn settle(&mut self, slot: usize, ops: &mut EventOps) {
        let Slot { connection: Some(connection), queued } = &mut self.slots[slot] else { return };
        if connection.is_unknown_to_guest()
            && self.by_key.get(&connection.key()).is_some_and(|known| *known == slot)
        {
            self.by_key.remove(&connection.key());
        }
        self.message_due |= connection.output().is_due();
        self.is_timed |= connection.is_timed();
        if connection.output().has_output()
            && let Some(mut on_first_output) = self.on_first_output.take()
        {
            on_first_output();
        }
        if connection.has_packets() && !*queued {
            *queued = true;
            self.serving.push_back(slot);
        }
        if connection.is_gone() {
            connection.close(ops);
            self.slots[slot].connection = None;
        }
    }
}

impl Slot {
    fn is_free(&self) -> bool {
        self.connection.is_none()
    }
}
