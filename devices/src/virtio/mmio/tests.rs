//! The transport as a driver sees it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;
use virtio_queue::QueueT;

use super::*;
use crate::testing::Driver;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// What happened to a [`Probe`].
#[derive(Default)]
struct Log {
    activations: AtomicUsize,
    resets: AtomicUsize,
    notified: Mutex<Vec<usize>>,
}

/// A device with two queues and eight bytes of configuration.
#[derive(Default)]
struct Probe {
    log: Arc<Log>,
    config: [u8; 8],
    fails: bool,
}

const FEATURE: u64 = 1 << 5;

impl VirtioDevice for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }
    fn device_id(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        FEATURE | EVENT_IDX
    }
    fn queue_sizes_max(&self) -> &[u16] {
        &[8, 16]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = self.config.iter().skip(offset.min(8) as usize);
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let to = self.config.iter_mut().skip(offset.min(8) as usize);
        to.zip(data).for_each(|(to, from)| *to = *from);
    }
    fn activate(&mut self, active: Active) -> Result<(), ActivateError> {
        assert_eq!(active.queues.len(), 2);
        for queue in active.queues.iter().filter(|queue| queue.ready()) {
            assert!(queue.is_valid(&*active.memory));
        }
        self.log.activations.fetch_add(1, Ordering::SeqCst);
        let source = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        if self.fails { Err(ActivateError::Host { device: "probe", source }) } else { Ok(()) }
    }
    fn reset(&mut self) {
        self.log.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn active(&self) -> Option<&Active> {
        None
    }
    fn queue_notified(&mut self, index: usize, _: &mut EventOps) {
        self.log.notified.lock().unwrap().push(index);
    }
}

fn probe() -> (Driver, Arc<Log>) {
    let log = Arc::new(Log::default());
    (Driver::new(Box::new(Probe { log: log.clone(), ..Probe::default() })), log)
}

/// A probe whose driver has reached FEATURES_OK.
fn negotiated() -> (Driver, Arc<Log>) {
    let (mut driver, log) = probe();
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    driver.accept_features(driver.offered_features());
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 11);
    (driver, log)
}

#[test]
fn says_what_it_is() {
    let (driver, _) = probe();
    assert_eq!(driver.read(VIRTIO_MMIO_MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
    assert_eq!(driver.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(driver.read(VIRTIO_MMIO_VENDOR_ID), u32::from_le_bytes(*b"BULC"));
    assert_eq!(driver.offered_features(), FEATURE | EVENT_IDX | VERSION_1);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    for register in [
        VIRTIO_MMIO_SHM_LEN_LOW,
        VIRTIO_MMIO_SHM_LEN_HIGH,
        VIRTIO_MMIO_SHM_BASE_LOW,
        VIRTIO_MMIO_SHM_BASE_HIGH,
    ] {
        assert_eq!(driver.read(register), u32::MAX);
    }
    for (queue, size_max) in [(0, 8), (1, 16), (2, 0), (u32::MAX, 0)] {
        driver.write(VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), size_max);
    }
}

#[test]
fn starts_stops_and_starts_again() {
    let (mut driver, log) = probe();
    for round in 1..=3 {
        driver.initialise(VERSION_1 | FEATURE);
        assert_eq!(log.activations.load(Ordering::SeqCst), round);
        driver.reset();
        assert_eq!(log.resets.load(Ordering::SeqCst), round);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
    driver.reset();
    assert_eq!(log.resets.load(Ordering::SeqCst), 3, "an inactive device is not reset");
}

#[test]
fn refuses_features_it_did_not_offer() {
    for features in [VERSION_1 | 1, VERSION_1 | 1 << 40, FEATURE, 0] {
        let (mut driver, _) = probe();
        driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        driver.accept_features(features);
        driver.write(VIRTIO_MMIO_STATUS, 11);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 3, "{features:#x}");
        // The driver may think again.
        driver.accept_features(VERSION_1);
        driver.write(VIRTIO_MMIO_STATUS, 11);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 11);
    }
}

#[test]
fn features_are_fixed_at_features_ok() {
    let (mut driver, log) = negotiated();
    driver.accept_features(u64::MAX);
    driver.set_up_queue(0);
    driver.write(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 15);
    assert_eq!(log.activations.load(Ordering::SeqCst), 1);
}

#[test]
fn queue_registers_are_closed_before_features_ok_and_after_ready() {
    let (mut driver, _) = probe();
    driver.set_up_queue(0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0, "before FEATURES_OK");

    let (mut driver, log) = negotiated();
    driver.set_up_queue(0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    // Were these taken, the queue would be refused at DRIVER_OK.
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 3);
    driver.write(VIRTIO_MMIO_QUEUE_USED_HIGH, u32::MAX);
    driver.write(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(log.activations.load(Ordering::SeqCst), 1);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1, "after DRIVER_OK");
}

#[test]
fn a_queue_can_be_taken_back_before_driver_ok() {
    let (mut driver, log) = negotiated();
    driver.set_up_queue(1);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 3);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.write(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(log.activations.load(Ordering::SeqCst), 0, "size 3 is no power of two");
}

#[test]
fn bad_queues_need_a_reset() {
    for (register, value) in [
        (VIRTIO_MMIO_QUEUE_NUM, 0),
        (VIRTIO_MMIO_QUEUE_NUM, 5),
        (VIRTIO_MMIO_QUEUE_NUM, 16),
        (VIRTIO_MMIO_QUEUE_NUM, 0x1_0008),
        (VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1008),
        (VIRTIO_MMIO_QUEUE_DESC_HIGH, 0x1000),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x1001),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0),
        (VIRTIO_MMIO_QUEUE_AVAIL_HIGH, u32::MAX),
        (VIRTIO_MMIO_QUEUE_USED_LOW, 0x1002),
        (VIRTIO_MMIO_QUEUE_USED_HIGH, u32::MAX),
    ] {
        let (mut driver, log) = negotiated();
        driver.set_up_queue(0);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
        driver.write(register, value);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        driver.write(VIRTIO_MMIO_STATUS, 15);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 15 | NEEDS_RESET, "{register:#x} {value:#x}");
        assert_eq!(log.activations.load(Ordering::SeqCst), 0);
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(driver.interrupts.count(), 1);
        // A reset leads out of it.
        driver.initialise(VERSION_1);
    }
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let mut driver = Driver::new(Box::new(Probe { fails: true, ..Probe::default() }));
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    driver.accept_features(VERSION_1);
    driver.write(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 15 | NEEDS_RESET);
    let transport = driver.transport.lock().unwrap();
    assert!(transport.failure().unwrap().to_string().contains("probe"));
}

#[test]
fn failed_is_final_until_reset() {
    let (mut driver, log) = negotiated();
    driver.write(VIRTIO_MMIO_STATUS, 11 | FAILED);
    driver.write(VIRTIO_MMIO_STATUS, 11 | FAILED | DRIVER_OK);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 11 | FAILED);
    assert_eq!(log.activations.load(Ordering::SeqCst), 0);
    driver.initialise(VERSION_1);
}

#[test]
fn notifications_arrive_by_eventfd_and_by_register() {
    let (mut driver, log) = probe();
    driver.initialise(VERSION_1);
    driver.transport.lock().unwrap().queue_notifiers()[1].write(1).unwrap();
    driver.run();
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 2);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
    driver.run();
    assert_eq!(*log.notified.lock().unwrap(), [1, 0]);
    // The counters were never read, and still every signal counts.
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    driver.run();
    assert_eq!(*log.notified.lock().unwrap(), [1, 0, 0]);
}

#[test]
fn notifications_before_driver_ok_are_passed_on_after_it() {
    let (mut driver, log) = negotiated();
    driver.set_up_queue(0);
    driver.transport.lock().unwrap().queue_notifiers()[0].write(1).unwrap();
    driver.run();
    assert!(log.notified.lock().unwrap().is_empty());
    driver.write(VIRTIO_MMIO_STATUS, 15);
    driver.run();
    assert_eq!(*log.notified.lock().unwrap(), [0]);
}

#[test]
fn notifications_after_reset_are_ignored() {
    let (mut driver, log) = probe();
    driver.initialise(VERSION_1);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    driver.reset();
    driver.run();
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    driver.run();
    driver.initialise(VERSION_1);
    driver.run();
    assert!(log.notified.lock().unwrap().is_empty());
}

#[test]
fn interrupts_are_pending_until_acknowledged() {
    let (mut driver, _) = probe();
    driver.initialise(VERSION_1);
    let interrupt = driver.transport.lock().unwrap().interrupt().clone();
    interrupt.used();
    interrupt.config_changed();
    assert_eq!(driver.interrupts.count(), 2);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), 1);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    driver.reset();
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn configuration_space_is_read_and_written_in_any_width() {
    let (driver, _) = probe();
    let write = |offset: u64, data: &[u8]| {
        driver.transport.lock().unwrap().write(u64::from(VIRTIO_MMIO_CONFIG) + offset, data);
    };
    write(0, &[9]);
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    write(1, &[1, 2]);
    write(6, &[3, 4, 5, 6]);
    write(u64::MAX - u64::from(VIRTIO_MMIO_CONFIG), &[7]);
    let mut data = [0xff; 8];
    driver.read_config(0, &mut data);
    assert_eq!(data, [0, 1, 2, 0, 0, 0, 3, 4], "nothing was written without a driver");
    let mut beyond = [0xff; 2];
    driver.read_config(7, &mut beyond);
    assert_eq!(beyond, [4, 0]);
}

#[test]
fn odd_widths_and_offsets_read_zero_and_write_nothing() {
    let (driver, _) = probe();
    let mut transport = driver.transport.lock().unwrap();
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0x71, 4), (0x3c, 4)] {
        let mut data = vec![0xff; width];
        transport.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset:#x} {width}");
    }
    for (offset, data) in [(0x70, &[1u8][..]), (0x70, &[1, 0]), (0x70, &[1; 8]), (0x71, &[1; 4])] {
        transport.write(offset, data);
    }
    assert_eq!(transport.status, Status::default());
}

proptest! {
    /// No sequence of accesses panics, and the device only ever runs at DRIVER_OK.
    #[test]
    fn any_accesses_keep_the_state_machine(
        accesses in proptest::collection::vec(
            (prop_oneof![0u64..0x110, any::<u64>()], 0usize..9, any::<u64>(), any::<bool>()),
            0..60,
        ),
        statuses in proptest::collection::vec(0u32..256, 0..60),
    ) {
        let (driver, log) = probe();
        let mut transport = driver.transport.lock().unwrap();
        let mut statuses = statuses.into_iter();
        for (offset, width, value, is_write) in accesses {
            let mut data = value.to_le_bytes();
            if is_write {
                transport.write(offset, &data[..width]);
            } else {
                transport.read(offset, &mut data[..width]);
            }
            if let Some(status) = statuses.next() {
                transport.write(0x70, &status.to_le_bytes());
            }
            prop_assert!(!transport.active || transport.status.driver_ok());
            let starts = log.activations.load(Ordering::SeqCst);
            let stops = log.resets.load(Ordering::SeqCst);
            prop_assert!(starts <= stops + 1);
        }
    }
}
