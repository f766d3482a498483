//! The one way a device reaches the interrupt controller.

use std::io;

/// An edge-triggered interrupt line.
pub trait Interrupt: Send + Sync {
    /// Raises the line once. Errors are those of the underlying eventfd or ioctl.
    fn trigger(&self) -> io::Result<()>;
}
