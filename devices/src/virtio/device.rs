//! What a virtio device is to its transport and to the event loop.
//!
//! ```text
//!            driver sets DRIVER_OK                 driver writes 0 to Status
//!  inactive ───────────────────────▶ active ───────────────────────────────▶ inactive
//!            activate(Active)                      reset()
//! ```
//!
//! The transport owns status, feature negotiation and queue addresses while the device is
//! inactive, and hands checked queues over in [`Active`] when the driver sets DRIVER_OK.

use std::any::Any;
use std::io;
use std::sync::Arc;

use event_manager::{EventOps, Events};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;
use crate::virtio::mmio::InterruptStatus;

/// What a device gets to work with between DRIVER_OK and reset.
pub struct Active {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The device's queues, in the order of [`VirtioDevice::queue_sizes_max`]; a queue the driver
    /// left unconfigured is there but not ready.
    pub queues: Vec<Queue>,
    /// Feature bits that both sides agreed on.
    pub features: u64,
    /// Raises "used buffer" and "configuration changed" interrupts (virtio 1.3, 4.2.2).
    pub interrupt: Arc<InterruptStatus>,
    /// The queues' notifiers, in the same order.
    pub notifiers: Arc<[EventFd]>,
}

impl Active {
    /// Has the event loop call [`VirtioDevice::queue_notified`] again, after other events had their
    /// turn: for a device that stops early because a guest could keep it busy for ever.
    pub fn notify_again(&self, index: usize) {
        if let Some(notifier) = self.notifiers.get(index) {
            // Only a full counter is refused, and that is a signal too.
            let _ = notifier.write(1);
        }
    }
}

/// A shared memory region (virtio 1.3, section 2.10), in the guest's physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemory {
    /// Where it begins.
    pub base: u64,
    /// Its length, bytes.
    pub len: u64,
}

/// Why a device refused DRIVER_OK; the transport sets DEVICE_NEEDS_RESET then.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A queue the device cannot do without was left unconfigured.
    #[error("queue {index} of the {device} device is not ready at DRIVER_OK")]
    QueueNotReady {
        /// The device's name.
        device: &'static str,
        /// The queue's index.
        index: usize,
    },
    /// What the driver wrote of a queue cannot be a queue.
    #[error("queue {index} of the {device} device has a bad size or address at DRIVER_OK")]
    QueueInvalid {
        /// The device's name.
        device: &'static str,
        /// The queue's index.
        index: usize,
    },
    /// A host resource failed.
    #[error("the {device} device cannot start: {source}")]
    Host {
        /// The device's name.
        device: &'static str,
        /// What failed.
        source: io::Error,
    },
}

/// A virtio device behind a transport.
///
/// All methods but the ones that take [`EventOps`] may be called from a vCPU thread; the ones with
/// [`EventOps`] run on the event loop's thread. The transport's lock keeps calls from overlapping.
pub trait VirtioDevice: Any + Send {
    /// A short name for messages: "fs", "vsock", "rng".
    fn name(&self) -> &'static str;
    /// The device ID (virtio 1.3, section 5).
    fn device_id(&self) -> u32;
    /// Feature bits offered beside VIRTIO_F_VERSION_1, which the transport adds.
    fn features(&self) -> u64;
    /// The most entries each queue may have; its length is the number of queues.
    fn queue_sizes_max(&self) -> &[u16];
    /// Reads the device's configuration space. Bytes beyond it stay as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Whether the configuration space never changes: drivers are told so by the vendor ID.
    fn config_is_constant(&self) -> bool {
        true
    }
    /// Writes the device's configuration space; out of bounds or read-only is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The device's shared memory region `id`.
    fn shared_memory(&self, _id: u32) -> Option<SharedMemory> {
        None
    }
    /// Starts work on the queues.
    fn activate(&mut self, active: Active) -> Result<(), ActivateError>;
    /// Stops all work and forgets the queues; the driver may set the device up anew.
    fn reset(&mut self);
    /// Registers the device's own host fds (not the queue notifiers) with the event loop; called
    /// once, before the guest runs. `Events::with_data` values are the device's to choose, below
    /// [`DATA_QUEUES`].
    fn register(&mut self, _ops: &mut EventOps) {}
    /// Queue `index` was notified by the driver. Called while active only.
    fn queue_notified(&mut self, index: usize, ops: &mut EventOps);
    /// An fd of the device's own is ready. May be called while inactive.
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
    /// What [`VirtioDevice::activate`] was given, while active.
    fn active(&self) -> Option<&Active>;
    /// Whether nothing of the guest's is under way in the device: a device is saved only then. A
    /// device that is not gets there by itself while the guest stands still.
    fn is_idle(&self) -> bool {
        true
    }
    /// What the device must remember beside its queues, in a format of its own.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Takes over what [`VirtioDevice::save`] returned, before [`VirtioDevice::activate`] if the saved
    /// device was active. The bytes come from a file: they may be anything.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let foreign = RestoreError::Device { device: self.name() };
        if state.is_empty() { Ok(()) } else { Err(foreign) }
    }
}

/// Why a saved device cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state is another device's, or one that no device can have.
    #[error("the saved state of the {device} device makes no sense")]
    Device {
        /// The device's name.
        device: &'static str,
    },
    /// The file server does not hand over a file that the guest has mapped.
    #[error("a file that the saved guest has mapped is not there any more: {0}")]
    Mapping(#[source] io::Error),
    /// The device does not start.
    #[error("a saved device cannot be started: {0}")]
    Activate(#[from] ActivateError),
}

/// Serves a read of a configuration space that consists of `config`, for
/// [`VirtioDevice::read_config`].
pub fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}

/// Event data from here on belongs to the transport: `DATA_QUEUES + index` is a queue's notifier.
pub const DATA_QUEUES: u32 = 1 << 31;
