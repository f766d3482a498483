//! The machine that the probe guest runs on, one vCPU and 64 KiB.

use std::io;

use bulkhead_devices::GuestMemory;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_dtable, kvm_irqchip, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::guest::{self, Label};
use crate::layout;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
/// Protected mode and paging; numeric errors as every 64-bit kernel wants them.
const CR0: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// SYSCALL, long mode enabled and active.
const EFER: u64 = 1 | 1 << 8 | 1 << 10;
const RFLAGS_RESERVED: u64 = 2;
/// The leaf with KVM's signature, and its first four letters.
const CPUID_HYPERVISOR: u32 = 0x4000_0000;
pub const SIGNATURE: u32 = u32::from_le_bytes(*b"KVMK");
/// An IOAPIC pin that is no ISA interrupt, so that the PIC does not see it.
const PIN: u32 = 20;
/// Offset of the spurious-interrupt vector register; its bit 8 switches the local APIC on.
const APIC_SPURIOUS: usize = 0xf0;
const APIC_ENABLED: u32 = 0x1ff;
/// What the guest reads from its devices.
pub const ANSWER: u32 = 0x1234_5678;
/// Far more exits than any step takes.
const EXITS_MAX: usize = 32;

/// Why the machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The failed action and the answer.
    #[error("{action} failed: {source}")]
    Refused { action: &'static str, source: io::Error },
    /// Running a vCPU would spin in the host's kernel for ever.
    #[error("KVM does not know the frequency of this host's time-stamp counter")]
    TscUnknown,
}

fn at<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> MachineError {
    move |source| MachineError::Refused { action, source: source.into() }
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Done,
    /// By an exception of this vector.
    Fault(u32),
    /// By a triple fault.
    Shutdown,
    /// By KVM_EXIT_INTERNAL_ERROR with this suberror.
    Internal(u32),
    /// By KVM_EXIT_FAIL_ENTRY with the processor's reason.
    FailEntry(u64),
    /// By a failure of KVM_RUN or another ioctl, with its errno.
    Ioctl(i32),
    /// By an exit that nobody asked for.
    Strange(String),
}

/// A device access that left the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    PortRead(u16),
    PortWrite(u16, Vec<u8>),
    Read(u64),
    Write(u64, Vec<u8>),
}

/// What a step left behind.
#[derive(Clone, Debug)]
pub struct Seen {
    pub end: End,
    pub accesses: Vec<Access>,
    pub regs: kvm_regs,
}

/// The machine.
pub struct Machine {
    vcpu: VcpuFd,
    sregs: kvm_sregs,
    events: kvm_vcpu_events,
    notified: EventFd,
    memory: GuestMemory,
    // Last: KVM goes on using the memory until the VM's descriptor is closed.
    vm: VmFd,
}

impl Machine {
    pub fn new(kvm: &Kvm) -> Result<Self, MachineError> {
        let range = (GuestAddress(0), guest::MEMORY_SIZE);
        let memory = GuestMemory::from_ranges(&[range])
            .map_err(io::Error::other)
            .map_err(at("mapping 64 KiB"))?;
        let vm = kvm.create_vm().map_err(at("KVM_CREATE_VM"))?;
        vm.set_tss_address(layout::KVM_TSS).map_err(at("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(at("KVM_CREATE_IRQCHIP"))?;
        map(&vm, &memory)?;
        let flags = EFD_NONBLOCK | EFD_CLOEXEC;
        let notified = EventFd::new(flags).map_err(at("eventfd"))?;
        let address = IoEventAddress::Mmio(guest::MMIO + 8);
        vm.register_ioevent(&notified, &address, 0u32).map_err(at("KVM_IOEVENTFD"))?;
        route(&vm)?;
        let vcpu = vm.create_vcpu(0).map_err(at("KVM_CREATE_VCPU"))?;
        if vcpu.get_tsc_khz().is_ok_and(|khz| khz == 0) {
            return Err(MachineError::TscUnknown);
        }
        set_cpuid(kvm, &vcpu)?;
        set_msrs(&vcpu)?;
        enable_apic(&vcpu)?;
        let events = vcpu.get_vcpu_events().map_err(at("KVM_GET_VCPU_EVENTS"))?;
        let sregs = long_mode(vcpu.get_sregs().map_err(at("KVM_GET_SREGS"))?);
        Ok(Self { vcpu, sregs, events, notified, memory, vm })
    }

    /// Interrupts the guest at [`guest::DEVICE_VECTOR`].
    pub fn interrupt(&self) -> Result<(), MachineError> {
        let set = |active| self.vm.set_irq_line(PIN, active);
        set(true).and_then(|()| set(false)).map_err(at("KVM_IRQ_LINE"))
    }

    /// How often the guest wrote to the place that KVM turns into an eventfd signal.
    pub fn notifications(&self) -> u64 {
        self.notified.read().unwrap_or(0)
    }

    /// Runs the guest from `entry` until the step is over.
    pub fn run(&mut self, entry: Label) -> Seen {
        let mut accesses = Vec::new();
        let end = match self.prepare(entry) {
            Ok(()) => self.until_end(&mut accesses),
            Err(errno) => End::Ioctl(errno),
        };
        Seen { end, accesses, regs: self.vcpu.get_regs().unwrap_or_default() }
    }

    fn prepare(&mut self, entry: Label) -> Result<(), i32> {
        for (address, bytes) in guest::image() {
            let written = self.memory.write_slice(&bytes, GuestAddress(address));
            written.map_err(|_| libc::EFAULT)?;
        }
        let regs = kvm_regs {
            rip: entry.address(),
            rsp: guest::STACK,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        };
        let vcpu = &self.vcpu;
        let set = vcpu.set_sregs(&self.sregs).and_then(|()| vcpu.set_regs(&regs));
        set.and_then(|()| vcpu.set_vcpu_events(&self.events)).map_err(|error| error.errno())
    }

    fn until_end(&mut self, accesses: &mut Vec<Access>) -> End {
        for _ in 0..EXITS_MAX {
            let access = match self.vcpu.run() {
                Ok(VcpuExit::IoOut(guest::DONE_PORT, _)) => return End::Done,
                Ok(VcpuExit::IoOut(guest::FAULT_PORT, data)) => return End::Fault(word(data)),
                Ok(VcpuExit::IoOut(port, data)) => Access::PortWrite(port, data.to_vec()),
                Ok(VcpuExit::IoIn(port, data)) => {
                    answer(data);
                    Access::PortRead(port)
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    answer(data);
                    Access::Read(address)
                }
                Ok(VcpuExit::MmioWrite(address, data)) => Access::Write(address, data.to_vec()),
                Ok(VcpuExit::Shutdown) => return End::Shutdown,
                Ok(VcpuExit::FailEntry(reason, _)) => return End::FailEntry(reason),
                Ok(VcpuExit::InternalError) => return self.internal_error(),
                Ok(VcpuExit::Intr) => continue,
                Ok(other) => return End::Strange(format!("{other:?}")),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Err(error) => return End::Ioctl(error.errno()),
            };
            accesses.push(access);
        }
        End::Strange(format!("the last of {EXITS_MAX} exits"))
    }

    fn internal_error(&mut self) -> End {
        // SAFETY: after KVM_EXIT_INTERNAL_ERROR, and only then is this called, `internal` is the
        // union's valid member (linux/kvm.h).
        End::Internal(unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror })
    }
}

fn map(vm: &VmFd, memory: &GuestMemory) -> Result<(), MachineError> {
    let host = memory.get_host_address(GuestAddress(0));
    let host = host.map_err(io::Error::other).map_err(at("mapping 64 KiB"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: guest::MEMORY_SIZE as u64,
        userspace_addr: host as u64,
    };
    // SAFETY: `memory` maps that many bytes there, and the machine drops it after its vCPU, the
    // only thing that runs guest code.
    unsafe { vm.set_user_memory_region(region) }.map_err(at("KVM_SET_USER_MEMORY_REGION"))
}

/// Points [`PIN`] of the IOAPIC, edge-triggered, at [`guest::DEVICE_VECTOR`] of the only CPU.
fn route(vm: &VmFd) -> Result<(), MachineError> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    vm.get_irqchip(&mut chip).map_err(at("KVM_GET_IRQCHIP"))?;
    // SAFETY: `chip_id` says that the union holds the IOAPIC's state.
    unsafe { chip.chip.ioapic.redirtbl[PIN as usize].bits = u64::from(guest::DEVICE_VECTOR) };
    vm.set_irqchip(&chip).map_err(at("KVM_SET_IRQCHIP"))
}

fn set_cpuid(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), MachineError> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let mut cpuid = supported.map_err(at("KVM_GET_SUPPORTED_CPUID"))?;
    for entry in cpuid.as_mut_slice() {
        if entry.function == CPUID_HYPERVISOR {
            entry.ebx = SIGNATURE;
        }
    }
    vcpu.set_cpuid2(&cpuid).map_err(at("KVM_SET_CPUID2"))
}

/// Where SYSCALL goes, and with which selectors (AMD APM 2, 6.1.1).
fn set_msrs(vcpu: &VcpuFd) -> Result<(), MachineError> {
    let selectors = u64::from(guest::SYSRET_BASE) << 16 | u64::from(guest::KERNEL_CS);
    let values =
        [(MSR_STAR, selectors << 32), (MSR_LSTAR, Label::SyscallEntry.address()), (MSR_SFMASK, 0)];
    let entries = values.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&entries).map_err(|_| io::ErrorKind::InvalidInput);
    let msrs = msrs.map_err(at("KVM_SET_MSRS"))?;
    let set = vcpu.set_msrs(&msrs).map_err(at("KVM_SET_MSRS"))?;
    let unsupported = || at("setting STAR, LSTAR, SFMASK")(io::ErrorKind::Unsupported);
    (set == entries.len()).then_some(()).ok_or_else(unsupported)
}

fn enable_apic(vcpu: &VcpuFd) -> Result<(), MachineError> {
    let mut apic = vcpu.get_lapic().map_err(at("KVM_GET_LAPIC"))?;
    for (register, byte) in apic.regs[APIC_SPURIOUS..].iter_mut().zip(APIC_ENABLED.to_le_bytes()) {
        *register = byte as std::ffi::c_char;
    }
    vcpu.set_lapic(&apic).map_err(at("KVM_SET_LAPIC"))
}

/// 64-bit mode at CPL0 on the tables of [`guest`].
fn long_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: guest::KERNEL_CS, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: guest::KERNEL_SS, type_: 3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: guest::TSS,
        limit: guest::TSS_LIMIT,
        selector: guest::TSS_SELECTOR,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.gdt = kvm_dtable { base: guest::GDT, limit: guest::GDT_LIMIT, ..Default::default() };
    sregs.idt = kvm_dtable { base: guest::IDT, limit: guest::IDT_LIMIT, ..Default::default() };
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, guest::PML4, CR4_PAE, EFER);
    sregs
}

fn answer(data: &mut [u8]) {
    for (to, from) in data.iter_mut().zip(ANSWER.to_le_bytes()) {
        *to = from;
    }
}

fn word(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}
