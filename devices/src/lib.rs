//! The devices of a bulkhead micro-VM.
//!
//! This crate knows no KVM: a device sees guest memory ([`GuestMemory`]), virtqueues and an
//! [`Interrupt`] to raise, and everything else is the VMM's. Each device keeps three types apart:
//! its configuration (what was asked), its state (what a snapshot holds) and the device itself
//! (what lives: fds and queues).

pub mod balloon;
pub mod boot_mark;
pub mod fs;
pub mod host_stream;
pub mod interrupt;
mod iovec;
pub mod net;
pub mod rate_limiter;
pub mod rng;
pub mod serial;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;
pub mod vsock;

pub use interrupt::Interrupt;

/// Guest memory as every device sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
