//! A virtio-mmio driver that does as it is told, right or wrong.

use crate::io::{get, put, wait};

pub const NET: u32 = 1;
pub const FS: u32 = 26;
pub const VSOCK: u32 = 19;
pub const RNG: u32 = 4;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;

const MMIO: u64 = 0xd000_0000;
const WINDOWS: u64 = 16;
/// Where rings are: 64 KiB a queue.
const RINGS: u64 = 0x0100_0000;
/// Where buffers are; 16 MiB.
pub const BUFFERS: u64 = 0x0200_0000;
/// VIRTIO_F_VERSION_1, in the upper word.
const VERSION_1: u32 = 1;

/// A device by its register window.
#[derive(Clone, Copy)]
pub struct Device(pub u64);

/// A queue of a device.
#[derive(Clone, Copy)]
pub struct Queue {
    pub device: Device,
    pub index: u32,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// Windows that answer as a virtio device.
pub fn windows() -> impl Iterator<Item = Device> {
    (0..WINDOWS).map(|i| Device(MMIO + i * 0x1000)).filter(|d| d.reg(0) == 0x7472_6976)
}

impl Device {
    pub fn find(id: u32) -> Self {
        windows().find(|device| device.reg(8) == id).expect("the device is there")
    }

    pub fn reg(self, offset: u64) -> u32 {
        get(self.0 + offset)
    }

    pub fn set(self, offset: u64, value: u32) {
        put(self.0 + offset, value);
    }

    pub fn status(self) -> u32 {
        self.reg(0x70)
    }

    /// Everything up to FEATURES_OK; accepts of the low word `features`.
    pub fn negotiate(self, features: u32) {
        self.set(0x70, 0);
        self.set(0x70, ACKNOWLEDGE);
        self.set(0x70, ACKNOWLEDGE | DRIVER);
        self.set(0x24, 0);
        self.set(0x20, features);
        self.set(0x24, 1);
        self.set(0x20, VERSION_1);
        self.set(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    pub fn ok(self) {
        self.set(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// A queue with zeroed rings at their usual place, not yet told to the device.
    pub fn queue(self, index: u32, size: u16) -> Queue {
        let base = RINGS + (self.0 - MMIO) / 0x1000 * 0x4_0000 + u64::from(index) * 0x1_0000;
        for at in (0..0x1_0000).step_by(8) {
            put(base + at, 0u64);
        }
        let (desc, avail, used) = (base, base + 0x4000, base + 0x8000);
        Queue { device: self, index, size, desc, avail, used }
    }
}

impl Queue {
    /// Tells the device where the queue is.
    pub fn enable(self) -> Self {
        let device = self.device;
        device.set(0x30, self.index);
        device.set(0x38, self.size.into());
        let addresses = [(0x80, self.desc), (0x90, self.avail), (0xa0, self.used)];
        for (register, address) in addresses {
            device.set(register, address as u32);
            device.set(register + 4, (address >> 32) as u32);
        }
        device.set(0x44, 1);
        self
    }

    pub fn describe(self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        describe(self.desc, index, address, len, flags, next);
    }

    /// Offers a chain by its head.
    pub fn offer(self, head: u16) {
        let index: u16 = get(self.avail + 2);
        put(self.avail + 4 + 2 * u64::from(index % self.size), head);
        put(self.avail + 2, index.wrapping_add(1));
    }

    pub fn notify(self) {
        self.device.set(0x50, self.index);
    }

    pub fn used_index(self) -> u16 {
        get(self.used + 2)
    }

    /// Offers `head`, notifies, and waits for one more used buffer.
    pub fn submit(self, head: u16) -> bool {
        let before = self.used_index();
        self.offer(head);
        self.notify();
        wait(|| self.used_index() != before)
    }
}

/// Writes a descriptor of the table at `table`.
pub fn describe(table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
    let at = table + 16 * u64::from(index);
    put(at, address);
    put(at + 8, len);
    put(at + 12, flags);
    put(at + 14, next);
}

/// A working entropy device with one queue of `size`.
pub fn rng(size: u16) -> Queue {
    rng_with(size, 0)
}

/// The same with features.
pub fn rng_with(size: u16, features: u32) -> Queue {
    let device = Device::find(RNG);
    device.negotiate(features);
    let queue = device.queue(0, size).enable();
    device.ok();
    queue
}

/// Whether the entropy device, reset and set up anew, still does its work.
pub fn rng_is_sane() -> bool {
    let queue = rng(8);
    for byte in 0..64 {
        put(BUFFERS + byte, 0u8);
    }
    queue.describe(0, BUFFERS, 64, WRITE, 0);
    queue.submit(0) && (0..64).any(|byte| get::<u8>(BUFFERS + byte) != 0)
}
