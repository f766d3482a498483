//! The event loop's side: clients, their lines, and the commands that come of them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::descriptor::{self, DESCRIPTORS_MAX};
use super::{LINE_MAX, Request, Response};

/// Clients at a time; another is closed at once.
const CLIENTS_MAX: usize = 8;
/// The most of a line that is read at once, bytes.
const CHUNK_LEN: usize = 4096;
/// Event data of the listener; clients count from the next number.
const LISTENER: u32 = 0;

/// Names a client for as long as it is connected; the next one has another.
pub type ClientId = u32;

/// A request.
#[derive(Debug)]
pub struct Command {
    /// Whoever is to be answered.
    pub client: ClientId,
    /// What is asked for.
    pub request: Request,
    /// The last descriptors that came with the request or before it, and with no other request.
    pub descriptors: Vec<OwnedFd>,
}

/// The control socket.
pub struct Control {
    listener: UnixListener,
    clients: BTreeMap<ClientId, Client>,
    next_client: ClientId,
    commands: Vec<Command>,
}

struct Client {
    stream: UnixStream,
    /// What came of a line that has not ended yet.
    line: Vec<u8>,
    /// What came with it.
    descriptors: Vec<OwnedFd>,
}

impl Control {
    /// Serves `listener`, which is made non-blocking.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let next_client = LISTENER + 1;
        Ok(Self { listener, clients: BTreeMap::new(), next_client, commands: Vec::new() })
    }

    /// The commands since the last call, in the order they came in.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// Answers a client, if it is still there.
    pub fn answer(&mut self, client: ClientId, response: &Response) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.answer(response);
        }
    }

    /// Whether a client is still there.
    pub fn knows(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client)
    }

    fn accept(&mut self, ops: &mut EventOps) {
        while let Ok((stream, _)) = self.listener.accept() {
            let id = self.next_client;
            let watched = Events::with_data(&stream, id, EventSet::IN);
            if self.clients.len() < CLIENTS_MAX
                && stream.set_nonblocking(true).is_ok()
                && ops.add(watched).is_ok()
            {
                self.clients
                    .insert(id, Client { stream, line: Vec::new(), descriptors: Vec::new() });
                self.next_client = id.checked_add(1).unwrap_or(LISTENER + 1);
            }
        }
    }

    fn read(&mut self, id: u32, ops: &mut EventOps) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let alive = client.read(|request, descriptors| {
            self.commands.push(Command { client: id, request, descriptors });
        });
        if !alive && let Some(client) = self.clients.remove(&id) {
            // Watched until now, so that its number is free for the next.
            let _ = ops.remove(Events::with_data(&client.stream, id, EventSet::IN));
        }
    }
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps) {
        let added = ops.add(Events::with_data(&self.listener, LISTENER, EventSet::IN));
        debug_assert!(added.is_ok(), "a listener can be watched: {added:?}");
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            LISTENER => self.accept(ops),
            id => self.read(id, ops),
        }
    }
}

impl Client {
    /// Takes what there is to read, and its whole lines; false once the client is gone or talks
    /// nonsense of a length that no line has.
    fn read(&mut self, mut command: impl FnMut(Request, Vec<OwnedFd>)) -> bool {
        let mut chunk = [0; CHUNK_LEN];
        // One read a turn: who talks without end waits between others.
        match descriptor::receive(&self.stream, &mut chunk) {
            Ok((0, _)) => return false,
            Ok((len, descriptors)) => {
                self.line.extend_from_slice(&chunk[..len]);
                self.descriptors.extend(descriptors);
                let surplus = self.descriptors.len().saturating_sub(DESCRIPTORS_MAX);
                self.descriptors.drain(..surplus);
            }
            Err(error) => {
                return matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                );
            }
        }
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(request) => command(request, std::mem::take(&mut self.descriptors)),
                Err(error) => {
                    let message = format!("not a request: {error}");
                    self.answer(&Response::Refused { message });
                }
            }
        }
        self.line.len() < LINE_MAX
    }

    /// Writes an answer, or ends a connection whose client lets answers pile up.
    fn answer(&mut self, response: &Response) {
        let mut line = serde_json::to_vec(response).unwrap_or_default();
        line.push(b'\n');
        if !matches!(self.stream.write(&line), Ok(len) if len == line.len()) {
            // The event loop sees the end and forgets the client.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::os::fd::AsFd;
    use std::sync::{Arc, Mutex};

    use event_manager::{EventManager, SubscriberOps};

    use super::*;
    use crate::control::{NewShare, SHARES_MAX, ShareEntry};

    struct Served {
        _dir: tempfile::TempDir,
        path: std::path::PathBuf,
        control: Arc<Mutex<Control>>,
        events: EventManager<Arc<Mutex<Control>>>,
    }

    impl Served {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("control.sock");
            let control = Control::new(UnixListener::bind(&path).unwrap()).unwrap();
            let control = Arc::new(Mutex::new(control));
            let mut events = EventManager::new().unwrap();
            events.add_subscriber(control.clone());
            Self { _dir: dir, path, control, events }
        }

        fn client(&self) -> UnixStream {
            UnixStream::connect(&self.path).unwrap()
        }

        /// Serves what is there, answering every command with `Done`.
        fn serve(&mut self) -> Vec<Request> {
            let mut requests = Vec::new();
            while self.events.run_with_timeout(0).unwrap() > 0 {
                let mut control = self.control.lock().unwrap();
                for command in control.take_commands() {
                    control.answer(command.client, &Response::Done);
                    requests.push(command.request);
                }
            }
            requests
        }

        fn clients(&self) -> usize {
            self.control.lock().unwrap().clients.len()
        }
    }

    fn line(stream: &UnixStream) -> String {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn a_line_is_a_command_however_it_is_cut() {
        let mut served = Served::new();
        let mut client = served.client();
        client.write_all(b"{\"verb\":\"pa").unwrap();
        assert_eq!(served.serve(), []);
        client.write_all(b"use\"}\n{\"verb\":\"resume\"}\n").unwrap();
        assert_eq!(served.serve(), [Request::Pause, Request::Resume]);
        assert_eq!(line(&client), "{\"result\":\"done\"}\n");
    }

    #[test]
    fn a_descriptor_belongs_to_the_request_it_came_with() {
        let mut served = Served::new();
        let client = served.client();
        let (end, other) = UnixStream::pair().unwrap();
        let plug =
            b"{\"verb\":\"plug\",\"mac\":[2,0,0,0,0,1],\"mtu\":null}\n{\"verb\":\"stats\"}\n";
        assert_eq!(descriptor::send(&client, plug, &[end.as_fd()]).unwrap(), plug.len());
        drop(end);
        served.events.run_with_timeout(0).unwrap();
        served.events.run_with_timeout(0).unwrap();
        let commands = served.control.lock().unwrap().take_commands();
        assert_eq!(commands[1].request, Request::Stats);
        assert!(commands[1].descriptors.is_empty());
        let mut received =
            UnixStream::from(commands[0].descriptors.last().unwrap().try_clone().unwrap());
        received.write_all(b"!").unwrap();
        let mut byte = [0];
        (&other).read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"!");
        drop((received, commands));
        assert_eq!((&other).read(&mut byte).unwrap(), 0, "nobody else holds it");
    }

    #[test]
    fn a_long_request_keeps_all_its_descriptors_in_order() {
        let mut served = Served::new();
        let path = served.path.clone();
        let (given, kept): (Vec<_>, Vec<_>) =
            (0..SHARES_MAX).map(|_| UnixStream::pair().unwrap()).unzip();
        let name = |number: usize| format!("{number:0>255}");
        let asking = std::thread::spawn(move || {
            let names: Vec<_> = (0..SHARES_MAX).map(name).collect();
            let shares = names.iter().zip(&given);
            let shares =
                shares.map(|(name, given)| NewShare { name, readonly: true, fd: given.as_fd() });
            super::super::Client::connect(&path).unwrap().share(&shares.collect::<Vec<_>>())
        });
        let command = loop {
            served.events.run_with_timeout(20_000).unwrap();
            if let Some(command) = served.control.lock().unwrap().take_commands().pop() {
                break command;
            }
        };
        let entry = |number| ShareEntry { name: name(number), readonly: true };
        let shares = (0..SHARES_MAX).map(entry).collect();
        assert_eq!(command.request, Request::Share { shares });
        assert_eq!(command.descriptors.len(), SHARES_MAX);
        for (descriptor, kept) in command.descriptors.into_iter().zip(&kept) {
            UnixStream::from(descriptor).write_all(b"!").unwrap();
            kept.set_nonblocking(true).unwrap();
            assert_eq!((&*kept).read(&mut [0]).unwrap(), 1);
        }
        served.control.lock().unwrap().answer(command.client, &Response::Done);
        asking.join().unwrap().unwrap();
    }

    #[test]
    fn nonsense_is_refused_and_endless_nonsense_ends_the_connection() {
        let mut served = Served::new();
        let mut client = served.client();
        client.write_all(b"{\"verb\":\"explode\"}\n").unwrap();
        assert_eq!(served.serve(), []);
        assert!(line(&client).contains("refused"));
        client.write_all(&[b'x'; LINE_MAX + 1]).unwrap();
        served.serve();
        assert_eq!(served.clients(), 0);
    }

    #[test]
    fn a_client_that_does_not_read_is_dropped() {
        let mut served = Served::new();
        let mut client = served.client();
        client.set_nonblocking(true).unwrap();
        for _ in 0..100_000 {
            if served.clients() == 0 && client.write_all(b"{\"verb\":\"stats\"}\n").is_err() {
                return;
            }
            let _ = client.write(b"{\"verb\":\"stats\"}\n");
            served.serve();
        }
        panic!("the connection is still there");
    }

    #[test]
    fn clients_are_few_and_the_places_are_used_again() {
        let mut served = Served::new();
        let clients: Vec<_> = (0..CLIENTS_MAX + 3).map(|_| served.client()).collect();
        served.serve();
        assert_eq!(served.clients(), CLIENTS_MAX);
        drop(clients);
        served.serve();
        assert_eq!(served.clients(), 0);
        let mut client = served.client();
        client.write_all(b"{\"verb\":\"stats\"}\n").unwrap();
        assert_eq!(served.serve(), [Request::Stats]);
    }
}
