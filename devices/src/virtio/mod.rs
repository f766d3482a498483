//! virtio: the device contract and its MMIO transport (virtio 1.3, sections 2 and 4.2).

pub mod buffers;
pub mod device;
pub mod mmio;
pub mod serve;
pub mod used;

pub use device::{ActivateError, Active, RestoreError, VirtioDevice};
