//! The KVM virtual machine: its memory slots, interrupt controllers and device wiring.

use std::io;
use std::sync::Arc;

use bulkhead_devices::fs::Window;
use bulkhead_devices::virtio::device::SharedMemory;
use bulkhead_devices::{GuestMemory, Interrupt};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::layout;

/// Offset of QueueNotify in a virtio-mmio window (virtio 1.3, 4.2.2).
const QUEUE_NOTIFY: u64 = 0x50;

/// Why the virtual machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// /dev/kvm.
    #[error("cannot open /dev/kvm: {0}; run `bulkhead doctor` to see what this host lacks")]
    Open(#[source] kvm_ioctls::Error),
    /// An ioctl on it.
    #[error("{ioctl} failed: {source}; run `bulkhead doctor` to see what this host lacks")]
    Ioctl {
        /// The ioctl's name in the kernel's linux/kvm.h.
        ioctl: &'static str,
        /// What KVM answered.
        source: kvm_ioctls::Error,
    },
}

fn ioctl(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Ioctl { ioctl, source }
}

/// A virtual machine without vCPUs.
pub struct Vm {
    /// /dev/kvm.
    pub kvm: Kvm,
    /// The machine.
    pub fd: Arc<VmFd>,
    /// It has the old timer beside those of the local APICs.
    pub has_pit: bool,
    // KVM keeps reading and writing these mappings for as long as `fd` lives.
    memory: Arc<GuestMemory>,
    window: Option<Window>,
}

impl Vm {
    /// Creates a machine with `memory` and in-kernel interrupt controllers.
    pub fn new(memory: Arc<GuestMemory>) -> Result<Self, VmError> {
        let kvm = Kvm::new().map_err(VmError::Open)?;
        let fd = kvm.create_vm().map_err(ioctl("KVM_CREATE_VM"))?;
        fd.set_tss_address(layout::KVM_TSS).map_err(ioctl("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(ioctl("KVM_CREATE_IRQCHIP"))?;
        let has_pit = !fd.check_extension(Cap::TscDeadlineTimer);
        if has_pit {
            // Linux then calibrates its local APIC timer against the PIT.
            fd.create_pit2(Default::default()).map_err(ioctl("KVM_CREATE_PIT2"))?;
        }
        for (slot, region) in (0..).zip(memory.iter()) {
            map_region(&fd, slot, region)?;
        }
        Ok(Self { kvm, fd: Arc::new(fd), has_pit, memory, window: None })
    }

    /// Puts a window into the guest's address space, which must not reach into its memory. To be called
    /// once.
    pub fn add_window(&mut self, window: Window) -> Result<(), VmError> {
        let SharedMemory { base, len } = window.shared_memory();
        let slot = kvm_userspace_memory_region {
            slot: self.memory.num_regions() as u32,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: base,
            memory_size: len,
            userspace_addr: window.host_address(),
        };
        // SAFETY: the range is the window's whole reservation, which the handle kept here keeps for as
        // long as the VM's descriptor; what is mapped in it may change at any time.
        let added = unsafe { self.fd.set_user_memory_region(slot) };
        added.map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        self.window = Some(window);
        Ok(())
    }

    /// Its window.
    pub fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The interrupt line of a global system interrupt.
    pub fn interrupt(&self, gsi: u32) -> Arc<dyn Interrupt> {
        Arc::new(Line { vm: self.fd.clone(), gsi })
    }

    /// Lets KVM turn queue notifications of device number `index` into eventfd signals.
    pub fn notify_by(&self, index: u32, notifiers: &[EventFd]) -> Result<(), VmError> {
        let window = layout::MMIO_BASE + u64::from(index) * layout::MMIO_WINDOW;
        let address = IoEventAddress::Mmio(window + QUEUE_NOTIFY);
        for (queue, notifier) in (0u32..).zip(notifiers) {
            let registered = self.fd.register_ioevent(notifier, &address, queue);
            registered.map_err(ioctl("KVM_IOEVENTFD"))?;
        }
        Ok(())
    }
}

fn map_region(fd: &VmFd, slot: u32, region: &GuestRegionMmap<()>) -> Result<(), VmError> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the range is the whole of a live mapping, which `Vm` keeps for as long as the VM's
    // descriptor, and slots do not overlap because regions of a GuestMemory do not.
    unsafe { fd.set_user_memory_region(slot) }.map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))
}

/// An interrupt line. KVM_IRQ_LINE raises it on the spot; an irqfd that leads to the IOAPIC would do so in a
/// worker thread of the host's kernel, woken for each interrupt.
struct Line {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        let set = |active| self.vm.set_irq_line(self.gsi, active);
        let edge = set(true).and_then(|()| set(false));
        edge.map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}
