//! The interrupt half of the transport: what a device and the driver both touch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use crate::Interrupt;

/// The InterruptStatus and ConfigGeneration registers and the line they drive (virtio 1.3,
/// 4.2.2).
///
/// The line is edge-triggered: every call raises it, whether or not the driver has acknowledged
/// the last one, so that an edge the interrupt controller lost is made up for by the next.
pub struct InterruptStatus {
    status: AtomicU32,
    generation: AtomicU32,
    line: Arc<dyn Interrupt>,
}

impl InterruptStatus {
    /// No interrupt is pending.
    pub fn new(line: Arc<dyn Interrupt>) -> Self {
        Self { status: AtomicU32::new(0), generation: AtomicU32::new(0), line }
    }

    /// Tells the driver that buffers were used. Ask the queues first whether the driver wants to
    /// know ([`virtio_queue::QueueT::needs_notification`]), and call this once for all of them.
    pub fn used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration space or DEVICE_NEEDS_RESET changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The InterruptStatus register.
    pub fn pending(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// A write to the InterruptACK register.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The ConfigGeneration register.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Takes over saved registers, and raises the line if the driver has not acknowledged: the edge
    /// may have been on its way to the interrupt controller when that was saved.
    pub(super) fn restore(&self, pending: u32, generation: u32) {
        self.generation.store(generation, Ordering::SeqCst);
        let pending = pending & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
        if pending != 0 {
            self.raise(pending);
        }
    }

    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
        // KVM refuses no line that the VM has.
        let _ = self.line.trigger();
    }
}
