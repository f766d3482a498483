//! The register window (virtio 1.3, 4.2.2): offsets to fields of [`Transport`].

use virtio_bindings::virtio_mmio::*;

use super::queue_config::QueueConfig;
use super::{Transport, VERSION_1};
use crate::virtio::device::SharedMemory;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The version of the register layout; 1 is the legacy one.
const VERSION: u32 = 2;
/// "BULK", little-endian. A driver that knows it (patch 0016 of our guest kernel) may spare itself
/// accesses: a queue's registers are zero after a reset, and Status is what was written until
/// FEATURES_OK. To others the vendor ID means nothing.
const VENDOR: u32 = u32::from_le_bytes(*b"BULK");
/// "BULC": such a device, and one whose configuration space is constant. As its line is
/// edge-triggered, every interrupt says that buffers were used, and InterruptStatus needs to be
/// neither read nor acknowledged.
const VENDOR_CONSTANT: u32 = u32::from_le_bytes(*b"BULC");

impl Transport {
    /// Serves a read at `offset` of the window.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            self.device.read_config(offset, data);
        } else if let (Some(register), [_, _, _, _]) = (register(offset), &data) {
            data.copy_from_slice(&self.read_register(register).to_le_bytes());
        }
    }

    /// Serves a write at `offset` of the window.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            if self.status.has_driver() {
                self.device.write_config(offset, data);
            }
        } else if let (Some(register), Ok(value)) = (register(offset), data.try_into()) {
            self.write_register(register, u32::from_le_bytes(value));
        }
    }

    fn read_register(&self, register: u32) -> u32 {
        let queue = self.queues.get(self.queue_select as usize);
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_id(),
            VIRTIO_MMIO_VENDOR_ID if self.device.config_is_constant() => VENDOR_CONSTANT,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match self.device_features_select {
                0 => self.features() as u32,
                1 => (self.features() >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.size_max.into()),
            VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| queue.ready.into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.pending(),
            VIRTIO_MMIO_STATUS => self.status.bits(),
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            VIRTIO_MMIO_SHM_LEN_LOW => self.shared_memory().len as u32,
            VIRTIO_MMIO_SHM_LEN_HIGH => (self.shared_memory().len >> 32) as u32,
            VIRTIO_MMIO_SHM_BASE_LOW => self.shared_memory().base as u32,
            VIRTIO_MMIO_SHM_BASE_HIGH => (self.shared_memory().base >> 32) as u32,
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            VIRTIO_MMIO_SHM_SEL => self.shared_memory_select = value,
            _ => self.write_queue(register, value),
        }
    }

    /// The selected region. One that is not there has -1 for both length and base.
    fn shared_memory(&self) -> SharedMemory {
        let absent = SharedMemory { base: u64::MAX, len: u64::MAX };
        self.device.shared_memory(self.shared_memory_select).unwrap_or(absent)
    }

    fn write_features(&mut self, value: u32) {
        if !self.status.takes_features() {
            return;
        }
        match self.driver_features_select {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            // There are no such features to offer: accepting one is refused at FEATURES_OK.
            _ if value != 0 => self.driver_features &= !VERSION_1,
            _ => {}
        }
    }

    /// KVM's ioeventfds take notifications before they get here; this is for hosts without.
    fn notify(&mut self, index: u32) {
        if let (true, Some(notifier)) = (self.active, self.notifiers.get(index as usize)) {
            // Only a full counter is refused, and that is a signal too.
            let _ = notifier.write(1);
        }
    }

    fn write_queue(&mut self, register: u32, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else { return };
        if !self.status.takes_queues() {
            return;
        }
        if register == VIRTIO_MMIO_QUEUE_READY {
            queue.ready = value == 1;
        } else if !queue.ready {
            configure(queue, register, value);
        }
    }
}

fn configure(queue: &mut QueueConfig, register: u32, value: u32) {
    match register {
        VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
        VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.avail_ring, value),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.avail_ring, value),
        VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used_ring, value),
        VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used_ring, value),
        _ => {}
    }
}

fn register(offset: u64) -> Option<u32> {
    u32::try_from(offset).ok().filter(|offset| offset.is_multiple_of(4))
}

fn set_low(field: &mut u64, value: u32) {
    *field = *field >> 32 << 32 | u64::from(value);
}

fn set_high(field: &mut u64, value: u32) {
    *field = *field & u64::from(u32::MAX) | u64::from(value) << 32;
}
