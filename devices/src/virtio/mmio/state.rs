//! What a snapshot holds of a transport and its device.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use super::queue_config::QueueConfig;
use super::status::Status;
use super::{Transport, VERSION_1};
use crate::virtio::device::{ActivateError, RestoreError};

/// A saved transport: its registers, and how far its queues have got. Untrusted; enters by
/// [`Transport::restore`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// The device ID register: whose state it is.
    pub device_id: u32,
    /// The Status register.
    pub status: u32,
    /// DeviceFeaturesSel.
    pub device_features_select: u32,
    /// DriverFeaturesSel.
    pub driver_features_select: u32,
    /// The features the driver accepted.
    pub driver_features: u64,
    /// QueueSel.
    pub queue_select: u32,
    /// SHMSel.
    pub shared_memory_select: u32,
    /// InterruptStatus.
    pub interrupt_pending: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The queues, in order.
    pub queues: Vec<QueueState>,
    /// What the device itself remembers.
    pub device: Vec<u8>,
}

/// A saved queue: its registers as the driver wrote them (virtio 1.3, 4.2.2), and its progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct QueueState {
    pub size: u32,
    pub ready: bool,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
    /// The next entry of the available ring that the device looks at.
    pub next_avail: u16,
    /// The next entry of the used ring that the device writes.
    pub next_used: u16,
    /// A notification that came before DRIVER_OK.
    pub notified_early: bool,
}

impl Transport {
    /// Whether the device can be saved as it is.
    pub fn is_idle(&self) -> bool {
        self.device.is_idle()
    }

    /// The state of an idle transport whose guest stands still.
    pub fn save(&self) -> TransportState {
        let live = self.device.active().map(|active| &active.queues);
        let progress = |index: usize| live.and_then(|queues| queues.get(index));
        let queues = self.queues.iter().zip(&self.notified_early).enumerate();
        TransportState {
            device_id: self.device.device_id(),
            status: self.status.bits(),
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            shared_memory_select: self.shared_memory_select,
            interrupt_pending: self.interrupt.pending(),
            config_generation: self.interrupt.generation(),
            queues: queues
                .map(|(index, (queue, early))| QueueState {
                    size: queue.size,
                    ready: queue.ready,
                    desc_table: queue.desc_table,
                    avail_ring: queue.avail_ring,
                    used_ring: queue.used_ring,
                    next_avail: progress(index).map_or(0, QueueT::next_avail),
                    next_used: progress(index).map_or(0, QueueT::next_used),
                    notified_early: *early,
                })
                .collect(),
            device: self.device.save(),
        }
    }

    /// Takes over the state of a saved transport; this one must be fresh. What it refuses leaves a
    /// transport that is good for nothing.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        let device = self.device.name();
        let foreign = || RestoreError::Device { device };
        let status = Status::restored(state.status).ok_or_else(foreign)?;
        let features = state.driver_features;
        let negotiated = features & !self.features() == 0 && features & VERSION_1 != 0;
        if state.device_id != self.device.device_id()
            || state.queues.len() != self.queues.len()
            || status.features_ok() && !negotiated
        {
            return Err(foreign());
        }
        self.status = status;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.driver_features = features;
        self.queue_select = state.queue_select;
        self.shared_memory_select = state.shared_memory_select;
        let queues = self.queues.iter_mut().zip(&mut self.notified_early).zip(&state.queues);
        for ((queue, early), saved) in queues {
            *queue = QueueConfig { size_max: queue.size_max, ..QueueConfig::from(saved) };
            *early = saved.notified_early;
        }
        self.interrupt.restore(state.interrupt_pending, state.config_generation);
        self.device.restore(&state.device)?;
        if status.is_working() {
            self.resume(&state.queues)?;
        }
        Ok(())
    }

    /// Starts the device with queues that have got as far as `saved`.
    fn resume(&mut self, saved: &[QueueState]) -> Result<(), ActivateError> {
        let mut queues: Vec<Queue> = self.checked_queues()?;
        for (queue, saved) in queues.iter_mut().zip(saved) {
            queue.set_next_avail(saved.next_avail);
            queue.set_next_used(saved.next_used);
        }
        self.activate_with(queues)?;
        self.active = true;
        Ok(())
    }
}

impl From<&QueueState> for QueueConfig {
    fn from(saved: &QueueState) -> Self {
        Self {
            size_max: 0,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.desc_table,
            avail_ring: saved.avail_ring,
            used_ring: saved.used_ring,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;
    use crate::testing::{CountingInterrupt, Driver};

    fn ask(driver: &mut Driver) -> usize {
        driver.queue(0).post(&[], &[64]);
        driver.kick(0);
        driver.wait_used(0).bytes.len()
    }

    #[test]
    fn a_device_goes_on_where_it_was() {
        let mut driver = Driver::start(Box::new(Rng::new()));
        for _ in 0..3 {
            for _ in 0..5 {
                assert_eq!(ask(&mut driver), 64);
            }
            driver.restore_to(Box::new(Rng::new())).unwrap();
        }
        assert_eq!(ask(&mut driver), 64);
    }

    #[test]
    fn a_device_in_the_middle_of_initialisation_goes_on() {
        let mut driver = Driver::new(Box::new(Rng::new()));
        let features = driver.offered_features();
        for status in [1, 3] {
            driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, status);
        }
        driver.accept_features(features);
        driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 11);
        driver.set_up_queue(0);
        driver.restore_to(Box::new(Rng::new())).unwrap();
        driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(ask(&mut driver), 64);
    }

    #[test]
    fn an_interrupt_that_was_not_acknowledged_is_raised_again() {
        let driver = Driver::start(Box::new(Rng::new()));
        driver.transport.lock().unwrap().interrupt().used();
        let state = driver.transport.lock().unwrap().save();
        let line = Arc::new(CountingInterrupt::default());
        let rng = Box::new(Rng::new());
        let mut transport = Transport::new(rng, driver.memory.clone(), line.clone()).unwrap();
        transport.restore(&state).unwrap();
        assert_eq!((line.count(), transport.interrupt().pending()), (1, 1));
    }

    proptest! {
        /// Whatever a file says, a transport takes it or says no.
        #[test]
        fn nonsense_is_refused_or_harmless(
            numbers: [u32; 6],
            status in 0u32..256,
            driver_features: u64,
            queue: (u32, bool, u64, u64, u64, u16, u16),
            device in proptest::collection::vec(any::<u8>(), 0..3),
        ) {
            let driver = Driver::start(Box::new(Rng::new()));
            let state = TransportState {
                device_id: if numbers[0] % 8 == 0 { numbers[0] } else { 4 },
                status,
                device_features_select: numbers[1],
                driver_features_select: numbers[2],
                driver_features,
                queue_select: numbers[3],
                shared_memory_select: numbers[3],
                interrupt_pending: numbers[4],
                config_generation: numbers[5],
                queues: vec![QueueState {
                    size: queue.0 % 1024,
                    ready: queue.1,
                    desc_table: queue.2,
                    avail_ring: queue.3,
                    used_ring: queue.4,
                    next_avail: queue.5,
                    next_used: queue.6,
                    notified_early: queue.1,
                }],
                device,
            };
            let line = Arc::new(CountingInterrupt::default());
            let rng = Box::new(Rng::new());
            let mut transport = Transport::new(rng, driver.memory.clone(), line).unwrap();
            let working = status & 15 == 15 && status & 64 == 0;
            if transport.restore(&state).is_ok() && working {
                prop_assert!(state.queues[0].ready, "a device without its queue does not start");
            }
        }
    }
}
