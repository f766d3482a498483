//! virtio-vsock: stream sockets between guest and host (virtio 1.3, section 5.10).
//!
//! Split by reason to change: [`packet`] is the wire format, [`credit`] the flow control, [`caps`] bounds,
//! [`connection`] the state machine of one stream with its [`output`] to the host, [`muxer`] all
//! of them, [`rx`] the guest's receive buffers, [`unix`] the convention for host programs,
//! [`host_port`] the ports that the VMM answers itself, [`device`] queues and events, [`saved`] what a
//! snapshot holds.
//!
//! Bytes move by one system call between guest memory and a host descriptor. Only what the host
//! does not take at once is copied, into a buffer bounded by the credit the guest was given; what
//! the guest has no buffers for stays in the host's descriptor.

mod backlog;
pub mod caps;
mod connection;
mod credit;
mod device;
mod host_port;
mod muxer;
mod output;
mod packet;
mod rx;
mod saved;
mod unix;

#[cfg(test)]
mod tests;

pub use self::device::{Vsock, VsockConfig};
pub use self::host_port::{Deliver, HostEnd};
