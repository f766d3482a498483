//! Frames to the guest.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::*;
use crate::rate_limiter::Rate;

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

#[test]
fn a_small_frame_takes_one_buffer() {
    let mut wire = Wire::new();
    wire.post_receive(60, 1536);
    assert!(wire.host_sends(&frame(1, 60)));
    let used = wire.used(RX);
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].bytes, delivered(frame(1, 60), 1));
    assert_eq!(wire.driver.interrupts.count(), 1);
}

#[test]
fn a_large_frame_is_spread_over_buffers() {
    let mut wire = Wire::new();
    wire.post_receive(100, 1536);
    let large = frame(9, 65_000);
    assert!(wire.host_sends(&large) && wire.host_sends(&frame(1, 60)));
    let used = wire.used(RX);
    let chains = large.len().div_ceil(1536);
    assert_eq!(used.len(), chains + 1);
    assert!(used[..chains - 1].iter().all(|used| used.len == 1536));
    let bytes: Vec<u8> = used[..chains].iter().flat_map(|used| used.bytes.clone()).collect();
    assert!(bytes == delivered(large, chains as u16));
    assert_eq!(used[chains].bytes, delivered(frame(1, 60), 1));
    assert_eq!(wire.driver.interrupts.count(), 1);
}

#[test]
fn the_number_of_buffers_may_straddle_descriptors() {
    for cut in [1, 10, 11, 12, 13] {
        let mut wire = Wire::new();
        for _ in 0..45 {
            wire.driver.queue(RX).post(&[], &[cut, 1600]);
        }
        wire.driver.kick(RX);
        assert!(wire.host_sends(&frame(1, 60)));
        assert_eq!(wire.used(RX)[0].bytes, delivered(frame(1, 60), 1), "cut at {cut}");
    }
}

#[test]
fn without_merging_a_frame_takes_one_chain_or_is_lost() {
    let mut wire = Wire::with(!MERGEABLE, NetConfig::default());
    wire.post_receive(2, 1526);
    assert!(wire.host_sends(&frame(1, 1600)));
    assert!(wire.host_sends(&frame(2, 1514)));
    assert!(wire.host_sends(&frame(3, 60)));
    let used: Vec<_> = wire.used(RX).into_iter().map(|used| used.bytes).collect();
    assert_eq!(used, [delivered(frame(2, 1514), 1), delivered(frame(3, 60), 1)]);
}

#[test]
fn frames_wait_for_buffers_and_keep_nothing_busy() {
    let mut wire = Wire::new();
    // `run` ends when no event is left: a device that is woken for ever by what it cannot take
    // would hang here.
    for seed in 0..5 {
        assert!(wire.host_sends(&frame(seed, 60)));
        assert!(wire.used(RX).is_empty());
    }
    // Not enough for the largest frame yet.
    wire.post_receive(42, 1536);
    assert!(wire.used(RX).is_empty());
    wire.post_receive(1, 1536);
    let used: Vec<_> = wire.used(RX).into_iter().map(|used| used.bytes).collect();
    // One frame, then there is one buffer less than the next could need.
    assert_eq!(used, [delivered(frame(0, 60), 1)]);
    wire.post_receive(4, 1536);
    let used: Vec<_> = wire.used(RX).into_iter().map(|used| used.bytes).collect();
    let expected: Vec<_> = (1..5).map(|seed| delivered(frame(seed, 60), 1)).collect();
    assert_eq!(used, expected);
}

#[test]
fn a_driver_without_segmentation_gets_by_with_small_buffers() {
    let segments = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
    let mut wire = Wire::with(!segments, NetConfig::default());
    wire.post_receive(1, 1536);
    assert!(wire.host_sends(&frame(1, 1514)));
    assert_eq!(wire.used(RX)[0].bytes, delivered(frame(1, 1514), 1));
}

#[test]
fn a_ring_that_is_all_posted_takes_what_fits() {
    let mut wire = Wire::new();
    wire.post_receive(256, 100);
    assert!(wire.host_sends(&frame(1, 30_000)));
    assert!(wire.host_sends(&frame(2, 188)));
    let used = wire.used(RX);
    assert_eq!(used.len(), 2, "the frame that does not fit is lost");
    let bytes = [used[0].bytes.clone(), used[1].bytes.clone()].concat();
    assert_eq!(bytes, delivered(frame(2, 188), 2));
}

#[test]
fn more_frames_than_a_turn_takes_all_arrive() {
    let mut wire = Wire::new();
    wire.post_receive(250, 1536);
    for seed in 0..150 {
        assert!(wire.host_sends(&frame(seed, 60)));
    }
    let used = wire.used(RX);
    assert_eq!(used.len(), 150);
    for (seed, used) in (0..).zip(&used) {
        assert_eq!(used.bytes, delivered(frame(seed, 60), 1));
    }
    assert!(wire.driver.interrupts.count() <= 150usize.div_ceil(FRAMES_MAX));
}

#[test]
fn limits_hold_frames_back_and_let_them_go() {
    let number = |value| NonZeroU64::new(value).unwrap();
    // A frame of 112 bytes is a debt of 11 ms.
    let rate = Rate { per_second: number(10_000), burst: number(100) };
    let rx_limits = RateLimits { bytes: Some(rate), ..RateLimits::default() };
    let mut wire = Wire::with(u64::MAX, NetConfig { rx_limits, ..NetConfig::default() });
    wire.post_receive(100, 1536);
    let start = Instant::now();
    for seed in 0..6 {
        assert!(wire.host_sends(&frame(seed, 100)));
    }
    for seed in 0..6 {
        assert_eq!(wire.driver.wait_used(RX).bytes, delivered(frame(seed, 100), 1));
    }
    assert!(start.elapsed() >= Duration::from_millis(45), "{:?}", start.elapsed());
}
