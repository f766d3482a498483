//! The MMIO transport, version 2 (virtio 1.3, section 4.2).
//!
//! A [`Transport`] owns status, feature negotiation and queue registers while its device is
//! inactive. When the driver sets DRIVER_OK it checks every queue and hands all of them to the
//! device; a write of 0 to Status takes the device back to inactive at any time.
//!
//! Accesses of a register that are not 32 bits wide and aligned read as zero and write nothing.

mod interrupt;
mod queue_config;
mod registers;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::io;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::interrupt::InterruptStatus;
use self::queue_config::QueueConfig;
pub use self::state::{QueueState, TransportState};
use self::status::{Status, Step};
use crate::virtio::device::{ActivateError, Active, DATA_QUEUES, VirtioDevice};
use crate::{GuestMemory, Interrupt};

/// The bit of VIRTIO_RING_F_EVENT_IDX: interrupts and notifications by index (2.7.7, 2.7.10).
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// A virtio device behind a virtio-mmio register window.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    interrupt: Arc<InterruptStatus>,
    notifiers: Arc<[EventFd]>,
    status: Status,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    shared_memory_select: u32,
    queues: Vec<QueueConfig>,
    active: bool,
    /// A notification came before DRIVER_OK; it is passed on after it.
    notified_early: Vec<bool>,
    failure: Option<ActivateError>,
}

impl Transport {
    /// Puts `device` behind a register window. Fails if an eventfd cannot be made.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        interrupt: Arc<dyn Interrupt>,
    ) -> io::Result<Self> {
        let queues: Vec<_> =
            device.queue_sizes_max().iter().map(|size| QueueConfig::new(*size)).collect();
        let notifiers = queues
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            device,
            memory,
            interrupt: Arc::new(InterruptStatus::new(interrupt)),
            status: Status::default(),
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            shared_memory_select: 0,
            active: false,
            notified_early: vec![false; queues.len()],
            failure: None,
            notifiers,
            queues,
        })
    }

    /// One eventfd a queue: a signal to it is a write of the queue's index to QueueNotify. For
    /// KVM's ioeventfds at offset 0x50, matched by value. They are never read: the event loop
    /// watches them for edges.
    pub fn queue_notifiers(&self) -> &[EventFd] {
        &self.notifiers
    }

    /// The interrupt registers (0x60 and 0x64), which may be served without the transport's lock.
    pub fn interrupt(&self) -> &Arc<InterruptStatus> {
        &self.interrupt
    }

    /// The device, if it is a `D`: for what its owner does with it.
    pub fn device_mut<D: VirtioDevice>(&mut self) -> Option<&mut D> {
        let device: &mut dyn Any = &mut *self.device;
        device.downcast_mut()
    }

    /// Why the device refused the last DRIVER_OK, if it did.
    pub fn failure(&self) -> Option<&ActivateError> {
        self.failure.as_ref()
    }

    fn features(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        while let Some(step) = self.status.next_step(value) {
            let features_fine = self.driver_features & !self.features() == 0
                && self.driver_features & VERSION_1 != 0;
            if step == Step::FeaturesOk && !features_fine {
                break;
            }
            self.status.set(step);
            if step == Step::DriverOk {
                self.activate();
            }
        }
        self.status.set_failed(value);
    }

    fn activate(&mut self) {
        match self.checked_queues().and_then(|queues| self.activate_with(queues)) {
            Ok(()) => {
                self.active = true;
                for (early, notifier) in self.notified_early.iter_mut().zip(self.notifiers.iter()) {
                    if std::mem::take(early) {
                        // Only a full counter is refused, and that is a signal too.
                        let _ = notifier.write(1);
                    }
                }
            }
            Err(error) => {
                self.failure = Some(error);
                self.status.set_needs_reset();
                self.interrupt.config_changed();
            }
        }
    }

    fn activate_with(&mut self, queues: Vec<Queue>) -> Result<(), ActivateError> {
        self.device.activate(Active {
            memory: self.memory.clone(),
            queues,
            features: self.driver_features,
            interrupt: self.interrupt.clone(),
            notifiers: self.notifiers.clone(),
        })
    }

    fn checked_queues(&self) -> Result<Vec<Queue>, ActivateError> {
        let event_idx = self.driver_features & EVENT_IDX != 0;
        let device = self.device.name();
        (0..)
            .zip(&self.queues)
            .map(|(index, queue)| {
                let built = queue.build(&self.memory, event_idx);
                built.ok_or(ActivateError::QueueInvalid { device, index })
            })
            .collect()
    }

    fn reset(&mut self) {
        if self.status.driver_ok() {
            self.device.reset();
        }
        self.active = false;
        self.status = Status::default();
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.shared_memory_select = 0;
        self.notified_early.fill(false);
        self.failure = None;
        for queue in &mut self.queues {
            *queue = QueueConfig::new(queue.size_max);
        }
        self.interrupt.reset();
    }

    fn queue_notified(&mut self, index: usize, ops: &mut EventOps) {
        if self.active {
            self.device.queue_notified(index, ops);
        } else if self.status.takes_queues()
            && let Some(early) = self.notified_early.get_mut(index)
        {
            *early = true;
        }
    }
}

impl MutEventSubscriber for Transport {
    fn init(&mut self, ops: &mut EventOps) {
        for (index, notifier) in (0..).zip(self.notifiers.iter()) {
            // Edges: the counter is never read, which saves a system call a notification.
            let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
            let added = ops.add(Events::with_data(notifier, DATA_QUEUES + index, edges));
            debug_assert!(added.is_ok(), "a fresh eventfd can be watched: {added:?}");
        }
        self.device.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data().checked_sub(DATA_QUEUES) {
            Some(index) => self.queue_notified(index as usize, ops),
            None => self.device.process(events, ops),
        }
    }
}
