//! The serial console: a 16550 whose output goes to any writer.

use std::io::{self, Write};
use std::sync::Arc;

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use crate::Interrupt;

/// A serial port with eight registers.
pub struct Serial {
    uart: vm_superio::Serial<Line, NoEvents, Box<dyn Write + Send>>,
}

struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

impl Serial {
    /// A port that transmits to `out` and raises `interrupt`.
    pub fn new(out: Box<dyn Write + Send>, interrupt: Arc<dyn Interrupt>) -> Self {
        Self { uart: vm_superio::Serial::new(Line(interrupt), out) }
    }

    /// Reads register `offset`, 0..8.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    /// Writes register `offset`, 0..8. A byte that cannot be written out is lost, as on a line with
    /// nobody at its other end.
    pub fn write(&mut self, offset: u8, value: u8) {
        let _ = self.uart.write(offset, value);
    }

    /// Receives `bytes` from the other end; returns how many there was room for.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        self.uart.enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::testing::CountingInterrupt;

    const DATA: u8 = 0;
    const INTERRUPT_ENABLE: u8 = 1;
    const LINE_STATUS: u8 = 5;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_guest_transmits_comes_out() {
        let out = Shared::default();
        let line = Arc::new(CountingInterrupt::default());
        let mut serial = Serial::new(Box::new(out.clone()), line.clone());
        for byte in b"hello" {
            serial.write(DATA, *byte);
        }
        assert_eq!(*out.0.lock().unwrap(), b"hello");
        assert_eq!(line.count(), 0, "no interrupt was enabled");
        serial.write(INTERRUPT_ENABLE, 0b10);
        assert_eq!(line.count(), 1, "the transmitter is empty");
    }

    #[test]
    fn a_broken_output_loses_bytes_and_nothing_else() {
        let mut serial = Serial::new(Box::new(Broken), Arc::new(CountingInterrupt::default()));
        serial.write(DATA, b'x');
        assert_eq!(serial.read(LINE_STATUS) & 0x60, 0x60, "still ready to transmit");
    }

    #[test]
    fn what_is_received_can_be_read() {
        let line = Arc::new(CountingInterrupt::default());
        let mut serial = Serial::new(Box::new(io::sink()), line.clone());
        serial.write(INTERRUPT_ENABLE, 0b01);
        assert_eq!(serial.receive(b"ab"), 2);
        assert_eq!(line.count(), 1);
        assert_eq!([serial.read(DATA), serial.read(DATA)], *b"ab");
        assert_eq!(serial.read(LINE_STATUS) & 1, 0, "no data left");
    }
}
