//! The window: what the guest asks to be mapped, and what the worker hands over.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use virtio_bindings::virtio_mmio::*;

use super::*;

const SETUP: u32 = 48;
const REMOVE: u32 = 49;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
const BASE: u64 = 1 << 32;
const SLOTS: usize = 4;

fn start_with_window() -> (Driver, Worker, Window) {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let window = Window::new(BASE, SLOTS).unwrap();
    let device = FsDevice::new("bulkhead", OwnedFd::from(near)).with_window(window.clone());
    (Driver::start(Box::new(device)), Worker(far), window)
}

/// A file of `len` bytes, all `byte`.
fn file(byte: u8, len: usize) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![byte; len]).unwrap();
    file
}

impl Worker {
    /// Answers with a file.
    fn hand_over(&mut self, unique: u64, file: &File) {
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        let bytes = reply(16, 0, unique, &[]);
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
    }
}

/// `struct fuse_setupmapping_in`.
fn setup(offset: u64, len: u64, at: u64) -> Vec<u8> {
    [u64::MAX, offset, len, 2, at].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `struct fuse_removemapping_in` and what follows it.
fn remove(count: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = count.to_le_bytes().to_vec();
    bytes
        .extend(ranges.iter().flat_map(|(at, len)| [at.to_le_bytes(), len.to_le_bytes()].concat()));
    bytes
}

fn ask(driver: &mut Driver, opcode: u32, body: &[u8]) -> i32 {
    post(driver, opcode, 1, body, &[16]);
    error_of(&driver.wait_used(REQUESTS))
}

fn map(driver: &mut Driver, worker: &mut Worker, slot: u64, offset: u64, file: &File) {
    post(driver, SETUP, 1, &setup(offset, SLOT_LEN, slot * SLOT_LEN), &[16]);
    let asked = worker.read();
    assert_eq!(asked.opcode, SETUP);
    worker.hand_over(asked.unique, file);
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), 0);
}

/// What the guest would read there; `None` if KVM_RUN would fail. By way of a file: this process must
/// not touch what is mapped.
fn look(window: &Window, at: u64) -> Option<u8> {
    let mut byte = [0];
    let memory = File::open("/proc/self/mem").unwrap();
    memory.read_exact_at(&mut byte, window.host_address() + at).ok().map(|()| byte[0])
}

#[test]
fn the_guest_finds_it_by_the_transports_registers() {
    let (driver, _worker, _window) = start_with_window();
    let region = |id| {
        driver.write(VIRTIO_MMIO_SHM_SEL, id);
        let word = |low: u32| u64::from(driver.read(low)) | u64::from(driver.read(low + 4)) << 32;
        (word(VIRTIO_MMIO_SHM_BASE_LOW), word(VIRTIO_MMIO_SHM_LEN_LOW))
    };
    assert_eq!(region(1), (u64::MAX, u64::MAX));
    assert_eq!(region(0), (BASE, SLOTS as u64 * SLOT_LEN));
}

#[test]
fn a_file_is_mapped_replaced_and_taken_away() {
    let (mut driver, mut worker, window) = start_with_window();
    map(&mut driver, &mut worker, 1, 0, &file(7, 5000));
    let large = file(8, SLOT_LEN as usize + 1);
    map(&mut driver, &mut worker, 2, SLOT_LEN, &large);
    let slot = SLOT_LEN;
    assert_eq!(
        [0, slot, slot + 4999, slot + 5000, 2 * slot].map(|at| look(&window, at)),
        [Some(0), Some(7), Some(7), Some(0), Some(8)]
    );
    map(&mut driver, &mut worker, 1, 0, &large);
    assert_eq!(look(&window, slot + 5000), Some(8));
    assert_eq!(ask(&mut driver, REMOVE, &remove(2, &[(slot, slot), (2 * slot, 2 * slot)])), 0);
    assert_eq!([slot, 2 * slot, 3 * slot].map(|at| look(&window, at)), [Some(0); 3]);
    assert!(window.mappings().is_empty() && worker.nothing_to_read());
}

#[test]
fn a_file_that_ends_under_its_mapping_reads_as_zeroes_once_that_was_noticed() {
    let (mut driver, mut worker, window) = start_with_window();
    let shrinking = file(7, 3 * 4096);
    map(&mut driver, &mut worker, 0, 0, &shrinking);
    map(&mut driver, &mut worker, 1, 0, &file(8, SLOT_LEN as usize));
    shrinking.set_len(4096).unwrap();
    assert_eq!([0, 4096, 8192].map(|at| look(&window, at)), [Some(7), None, None]);
    assert!(window.mend());
    let after = [0, 4096, SLOT_LEN - 1, SLOT_LEN].map(|at| look(&window, at));
    assert_eq!(after, [Some(7), Some(0), Some(0), Some(8)]);
    assert!(!window.mend(), "a guest that meets another error must not be tried again for ever");
}

#[test]
fn what_is_no_mapping_is_refused_and_the_worker_does_not_hear_of_it() {
    let (mut driver, mut worker, window) = start_with_window();
    let (slot, end) = (SLOT_LEN, SLOTS as u64 * SLOT_LEN);
    for (offset, len, at) in [
        (0, slot, end),
        (0, slot, u64::MAX - slot + 1),
        (0, slot, 4096),
        (4096, slot, 0),
        (u64::MAX - slot + 1, slot, 0),
        (i64::MAX as u64 / slot * slot, slot, 0),
        (0, 0, 0),
        (0, 4096, 0),
        (0, 2 * slot, 0),
        (0, u64::MAX, 0),
    ] {
        let error = ask(&mut driver, SETUP, &setup(offset, len, at));
        assert_eq!(error, EINVAL, "{offset:#x} {len:#x} {at:#x}");
    }
    assert_eq!(ask(&mut driver, SETUP, &[0; 39]), EINVAL);
    map(&mut driver, &mut worker, 1, 0, &file(7, 1));
    for (count, ranges) in [
        (1, &[(slot, slot + 4096)][..]),
        (1, &[(4096, slot)]),
        (1, &[(end, slot)]),
        (1, &[(u64::MAX - slot + 1, slot)]),
        (1, &[(slot, u64::MAX - slot + 1)]),
        (2, &[(0, slot)]),
        (u32::MAX, &[]),
        (SLOTS as u32 + 1, &[(slot, 0); SLOTS + 1]),
    ] {
        assert_eq!(ask(&mut driver, REMOVE, &remove(count, ranges)), EINVAL, "{count} {ranges:x?}");
    }
    assert_eq!(ask(&mut driver, REMOVE, &[1, 0, 0]), EINVAL);
    assert!(worker.nothing_to_read());
    assert_eq!(look(&window, slot), Some(7));
    let (mut driver, mut worker) = start();
    assert_eq!(ask(&mut driver, SETUP, &setup(0, slot, 0)), ENOSYS, "there is no window");
    assert_eq!(ask(&mut driver, REMOVE, &remove(0, &[])), ENOSYS);
    assert!(worker.nothing_to_read());
}

#[test]
fn a_buffer_in_the_window_is_outside_of_guest_memory() {
    let (mut driver, mut worker, _window) = start_with_window();
    map(&mut driver, &mut worker, 0, 0, &file(7, 4096));
    let header = FREE_MEMORY.start;
    let bytes = message(READ, 9, &[]);
    driver.memory.write_slice(&bytes, GuestAddress(header)).unwrap();
    let queue = driver.queue(REQUESTS);
    queue.write_descriptor(0, header, 40, 1, 1);
    queue.write_descriptor(1, header + 64, 16, 3, 2);
    queue.write_descriptor(2, BASE, 4096, 2, 0);
    queue.publish(0);
    driver.kick(REQUESTS);
    driver.run();
    assert!(worker.nothing_to_read(), "the request was refused");
}

#[test]
fn a_reply_without_its_file_or_with_an_error_maps_nothing() {
    let (mut driver, mut worker, window) = start_with_window();
    post(&mut driver, SETUP, 1, &setup(0, SLOT_LEN, 0), &[16]);
    let asked = worker.read();
    worker.answer(asked.unique, &[]);
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), EIO);
    post(&mut driver, SETUP, 1, &setup(0, SLOT_LEN, 0), &[16]);
    let asked = worker.read();
    worker.write(&reply(16, -EINVAL, asked.unique, &[]));
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), EINVAL);
    // No file to be mapped: a directory.
    post(&mut driver, SETUP, 1, &setup(0, SLOT_LEN, 0), &[16]);
    let asked = worker.read();
    worker.hand_over(asked.unique, &File::open("/").unwrap());
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), EIO);
    assert!(window.mappings().is_empty());
}

#[test]
fn a_worker_that_hands_over_more_than_it_was_asked_for_is_ended() {
    let (mut driver, mut worker, _window) = start_with_window();
    let file = file(1, 1);
    let mut sent = 0;
    while sent < 1000 {
        post(&mut driver, 3, 1, b"", &[16]);
        let asked = match worker.0.set_nonblocking(false) {
            Ok(()) if driver.queue(REQUESTS).take_used().is_none() => worker.read(),
            _ => break,
        };
        worker.hand_over(asked.unique, &file);
        sent += 1;
        if error_of(&driver.wait_used(REQUESTS)) != 0 {
            break;
        }
    }
    assert!((1..1000).contains(&sent), "{sent} files are held");
}

/// Else a guest that may read so much a second would read all the same.
#[test]
fn a_mapping_counts_as_its_bytes() {
    let (near, far) = UnixStream::pair().unwrap();
    let [per_second, burst] = [20 * SLOT_LEN, 1].map(|n| NonZeroU64::new(n).unwrap());
    let limits = RateLimits { operations: None, bytes: Some(Rate { per_second, burst }) };
    let device = FsDevice::new("bulkhead", OwnedFd::from(near)).limited(&limits).unwrap();
    let device = device.with_window(Window::new(BASE, SLOTS).unwrap());
    let (mut driver, mut worker) = (Driver::start(Box::new(device)), Worker(far));
    let start = Instant::now();
    for slot in 0..3 {
        post(&mut driver, SETUP, 1, &setup(0, SLOT_LEN, slot * SLOT_LEN), &[16]);
    }
    let file = file(1, 1);
    let answers = thread::spawn(move || {
        for _ in 0..3 {
            let asked = worker.read();
            worker.hand_over(asked.unique, &file);
        }
    });
    for _ in 0..3 {
        assert_eq!(error_of(&driver.wait_used(REQUESTS)), 0);
    }
    answers.join().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(95), "{:?}", start.elapsed());
}

#[test]
fn a_reset_empties_it_and_a_late_file_is_not_taken_for_the_next() {
    let (mut driver, mut worker, window) = start_with_window();
    map(&mut driver, &mut worker, 0, 0, &file(7, 1));
    post(&mut driver, SETUP, 1, &setup(0, SLOT_LEN, SLOT_LEN), &[16]);
    let late = worker.read();
    let features = driver.offered_features();
    driver.initialise(features);
    assert_eq!([0, SLOT_LEN].map(|at| look(&window, at)), [Some(0); 2]);
    post(&mut driver, SETUP, 1, &setup(0, SLOT_LEN, 0), &[16]);
    let asked = worker.read();
    worker.hand_over(late.unique, &file(8, 1));
    worker.hand_over(asked.unique, &file(9, 1));
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), 0);
    assert_eq!([0, SLOT_LEN].map(|at| look(&window, at)), [Some(9), Some(0)]);
}

#[test]
fn what_a_saved_guest_had_mapped_is_mapped_again_or_the_guest_is_not_restored() {
    let (mut driver, mut worker, _window) = start_with_window();
    map(&mut driver, &mut worker, 0, 0, &file(7, 1));
    map(&mut driver, &mut worker, 3, SLOT_LEN, &file(7, 1));
    for errno in [0, 116] {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let window = Window::new(BASE, SLOTS).unwrap();
        let device = FsDevice::new("bulkhead", OwnedFd::from(near)).with_window(window.clone());
        let next = thread::spawn(move || {
            let mut worker = Worker(far);
            let first = worker.read();
            assert_eq!((first.opcode, &first.body[..]), (SETUP, &setup(0, SLOT_LEN, 0)[..]));
            worker.hand_over(first.unique, &file(8, 1));
            let second = worker.read();
            assert_eq!(second.body, setup(SLOT_LEN, SLOT_LEN, 3 * SLOT_LEN));
            match errno {
                0 => worker.hand_over(second.unique, &file(9, SLOT_LEN as usize + 1)),
                errno => worker.write(&reply(16, -errno, second.unique, &[])),
            }
            worker
        });
        let restored = driver.restore_to(Box::new(device));
        next.join().unwrap();
        assert_eq!(restored.is_ok(), errno == 0, "{restored:?}");
        if errno == 0 {
            assert_eq!([0, 3 * SLOT_LEN].map(|at| look(&window, at)), [Some(8), Some(9)]);
        }
    }
}

#[test]
fn a_saved_window_may_say_anything() {
    let more_than_fit = vec![(0, SLOT_LEN, 0); SLOTS + 1];
    for mappings in
        [vec![(0, 4096, 0)], vec![(0, SLOT_LEN, BASE)], vec![(1, SLOT_LEN, 0)], more_than_fit]
    {
        let mappings = mappings.into_iter();
        let mappings: Vec<Mapping> =
            mappings.map(|(offset, len, at)| Mapping { node: 2, offset, len, at }).collect();
        let (near, far) = UnixStream::pair().unwrap();
        let window = Window::new(BASE, SLOTS).unwrap();
        let mut device = FsDevice::new("bulkhead", OwnedFd::from(near)).with_window(window);
        assert!(device.restore(&postcard::to_stdvec(&mappings).unwrap()).is_err());
        assert!(device.restore(&[0xff; 9]).is_err());
        assert!(Worker(far).nothing_to_read(), "the worker is not waited for");
    }
}
