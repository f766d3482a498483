//! Floods of devices that are held to a rate. What they came to is counted on the host, in files,
//! bytes and frames, and never exceeds the bucket: its burst, what the rate has brought since before
//! the monitor was started, and one operation, which may go into debt. Then vsock connections, which
//! are held to a number and to buffers of a size.

use std::fs;
use std::io::Read;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::arena::{Arena, End, Story};
use crate::tap::{GUEST, Tap};

/// The guest's attacks here.
pub const FLOODS: &[&str] = &[
    "flood_of_files",
    "flood_of_writes",
    "flood_of_copies",
    "flood_of_packets",
    "flood_of_output",
    "flood_of_small_entropy",
    "flood_of_large_entropy",
    "flood_of_frames",
    "flood_of_large_frames",
    "flood_of_received_frames",
    "flood_of_console_bytes",
    "flood_of_connections",
];

/// Tokens of a bucket: the rate is so low that what counts is the burst, however slow the machine.
const PER_SECOND: u64 = 40;

/// A spec's limit on `device`, of "operations" or "bytes".
fn limit(device: &str, what: &str, burst: u64) -> String {
    let rate = format!(r#"{{"per_second":{PER_SECOND},"burst":{burst}}}"#);
    match device {
        "console" => format!(r#""limits":{{"console":{rate}}}"#),
        _ => format!(r#""limits":{{"{device}":{{"{what}":{rate}}}}}"#),
    }
}

/// `count` is what the bucket let through, `largest` the most that an operation costs.
#[track_caller]
fn within(count: u64, burst: u64, largest: u64, story: &Story) {
    let brought = PER_SECOND * (story.elapsed.as_secs() + 1);
    let max = burst + brought + largest;
    assert!(count <= max, "{count} of at most {max}: {}", story.text);
    assert!(count >= burst / 2, "{count}, while {burst} were there at once: {}", story.text);
}

/// A number that the guest told.
#[track_caller]
fn told(story: &Story, name: &str) -> u64 {
    let line = story.said.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().parse().ok());
    number.unwrap_or_else(|| panic!("the guest tells {name}: {}", story.text))
}

#[test]
fn files_made_are_bounded_by_fs_operations() {
    let arena = Arena::with(&limit("fs", "operations", 100));
    let story = arena.attack("flood_of_files", End::Through);
    let made = fs::read_dir(arena.path("share")).expect("a directory").count() as u64;
    within(made, 100, 1, &story);
}

#[test]
fn bytes_written_are_bounded_by_fs_bytes() {
    const BURST: u64 = 12 << 20;
    // INIT, LOOKUP twice and OPEN each offer 2 MiB for a reply, which are paid for.
    const BEFORE: u64 = 8 << 20;
    let arena = Arena::with(&limit("fs", "bytes", BURST));
    let story = arena.attack("flood_of_writes", End::Through);
    let written = fs::metadata(arena.path("share/file")).expect("a file").len();
    within(BEFORE + written, BURST, 65 << 10, &story);
    assert!(written > 1 << 20, "{written}: {}", story.text);
}

#[test]
fn bytes_copied_are_bounded_by_fs_bytes() {
    const BURST: u64 = 48 << 20;
    // INIT, LOOKUP twice, OPEN and SETATTR each offer 2 MiB for a reply.
    const BEFORE: u64 = 10 << 20;
    const LEN: u64 = 4 << 20;
    let arena = Arena::with(&limit("fs", "bytes", BURST));
    let story = arena.attack("flood_of_copies", End::Through);
    let copied = fs::metadata(arena.path("share/file")).expect("a file").len() - LEN;
    within(BEFORE + 2 * copied, BURST, 2 * LEN + 1024, &story);
}

#[test]
fn files_known_and_open_are_bounded_by_fs_files() {
    const FILES: usize = 1024;
    for (attack, counted) in [("fuse_inode_flood", "made"), ("fuse_open_flood", "opened")] {
        let arena = Arena::with(&format!(r#""limits":{{"fs_files":{FILES}}}"#));
        let story = arena.attack(attack, End::Through);
        let count = told(&story, counted);
        assert!((200..FILES as u64).contains(&count), "{}", story.text);
        // Looked at from time to time: the last of them may have been missed.
        assert!(story.worker_files < FILES, "{}", story.text);
    }
}

#[test]
fn packets_are_bounded_by_vsock_operations() {
    let arena = Arena::with(&limit("vsock", "operations", 100));
    let story = arena.attack("flood_of_packets", End::Through);
    within(story.stdout_len, 100, 1, &story);
}

#[test]
fn output_is_bounded_by_vsock_bytes() {
    const BURST: u64 = 128 << 10;
    let arena = Arena::with(&limit("vsock", "bytes", BURST));
    let story = arena.attack("flood_of_output", End::Through);
    within(story.stdout_len, BURST, 4140, &story);
}

#[test]
fn requests_are_bounded_by_rng_operations() {
    let arena = Arena::with(&limit("rng", "operations", 100));
    let story = arena.attack("flood_of_small_entropy", End::Through);
    // Those that are none, too.
    within(told(&story, "used"), 100, 1, &story);
    assert!(told(&story, "bytes") <= 16 * told(&story, "used"), "{}", story.text);
}

#[test]
fn entropy_is_bounded_by_rng_bytes() {
    const BURST: u64 = 128 << 10;
    let arena = Arena::with(&limit("rng", "bytes", BURST));
    let story = arena.attack("flood_of_large_entropy", End::Through);
    within(told(&story, "bytes"), BURST, 64 << 10, &story);
}

#[test]
fn frames_are_bounded_by_net_operations() {
    let tap = Tap::new();
    let spec = [tap.spec(), limit("net_tx", "operations", 100)].join(",");
    let story = Arena::with(&spec).attack("flood_of_frames", End::Through);
    within(tap.count("rx_packets"), 100, 1, &story);
}

#[test]
fn frames_are_bounded_by_net_bytes() {
    const BURST: u64 = 128 << 10;
    let tap = Tap::new();
    let spec = [tap.spec(), limit("net_tx", "bytes", BURST)].join(",");
    let story = Arena::with(&spec).attack("flood_of_large_frames", End::Through);
    // Without the virtio headers.
    within(tap.count("rx_bytes"), BURST, 1526, &story);
}

#[test]
fn frames_to_a_guest_are_bounded_by_net_operations() {
    let tap = Tap::new();
    let spec = [tap.spec(), limit("net_rx", "operations", 100)].join(",");
    let arena = Arena::with(&spec);
    let (done, sent) = (AtomicBool::new(false), UdpSocket::bind("0.0.0.0:0").expect("a socket"));
    let story = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // A full queue refuses, or loses.
                let _ = sent.send_to(b"hello", (GUEST, 9));
            }
        });
        let story = arena.attack("flood_of_received_frames", End::Through);
        done.store(true, Ordering::Relaxed);
        story
    });
    within(tap.count("tx_packets"), 100, 1, &story);
}

#[test]
fn what_the_guest_says_is_bounded_by_console_bytes() {
    let story = Arena::with(&limit("console", "bytes", 2_000))
        .attack("flood_of_console_bytes", End::Through);
    let said = story.said.bytes().filter(|byte| *byte == b'~').count() as u64;
    within(said, 2_000, 1, &story);
}

#[test]
fn connections_and_what_waits_in_them_are_bounded_by_caps() {
    const CONNECTIONS: u64 = 16;
    const BUFFER: u64 = 16 << 10;
    /// Open in any monitor: 37 to 43 were seen.
    const FILES: usize = 50;
    let caps = format!(r#""limits":{{"vsock_connections":{CONNECTIONS},"vsock_buffer":{BUFFER}}}"#);
    let arena = Arena::with(&caps);
    let path = arena.path("vsock.sock_5000");
    let listener = UnixListener::bind(&path).expect("a socket");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("a mode");
    let story = arena.attack("flood_of_connections", End::Through);
    fs::remove_file(path).expect("the socket");
    listener.set_nonblocking(true).expect("a socket");
    // Accepted only now: what a program got is what its socket held.
    let programs: Vec<_> = std::iter::from_fn(|| listener.accept().ok()).collect();
    assert_eq!(programs.len() as u64, CONNECTIONS, "{}", story.text);
    assert_eq!(told(&story, "open"), CONNECTIONS, "{}", story.text);
    let got: u64 = programs
        .into_iter()
        .map(|(mut program, _)| program.read_to_end(&mut Vec::new()).expect("an end") as u64)
        .sum();
    let held = told(&story, "sent") - got;
    assert!(held <= CONNECTIONS * BUFFER, "{held}: {}", story.text);
    assert!(held >= CONNECTIONS * BUFFER / 2, "{held}: {}", story.text);
    assert!(story.files <= FILES + 2 * CONNECTIONS as usize, "{}", story.text);
}
