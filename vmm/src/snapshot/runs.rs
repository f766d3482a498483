//! Runs of neighbouring pages of a memory file: in order, none of which meets another.

use bulkhead_devices::GuestMemory;
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

pub const PAGE: u64 = 4096;

/// Neighbouring pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub first: u32,
    pub count: u32,
}

impl Run {
    /// The page behind its last.
    pub fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }
}

/// The runs of these pages, which come in order.
pub fn runs(pages: impl IntoIterator<Item = u32>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(run) if run.end() == u64::from(page) => run.count += 1,
            _ => runs.push(Run { first: page, count: 1 }),
        }
    }
    runs
}

/// The page behind the last of runs that may come from anywhere; `None` if they are no such runs.
pub fn end(runs: &[Run]) -> Option<u64> {
    runs.iter().try_fold(0, |end, run| {
        let in_order = u64::from(run.first) >= end && run.count > 0;
        in_order.then(|| run.end())
    })
}

/// A part of a run that lies in one region of memory: where it begins in the memory file, in the guest
/// and in this process, and how many bytes it has.
#[derive(Debug)]
pub struct Part {
    pub file: u64,
    pub guest: u64,
    pub host: *mut u8,
    pub len: u64,
}

/// Calls `act` with the parts of each run, until that fails.
pub fn parts<E>(
    runs: &[Run],
    memory: &GuestMemory,
    mut act: impl FnMut(Part) -> Result<(), E>,
) -> Result<(), E> {
    let mut before = 0;
    for region in memory.iter() {
        let region_end = before + region.len();
        for run in runs {
            let file = (u64::from(run.first) * PAGE).max(before);
            let end = (run.end() * PAGE).min(region_end);
            if file >= end {
                continue;
            }
            let (guest, len) = (region.start_addr().0 + file - before, end - file);
            let host = region.as_ptr().wrapping_add((file - before) as usize);
            act(Part { file, guest, host, len })?;
        }
        before = region_end;
    }
    Ok(())
}
