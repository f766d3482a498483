//! Between /dev/fuse and the server's socket.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use bulkhead_devices::fs::FsDevice;
use bulkhead_devices::testing::{Driver, SEGMENT_MAX};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};

/// The longest request: what the server takes.
const REQUEST_MAX: usize = (1 << 20) + 8192;

/// One thread a direction. Both end when the mount is gone.
pub fn pump(device: File, socket: UnixStream) -> Vec<JoinHandle<()>> {
    let (device_in, socket_in) = (device.try_clone().unwrap(), socket.try_clone().unwrap());
    let requests = thread::spawn(move || {
        let (mut device, mut socket) = (device_in, socket_in);
        let mut buffer = vec![0; REQUEST_MAX];
        loop {
            match device.read(&mut buffer) {
                Ok(len) => socket.write_all(&buffer[..len]).unwrap(),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(_) => break,
            }
        }
        let _ = socket.shutdown(std::net::Shutdown::Write);
    });
    let replies = thread::spawn(move || {
        let (mut device, mut socket) = (device, socket);
        let mut buffer = vec![0; REQUEST_MAX];
        while socket.read_exact(&mut buffer[..16]).is_ok() {
            let len = u32::from_le_bytes(buffer[..4].try_into().unwrap()) as usize;
            socket.read_exact(&mut buffer[16..len]).unwrap();
            reply(&mut device, &buffer[..len]);
        }
    });
    vec![requests, replies]
}

/// One thread that plays the driver of a virtio-fs device whose worker is the server.
pub fn pump_through_device(device: File, socket: UnixStream) -> Vec<JoinHandle<()>> {
    vec![thread::spawn(move || drive(device, socket))]
}

/// Queue of requests, room for a reply, and how many descriptors one request takes at most.
const REQUESTS: usize = 1;
const ROOM: [u32; 10] = [SEGMENT_MAX as u32; 10];
const DESCRIPTORS_MAX: usize = 10 + ROOM.len();

fn drive(mut device: File, socket: UnixStream) {
    fcntl_setfl(&device, OFlags::NONBLOCK).unwrap();
    let mut driver = Driver::start(Box::new(FsDevice::new("test", socket.into())));
    let mut buffer = vec![0; REQUEST_MAX];
    loop {
        let room = driver.queue(REQUESTS).free() >= DESCRIPTORS_MAX;
        match if room { device.read(&mut buffer) } else { Err(ErrorKind::WouldBlock.into()) } {
            Ok(len) => {
                let chunks: Vec<&[u8]> = buffer[..len].chunks(SEGMENT_MAX as usize).collect();
                let silent = matches!(buffer[4], 2 | 36 | 42);
                driver.queue(REQUESTS).post(&chunks, if silent { &[] } else { &ROOM });
                driver.kick(REQUESTS);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(_) => return,
        }
        driver.run();
        while let Some(used) = driver.queue(REQUESTS).take_used() {
            if used.len > 0 {
                reply(&mut device, &used.bytes);
            }
        }
        // While something is outstanding, look again soon.
        let busy = driver.queue(REQUESTS).outstanding() > 0;
        let timeout = Timespec { tv_sec: 0, tv_nsec: if busy { 50_000 } else { 20_000_000 } };
        poll(&mut [PollFd::new(&device, PollFlags::IN)], Some(&timeout)).unwrap();
    }
}

fn reply(device: &mut File, bytes: &[u8]) {
    match device.write(bytes) {
        Ok(written) => assert_eq!(written, bytes.len()),
        // ENOENT: whoever asked was killed. ENODEV: unmounted.
        Err(error) => assert!(
            matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)),
            "the kernel refused a reply: {error}, {:?}",
            &bytes[..bytes.len().min(200)]
        ),
    }
}
