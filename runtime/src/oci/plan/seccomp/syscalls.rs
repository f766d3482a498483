//! Names and numbers of system calls (kernel, arch/x86/entry/syscalls).

/// AUDIT_ARCH_* (linux/audit.h).
pub const AUDIT_X86_64: u32 = 0xc000_003e;
pub const AUDIT_I386: u32 = 0x4000_0003;

/// An architecture's system calls.
#[derive(Debug)]
pub struct Table {
    /// Lines of number and name.
    text: &'static str,
    /// Bits of an argument.
    pub word_bits: u32,
    /// Numbers from here on are another interface's: x32, which the guest's kernel has not.
    pub numbers_end: Option<u32>,
}

/// x86-64.
pub static X86_64: Table = Table {
    text: include_str!("../../../../../resources/syscalls/x86_64"),
    word_bits: 64,
    numbers_end: Some(0x4000_0000),
};
/// 32-bit programs on x86-64.
pub static I386: Table = Table {
    text: include_str!("../../../../../resources/syscalls/i386"),
    word_bits: 32,
    numbers_end: None,
};

impl Table {
    /// All of them: names and numbers.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.text.lines().filter_map(|line| {
            let (number, name) = line.split_once(' ')?;
            Some((name, number.parse().ok()?))
        })
    }
}
