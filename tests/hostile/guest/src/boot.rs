//! From PVH's 32-bit entry to 64-bit Rust: identity page tables for 5 GiB, SSE, an IDT whose faults
//! go to a fix-up address, and a second processor.

use core::arch::global_asm;
use core::ptr::{read_volatile, write_volatile};

use crate::io::{lapic_write, outb, pause};

global_asm!(
    r#"
.section .note.Xen, "a", @note
.long 4, 4, 18
.ascii "Xen\0"
.long start32

.section .bss
.balign 4096
pml4: .skip 4096
pdpt: .skip 4096
pd: .skip 20480
.skip 262144
.skip 65536
stack_top:
.skip 65536
.global ap_stack_top
ap_stack_top:
.skip 16384
.global fault_stack_top
fault_stack_top:
.skip 16384
.global ap_fault_stack_top
ap_fault_stack_top:

.section .data
.balign 16
.global gdt
gdt:
.quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff, 0x00cf9a000000ffff
.quad 0, 0, 0, 0
gdt_end:
.global gdt_pointer
gdt_pointer:
.word gdt_end - gdt - 1
.long gdt
.long 0

.section .text
.code32
.global start32
start32:
    cli
    mov esp, offset stack_top
    mov edi, ebx
    xor ecx, ecx
2:  mov eax, ecx
    shl eax, 21
    or eax, 0x83
    mov [pd + ecx * 8], eax
    mov eax, ecx
    shr eax, 11
    mov [pd + ecx * 8 + 4], eax
    inc ecx
    cmp ecx, 2560
    jne 2b
    mov eax, offset pd
    or eax, 3
    xor ecx, ecx
3:  mov [pdpt + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 5
    jne 3b
    mov eax, offset pdpt
    or eax, 3
    mov [pml4], eax
    xor esi, esi
    jmp enter_long_mode

.global ap32
ap32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, offset ap_stack_top
    mov esi, 1

enter_long_mode:
    mov eax, cr4
    or eax, 0x620
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    and eax, 0xfffffffb
    or eax, 0x80000003
    mov cr0, eax
    lgdt [gdt_pointer]
    push 8
    mov eax, offset start64
    push eax
    retf

.code64
start64:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, esp
    mov rsp, rax
    test esi, esi
    jnz 4f
    mov edi, edi
    call main
4:  call ap_main
5:  hlt
    jmp 5b

.global fault_with_code
fault_with_code:
    add rsp, 8
.global fault
fault:
    push rax
    mov rax, [rip + FIXUP]
    test rax, rax
    jz 6f
    mov [rsp + 8], rax
    mov byte ptr [rip + FAULTED], 1
    pop rax
    iretq
6:  mov al, 0xfe
    out 0x64, al
    jmp 6b

.global irq
irq:
    push rax
    lock inc qword ptr [rip + INTERRUPTS]
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq
"#
);

unsafe extern "C" {
    static gdt: [u64; 8];
    static gdt_pointer: u8;
    static fault_stack_top: u8;
    static ap_fault_stack_top: u8;
    fn fault();
    fn fault_with_code();
    fn irq();
    fn ap32();
}

/// Where a faulting instruction goes on; 0 if none is expected.
#[unsafe(no_mangle)]
pub static mut FIXUP: u64 = 0;
/// A fault went to [`FIXUP`].
#[unsafe(no_mangle)]
pub static mut FAULTED: u8 = 0;
/// Interrupts taken.
#[unsafe(no_mangle)]
pub static mut INTERRUPTS: u64 = 0;

/// What the second processor is to run.
static mut AP_WORK: Option<fn()> = None;

#[repr(C, align(16))]
struct Tables {
    idt: [[u64; 2]; 256],
    tss: [[u32; 32]; 2],
}

static mut TABLES: Tables = Tables { idt: [[0; 2]; 256], tss: [[0; 32]; 2] };

fn gate(handler: u64) -> [u64; 2] {
    // Interrupt gate, present, code segment 8, interrupt stack 1.
    let low = handler & 0xffff | 8 << 16 | 1 << 32 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Sets the IDT and the interrupt stack of processor `number` (0 or 1) up.
pub fn set_up_faults(number: usize) {
    unsafe {
        let tables = &raw mut TABLES;
        for vector in 0..256 {
            let handler = match vector {
                8 | 10..=14 | 17 | 21 | 29 | 30 => fault_with_code as *const () as u64,
                0..32 => fault as *const () as u64,
                _ => irq as *const () as u64,
            };
            (*tables).idt[vector] = gate(handler);
        }
        let stacks = [&raw const fault_stack_top, &raw const ap_fault_stack_top];
        let stack = stacks[number] as u64;
        let tss = (&raw mut (*tables).tss[number]).cast::<u32>();
        tss.byte_add(36).cast::<u64>().write_unaligned(stack);
        let base = tss as u64;
        let low = 0x67 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        let descriptor = (&raw const gdt).cast_mut().cast::<u64>().add(4 + 2 * number);
        write_volatile(descriptor, low);
        write_volatile(descriptor.add(1), base >> 32);
        let idt = [0u16; 0];
        let _ = idt;
        let mut pointer = [0u8; 10];
        pointer[..2].copy_from_slice(&4095u16.to_le_bytes());
        pointer[2..].copy_from_slice(&((&raw const (*tables).idt) as u64).to_le_bytes());
        core::arch::asm!(
            "lidt [{idt}]",
            "ltr {tss:x}",
            idt = in(reg) pointer.as_ptr(),
            tss = in(reg) 0x20 + 16 * number as u16,
        );
    }
}

/// Starts the second processor, which runs `work` again and again.
pub fn start_second(work: fn()) {
    unsafe {
        write_volatile(&raw mut AP_WORK, Some(work));
        // lgdt, protected mode, a far jump to ap32: real-mode code at 0x8000.
        let entry = (ap32 as *const () as u32).to_le_bytes();
        let code = [
            0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0x0f, 0x01, 0x16, 0x80, 0x80, 0x0f, 0x20, 0xc0,
            0x66, 0x83, 0xc8, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea, entry[0], entry[1], entry[2],
            entry[3], 0x18, 0,
        ];
        for (i, byte) in code.iter().enumerate() {
            write_volatile((0x8000 + i) as *mut u8, *byte);
        }
        for i in 0..6 {
            write_volatile((0x8080 + i) as *mut u8, read_volatile((&raw const gdt_pointer).add(i)));
        }
    }
    lapic_write(0xf0, 0x1ff);
    lapic_write(0x310, 1 << 24);
    lapic_write(0x300, 0x4500);
    pause(100_000);
    lapic_write(0x310, 1 << 24);
    lapic_write(0x300, 0x4608);
    pause(1_000_000);
}

#[unsafe(no_mangle)]
extern "C" fn ap_main() -> ! {
    loop {
        if let Some(work) = unsafe { read_volatile(&raw const AP_WORK) } {
            work();
        }
    }
}

/// Ends the VM by the keyboard controller's reset line.
pub fn reset() -> ! {
    loop {
        outb(0x64, 0xfe);
    }
}
