//! A detached VMM lives only if its container came to be.
//!
//! Whoever starts a VMM to leave it behind (`bulkhead create`) holds the other end of a pipe. A byte
//! lets go; without it, the pipe's end says that the caller died half way, and the VM ends with it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::ending::{Ending, Unexpected};
use crate::spec::VmSpec;

/// Ends the VM with its caller, until that lets go.
pub struct Leash {
    pipe: File,
    ending: Ending,
}

impl Leash {
    /// The leash that `spec` asks for.
    pub fn of(spec: &VmSpec, ending: &Ending) -> Option<Self> {
        // SAFETY: the spec says that this descriptor was inherited for this use alone.
        let pipe = spec.leash_fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        pipe.map(|pipe| Self::new(pipe, ending.clone()))
    }

    /// A leash that ends the VM through `ending`.
    pub fn new(pipe: OwnedFd, ending: Ending) -> Self {
        Self { pipe: pipe.into(), ending }
    }
}

impl MutEventSubscriber for Leash {
    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::with_data_raw(self.pipe.as_raw_fd(), 0, EventSet::IN);
        // Cannot fail but for lack of kernel memory; then nobody could tell that the caller died.
        ops.add(events).expect("a pipe can be polled");
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if !matches!(self.pipe.read(&mut [0]), Ok(1..)) {
            self.ending.unexpected(Unexpected::Abandoned);
        }
        // Nothing else comes.
        let _ = ops.remove(events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ending::Ended;
    use event_manager::{EventManager, SubscriberOps};
    use std::io::Write;
    use std::sync::Arc;
    use vmm_sys_util::eventfd::EventFd;

    fn ended(let_go: bool) -> Option<Ended> {
        let ending = Ending::new(Arc::new(EventFd::new(0).unwrap()));
        let (pipe, mut caller) = std::io::pipe().unwrap();
        let mut manager = EventManager::<Leash>::new().unwrap();
        manager.add_subscriber(Leash::new(pipe.into(), ending.clone()));
        if let_go {
            caller.write_all(&[1]).unwrap();
        }
        drop(caller);
        manager.run_with_timeout(1000).unwrap();
        ending.take()
    }

    #[test]
    fn a_caller_that_dies_ends_the_vm_and_one_that_lets_go_does_not() {
        assert!(matches!(ended(false), Some(Ended::Unexpected(Unexpected::Abandoned))));
        assert!(ended(true).is_none());
    }
}
