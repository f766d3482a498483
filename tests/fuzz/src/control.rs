//! The monitor's control socket, from a client that writes what it likes.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use bulkhead_vmm::control::{Control, Response};
use event_manager::{EventManager, SubscriberOps};

use crate::input::Input;

/// Pieces of up to 255 bytes, to one of three clients.
pub fn run(input: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let control = Control::new(UnixListener::bind(&path).unwrap()).unwrap();
    let control = Arc::new(Mutex::new(control));
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(control.clone());
    let mut clients = [(); 3].map(|()| UnixStream::connect(&path).unwrap());
    let mut input = Input(input);
    while !input.is_empty() {
        let client = &mut clients[usize::from(input.u8() % 3)];
        client.set_nonblocking(true).unwrap();
        let len = input.u8();
        let _ = client.write_all(input.bytes(len.into()));
        while events.run_with_timeout(0).unwrap() > 0 {
            let mut control = control.lock().unwrap();
            for command in control.take_commands() {
                control.answer(command.client, &Response::Done);
            }
        }
        let _ = client.read(&mut [0; 4096]);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let line = |verb: &str| {
        let line = format!("{{\"verb\":\"{verb}\"}}\n");
        [&[0, line.len() as u8][..], line.as_bytes()].concat()
    };
    let share = "share\",\"shares\":[{\"name\":\"v0\",\"readonly\":true}],\"x\":\"";
    let unshare = "unshare\",\"names\":[\"v0\"],\"x\":\"";
    vec![
        [line("pause"), line("stats"), line("resume"), line("none")].concat(),
        [line(share), line(unshare)].concat(),
    ]
}
