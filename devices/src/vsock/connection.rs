//! One stream between a guest port and a host port.
//!
//! ```text
//!  Unix client                                        guest's REQUEST
//!      │                                                    │ RESPONSE
//!      ▼    greeting                  guest's RESPONSE      ▼
//!   Greeting ───────▶ Requested ─────────────────────────▶ Open
//!      │              (REQUEST)       (answer to client)    │
//!      │ left, late       │ late, wrong op                  │ wrong op, too many bytes;
//!      ▼                  ▼                                 ▼ or both ends are done
//!    Gone ◀────RST──── Resetting ◀──────────────────────────┘
//!      ▲                  │ guest's RST, device reset (from any state)
//!      │ all written      ▼
//!      └─────────────── Orphan: what the guest sent before is still written to a slow host
//! ```
//!
//! While open, the two directions end independently. Host to guest ends by end of file (SHUTDOWN
//! with SEND to the guest) or by the guest's SHUTDOWN with RECEIVE. Guest to host ends by the
//! guest's SHUTDOWN with SEND once all is written (the host's descriptor is closed), or because
//! the host's end broke (SHUTDOWN with RECEIVE to the guest). When the guest has shut down both
//! and all is written, the guest gets the RST that it waits for.

use std::io;
use std::os::fd::AsFd;

use event_manager::{EventOps, EventSet};

use super::credit::Credit;
use super::output::Output;
use super::packet::{Header, Key, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::rx::{RxQueue, Sent};
use super::saved::JoinedState;
use super::unix::{self, Greeting};
use crate::host_stream::{Direction, HostStream};
use crate::virtio::buffers::Buffers;

/// The most packets filled by one read of a host descriptor. Sixteen of Linux's receive buffers
/// make 60 KiB, about what a pipe holds.
const BURST_MAX: usize = 16;
/// Ticks a Unix client has for its greeting: it may be typed by hand.
const GREETING_TICKS: u8 = 20;
/// Ticks the guest has to answer a REQUEST: 2 s, Linux's own connect timeout for vsock.
const RESPONSE_TICKS: u8 = 4;
/// Ticks the guest has to answer a SHUTDOWN of both directions: 8 s, as Linux gives its peer.
const SHUTDOWN_TICKS: u8 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Requested,
    Open,
    Resetting,
    Orphan,
    Gone,
}

/// Packets without data that the guest is to get.
#[derive(Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    credit: bool,
    /// Flags of SHUTDOWN.
    shutdown: u32,
}

/// What came of serving a connection's packets to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The guest offers no buffer.
    Starved,
    /// A packet was sent, or the connection's state changed.
    Progress,
    /// There is nothing to send now.
    Idle,
}

/// One stream between a guest port and a host port.
#[derive(Debug)]
pub struct Connection {
    key: Key,
    state: State,
    credit: Credit,
    pending: Pending,
    input: Option<HostStream>,
    /// Nothing says that a read would block.
    readable: bool,
    /// Packets to fill by the next read: grows while reads fill them all.
    burst: usize,
    output: Output,
    /// Directions the guest has shut down, as flags of SHUTDOWN.
    guest_shutdown: u32,
    /// Directions the guest was told are shut down.
    told_shutdown: u32,
    /// Ticks until the other side has taken too long.
    ticks_left: Option<u8>,
}

impl Connection {
    /// A connection that the guest asked for by `request`, with a buffer of `buffer` bytes.
    pub fn requested_by_guest(
        request: &Header,
        buffer: u32,
        input: Option<HostStream>,
        output: Output,
    ) -> Self {
        let pending = Pending { response: true, ..Pending::default() };
        let mut connection = Self {
            key: request.key(),
            pending,
            ..Self::new(State::Open, Credit::new(buffer), input, output)
        };
        connection.credit.peer_says(request.buf_alloc, request.fwd_cnt);
        connection
    }

    /// A connection for a Unix client that has said nothing yet.
    pub fn requested_by_client(buffer: u32, input: HostStream, output: Output) -> Self {
        let ticks_left = Some(GREETING_TICKS);
        Self { ticks_left, ..Self::new(State::Greeting, Credit::new(buffer), Some(input), output) }
    }

    fn new(state: State, credit: Credit, input: Option<HostStream>, output: Output) -> Self {
        Self {
            key: Key::default(),
            state,
            credit,
            pending: Pending::default(),
            readable: input.is_some(),
            input,
            burst: 1,
            output,
            guest_shutdown: 0,
            told_shutdown: 0,
            ticks_left: None,
        }
    }

    /// For a snapshot: what lets it go on with another host's end, if it can.
    pub fn saved(&self) -> Option<JoinedState> {
        let backlog = self.output.saved().filter(|_| self.state == State::Open)?;
        Some(JoinedState {
            credit: self.credit.clone(),
            backlog,
            unanswered: self.pending.response,
            guest_shutdown: self.guest_shutdown,
            told_shutdown: self.told_shutdown,
        })
    }

    /// A saved connection with another host's end; `None` if no connection was ever like that.
    pub fn restored(
        key: Key,
        saved: JoinedState,
        input: Option<HostStream>,
        output: Output,
    ) -> Option<Self> {
        let JoinedState { credit, backlog, unanswered, guest_shutdown, told_shutdown } = saved;
        let fits = backlog.len() == credit.waiting() as usize && credit.is_possible();
        if !fits || (guest_shutdown | told_shutdown) & !SHUTDOWN_BOTH != 0 {
            return None;
        }
        let sends = told_shutdown & SHUTDOWN_SEND == 0 && guest_shutdown & SHUTDOWN_RECEIVE == 0;
        let mut connection = Self {
            key,
            // Whatever the guest did not hear of before; hearing it twice is no harm.
            pending: Pending {
                response: unanswered,
                credit: true,
                shutdown: told_shutdown,
                ..Pending::default()
            },
            guest_shutdown,
            told_shutdown,
            ticks_left: (told_shutdown == SHUTDOWN_BOTH).then_some(SHUTDOWN_TICKS),
            ..Self::new(State::Open, credit, input.filter(|_| sends), output)
        };
        connection.output.restore(backlog);
        if guest_shutdown & SHUTDOWN_SEND != 0 {
            connection.output.end();
        }
        if told_shutdown & SHUTDOWN_RECEIVE != 0 {
            let dropped = connection.output.break_off();
            connection.credit.forwarded(dropped);
        }
        Some(connection)
    }

    /// Has the event loop report on the connection's descriptors, with data `data` for the one
    /// that is read and `data + 1` for the one that is written.
    pub fn watch(&mut self, ops: &mut EventOps, data: u32) -> io::Result<()> {
        if let Some(input) = &mut self.input {
            input.watch(ops, data)?;
        }
        self.output.watch(ops, data + 1)
    }

    /// Its ports; the guest knows it by them from the greeting on and until it is an orphan.
    pub fn key(&self) -> Key {
        self.key
    }

    /// The direction from the guest to the host.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// The guest does not know it (any more): its ports may be used again.
    pub fn is_unknown_to_guest(&self) -> bool {
        matches!(self.state, State::Greeting | State::Orphan | State::Gone)
    }

    /// The guest has forgotten it.
    pub fn is_orphan(&self) -> bool {
        self.state == State::Orphan
    }

    /// It has ended and nothing is left to be done.
    pub fn is_gone(&self) -> bool {
        match self.state {
            State::Gone => true,
            State::Orphan => self.output.is_settled(),
            _ => false,
        }
    }

    /// Somebody has a limited time to answer.
    pub fn is_timed(&self) -> bool {
        self.ticks_left.is_some()
    }

    /// Reads a Unix client's greeting. `Some` port of the guest once it is complete.
    pub fn greeting(&mut self, ops: &mut EventOps) -> Option<u32> {
        let input = self.input.as_ref().filter(|_| self.state == State::Greeting)?;
        match unix::read_greeting(input.as_fd()) {
            Ok(Greeting::Connect(port)) => Some(port),
            Ok(Greeting::Incomplete) => None,
            Err(_) => {
                self.reset(ops);
                None
            }
        }
    }

    /// Asks the guest for the connection that the client wants.
    pub fn request(&mut self, key: Key) {
        debug_assert_eq!(self.state, State::Greeting);
        self.key = key;
        self.state = State::Requested;
        self.pending.request = true;
        self.ticks_left = Some(RESPONSE_TICKS);
    }

    /// A packet from the guest.
    pub fn packet(&mut self, op: Op, header: &Header, payload: Buffers, ops: &mut EventOps) {
        self.credit.peer_says(header.buf_alloc, header.fwd_cnt);
        match (self.state, op) {
            (_, Op::Reset) => self.orphan(ops),
            (State::Requested, Op::Response) if !self.pending.request => self.open(ops),
            (State::Open, Op::Data) => self.data(payload, ops),
            (State::Open, Op::Shutdown) => self.shutdown(header.flags, ops),
            (State::Open, Op::CreditUpdate) => {}
            (State::Open, Op::CreditRequest) => self.pending.credit = true,
            // The guest has not seen the RST yet.
            (State::Resetting, _) => {}
            _ => self.reset(ops),
        }
    }

    fn open(&mut self, ops: &mut EventOps) {
        self.state = State::Open;
        self.ticks_left = None;
        let mut answer = unix::answer(self.key.host_port);
        self.output.take(Buffers::from(&mut answer[..]));
        if !self.output.is_drained() || self.output.is_broken() {
            // A new socket has room for so little, unless the client has left.
            self.reset(ops);
        }
    }

    fn data(&mut self, payload: Buffers, ops: &mut EventOps) {
        let wanted = payload.len() as u32;
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || !self.credit.received(wanted) {
            return self.reset(ops);
        }
        let left = self.output.take(payload);
        self.credit.forwarded(left);
        self.after_output(ops);
    }

    fn shutdown(&mut self, flags: u32, ops: &mut EventOps) {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.close_input(ops);
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            self.output.end();
        }
        self.after_output(ops);
    }

    /// A descriptor is ready, or closed at its other end.
    pub fn host_ready(&mut self, direction: Direction, events: EventSet, ops: &mut EventOps) {
        match direction {
            Direction::Read => self.readable = self.input.is_some(),
            Direction::Write => {
                let mut left = self.output.flush();
                if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
                    left += self.output.break_off();
                }
                self.credit.forwarded(left);
                self.after_output(ops);
            }
        }
    }

    /// Delivers the message that was collected, if it is complete and was not delivered yet.
    pub fn deliver(&mut self, ops: &mut EventOps) {
        self.output.deliver();
        self.after_output(ops);
    }

    /// Draws the conclusions from what happened to the output.
    fn after_output(&mut self, ops: &mut EventOps) {
        self.output.settle(ops);
        if self.state != State::Open {
            return;
        }
        if self.output.is_broken() && self.guest_shutdown & SHUTDOWN_SEND == 0 {
            self.tell_shutdown(SHUTDOWN_RECEIVE);
        }
        if self.guest_shutdown == SHUTDOWN_BOTH && self.output.is_settled() {
            self.state = State::Resetting;
        }
    }

    fn tell_shutdown(&mut self, flag: u32) {
        let mut flags = flag;
        if self.input.is_none() {
            // Nothing was or will be sent: a port that only takes.
            flags |= SHUTDOWN_SEND;
        }
        if self.told_shutdown | flags != self.told_shutdown {
            self.told_shutdown |= flags;
            self.pending.shutdown = self.told_shutdown;
        }
        if self.told_shutdown == SHUTDOWN_BOTH && self.ticks_left.is_none() {
            self.ticks_left = Some(SHUTDOWN_TICKS);
        }
    }

    /// Time passes; called at equal intervals.
    pub fn tick(&mut self, ops: &mut EventOps) {
        match &mut self.ticks_left {
            None => {}
            Some(0) => self.reset(ops),
            Some(ticks) => *ticks -= 1,
        }
    }

    /// The guest forgot the connection: what it sent before is written still.
    pub fn orphan(&mut self, ops: &mut EventOps) {
        self.forget_guest();
        self.close_input(ops);
        self.output.settle(ops);
    }

    /// As [`Connection::orphan`], where the event loop is out of reach: call that later.
    pub fn forget_guest(&mut self) {
        if self.state != State::Gone {
            self.state = State::Orphan;
        }
        self.output.end();
        self.ticks_left = None;
    }

    /// Ends the connection at once; a guest that knows of it gets a RST.
    pub fn reset(&mut self, ops: &mut EventOps) {
        self.close(ops);
        let unknown = self.is_unknown_to_guest();
        self.state = if unknown { State::Gone } else { State::Resetting };
    }

    /// Closes the host's descriptors, whatever is waiting.
    pub fn close(&mut self, ops: &mut EventOps) {
        self.close_input(ops);
        self.output.close(ops);
        self.ticks_left = None;
    }

    fn close_input(&mut self, ops: &mut EventOps) {
        self.readable = false;
        if let Some(input) = self.input.take() {
            input.close(ops);
        }
    }

    /// There is something for the guest, buffers permitting.
    pub fn has_packets(&self) -> bool {
        self.control().is_some()
            || self.state == State::Open && self.readable && self.credit.to_send() > 0
    }

    /// The packet without data that is to be sent next.
    fn control(&self) -> Option<(Op, u32)> {
        let pending = &self.pending;
        match self.state {
            State::Resetting => Some((Op::Reset, 0)),
            State::Requested if pending.request => Some((Op::Request, 0)),
            State::Open if pending.response => Some((Op::Response, 0)),
            State::Open if pending.shutdown != 0 => Some((Op::Shutdown, pending.shutdown)),
            State::Open if pending.credit || self.credit.needs_update() => {
                Some((Op::CreditUpdate, 0))
            }
            _ => None,
        }
    }

    /// Sends the guest what there is: one packet without data, or data by one read.
    pub fn serve(
        &mut self,
        guest_cid: u64,
        rx: &mut RxQueue,
        ops: &mut EventOps,
    ) -> Result<Served, virtio_queue::Error> {
        let Some((op, flags)) = self.control() else { return self.serve_data(guest_cid, rx, ops) };
        if !rx.send(&self.header(guest_cid, op, flags))? {
            return Ok(Served::Starved);
        }
        self.credit.announced();
        self.pending.credit = false;
        match op {
            Op::Request => self.pending.request = false,
            Op::Response => self.pending.response = false,
            Op::Shutdown => self.pending.shutdown = 0,
            Op::Reset => self.orphan(ops),
            _ => {}
        }
        Ok(Served::Progress)
    }

    fn serve_data(
        &mut self,
        guest_cid: u64,
        rx: &mut RxQueue,
        ops: &mut EventOps,
    ) -> Result<Served, virtio_queue::Error> {
        let credit = self.credit.to_send() as usize;
        let sendable = self.state == State::Open && self.readable && credit > 0;
        let header = self.header(guest_cid, Op::Data, 0);
        let Some(input) = self.input.as_ref().filter(|_| sendable) else {
            return Ok(Served::Idle);
        };
        let sent = rx.send_data(header, credit, self.burst, |slices| input.read(slices))?;
        let Sent::Read { result, filled } = sent else { return Ok(Served::Starved) };
        match result {
            Ok(count) if count > 0 => {
                self.credit.sent(count as u32);
                self.credit.announced();
                let burst = if filled { self.burst * 4 } else { self.burst / 2 };
                self.burst = burst.clamp(1, BURST_MAX);
                Ok(Served::Progress)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(Served::Idle)
            }
            // What cannot be read any more has come to its end, whatever the error.
            _ => {
                self.close_input(ops);
                self.tell_shutdown(SHUTDOWN_SEND);
                Ok(Served::Progress)
            }
        }
    }

    fn header(&self, guest_cid: u64, op: Op, flags: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.credit.says();
        Header { flags, buf_alloc, fwd_cnt, ..Header::to_guest(guest_cid, self.key, op) }
    }
}
