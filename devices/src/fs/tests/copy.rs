//! COPY_FILE_RANGE: a small request for much work on the host.

use rustix::net::sockopt::set_socket_send_buffer_size;

use super::*;

const COPY_FILE_RANGE: u32 = 47;
const MIB: u64 = 1 << 20;

/// A `struct fuse_copy_file_range_in`.
fn copy(len: u64) -> Vec<u8> {
    [1, 0, 2, 3, 0, len, 0u64].map(u64::to_le_bytes).concat()
}

/// Else a guest that may read and write so much a second would have the host do it, 256 MiB a request.
#[test]
fn a_copy_counts_as_what_is_read_and_written() {
    let (near, far) = UnixStream::pair().unwrap();
    let [per_second, burst] = [20 * MIB, 1].map(|n| NonZeroU64::new(n).unwrap());
    let limits = RateLimits { operations: None, bytes: Some(Rate { per_second, burst }) };
    let device = FsDevice::new("bulkhead", OwnedFd::from(near)).limited(&limits).unwrap();
    let (mut driver, mut worker) = (Driver::start(Box::new(device)), Worker(far));
    let start = Instant::now();
    for unique in 0..3 {
        post(&mut driver, COPY_FILE_RANGE, unique, &copy(MIB), &[16, 8]);
    }
    let reader = thread::spawn(move || [(); 3].map(|()| worker.read().body));
    driver.wait("three requests", |_| reader.is_finished());
    assert_eq!(reader.join().unwrap(), [(); 3].map(|()| copy(MIB)));
    // Twice 1 MiB each for the first two.
    assert!(start.elapsed() >= Duration::from_millis(195), "{:?}", start.elapsed());
}

/// The worker copies what was paid for, whatever the guest writes there meanwhile.
#[test]
fn a_copy_is_sent_as_it_was_read() {
    let (near, far) = UnixStream::pair().unwrap();
    set_socket_send_buffer_size(&near, 16 << 10).unwrap();
    let device = FsDevice::new("bulkhead", OwnedFd::from(near));
    let (mut driver, mut worker) = (Driver::start(Box::new(device)), Worker(far));
    let bytes = message(COPY_FILE_RANGE, 1, &copy(1));
    let mut sent = 0;
    while !driver.with_device(|fs: &mut FsDevice, _| fs.channel.is_blocked()) {
        let queue = driver.queue(REQUESTS);
        let head = queue.post(&[&bytes], &[16, 8]);
        let body = queue.buffer(head) + 40;
        driver.kick(REQUESTS);
        driver.run();
        driver.memory.write_slice(&copy(u64::MAX), GuestAddress(body)).unwrap();
        sent += 1;
    }
    let reader = thread::spawn(move || (0..sent).all(|_| worker.read().body == copy(1)));
    driver.wait("all of them", |_| reader.is_finished());
    assert!(reader.join().unwrap());
}

#[test]
fn a_copy_cut_short_is_refused() {
    let (mut driver, mut worker) = start();
    post(&mut driver, COPY_FILE_RANGE, 1, &copy(1)[..55], &[16, 8]);
    assert_eq!(error_of(&driver.wait_used(REQUESTS)), EIO);
    assert!(worker.nothing_to_read());
}
