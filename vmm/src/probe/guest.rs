//! The probe guest: a few instructions for each step, and the tables they run on.
//!
//! The code is position-independent and copied to [`CODE`]. A step starts in long mode at CPL0 with
//! interrupts off, leaves what it saw in registers, and ends with a write to [`DONE_PORT`]; an
//! exception it did not ask for ends it with a write of the vector to [`FAULT_PORT`].

use std::arch::global_asm;

/// Size of guest memory, bytes.
pub const MEMORY_SIZE: usize = 0x1_0000;

/// Page tables: one 2 MiB page at 0, reachable from CPL3 too.
pub const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
/// Global descriptor table and the task state segment it names.
pub const GDT: u64 = 0x4000;
pub const TSS: u64 = 0x4100;
/// Interrupt descriptor table of [`VECTORS`] gates.
pub const IDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
/// 16 bytes for the guest to write; zero when a step starts.
pub const DATA: u64 = 0x7000;
/// Tops of the stacks: of the step, of interrupts from CPL3, of CPL3.
pub const STACK: u64 = 0x9000;
pub const INTERRUPT_STACK: u64 = 0xa000;
const USER_STACK: u64 = 0xb000;
/// Device accesses go here: mapped, but no memory.
pub const MMIO: u64 = 0x10_0000;

pub const IO_PORT: u16 = 0x510;
pub const DONE_PORT: u16 = 0x514;
pub const FAULT_PORT: u16 = 0x518;

/// Selectors as Linux has them (arch/x86/include/asm/segment.h), in the order that SYSCALL and SYSRET
/// imply (AMD APM 2, 6.1.1): a KVM that fakes them fakes these.
pub const KERNEL_CS: u16 = 0x10;
pub const KERNEL_SS: u16 = 0x18;
pub const SYSRET_BASE: u16 = 0x20 | 3;
pub const USER_SS: u16 = 0x28 | 3;
pub const USER_CS: u16 = 0x30 | 3;
pub const TSS_SELECTOR: u16 = 0x40;
/// Code and data of DPL 0, 32-bit code, data and 64-bit code of DPL 3, an available 64-bit TSS.
const DESCRIPTORS: [u64; 10] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0x0000_8900_0000_0000 | (TSS & 0xff_ffff) << 16 | TSS_LIMIT as u64,
    0,
];
pub const GDT_LIMIT: u16 = (DESCRIPTORS.len() * 8 - 1) as u16;
pub const TSS_LIMIT: u32 = 0x67;

const DIVIDE_ERROR: u8 = 0;
const BREAKPOINT: u8 = 3;
/// The device interrupt.
pub const DEVICE_VECTOR: u8 = 0x30;
const VECTORS: u8 = DEVICE_VECTOR + 1;
pub const IDT_LIMIT: u16 = VECTORS as u16 * 16 - 1;

/// Bytes that each exception stub takes.
const EXCEPTION_STUB: u64 = 8;
const EXCEPTIONS: u8 = 32;
const PRESENT_INTERRUPT_GATE: u128 = 0x8e00;

global_asm!(
    ".pushsection .rodata.bulkhead_probe, \"a\", @progbits",
    ".balign 16",
    ".globl bulkhead_probe_start",
    "bulkhead_probe_start:",
    // Vectors 0..31: say which and stop.
    ".set bulkhead_vector, 0",
    ".rept {exceptions}",
    ".balign {stub}",
    "push bulkhead_vector",
    "jmp .Lbulkhead_fault",
    ".set bulkhead_vector, bulkhead_vector + 1",
    ".endr",
    ".Lbulkhead_fault:",
    "pop rax",
    "mov dx, {fault_port}",
    "out dx, eax",
    "hlt",
    ".Lbulkhead_done:",
    "mov dx, {done_port}",
    "out dx, eax",
    "hlt",
    // A port read and a port write of what was read, inverted.
    ".globl bulkhead_probe_port_io",
    "bulkhead_probe_port_io:",
    "mov dx, {io_port}",
    "in eax, dx",
    "not eax",
    "out dx, eax",
    "jmp .Lbulkhead_done",
    // The same by memory-mapped I/O.
    ".globl bulkhead_probe_mmio",
    "bulkhead_probe_mmio:",
    "mov esi, {mmio}",
    "mov eax, dword ptr [rsi]",
    "not eax",
    "mov dword ptr [rsi + 4], eax",
    "jmp .Lbulkhead_done",
    // A write that KVM turns into an eventfd signal.
    ".globl bulkhead_probe_notify",
    "bulkhead_probe_notify:",
    "mov esi, {mmio}",
    "mov dword ptr [rsi + 8], 0",
    "jmp .Lbulkhead_done",
    // To CPL3 and back by SYSCALL. CS as seen: edi in CPL3, ebx at the system call's entry.
    ".globl bulkhead_probe_syscall",
    "bulkhead_probe_syscall:",
    "lea rax, [rip + 2f]",
    "jmp .Lbulkhead_to_user",
    "2:",
    "mov edi, cs",
    "syscall",
    ".globl bulkhead_probe_syscall_entry",
    "bulkhead_probe_syscall_entry:",
    "mov ebx, cs",
    "jmp .Lbulkhead_done",
    // To CPL3 and back by an exception. edi: CS in CPL3; in the handler, ebx: CS, rcx: the stack
    // pointer, esi: the CS that was saved.
    ".globl bulkhead_probe_user_exception",
    "bulkhead_probe_user_exception:",
    "lea rax, [rip + 2f]",
    "jmp .Lbulkhead_to_user",
    "2:",
    "mov edi, cs",
    "xor ecx, ecx",
    "div ecx",
    ".globl bulkhead_probe_divide_error",
    "bulkhead_probe_divide_error:",
    "mov ebx, cs",
    "mov rcx, rsp",
    "mov esi, dword ptr [rsp + 8]",
    "jmp .Lbulkhead_done",
    // Goes on at rax in CPL3.
    ".Lbulkhead_to_user:",
    "push {user_ss}",
    "push {user_stack}",
    "push 2",
    "push {user_cs}",
    "push rax",
    "iretq",
    // ebx: the start of KVM's signature.
    ".globl bulkhead_probe_cpuid",
    "bulkhead_probe_cpuid:",
    "mov eax, 0x40000000",
    "cpuid",
    "jmp .Lbulkhead_done",
    // Instructions that kernels use and partial emulators lack. ebx: 8 bits set.
    ".globl bulkhead_probe_popcnt",
    "bulkhead_probe_popcnt:",
    "mov eax, 0x0ff0",
    "popcnt ebx, eax",
    "jmp .Lbulkhead_done",
    // rdi: the value stored.
    ".globl bulkhead_probe_cmpxchg16b",
    "bulkhead_probe_cmpxchg16b:",
    "mov esi, {data}",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 8",
    "xor ecx, ecx",
    "lock cmpxchg16b xmmword ptr [rsi]",
    "mov rdi, qword ptr [rsi]",
    "mov rbx, rdi",
    "jmp .Lbulkhead_done",
    // ebx: 8 once the handler has returned.
    ".globl bulkhead_probe_int3",
    "bulkhead_probe_int3:",
    "mov ebx, 4",
    "int3",
    "add ebx, ebx",
    "jmp .Lbulkhead_done",
    ".globl bulkhead_probe_breakpoint",
    "bulkhead_probe_breakpoint:",
    "iretq",
    // Sleeps until a device interrupts. ebx: its vector.
    ".globl bulkhead_probe_device_interrupt",
    "bulkhead_probe_device_interrupt:",
    "sti",
    "2:",
    "hlt",
    "jmp 2b",
    ".globl bulkhead_probe_device_vector",
    "bulkhead_probe_device_vector:",
    "mov ebx, {device_vector}",
    "jmp .Lbulkhead_done",
    ".globl bulkhead_probe_end",
    "bulkhead_probe_end:",
    ".popsection",
    exceptions = const EXCEPTIONS,
    stub = const EXCEPTION_STUB,
    fault_port = const FAULT_PORT,
    done_port = const DONE_PORT,
    io_port = const IO_PORT,
    mmio = const MMIO,
    data = const DATA,
    device_vector = const DEVICE_VECTOR,
    user_ss = const USER_SS,
    user_cs = const USER_CS,
    user_stack = const USER_STACK,
);

/// A place in the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    PortIo,
    Mmio,
    Notify,
    Syscall,
    SyscallEntry,
    UserException,
    DivideError,
    Cpuid,
    Popcnt,
    Cmpxchg16b,
    Int3,
    Breakpoint,
    DeviceInterrupt,
    DeviceVector,
}

unsafe extern "C" {
    static bulkhead_probe_start: u8;
    static bulkhead_probe_end: u8;
    static bulkhead_probe_port_io: u8;
    static bulkhead_probe_mmio: u8;
    static bulkhead_probe_notify: u8;
    static bulkhead_probe_syscall: u8;
    static bulkhead_probe_syscall_entry: u8;
    static bulkhead_probe_user_exception: u8;
    static bulkhead_probe_divide_error: u8;
    static bulkhead_probe_cpuid: u8;
    static bulkhead_probe_popcnt: u8;
    static bulkhead_probe_cmpxchg16b: u8;
    static bulkhead_probe_int3: u8;
    static bulkhead_probe_breakpoint: u8;
    static bulkhead_probe_device_interrupt: u8;
    static bulkhead_probe_device_vector: u8;
}

impl Label {
    /// The label's guest physical (and virtual) address.
    pub fn address(self) -> u64 {
        let label = match self {
            Self::PortIo => &raw const bulkhead_probe_port_io,
            Self::Mmio => &raw const bulkhead_probe_mmio,
            Self::Notify => &raw const bulkhead_probe_notify,
            Self::Syscall => &raw const bulkhead_probe_syscall,
            Self::SyscallEntry => &raw const bulkhead_probe_syscall_entry,
            Self::UserException => &raw const bulkhead_probe_user_exception,
            Self::DivideError => &raw const bulkhead_probe_divide_error,
            Self::Cpuid => &raw const bulkhead_probe_cpuid,
            Self::Popcnt => &raw const bulkhead_probe_popcnt,
            Self::Cmpxchg16b => &raw const bulkhead_probe_cmpxchg16b,
            Self::Int3 => &raw const bulkhead_probe_int3,
            Self::Breakpoint => &raw const bulkhead_probe_breakpoint,
            Self::DeviceInterrupt => &raw const bulkhead_probe_device_interrupt,
            Self::DeviceVector => &raw const bulkhead_probe_device_vector,
        };
        CODE + (label.addr() - (&raw const bulkhead_probe_start).addr()) as u64
    }
}

/// The guest's code.
pub fn code() -> &'static [u8] {
    let start = &raw const bulkhead_probe_start;
    let length = (&raw const bulkhead_probe_end).addr() - start.addr();
    // SAFETY: both symbols bound the one read-only section above, which lives for ever.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// What guest memory holds when a step starts: `(guest physical address, bytes)`.
pub fn image() -> Vec<(u64, Vec<u8>)> {
    // Present, writable, user; the last one a 2 MiB page (AMD APM 2, 5.3).
    let tables = [(PML4, PDPT | 7), (PDPT, PAGE_DIRECTORY | 7), (PAGE_DIRECTORY, 0x87)];
    let mut image: Vec<_> =
        tables.iter().map(|(at, entry)| (*at, entry.to_le_bytes().to_vec())).collect();
    image.push((GDT, DESCRIPTORS.iter().flat_map(|entry| entry.to_le_bytes()).collect()));
    // RSP0 is at byte 4 of a 64-bit TSS (AMD APM 2, 12.2.5).
    image.push((TSS + 4, INTERRUPT_STACK.to_le_bytes().to_vec()));
    image.push((IDT, (0..VECTORS).flat_map(|vector| gate(vector).to_le_bytes()).collect()));
    image.push((CODE, code().to_vec()));
    image.push((DATA, vec![0; 16]));
    image
}

/// The interrupt gate of `vector` (AMD APM 2, 4.8.4); CPL3 may raise none by INT.
fn gate(vector: u8) -> u128 {
    let handler = match vector {
        DIVIDE_ERROR => Label::DivideError.address(),
        BREAKPOINT => Label::Breakpoint.address(),
        DEVICE_VECTOR => Label::DeviceVector.address(),
        vector if vector < EXCEPTIONS => CODE + u64::from(vector) * EXCEPTION_STUB,
        _ => return 0,
    };
    let handler = u128::from(handler);
    handler & 0xffff
        | u128::from(KERNEL_CS) << 16
        | PRESENT_INTERRUPT_GATE << 32
        | (handler >> 16 & 0xffff) << 48
        | (handler >> 32) << 64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_fits_and_does_not_overlap() {
        let mut image = image();
        image.sort();
        for pair in image.windows(2) {
            assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0, "{:#x}", pair[1].0);
        }
        assert!(image.iter().all(|(at, bytes)| at + (bytes.len() as u64) < MEMORY_SIZE as u64));
        assert!(code().len() < (DATA - CODE) as usize);
    }

    #[test]
    fn exception_stubs_push_their_vector() {
        assert_eq!(code().as_ptr().addr() % 16, 0);
        for vector in 0..EXCEPTIONS {
            let stub = &code()[usize::from(vector) * EXCEPTION_STUB as usize..];
            assert_eq!(stub[..2], [0x6a, vector]);
        }
    }
}
