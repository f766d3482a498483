//! The virtio-mmio transport: any access of any register, in any order, of any width.

use bulkhead_devices::rng::Rng;
use bulkhead_devices::testing::Driver;

use crate::input::Input;

/// Where a driver's registers end and the configuration space has begun.
const WINDOW: u64 = 0x200;

/// What is done, one byte each.
const WRITE: u8 = 0;
const READ: u8 = 1;
const NOTIFY: u8 = 2;
const SERVE: u8 = 3;
const RESTORE: u8 = 4;
const ACTIONS: u8 = 5;

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let mut driver = Driver::new(Box::new(Rng::new()));
    while !input.is_empty() {
        match input.u8() % ACTIONS {
            WRITE => {
                let (offset, width) = (u64::from(input.u16()) % WINDOW, input.u8() % 9);
                let value = input.bytes(width.into());
                driver.transport.lock().unwrap().write(offset, value);
            }
            READ => {
                let (offset, width) = (u64::from(input.u16()) % WINDOW, input.u8() % 9);
                let mut data = [0; 8];
                driver.transport.lock().unwrap().read(offset, &mut data[..width.into()]);
            }
            NOTIFY => driver.transport.lock().unwrap().queue_notifiers()[0].write(1).unwrap(),
            SERVE => driver.run(),
            _ => driver.restore_to(Box::new(Rng::new())).expect("what was saved is restored"),
        }
    }
    driver.run();
}

pub fn seeds() -> Vec<Vec<u8>> {
    let queue = [(0x38, 16), (0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000), (0x44, 1)];
    let steps = [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 0)];
    let steps = steps.into_iter().chain(queue).chain([(0x70, 15)]);
    let write = |(register, value): (u16, u32)| {
        [&[WRITE][..], &register.to_le_bytes(), &[4], &value.to_le_bytes()].concat()
    };
    let mut start: Vec<u8> = steps.flat_map(write).collect();
    start.extend([NOTIFY, SERVE, READ, 0x60, 0, 4, RESTORE, NOTIFY, SERVE]);
    vec![start, write((0x70, 0))]
}
