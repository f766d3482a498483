//! The loop of a vCPU thread: run the guest, serve its exits, until the VM ends.

use std::io;

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::{Bus, PioWrite};
use crate::ending::{Ending, Unexpected};

/// What a vCPU thread needs besides its vCPU; shared by all of a VM.
pub struct Exits {
    /// Where port and memory-mapped accesses go.
    pub bus: Bus,
    /// Where the end of the VM is said.
    pub ending: Ending,
}

/// Runs `vcpu` until the VM ends. `id` is for messages.
pub fn run(id: u8, vcpu: &mut VcpuFd, exits: &Exits) {
    loop {
        let unexpected = match vcpu.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                exits.bus.mmio_read(address, data);
                continue;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                exits.bus.mmio_write(address, data);
                continue;
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                exits.bus.pio_read(port, data);
                continue;
            }
            Ok(VcpuExit::IoOut(port, data)) => match exits.bus.pio_write(port, data) {
                PioWrite::Done => continue,
                PioWrite::Reset => Unexpected::Reset,
            },
            Ok(VcpuExit::Intr) => continue,
            // A triple fault: how a kernel with `reboot=t` restarts, or one that lost its way dies.
            Ok(VcpuExit::Shutdown) | Ok(VcpuExit::SystemEvent(..)) => Unexpected::Reset,
            Ok(VcpuExit::FailEntry(reason, _)) => Unexpected::FailEntry { vcpu: id, reason },
            Ok(VcpuExit::InternalError) => Unexpected::internal_error(id, vcpu),
            Ok(other) => Unexpected::Exit { vcpu: id, exit: format!("{other:?}") },
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
            Err(error) => {
                let source = io::Error::from_raw_os_error(error.errno());
                Unexpected::Run { vcpu: id, source }
            }
        };
        exits.ending.unexpected(unexpected);
        return;
    }
}
