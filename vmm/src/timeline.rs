//! The timeline: when each phase of a start was reached, and how many VM exits it took.

use std::sync::{Arc, Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};

use crate::spec::Mark;
use crate::vcpu::ExitCounter;

/// Collects marks, if a beginning was given; clones share one list.
#[derive(Clone, Default)]
pub struct Timeline(Option<Arc<Inner>>);

struct Inner {
    from_ns: u64,
    marks: Mutex<Vec<Mark>>,
    counters: Mutex<Vec<ExitCounter>>,
}

impl Inner {
    fn exits(&self) -> Option<u64> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counts: Option<Vec<u64>> = counters.iter().map(ExitCounter::exits).collect();
        counts.filter(|counts| !counts.is_empty()).map(|counts| counts.iter().sum())
    }
}

/// CLOCK_MONOTONIC now, ns.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Timeline {
    /// A timeline that begins at `from_ns` (CLOCK_MONOTONIC); one that collects nothing for `None`.
    pub fn new(from_ns: Option<u64>) -> Self {
        Self(from_ns.map(|from_ns| {
            Arc::new(Inner { from_ns, marks: Mutex::default(), counters: Mutex::default() })
        }))
    }

    /// Whether marks are collected.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Counts the exits of one more vCPU.
    pub fn count_exits(&self, counter: ExitCounter) {
        if let Some(inner) = &self.0 {
            inner.counters.lock().unwrap_or_else(PoisonError::into_inner).push(counter);
        }
    }

    /// VM exits of all vCPUs so far; `None` where nobody counts.
    pub fn exits(&self) -> Option<u64> {
        self.0.as_ref()?.exits()
    }

    /// Stamps `phase`.
    pub fn mark(&self, phase: &str) {
        let Some(inner) = &self.0 else { return };
        let ns = now_ns().saturating_sub(inner.from_ns);
        let mark = Mark { phase: phase.to_owned(), ns, exits: inner.exits() };
        inner.marks.lock().unwrap_or_else(PoisonError::into_inner).push(mark);
    }

    /// The marks so far, in the order of their time.
    pub fn marks(&self) -> Vec<Mark> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let mut marks = inner.marks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        marks.sort_by_key(|mark| mark.ns);
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_in_order_and_counted_from_the_beginning() {
        let timeline = Timeline::new(Some(now_ns()));
        timeline.mark("one");
        timeline.mark("two");
        let marks = timeline.marks();
        assert_eq!(marks.iter().map(|mark| &*mark.phase).collect::<Vec<_>>(), ["one", "two"]);
        assert!(marks[0].ns <= marks[1].ns && marks[1].ns < 60_000_000_000);
    }

    #[test]
    fn nothing_is_collected_unless_asked_for() {
        let timeline = Timeline::new(None);
        timeline.mark("one");
        assert_eq!(timeline.marks(), []);
    }
}
