//! Holds the vCPUs back until every thread of the VMM is behind its filter.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{JailError, Policy};

/// Passed when all threads have come.
#[derive(Debug)]
pub struct Threshold {
    confined: bool,
    barrier: Barrier,
    broken: AtomicBool,
}

impl Threshold {
    /// One for as many `threads`, each of which gets a filter if it is to be `confined`.
    pub(super) fn new(confined: bool, threads: usize) -> Self {
        Self { confined, barrier: Barrier::new(threads), broken: AtomicBool::new(false) }
    }

    /// Puts the calling thread behind `policy` and waits for the others. False if one of them has
    /// failed: then the guest must not run.
    pub fn pass(&self, policy: Policy) -> Result<bool, JailError> {
        let filtered = if self.confined { policy.apply() } else { Ok(()) };
        if filtered.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        self.barrier.wait();
        filtered.map_err(JailError::at("installing the system call filter"))?;
        Ok(!self.broken.load(Ordering::Acquire))
    }
}
