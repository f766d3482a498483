//! Ports, memory-mapped registers, the serial console, and what the C library would have.

use core::arch::asm;

macro_rules! port {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        pub fn $read(port: u16) -> $type {
            let value: $type;
            unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value) };
            value
        }
        pub fn $write(port: u16, value: $type) {
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value) };
        }
    };
}

port!(inb, outb, u8, "al");
port!(inw, outw, u16, "ax");
port!(inl, outl, u32, "eax");

/// Reads memory or a register.
pub fn get<T: Copy>(address: u64) -> T {
    unsafe { (address as *const T).read_volatile() }
}

/// Writes memory or a register.
pub fn put<T: Copy>(address: u64, value: T) {
    unsafe { (address as *mut T).write_volatile(value) }
}

/// Writes bytes to memory.
pub fn put_bytes(address: u64, bytes: &[u8]) {
    for (i, byte) in bytes.iter().enumerate() {
        put(address + i as u64, *byte);
    }
}

pub fn lapic_write(register: u64, value: u32) {
    put(0xfee0_0000 + register, value);
}

pub fn pause(rounds: u64) {
    for _ in 0..rounds {
        core::hint::spin_loop();
    }
}

pub fn clock() -> u64 {
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Waits until `done`, for a second or a few; says whether it came to be.
pub fn wait(mut done: impl FnMut() -> bool) -> bool {
    let start = clock();
    while !done() {
        if clock() - start > 6_000_000_000 {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

pub fn print(text: &str) {
    text.bytes().for_each(|byte| outb(0x3f8, byte));
}

pub fn print_number(number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    digits[at..].iter().for_each(|digit| outb(0x3f8, *digit));
}

/// Numbers that nobody can foretell, the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _)
    };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    unsafe { asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") len => _) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    unsafe {
        if (to as usize) <= from as usize {
            return memcpy(to, from, len);
        }
        let (last_to, last_from) = (to.add(len).wrapping_sub(1), from.add(len).wrapping_sub(1));
        asm!("std", "rep movsb", "cld", inout("rdi") last_to => _, inout("rsi") last_from => _,
            inout("rcx") len => _);
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for i in 0..len {
        let (a, b) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    unsafe { memcmp(a, b, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}
