//! A mock driver: the guest's half of a virtio device, for tests.
//!
//! [`Driver`] owns guest memory, a [`Transport`] and the event loop that serves it. It speaks to
//! the device as a guest does, through registers and rings alone:
//!
//! ```ignore
//! let mut driver = Driver::start(Box::new(Rng::new()));
//! let head = driver.queue(0).post(&[], &[64]);
//! driver.kick(0);
//! let done = driver.wait_used(0);
//! assert_eq!((done.head, done.bytes.len()), (head, 64));
//! ```
//!
//! Everything here panics on misuse: it runs in tests only.

#![allow(missing_docs)]

mod queue;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, SubscriberId, SubscriberOps};
use virtio_bindings::virtio_mmio::*;
use vm_memory::GuestAddress;

pub use self::queue::{DriverQueue, SEGMENT_MAX, Used, raw_descriptor};
use crate::virtio::mmio::Transport;
use crate::virtio::{RestoreError, VirtioDevice};
use crate::{GuestMemory, Interrupt};

/// Guest memory before the first queue; tests may use it as they like.
pub const FREE_MEMORY: std::ops::Range<u64> = 0x1000..0x10_0000;

/// How long [`Driver::wait`] waits before it fails the test.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// An interrupt line that counts.
#[derive(Default)]
pub struct CountingInterrupt(AtomicUsize);

impl CountingInterrupt {
    /// How often the line was raised.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Interrupt for CountingInterrupt {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A guest with one device.
pub struct Driver {
    pub memory: Arc<GuestMemory>,
    pub transport: Arc<Mutex<Transport>>,
    pub interrupts: Arc<CountingInterrupt>,
    events: EventManager<Arc<Mutex<Transport>>>,
    subscriber: SubscriberId,
    queues: Vec<DriverQueue>,
}

impl Driver {
    /// A guest whose driver has done nothing yet.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let sizes = device.queue_sizes_max().to_vec();
        let bytes: u64 = sizes.iter().map(|size| DriverQueue::footprint(*size)).sum();
        let memory_size = (FREE_MEMORY.end + bytes) as usize;
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), memory_size)]).unwrap();
        let memory = Arc::new(memory);
        let interrupts = Arc::new(CountingInterrupt::default());
        let transport = Transport::new(device, memory.clone(), interrupts.clone()).unwrap();
        let transport = Arc::new(Mutex::new(transport));
        let mut events = EventManager::new().unwrap();
        let subscriber = events.add_subscriber(transport.clone());
        let mut start = FREE_MEMORY.end;
        let queues = sizes
            .iter()
            .map(|size| {
                let queue = DriverQueue::new(memory.clone(), start, *size);
                start += DriverQueue::footprint(*size);
                queue
            })
            .collect();
        Self { memory, transport, interrupts, events, subscriber, queues }
    }

    /// A guest whose driver accepted all features and set up all queues at their greatest size.
    pub fn start(device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Self::new(device);
        let features = driver.offered_features();
        driver.initialise(features);
        driver
    }

    /// Initialisation as virtio 1.3, 3.1.1 has it, with `features`. The status must end at
    /// ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK.
    pub fn initialise(&mut self, features: u64) {
        self.reset();
        for status in [1, 3] {
            self.write(VIRTIO_MMIO_STATUS, status);
        }
        self.accept_features(features);
        self.write(VIRTIO_MMIO_STATUS, 11);
        for index in 0..self.queues.len() {
            self.set_up_queue(index);
        }
        self.write(VIRTIO_MMIO_STATUS, 15);
        assert_eq!(self.read(VIRTIO_MMIO_STATUS), 15, "the device did not start");
    }

    /// Saves the device and goes on with `device` in its place, restored to the same state.
    pub fn restore_to(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), RestoreError> {
        let state = {
            let saved = self.lock();
            assert!(saved.is_idle(), "a device is saved when it is idle");
            saved.save()
        };
        let line = self.interrupts.clone();
        let mut transport = Transport::new(device, self.memory.clone(), line).unwrap();
        transport.restore(&state)?;
        self.transport = Arc::new(Mutex::new(transport));
        self.events = EventManager::new().unwrap();
        self.subscriber = self.events.add_subscriber(self.transport.clone());
        Ok(())
    }

    /// Does what the device's owner does with it.
    pub fn with_device<D: VirtioDevice, T>(
        &mut self,
        work: impl FnOnce(&mut D, &mut EventOps<'_>) -> T,
    ) -> T {
        let mut ops = self.events.event_ops(self.subscriber).unwrap();
        let mut transport = self.transport.lock().unwrap();
        work(transport.device_mut().expect("a device of this kind"), &mut ops)
    }

    /// Writes 0 to Status; all rings are empty afterwards.
    pub fn reset(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.queues.iter_mut().for_each(DriverQueue::reset);
    }

    pub fn offered_features(&self) -> u64 {
        (0..2).rev().fold(0, |features, word| {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
            features << 32 | u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES))
        })
    }

    pub fn accept_features(&mut self, features: u64) {
        for word in 0..2 {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * word)) as u32);
        }
        let event_idx = features & crate::virtio::mmio::EVENT_IDX != 0;
        self.queues.iter_mut().for_each(|queue| queue.set_event_idx(event_idx));
    }

    /// Writes one queue's registers; the status must be at FEATURES_OK.
    pub fn set_up_queue(&mut self, index: usize) {
        let queue = &self.queues[index];
        let [desc, avail, used] = queue.addresses();
        let size = queue.size();
        self.write(VIRTIO_MMIO_QUEUE_SEL, index as u32);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size.into());
        for (register, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, desc),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail),
            (VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// A 32-bit register read.
    pub fn read(&self, register: u32) -> u32 {
        let mut data = [0xaa; 4];
        self.lock().read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    /// A 32-bit register write.
    pub fn write(&self, register: u32, value: u32) {
        self.lock().write(register.into(), &value.to_le_bytes());
    }

    /// Reads the configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.lock().read(u64::from(VIRTIO_MMIO_CONFIG) + offset, data);
    }

    /// How many queues there are.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    pub fn queue(&mut self, index: usize) -> &mut DriverQueue {
        &mut self.queues[index]
    }

    /// Notifies the device of queue `index`, if the device wants it, as KVM's ioeventfd does.
    pub fn kick(&mut self, index: usize) {
        if self.queues[index].wants_kick() {
            self.lock().queue_notifiers()[index].write(1).unwrap();
        }
    }

    /// Serves events until there are none.
    pub fn run(&mut self) {
        while self.events.run_with_timeout(0).unwrap() > 0 {}
    }

    /// Serves events until `condition` holds; fails the test after 20 s.
    pub fn wait(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < WAIT_MAX, "waited too long for {what}");
            self.events.run_with_timeout(10).unwrap();
        }
    }

    /// Serves events until queue `index` has a used chain, and takes it.
    pub fn wait_used(&mut self, index: usize) -> Used {
        let mut used = None;
        self.wait("a used buffer", |driver| {
            used = driver.queues[index].take_used();
            used.is_some()
        });
        used.unwrap()
    }

    fn lock(&self) -> MutexGuard<'_, Transport> {
        self.transport.lock().unwrap()
    }
}
