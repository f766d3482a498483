//! Attacks by instructions: MSRs, CPUID, control registers, interrupts, faults, hypercalls.

use core::arch::asm;

use super::Attack;
use crate::boot::{FAULTED, FIXUP, INTERRUPTS, start_second};
use crate::fail;
use crate::io::{clock, get, lapic_write, outb, pause, put};
use crate::virtio::rng_is_sane;

pub const ATTACKS: &[Attack] = &[
    ("msr_read_sweep", msr_read_sweep),
    ("msr_write_sweep", msr_write_sweep),
    ("cpuid_sweep", cpuid_sweep),
    ("control_registers", control_registers),
    ("hypercalls", hypercalls),
    ("kvm_clock_out_of_memory", kvm_clock_out_of_memory),
    ("lapic_every_register", lapic_every_register),
    ("io_apic_every_register", io_apic_every_register),
    ("pic_and_pit_reprogrammed", pic_and_pit_reprogrammed),
    ("timer_storm", timer_storm),
    ("interrupts_to_oneself", interrupts_to_oneself),
    ("nmi_init_and_sipi_storm", nmi_init_and_sipi_storm),
    ("all_memory_dirtied", all_memory_dirtied),
    ("undefined_instructions", undefined_instructions),
    ("executing_device_registers", executing_device_registers),
    ("stack_in_device_registers", stack_in_device_registers),
    ("triple_fault", triple_fault),
    ("page_tables_of_noise", page_tables_of_noise),
    ("halt_with_interrupts_off", halt_with_interrupts_off),
    ("endless_loop", endless_loop),
    ("reset_by_keyboard_controller", || {}),
    ("serial_flood", serial_flood),
    ("boot_mark_storm", boot_mark_storm),
];

fn sane() {
    if !rng_is_sane() {
        fail("the entropy device does not work any more");
    }
}

/// Runs assembly whose faults go on behind it.
macro_rules! attempt {
    ($($code:expr),+ ; $($operand:tt)*) => {
        unsafe {
            asm!(
                "lea {fixup}, [rip + 77f]",
                "mov [rip + {target}], {fixup}",
                $($code,)+
                "77:",
                "mov qword ptr [rip + {target}], 0",
                fixup = out(reg) _,
                target = sym FIXUP,
                $($operand)*
            )
        }
    };
}

fn faulted() -> bool {
    unsafe {
        let faulted = (&raw const FAULTED).read_volatile() != 0;
        (&raw mut FAULTED).write_volatile(0);
        faulted
    }
}

fn msrs() -> impl Iterator<Item = u32> {
    let ranges = [0..0x500, 0x600..0x700, 0x800..0x900, 0xc00..0xe00, 0x1000..0x1100];
    let hypervisor = [0x4000_0000..0x4000_0120, 0x4b56_4d00..0x4b56_4d10];
    let amd = [0xc000_0080..0xc000_0110, 0xc001_0000..0xc001_0160, 0xc001_1000..0xc001_1040];
    ranges.into_iter().chain(hypervisor).chain(amd).flatten().chain([u32::MAX, 0x8000_0000])
}

fn rdmsr(msr: u32) -> Option<u64> {
    let (low, high): (u32, u32);
    attempt!("rdmsr"; in("ecx") msr, out("eax") low, out("edx") high);
    (!faulted()).then_some(u64::from(low) | u64::from(high) << 32)
}

fn wrmsr(msr: u32, value: u64) {
    attempt!("wrmsr"; in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32);
    faulted();
}

fn msr_read_sweep() {
    let readable = msrs().filter(|msr| rdmsr(*msr).is_some()).count();
    crate::print_count("readable ", readable as u64);
    sane();
}

fn msr_write_sweep() {
    // But those on which we stand: EFER, APIC base, segments; kvm-clock has an attack of its own.
    let ours = |msr: u32| {
        matches!(msr, 0x1b | 0xc000_0080 | 0xc000_0100..=0xc000_0102 | 0x4b56_4d00..=0x4b56_4d10)
            || matches!(msr, 0x11 | 0x12 | 0x800..=0x8ff | 0x4000_0000..=0x4000_0120)
    };
    for msr in msrs().filter(|msr| !ours(*msr)) {
        let before = rdmsr(msr);
        for value in [0, u64::MAX, 0x5555_5555_5555_5555] {
            wrmsr(msr, value);
        }
        if let Some(before) = before {
            wrmsr(msr, before);
        }
    }
    sane();
}

fn cpuid_sweep() {
    for base in [0u32, 0x4000_0000, 0x8000_0000, 0xc000_0000, u32::MAX - 0xff] {
        for leaf in base..=base + 0xff {
            for subleaf in [0, 1, 2, 0xffff_ffff] {
                core::hint::black_box(core::arch::x86_64::__cpuid_count(leaf, subleaf));
            }
        }
    }
    sane();
}

fn control_registers() {
    for bit in 0..64u64 {
        let value = 1u64 << bit;
        // Bits that would take the ground from under us are left as they are.
        attempt!("mov {old}, cr0", "mov {new}, {old}", "xor {new}, {v}", "mov cr0, {new}", "mov cr0, {old}";
            old = out(reg) _, new = out(reg) _, v = in(reg) if bit == 31 || bit == 0 { 0 } else { value });
        attempt!("mov {old}, cr4", "mov {new}, {old}", "xor {new}, {v}", "mov cr4, {new}", "mov cr4, {old}";
            old = out(reg) _, new = out(reg) _, v = in(reg) if bit == 5 { 0 } else { value });
        attempt!("mov cr8, {v}"; v = in(reg) value);
        attempt!("xor ecx, ecx", "xsetbv"; in("eax") value as u32, in("edx") (value >> 32) as u32, out("ecx") _);
        attempt!("mov dr7, {v}", "xor {v}, {v}", "mov dr7, {v}"; v = inout(reg) value & !0xff => _);
    }
    attempt!("mov cr8, {v}"; v = in(reg) 0u64);
    faulted();
    sane();
}

fn hypercalls() {
    for number in (0..64u64).chain([1 << 31, 1 << 32, u64::MAX]) {
        for argument in [0u64, 1, u64::MAX] {
            attempt!("push rbx", "mov rbx, {a}", "vmmcall", "pop rbx"; a = in(reg) argument,
                inout("rax") number => _, in("rcx") argument, in("rdx") argument, in("rsi") argument);
        }
    }
    faulted();
    sane();
}

fn kvm_clock_out_of_memory() {
    for msr in 0x4b56_4d00..=0x4b56_4d08 {
        for value in [1, 3, 0xd000_0001, 1 << 40 | 1, u64::MAX, 0x0400_0001, 0x03ff_fff9] {
            wrmsr(msr, value);
            core::hint::black_box(clock());
        }
        wrmsr(msr, 0);
    }
    sane();
}

fn lapic_every_register() {
    for register in (0..0x1000u64).step_by(4).filter(|register| !(0x300..0x320).contains(register))
    {
        let at = 0xfee0_0000 + register;
        let before: u32 = get(at);
        for value in [0, u32::MAX] {
            put(at, value);
        }
        put(at, before);
        core::hint::black_box((get::<u8>(at), get::<u64>(at)));
    }
    sane();
}

fn io_apic_every_register() {
    for register in 0..=0xffu32 {
        put(0xfec0_0000, register);
        let before: u32 = get(0xfec0_0010);
        for value in [u32::MAX, 0x700, 0x8700] {
            put(0xfec0_0010, value);
        }
        put(0xfec0_0010, before | 0x1_0000);
        core::hint::black_box(get::<u64>(0xfec0_0010));
    }
    sane();
}

fn pic_and_pit_reprogrammed() {
    for value in (0..=0xffu8).rev() {
        for port in [0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x4d0, 0x4d1] {
            outb(port, value);
        }
    }
    sane();
}

fn enable_interrupts() {
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    lapic_write(0xf0, 0x1ff);
    lapic_write(0x80, 0);
    unsafe { asm!("sti") };
}

fn timer_storm() {
    enable_interrupts();
    lapic_write(0x3e0, 0b1011);
    lapic_write(0x320, 0x2_0040); // periodic
    lapic_write(0x380, 1);
    pause(3_000_000);
    lapic_write(0x380, 0);
    lapic_write(0x320, 0x1_0040);
    unsafe { asm!("cli") };
    let taken = unsafe { (&raw const INTERRUPTS).read_volatile() };
    crate::print_count("interrupts ", taken);
    sane();
}

fn interrupts_to_oneself() {
    enable_interrupts();
    for round in 0..10_000u32 {
        lapic_write(0x300, 0x4_4020 | round % 0xc0); // shorthand: self
    }
    unsafe { asm!("cli") };
    sane();
}

fn nmi_init_and_sipi_storm() {
    start_second(|| put(0x0300_0000, 1u64));
    for round in 0..2_000u32 {
        lapic_write(0x310, 1 << 24);
        let command = [0x4500, 0x4608, 0x46ff, 0x4600, 0x4200, 0x4700, 0x8500][round as usize % 7];
        lapic_write(0x300, command);
    }
    sane();
}

fn all_memory_dirtied() {
    for round in 0..4u64 {
        for at in (0x0280_0000..0x03e0_0000u64).step_by(64) {
            put(at, round);
        }
    }
    sane();
}

fn undefined_instructions() {
    attempt!("ud2"; );
    attempt!("vmcall"; );
    attempt!("xor eax, eax", "vmrun"; out("rax") _);
    attempt!("xor eax, eax", "vmload"; out("rax") _);
    attempt!("clgi"; );
    attempt!("xor eax, eax", "xor ecx, ecx", "xor edx, edx", "monitor"; out("rax") _, out("rcx") _, out("rdx") _);
    attempt!("xor eax, eax", "xor ecx, ecx", "mwait"; out("rax") _, out("rcx") _);
    attempt!("xor ecx, ecx", "rdpmc"; out("rax") _, out("rcx") _, out("rdx") _);
    attempt!("int 0x80"; );
    attempt!("syscall"; out("rcx") _, out("r11") _);
    faulted();
    sane();
}

/// KVM cannot emulate an instruction fetched from a device: it gives up, and the VM ends.
fn executing_device_registers() {
    attempt!("mov rax, 0xd0000000", "jmp rax"; out("rax") _);
}

fn stack_in_device_registers() {
    attempt!("mov {old}, rsp", "mov rsp, 0xd0000800", "push rax", "push rax", "pop rax", "mov rsp, {old}";
        old = out(reg) _);
    faulted();
    sane();
}

fn triple_fault() {
    let nothing = [0u8; 10];
    unsafe { asm!("lidt [{0}]", "ud2", in(reg) nothing.as_ptr()) };
}

fn page_tables_of_noise() {
    unsafe { asm!("mov rax, 0x01234000", "mov cr3, rax", "mov rax, [rax]", out("rax") _) };
}

fn halt_with_interrupts_off() {
    unsafe { asm!("cli", "2: hlt", "jmp 2b") };
}

fn endless_loop() {
    unsafe { asm!("cli", "2: jmp 2b") };
}

fn serial_flood() {
    for _ in 0..60_000 {
        outb(0x3f8, b'~');
    }
    outb(0x3f8, b'\n');
}

fn boot_mark_storm() {
    for mark in 0..20_000u32 {
        outb(0xb48, mark as u8);
    }
    sane();
}
