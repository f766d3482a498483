//! Where a vCPU's port and memory-mapped accesses go.

use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_devices::boot_mark::BootMark;
use bulkhead_devices::serial::Serial;
use bulkhead_devices::virtio::mmio::Transport;
use bulkhead_protocol::BOOT_MARK_PORT;

use crate::layout::{MMIO_BASE, MMIO_WINDOW};

/// COM1, eight ports.
const SERIAL_BASE: u16 = 0x3f8;
const SERIAL_LAST: u16 = SERIAL_BASE + 7;
/// The keyboard controller's command port, and the command that pulses the CPU's reset line.
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// The devices of a VM by address. Accesses nobody answers read as all ones and write nothing.
#[derive(Default)]
pub struct Bus {
    /// The virtio-mmio devices; number `i` is at `MMIO_BASE + i * MMIO_WINDOW`.
    pub mmio: Vec<Arc<Mutex<Transport>>>,
    /// The serial console, if joined.
    pub serial: Option<Mutex<Serial>>,
    /// The boot-mark port.
    pub boot_mark: Option<Mutex<BootMark>>,
}

/// What came of a port write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PioWrite {
    /// It is done.
    Done,
    /// The guest asked for a reset.
    Reset,
}

impl Bus {
    /// Serves a memory-mapped read.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.mmio_device(address) {
            Some((device, offset)) => {
                device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data)
            }
            None => data.fill(0xff),
        }
    }

    /// Serves a memory-mapped write.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.mmio_device(address) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }

    fn mmio_device(&self, address: u64) -> Option<(&Mutex<Transport>, u64)> {
        let offset = address.checked_sub(MMIO_BASE)?;
        let device = self.mmio.get(usize::try_from(offset / MMIO_WINDOW).ok()?)?;
        Some((device, offset % MMIO_WINDOW))
    }

    /// Serves a port read.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, &self.serial, data) {
            (SERIAL_BASE..=SERIAL_LAST, Some(serial), [byte]) => {
                let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
                *byte = serial.read((port - SERIAL_BASE) as u8);
            }
            (BOOT_MARK_PORT, _, data) => {
                if let Some(device) = &self.boot_mark {
                    device.lock().unwrap_or_else(PoisonError::into_inner).read(data);
                }
            }
            // "Ready for a command": Linux polls it before it asks for a reset.
            (KEYBOARD_COMMAND, _, [byte]) => *byte = 0,
            _ => {}
        }
    }

    /// Serves a port write.
    pub fn pio_write(&self, port: u16, data: &[u8]) -> PioWrite {
        match (port, data) {
            (BOOT_MARK_PORT, [mark]) => {
                if let Some(device) = &self.boot_mark {
                    device.lock().unwrap_or_else(PoisonError::into_inner).write(*mark);
                }
            }
            (SERIAL_BASE..=SERIAL_LAST, [byte]) => {
                if let Some(serial) = &self.serial {
                    let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
                    serial.write((port - SERIAL_BASE) as u8, *byte);
                }
            }
            (KEYBOARD_COMMAND, [KEYBOARD_RESET]) => return PioWrite::Reset,
            _ => {}
        }
        PioWrite::Done
    }
}
