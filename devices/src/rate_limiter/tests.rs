use proptest::prelude::*;

use super::*;

fn rate(per_second: u64, burst: u64) -> Rate {
    let number = |value| NonZeroU64::new(value).unwrap();
    Rate { per_second: number(per_second), burst: number(burst) }
}

proptest! {
    /// Whatever is asked for and when, what went ahead stays within burst and rate, but for the
    /// last operation's debt; and a wait that is over is over.
    #[test]
    fn what_goes_ahead_is_bounded_and_never_stuck(
        per_second in 1u64..1_000_000_000,
        burst in 1u64..1_000_000,
        steps in proptest::collection::vec((0u64..200_000_000, 0u64..100_000), 1..60),
    ) {
        let start = Instant::now();
        let mut bucket = Bucket::full(rate(per_second, burst), start);
        let mut now = start;
        let (mut taken, mut last) = (0u128, 0u128);
        for (pause_ns, cost) in steps {
            now += Duration::from_nanos(pause_ns);
            let wait = bucket.wait(now);
            if !wait.is_zero() {
                // Not a nanosecond too early, and not one too late.
                prop_assert!(!bucket.wait(now + wait - Duration::from_nanos(1)).is_zero());
                now += wait;
                prop_assert!(bucket.wait(now).is_zero(), "stuck after {wait:?}");
            }
            bucket.take(cost);
            taken += u128::from(cost);
            last = cost.into();
            let elapsed_ns = now.duration_since(start).as_nanos();
            let allowed = u128::from(burst) + elapsed_ns * u128::from(per_second) / TOKEN.unsigned_abs();
            prop_assert!(taken - last <= allowed, "{taken} of {allowed}");
        }
        prop_assert!(taken >= last);
    }
}

#[test]
fn nothing_is_limited_unless_asked_for() {
    let mut limiter = RateLimiter::new(&RateLimits::default()).unwrap();
    assert!(limiter.timer.is_none());
    limiter.charge(usize::MAX);
    assert!(limiter.ready());
}

#[test]
fn each_of_both_limits_holds_alone() {
    let some = Some(rate(1, 2));
    for limits in
        [RateLimits { bytes: some, operations: None }, RateLimits { bytes: None, operations: some }]
    {
        let mut limiter = RateLimiter::new(&limits).unwrap();
        assert!(limiter.ready());
        limiter.charge(1);
        assert!(limiter.ready());
        limiter.charge(1);
        assert!(!limiter.ready());
    }
}

#[test]
fn the_greatest_numbers_do_not_overflow() {
    let limits = Some(rate(u64::MAX, u64::MAX));
    let mut limiter = RateLimiter::new(&RateLimits { bytes: limits, operations: limits }).unwrap();
    for _ in 0..3 {
        limiter.ready();
        limiter.charge(usize::MAX);
    }
    let mut slow = Bucket::full(rate(1, 1), Instant::now());
    slow.take(u64::MAX);
    assert!(slow.wait(Instant::now()) > Duration::from_secs(1 << 32));
}

#[test]
fn a_lossy_writer_takes_everything_and_passes_on_its_rate() {
    let mut out = Lossy::new(Vec::new(), rate(1, 10));
    for _ in 0..100 {
        out.write_all(b"abcd").unwrap();
    }
    // Up to the last write's debt, and one token of a second that may have passed.
    assert!((10..=16).contains(&out.to.len()), "{}", out.to.len());
}
