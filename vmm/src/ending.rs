//! How a VM ends: the first to say so decides, whatever thread it is on.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_protocol::ExitReport;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::EventFd;

use crate::jail::JailError;

/// What ended a VM.
#[derive(Debug)]
pub enum Ended {
    /// The agent reported the container's exit.
    Reported(ExitReport),
    /// The VM was saved as a template.
    Saved,
    /// Anything else: a failure of the VM, never the container's success.
    Unexpected(Unexpected),
}

/// An end without the agent's report.
#[derive(Debug, thiserror::Error)]
pub enum Unexpected {
    /// Triple fault, keyboard-controller reset or KVM system event.
    #[error("the guest restarted before the container's process ended")]
    Reset,
    /// The processor refused the guest's state.
    #[error(
        "vCPU {vcpu} could not enter the guest (hardware reason {reason:#x}); \
         run `bulkhead doctor` to check this host"
    )]
    FailEntry {
        /// The vCPU.
        vcpu: u8,
        /// The processor's reason.
        reason: u64,
    },
    /// KVM met an instruction or a state it cannot handle.
    #[error(
        "KVM gave up on vCPU {vcpu} (internal error {suberror} at {rip:#x}); \
         run `bulkhead doctor` to check this host"
    )]
    InternalError {
        /// The vCPU.
        vcpu: u8,
        /// `kvm_run.internal.suberror`.
        suberror: u32,
        /// The guest's instruction pointer.
        rip: u64,
    },
    /// An exit that this VMM never asked KVM for.
    #[error("vCPU {vcpu} left the guest for an unknown reason: {exit}")]
    Exit {
        /// The vCPU.
        vcpu: u8,
        /// The exit.
        exit: String,
    },
    /// The caller died before it had made the container.
    #[error("whoever started this VM ended before its container was created")]
    Abandoned,
    /// Whoever serves its files is gone.
    #[error("the VM's file worker ended (by signal {signal}), and with it the container's files")]
    FsWorker {
        /// Its number; 0 for a worker that ended by itself.
        signal: i32,
    },
    /// A vCPU's thread has no system call filter.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// KVM_RUN itself failed.
    #[error("KVM_RUN failed on vCPU {vcpu}: {source}")]
    Run {
        /// The vCPU.
        vcpu: u8,
        /// What KVM answered.
        source: io::Error,
    },
}

impl Unexpected {
    /// Reads the details of a KVM_EXIT_INTERNAL_ERROR.
    pub fn internal_error(id: u8, vcpu: &mut VcpuFd) -> Self {
        let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
        // SAFETY: after KVM_EXIT_INTERNAL_ERROR, and only then is this called, `internal` is the
        // union's valid member (linux/kvm.h).
        let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
        Self::InternalError { vcpu: id, suberror, rip }
    }
}

/// Says that the VM has ended, and wakes the event loop.
#[derive(Clone)]
pub struct Ending {
    ended: Arc<Mutex<Option<Ended>>>,
    wake: Arc<EventFd>,
}

impl Ending {
    /// A VM that has not ended; `wake` is signalled when it has.
    pub fn new(wake: Arc<EventFd>) -> Self {
        Self { ended: Arc::default(), wake }
    }

    /// The agent's report.
    pub fn reported(&self, report: ExitReport) {
        self.set(Ended::Reported(report));
    }

    /// The VM was saved and is not needed any more.
    pub fn saved(&self) {
        self.set(Ended::Saved);
    }

    /// An end without a report.
    pub fn unexpected(&self, unexpected: Unexpected) {
        self.set(Ended::Unexpected(unexpected));
    }

    /// How the VM ended, once.
    pub fn take(&self) -> Option<Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Wakes the event loop for another reason.
    pub fn nudge(&self) {
        // A full eventfd counter wakes the loop as well.
        let _ = self.wake.write(1);
    }

    /// What wakes the event loop.
    pub fn wake(&self) -> Wake {
        Wake(self.wake.clone())
    }

    fn set(&self, ended: Ended) {
        let mut slot = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(ended);
        self.nudge();
    }
}

/// Wakes the event loop for it to look whether the VM has ended.
pub struct Wake(Arc<EventFd>);

impl MutEventSubscriber for Wake {
    fn init(&mut self, ops: &mut EventOps) {
        // Cannot fail but for lack of kernel memory, and then nothing would wake the loop.
        ops.add(Events::new(&*self.0, EventSet::IN)).expect("an eventfd can be polled");
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.read();
    }
}
