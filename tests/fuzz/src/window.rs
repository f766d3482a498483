//! The DAX window: what the guest asks of it, and what the worker hands over for it.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use bulkhead_devices::fs::{FsDevice, SLOT_LEN, Window};
use bulkhead_devices::testing::Driver;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::fuse::{message, state_file};
use crate::input::Input;

const REQUESTS: usize = 1;
const SETUP: u32 = 48;
const REMOVE: u32 = 49;
const SLOTS: usize = 4;
const BASE: u64 = 1 << 32;
/// What all files hold.
const BYTE: u8 = 7;

struct World {
    driver: Driver,
    worker: UnixStream,
    window: Window,
    file: File,
    /// The number of the last request.
    asked: u64,
    /// This process's memory, which says EIO where a file has ended.
    memory: File,
}

pub fn run(input: &[u8]) {
    let (worker, socket) = UnixStream::pair().unwrap();
    worker.set_nonblocking(true).unwrap();
    let window = Window::new(BASE, SLOTS).unwrap();
    let device = FsDevice::new("fuzz", OwnedFd::from(socket)).with_window(window.clone());
    let mut world = World {
        driver: Driver::start(Box::new(device)),
        worker,
        window,
        file: state_file(&[BYTE; 5000]),
        asked: 0,
        memory: File::open("/proc/self/mem").unwrap(),
    };
    let mut input = Input(input);
    while !input.is_empty() {
        world.step(&mut input);
        world.driver.run();
        while world.driver.queue(REQUESTS).take_used().is_some() {}
        world.check();
    }
}

/// Mostly a slot's boundary, near or far.
fn place(input: &mut Input) -> u64 {
    match input.u8() {
        near @ 0..240 => u64::from(near % 8) * SLOT_LEN,
        _ => input.u64(),
    }
}

impl World {
    fn step(&mut self, input: &mut Input) {
        match input.u8() % 6 {
            0 | 1 => {
                let body = [u64::MAX, place(input), place(input), 2, place(input)];
                self.ask(SETUP, body.map(u64::to_le_bytes).as_flattened());
            }
            2 => {
                let count = input.u8();
                let mut body = u32::from(count).to_le_bytes().to_vec();
                for _ in 0..input.u8() % 8 {
                    let range = [place(input), place(input)];
                    body.extend(range.map(u64::to_le_bytes).as_flattened());
                }
                self.ask(REMOVE, &body);
            }
            3 => self.answer(input),
            4 => {
                let features = self.driver.offered_features();
                self.driver.initialise(features);
                assert!(self.window.mappings().is_empty(), "a reset empties it");
            }
            _ => drop(self.window.mend()),
        }
    }

    fn ask(&mut self, opcode: u32, body: &[u8]) {
        if self.driver.queue(REQUESTS).free() > 2 {
            self.driver.queue(REQUESTS).post(&[&message(opcode, 1, 9, body)], &[16]);
            self.driver.kick(REQUESTS);
        }
    }

    /// Answers the last request or another, with as many files as it likes.
    fn answer(&mut self, input: &mut Input) {
        let mut request = [0; 80];
        if (&self.worker).read(&mut request).is_ok_and(|len| len == request.len()) {
            self.asked = u64::from_le_bytes(request[8..16].try_into().unwrap());
        }
        let unique = if input.u8().is_multiple_of(8) { input.u64() } else { self.asked };
        let error = -i32::from(input.u8() % 4);
        let reply =
            [&16u32.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes()].concat();
        let files = vec![self.file.as_fd(); usize::from(input.u8() % 4)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&files));
        }
        let _ = sendmsg(&self.worker, &[IoSlice::new(&reply)], &mut control, SendFlags::NOSIGNAL);
    }

    /// A slot holds what a file holds or nothing, and is no more than its own.
    fn check(&self) {
        let mappings = self.window.mappings();
        assert!(mappings.iter().all(|mapping| self.window.takes(mapping)));
        for slot in 0..SLOTS as u64 {
            let mut byte = [0];
            let at = self.window.host_address() + slot * SLOT_LEN;
            let read = self.memory.read_at(&mut byte, at);
            let mapping = mappings.iter().find(|mapping| mapping.at == slot * SLOT_LEN);
            match mapping {
                Some(mapping) if mapping.offset == 0 => assert_eq!(byte, [BYTE]),
                // Beyond the file's end, until that is mended.
                Some(_) => assert!(read.is_err() || byte == [0]),
                None => assert!(read.is_ok() && byte == [0], "slot {slot}: {read:?} {byte:?}"),
            }
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    // Maps a slot, is answered with a file, takes it away again, and starts over.
    let map = |slot: u8, offset: u8| vec![0, offset, 1, slot];
    let reply = |error: u8, files: u8| vec![3, 1, error, files];
    let remove = |slot: u8| vec![2, 1, 1, slot, 1];
    vec![
        [map(0, 0), reply(0, 1), remove(0), map(1, 1), reply(0, 1), vec![5], vec![4]].concat(),
        [map(3, 0), map(2, 0), reply(0, 1), reply(0, 2), reply(2, 0), vec![4], reply(0, 1)]
            .concat(),
    ]
}
