//! Frames from the guest.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::*;
use crate::rate_limiter::Rate;

#[test]
fn a_frame_arrives_whole_however_it_is_cut() {
    let whole = frame(3, 1000);
    for cuts in [vec![], vec![12], vec![5, 100], vec![1, 2, 3, 500, 1011], vec![0, 0, 12, 12]] {
        let mut wire = Wire::new();
        let ends: Vec<usize> = cuts.iter().copied().chain([whole.len()]).collect();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let pieces: Vec<&[u8]> =
            starts.zip(&ends).map(|(start, end)| &whole[start..*end]).collect();
        let head = wire.send(&pieces);
        let used = wire.used(TX);
        assert_eq!((used.len(), used[0].head, used[0].len), (1, head, 0));
        assert_eq!(wire.host_gets().as_ref(), Some(&whole), "cut at {cuts:?}");
    }
}

#[test]
fn the_header_asks_for_what_was_negotiated() {
    let mut segments = frame(1, 60_000);
    segments[..10].copy_from_slice(&[1, 1, 54, 0, 168, 5, 34, 0, 16, 0]);
    let mut wire = Wire::new();
    wire.send(&[&segments]);
    wire.driver.run();
    assert_eq!(wire.host_gets().as_ref(), Some(&segments));

    let mut wire = Wire::with(EVENT_IDX, NetConfig::default());
    wire.send(&[&segments]);
    wire.send(&[&frame(2, 60)]);
    assert_eq!(wire.used(TX).len(), 2);
    assert_eq!(wire.host_gets(), Some(frame(2, 60)), "only what was negotiated is passed on");
}

#[test]
fn frames_wait_for_a_host_that_takes_no_more() {
    let mut wire = Wire::new();
    let mut sent = 0u8;
    while sent < 200 {
        wire.driver.queue(TX).post(&[&frame(sent, 8000)], &[]);
        sent += 1;
    }
    wire.driver.kick(TX);
    let taken = wire.used(TX).len();
    assert!((1..200).contains(&taken), "the socket's buffer holds some of 1.6 MB, not {taken}");
    let mut got = 0u8;
    let mut done = taken;
    while got < 200 {
        while let Some(message) = wire.host_gets() {
            assert!(message == frame(got, 8000), "frame {got} is next");
            got += 1;
        }
        done += wire.used(TX).len();
    }
    assert_eq!(done, 200);
}

#[test]
fn a_batch_ends_with_one_interrupt_a_turn_and_is_never_forgotten() {
    let mut wire = Wire::new();
    for _ in 0..200 {
        wire.driver.queue(TX).post(&[&frame(1, 60)], &[]);
    }
    wire.driver.kick(TX);
    let mut got = 0;
    while got < 200 {
        wire.driver.run();
        got += std::iter::from_fn(|| wire.host_gets()).count();
    }
    assert_eq!(wire.used(TX).len(), 200);
    assert!(wire.driver.interrupts.count() <= 200usize.div_ceil(FRAMES_MAX) + 1);
}

/// EVENT_IDX on both sides: no notification while the device has something to do or must wait anyway,
/// no interrupt that the driver does not ask for.
#[test]
fn a_device_is_notified_once_until_it_has_run_out_of_frames() {
    let mut wire = Wire::new();
    for round in 0..3 {
        for number in 0..10 {
            wire.driver.queue(TX).post(&[&frame(number, 60)], &[]);
            assert_eq!(wire.driver.queue(TX).wants_kick(), number == 0, "round {round}");
        }
        let before = wire.driver.interrupts.count();
        wire.driver.transport.lock().unwrap().queue_notifiers()[TX].write(1).unwrap();
        wire.driver.run();
        assert_eq!(wire.used(TX).len(), 10);
        assert_eq!(wire.driver.interrupts.count(), before + 1);
        // Another look at an empty queue interrupts nobody.
        wire.driver.transport.lock().unwrap().queue_notifiers()[TX].write(1).unwrap();
        wire.driver.run();
        assert_eq!(wire.driver.interrupts.count(), before + 1);
    }
    let number = |value| NonZeroU64::new(value).unwrap();
    let rate = Rate { per_second: number(1), burst: number(3) };
    let tx_limits = RateLimits { operations: Some(rate), ..RateLimits::default() };
    let mut wire = Wire::with(u64::MAX, NetConfig { tx_limits, ..NetConfig::default() });
    for number in 0..50 {
        wire.driver.queue(TX).post(&[&frame(number, 60)], &[]);
        let wanted = wire.driver.queue(TX).wants_kick();
        assert!(number <= 3 || !wanted, "frame {number} has to wait anyway");
        if wanted {
            wire.driver.transport.lock().unwrap().queue_notifiers()[TX].write(1).unwrap();
        }
        wire.driver.run();
    }
}

#[test]
fn limits_hold_frames_back_and_let_them_go() {
    let number = |value| NonZeroU64::new(value).unwrap();
    let rate = Rate { per_second: number(100), burst: number(3) };
    let tx_limits = RateLimits { operations: Some(rate), ..RateLimits::default() };
    let mut wire = Wire::with(u64::MAX, NetConfig { tx_limits, ..NetConfig::default() });
    let start = Instant::now();
    for seed in 0..10 {
        wire.driver.queue(TX).post(&[&frame(seed, 60)], &[]);
    }
    wire.driver.kick(TX);
    let mut done = 0;
    wire.driver.wait("ten frames", |driver| {
        while driver.queue(TX).take_used().is_some() {
            done += 1;
        }
        done == 10
    });
    // Three at once, seven at 10 ms each.
    assert!(start.elapsed() >= Duration::from_millis(69), "{:?}", start.elapsed());
    let order: Vec<_> = std::iter::from_fn(|| wire.host_gets()).collect();
    assert_eq!(order, (0..10).map(|seed| frame(seed, 60)).collect::<Vec<_>>());
}
