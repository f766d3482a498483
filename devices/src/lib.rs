//! The devices of a bulkhead micro-VM.
//!
//! This crate knows no KVM: a device sees guest memory ([`GuestMemory`]), virtqueues and an
//! [`Interrupt`] to raise, and everything else is the VMM's. Each device keeps three types apart:
//! its configuration (what was asked), its state (what a snapshot holds) and the device itself
//! (what lives: fds and queues).

pub mod interrupt;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;

pub use interrupt::Interrupt;

/// Guest memory as every device sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
