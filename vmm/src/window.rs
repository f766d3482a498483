//! The DAX window of a VM: where it lies in the guest's address space, and KVM's slot for it.
//!
//! Where a file has ended under its mapping, KVM_RUN fails, and zeroes are put there (vcpu/run.rs).
//!
//! KVM gives the guest no way to write to it: what it tries to write ends at a bus on which nothing is.

use std::io;

use bulkhead_devices::GuestMemory;
use bulkhead_devices::fs::{SLOT_LEN, Window};
use vm_memory::{Address, GuestMemoryBackend};

use crate::layout::{ABOVE_4G_START, WINDOW_ALIGNMENT};

/// A window of `mib` MiB above `memory`; none if that is 0.
pub fn create(memory: &GuestMemory, mib: u16) -> io::Result<Option<Window>> {
    let slots = slots(mib);
    if slots == 0 {
        return Ok(None);
    }
    let end = memory.last_addr().raw_value() + 1;
    let base = end.max(ABOVE_4G_START).next_multiple_of(WINDOW_ALIGNMENT);
    Window::new(base, slots.into()).map(Some)
}

/// How many mappings fit into a window of `mib` MiB.
pub fn slots(mib: u16) -> u16 {
    (u64::from(mib) * (1 << 20) / SLOT_LEN) as u16
}

#[cfg(test)]
mod tests {
    use bulkhead_devices::virtio::device::SharedMemory;
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn it_lies_above_memory() {
        let at = |mib: u32| {
            let ranges = crate::memory::ranges(mib);
            let ranges: Vec<_> =
                ranges.into_iter().map(|(at, len)| (GuestAddress(at), len as usize)).collect();
            let window = create(&GuestMemory::from_ranges(&ranges).unwrap(), 64).unwrap();
            window.unwrap().shared_memory()
        };
        assert_eq!(at(128), SharedMemory { base: 1 << 32, len: 64 << 20 });
        assert_eq!(at(3073).base, 5 << 30);
        assert_eq!(at(4096).base, 5 << 30);
        assert!(create(&GuestMemory::new(), 0).unwrap().is_none());
    }
}
