//! The gate all vCPUs of a VM stop at when it is closed.
//!
//! ```text
//!          close: immediate_exit, signal            KVM_RUN returns EINTR
//!  running ─────────────────────────────▶ leaving ────────────────────────▶ parked
//!     ▲                                                                       │ open
//!     └───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A vCPU parks only where KVM_RUN returned EINTR, never after an exit it has just served: KVM
//! finishes a port or memory-mapped access at the beginning of the next KVM_RUN, which with
//! `immediate_exit` set does that and no more (the kernel's Documentation/virt/kvm/api.rst, 5,
//! "struct kvm_run"). A parked vCPU is therefore between two instructions.

use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::signal::register_signal_handler;

use super::Vcpu;

/// How long vCPUs may take to park. An exit is served in microseconds, but the host may be busy.
const PARK_MAX: Duration = Duration::from_secs(10);

/// Where vCPUs are held.
#[derive(Default)]
pub struct Gate {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    closed: bool,
    /// Threads that wait for the gate to open, and threads that have ended.
    parked: usize,
    ended: usize,
    threads: Vec<(JoinHandle<()>, Arc<Vcpu>)>,
}

impl Inner {
    fn all_stand(&self) -> bool {
        self.closed && self.parked + self.ended >= self.threads.len()
    }
}

impl Gate {
    /// An open gate. Claims the signal that calls vCPUs out of the guest.
    pub fn new() -> std::io::Result<Arc<Self>> {
        register_signal_handler(kick_signal(), ignore).map_err(std::io::Error::from)?;
        Ok(Arc::default())
    }

    /// Makes `thread`, which runs `vcpu`, stop at this gate.
    pub fn add(&self, thread: JoinHandle<()>, vcpu: Arc<Vcpu>) {
        let mut inner = self.lock();
        if inner.closed {
            kick(&thread, &vcpu);
        }
        inner.threads.push((thread, vcpu));
    }

    /// Has every vCPU park as soon as it can, and returns at once.
    pub fn close(&self) {
        let mut inner = self.lock();
        if !inner.closed {
            inner.closed = true;
            inner.threads.iter().for_each(|(thread, vcpu)| kick(thread, vcpu));
        }
    }

    /// Waits until every vCPU has parked at the closed gate; false if one does not come.
    pub fn wait_parked(&self) -> bool {
        let waiting = |inner: &mut Inner| !inner.all_stand();
        let waited = self.changed.wait_timeout_while(self.lock(), PARK_MAX, waiting);
        waited.unwrap_or_else(PoisonError::into_inner).0.all_stand()
    }

    /// Lets the vCPUs go on.
    pub fn open(&self) {
        let mut inner = self.lock();
        inner.closed = false;
        inner.threads.iter().for_each(|(_, vcpu)| vcpu.leave_at_once(false));
        self.changed.notify_all();
    }

    /// Whether the gate is closed.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// A vCPU's thread, out of the guest: waits here while the gate is closed.
    pub(super) fn pass(&self) {
        let mut inner = self.lock();
        if !inner.closed {
            return;
        }
        inner.parked += 1;
        self.changed.notify_all();
        while inner.closed {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.parked -= 1;
    }

    /// A vCPU's thread will not come here again.
    pub(super) fn leave(&self) {
        self.lock().ended += 1;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first real-time signal that the C library leaves to programs.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// The signal's only effect is that KVM_RUN is interrupted.
extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn kick(thread: &JoinHandle<()>, vcpu: &Vcpu) {
    // In this order: a vCPU that enters the guest before the signal is interrupted by it, one that
    // enters after it sees the flag.
    vcpu.leave_at_once(true);
    // SAFETY: a thread that nobody joined yet has a valid ID, and the signal has a handler.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_without_vcpus_stands_at_once() {
        let gate = Gate::new().unwrap();
        assert!(!gate.is_closed());
        gate.close();
        assert!(gate.is_closed() && gate.wait_parked());
        gate.open();
        gate.pass();
    }
}
