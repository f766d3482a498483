//! The loop of a vCPU thread: run the guest, serve its exits, until the VM ends.

use std::io;
use std::sync::Arc;

use bulkhead_devices::fs::Window;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{Gate, Vcpu};
use crate::bus::{Bus, PioWrite};
use crate::ending::{Ending, Unexpected};

/// What a vCPU thread needs besides its vCPU; shared by all of a VM.
pub struct Exits {
    /// Where port and memory-mapped accesses go.
    pub bus: Bus,
    /// Where the end of the VM is said.
    pub ending: Ending,
    /// Where vCPUs are held while the VM is paused.
    pub gate: Arc<Gate>,
    /// Where the guest maps files.
    pub window: Option<Window>,
}

impl Exits {
    /// Whether the guest can go on after KVM has found no memory behind an address: it came upon the
    /// place of a mapped file that is not there any more, which is zeroes now.
    fn mend(&self) -> bool {
        self.window.as_ref().is_some_and(Window::mend)
    }
}

/// Runs `vcpu` until the VM ends.
pub fn run(vcpu: &Vcpu, exits: &Exits) {
    loop {
        // The lock is free while the vCPU is parked, for whoever saves its state.
        let unexpected = run_until_called(vcpu.id, &mut vcpu.lock(), exits);
        if let Some(unexpected) = unexpected {
            exits.ending.unexpected(unexpected);
            return exits.gate.leave();
        }
        exits.gate.pass();
    }
}

/// Runs the guest until KVM_RUN is interrupted (`None`) or the VM ends.
fn run_until_called(id: u8, vcpu: &mut VcpuFd, exits: &Exits) -> Option<Unexpected> {
    loop {
        return Some(match vcpu.run() {
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
            Ok(VcpuExit::Intr) => return None,
            // A triple fault: how a kernel with `reboot=t` restarts, or one that lost its way dies.
            Ok(VcpuExit::Shutdown) | Ok(VcpuExit::SystemEvent(..)) => Unexpected::Reset,
            Ok(VcpuExit::FailEntry(reason, _)) => Unexpected::FailEntry { vcpu: id, reason },
            Ok(VcpuExit::InternalError) => Unexpected::internal_error(id, vcpu),
            Ok(other) => Unexpected::Exit { vcpu: id, exit: format!("{other:?}") },
            Err(error) if error.errno() == libc::EINTR => return None,
            Err(error) if error.errno() == libc::EAGAIN => continue,
            Err(error) if error.errno() == libc::EFAULT && exits.mend() => continue,
            Err(error) => {
                let source = io::Error::from_raw_os_error(error.errno());
                Unexpected::Run { vcpu: id, source }
            }
        });
    }
}
