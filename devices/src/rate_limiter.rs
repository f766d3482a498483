//! How much a guest may ask of the host in a second: token buckets of bytes and of operations.
//!
//! A bucket fills at its rate up to its burst. An operation goes ahead while every bucket holds
//! something, and then takes what it came to, into debt if need be: so an operation need not know
//! its size beforehand, and one larger than the burst is late rather than stuck. What has to wait
//! stays in the guest's queue, so a limited guest costs no memory.

use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};

/// A rate and how far a guest may get ahead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Tokens a second: bytes, or operations.
    pub per_second: NonZeroU64,
    /// The most tokens that are saved up.
    pub burst: NonZeroU64,
}

/// What is limited; nothing if nothing is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimits {
    /// Bytes.
    #[serde(default)]
    pub bytes: Option<Rate>,
    /// Operations: frames, requests.
    #[serde(default)]
    pub operations: Option<Rate>,
}

/// A live limit on one direction or queue of a device; the default limits nothing.
#[derive(Debug, Default)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    /// Ends when a bucket that was found empty is not any more. Only where something is limited.
    timer: Option<OwnedFd>,
}

impl RateLimiter {
    /// A limiter whose buckets are full. Fails if a timer is needed and cannot be made.
    pub fn new(limits: &RateLimits) -> io::Result<Self> {
        let now = Instant::now();
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket::full(rate, now));
        let (bytes, operations) = (bucket(limits.bytes), bucket(limits.operations));
        let timer = (bytes.is_some() || operations.is_some())
            .then(|| {
                let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
                timerfd_create(TimerfdClockId::Monotonic, flags)
            })
            .transpose()?;
        Ok(Self { bytes, operations, timer })
    }

    /// Has the event loop call with `data` when an operation that had to wait may go ahead.
    pub fn register(&self, ops: &mut EventOps, data: u32) {
        if let Some(timer) = &self.timer {
            // Edges: it is never read.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let added = ops.add(Events::with_data(timer, data, events));
            debug_assert!(added.is_ok(), "a fresh timer can be watched: {added:?}");
        }
    }

    /// Whether an operation may go ahead. If not, the timer is set for when it may.
    pub fn ready(&mut self) -> bool {
        let Some(timer) = &self.timer else { return true };
        let now = Instant::now();
        let buckets = [&mut self.bytes, &mut self.operations];
        let waits = buckets.map(|bucket| bucket.as_mut().map_or(Duration::ZERO, |b| b.wait(now)));
        let wait = waits[0].max(waits[1]);
        if wait.is_zero() {
            return true;
        }
        let it_value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = Itimerspec { it_interval, it_value };
        // A timer of our own takes any positive time.
        let _ = timerfd_settime(timer, TimerfdTimerFlags::empty(), &timeout);
        false
    }

    /// Accounts for an operation of `bytes` bytes.
    pub fn charge(&mut self, bytes: usize) {
        for (bucket, cost) in [(&mut self.bytes, bytes as u64), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(cost);
            }
        }
    }
}

/// A writer that loses what comes faster than its rate: for output that nobody must wait for.
#[derive(Debug)]
pub struct Lossy<W> {
    to: W,
    bucket: Bucket,
}

impl<W: Write> Lossy<W> {
    /// Passes at most `rate` on to `to`.
    pub fn new(to: W, rate: Rate) -> Self {
        Self { to, bucket: Bucket::full(rate, Instant::now()) }
    }
}

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.bucket.wait(Instant::now()).is_zero() {
            return Ok(bytes.len());
        }
        let written = self.to.write(bytes)?;
        self.bucket.take(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// One token bucket.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// Billionths of tokens, of which a rate brings a whole number each nanosecond: nothing is
    /// rounded, however often the bucket is asked. Negative for a debt.
    level: i128,
    /// Until when the level accounts for the rate.
    filled: Instant,
}

/// One token, in units of [`Bucket::level`].
const TOKEN: i128 = 1_000_000_000;

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, level: i128::from(rate.burst.get()) * TOKEN, filled: now }
    }

    /// How long until there is a token.
    fn wait(&mut self, now: Instant) -> Duration {
        let per_ns = u128::from(self.rate.per_second.get());
        let elapsed_ns = now.saturating_duration_since(self.filled).as_nanos();
        let gained = i128::try_from(elapsed_ns.saturating_mul(per_ns)).unwrap_or(i128::MAX);
        let burst = i128::from(self.rate.burst.get()) * TOKEN;
        self.level = self.level.saturating_add(gained).min(burst);
        self.filled = self.filled.max(now);
        let missing = (TOKEN - self.level).max(0).unsigned_abs();
        Duration::from_nanos(u64::try_from(missing.div_ceil(per_ns)).unwrap_or(u64::MAX))
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * TOKEN);
    }
}

#[cfg(test)]
mod tests;
