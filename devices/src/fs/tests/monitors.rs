//! Requests of the monitor's own among the guest's.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::*;

const SHARE: u32 = 0x424b_0002;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;

fn ask(driver: &mut Driver, body: &[u8], files: Vec<OwnedFd>) -> Result<(), i32> {
    let message = message(SHARE, 77, body);
    let asked = driver.with_device(|fs: &mut FsDevice, ops| fs.ask(message, files, ops));
    asked.map_err(|error| error.raw_os_error().unwrap())
}

fn answer(driver: &mut Driver) -> Option<Result<(), i32>> {
    let answer = driver.with_device(|fs: &mut FsDevice, _| fs.take_answer())?;
    Some(answer.map_err(|error| error.raw_os_error().unwrap()))
}

fn wait_done(driver: &mut Driver) {
    driver.wait("an answer", |driver| {
        let answer = answer(driver);
        assert!(matches!(answer, None | Some(Ok(()))), "{answer:?}");
        answer.is_some()
    });
}

/// Two sockets of which one is handed over: who has it can be told by the other.
fn file() -> (UnixStream, Vec<OwnedFd>) {
    let (kept, given) = UnixStream::pair().unwrap();
    kept.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (kept, vec![given.into()])
}

/// Reads the first byte of a message, and what came with it.
fn first_byte(worker: &Worker) -> (u8, Vec<OwnedFd>) {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(&mut byte)];
    recvmsg(&worker.0, buffers, &mut control, RecvFlags::empty()).unwrap();
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files.collect::<Vec<_>>()),
        _ => None,
    });
    let files = files.flatten().collect();
    (byte[0], files)
}

/// Reads the rest of such a message; returns its number and body.
fn rest(worker: &mut Worker, first: u8) -> (u64, Vec<u8>) {
    let mut header = [0; 39];
    worker.0.read_exact(&mut header).unwrap();
    let len = u32::from_le_bytes([first, header[0], header[1], header[2]]);
    assert_eq!(header[3..7], SHARE.to_le_bytes());
    let mut body = vec![0; len as usize - 40];
    worker.0.read_exact(&mut body).unwrap();
    (u64::from_le_bytes(header[7..15].try_into().unwrap()), body)
}

#[test]
fn it_goes_out_with_its_files_while_the_guest_waits() {
    let (mut driver, mut worker) = start();
    // The guest gives its request the number that the monitor's has.
    post(&mut driver, READ, 1, &[1; 8], &[16, 64]);
    let guests = worker.read();
    let (mut kept, files) = file();
    assert_eq!(answer(&mut driver), None);
    assert_eq!(ask(&mut driver, b"name\0", files), Ok(()));
    assert_eq!(ask(&mut driver, b"more\0", vec![]), Err(EBUSY));
    assert!(!driver.transport.lock().unwrap().is_idle());
    let (first, files) = first_byte(&worker);
    let (number, body) = rest(&mut worker, first);
    assert_eq!((files.len(), &body[..]), (1, &b"name\0"[..]));
    assert_ne!(number, guests.unique);
    drop(files);
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "the device keeps no file");

    driver.run();
    assert_eq!(answer(&mut driver), None);
    worker.write(&reply(16, -EEXIST, number, &[]));
    worker.answer(guests.unique, &[7; 64]);
    assert_eq!(driver.wait_used(REQUESTS).bytes[16..], [7; 64]);
    assert_eq!(answer(&mut driver), Some(Err(EEXIST)));
    assert_eq!(answer(&mut driver), None);
    assert!(driver.transport.lock().unwrap().is_idle());

    assert_eq!(ask(&mut driver, b"more\0", vec![]), Ok(()));
    let (first, files) = first_byte(&worker);
    assert!(files.is_empty());
    let (number, _) = rest(&mut worker, first);
    worker.answer(number, &[]);
    wait_done(&mut driver);
}

/// A full socket holds half a WRITE, the reset takes it from the guest, and the monitor's request is next.
#[test]
fn it_waits_for_the_message_before_it_even_beyond_a_reset() {
    let (mut driver, mut worker) = start();
    let data = vec![5; 900_000];
    let write = message(WRITE, 1, &data);
    let parts: Vec<&[u8]> = write.chunks(100_000).collect();
    driver.queue(REQUESTS).post(&parts, &[16, 8]);
    driver.kick(REQUESTS);
    driver.run();
    let (_kept, files) = file();
    assert_eq!(ask(&mut driver, b"name\0", files), Ok(()));
    for _ in 0..2 {
        let features = driver.offered_features();
        driver.initialise(features);
    }
    let reading = thread::spawn(move || {
        let written = worker.read();
        assert!(written.body == data, "WRITE arrived changed");
        let (first, files) = first_byte(&worker);
        let (number, body) = rest(&mut worker, first);
        assert_eq!((files.len(), &body[..]), (1, &b"name\0"[..]));
        worker.answer(written.unique, &[1; 8]);
        worker.answer(number, &[]);
        worker
    });
    wait_done(&mut driver);
    let mut worker = reading.join().unwrap();
    post(&mut driver, 1, 8, b"name\0", &[16, 64]);
    assert_eq!(worker.read().body, b"name\0");
}

#[test]
fn an_answer_to_nothing_or_none_at_all_ends_the_connection() {
    // A number that was answered; a body that none has; the worker's end.
    for (reply, errno) in
        [(Some(reply(16, 0, 1, &[])), EIO), (Some(reply(24, 0, 1, &[0; 8])), EIO), (None, ENOTCONN)]
    {
        let (mut driver, worker) = start();
        let mut worker = Some(worker);
        if reply.as_ref().is_none_or(|reply| reply.len() > 16) {
            assert_eq!(ask(&mut driver, b"name\0", vec![]), Ok(()));
            let (first, _) = first_byte(worker.as_ref().unwrap());
            rest(worker.as_mut().unwrap(), first);
        }
        match reply {
            Some(reply) => worker.as_mut().unwrap().write(&reply),
            None => drop(worker.take()),
        }
        driver.run();
        if let Some(answer) = answer(&mut driver) {
            assert_eq!(answer, Err(errno));
        }
        post(&mut driver, READ, 2, &[], &[16, 64]);
        assert_eq!(error_of(&driver.wait_used(REQUESTS)), errno);
        assert_eq!(ask(&mut driver, b"name\0", vec![]), Ok(()));
        assert_eq!(answer(&mut driver), Some(Err(errno)));
    }
}
