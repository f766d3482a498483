//! Where a guest is saved: right behind the agent's [`BootMark::Waiting`], before which it has made
//! sure that nothing else runs that could tell one guest from its copy.
//!
//! ```text
//!         want              the mark: the gate closes            done
//!  idle ────────▶ wanted ──────────────────────────────▶ reached ──────▶ idle
//! ```
//!
//! [`BootMark::Waiting`]: bulkhead_protocol::BootMark::Waiting

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ending::Ending;
use crate::vcpu::Gate;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Wanted,
    Reached,
}

/// Stops the guest where it is to be saved.
pub struct SavePoint {
    state: Mutex<State>,
    gate: Arc<Gate>,
    ending: Ending,
}

impl SavePoint {
    /// One that stops the guest at `gate` and wakes the event loop by `ending`.
    pub fn new(gate: Arc<Gate>, ending: Ending) -> Self {
        Self { state: Mutex::new(State::Idle), gate, ending }
    }

    /// The next mark is one to stop at.
    pub fn want(&self) {
        *self.lock() = State::Wanted;
    }

    /// The guest has come to the mark. Called on a vCPU's thread, which has not finished the guest's
    /// instruction yet: it stops right behind that.
    pub fn reach(&self) {
        let mut state = self.lock();
        if *state == State::Wanted {
            *state = State::Reached;
            self.gate.close();
            self.ending.nudge();
        }
    }

    /// The guest stands there, and does so until [`SavePoint::done`].
    pub fn is_reached(&self) -> bool {
        *self.lock() == State::Reached
    }

    /// Opens the gate, unless it was closed for the guest to be saved.
    pub fn open_gate(&self) {
        let state = self.lock();
        if *state != State::Reached {
            self.gate.open();
        }
    }

    /// The guest was saved, or is not to be any more.
    pub fn done(&self) {
        *self.lock() = State::Idle;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    #[test]
    fn only_a_wanted_mark_stops_the_guest_and_nobody_else_lets_it_go_on() {
        let gate = Gate::new().unwrap();
        let ending = Ending::new(Arc::new(EventFd::new(0).unwrap()));
        let point = SavePoint::new(gate.clone(), ending);
        point.reach();
        assert!(!gate.is_closed() && !point.is_reached());
        point.want();
        point.reach();
        assert!(gate.is_closed() && point.is_reached());
        point.open_gate();
        assert!(gate.is_closed());
        point.done();
        point.open_gate();
        assert!(!gate.is_closed());
        point.reach();
        assert!(!gate.is_closed(), "once for each time it is wanted");
    }
}
