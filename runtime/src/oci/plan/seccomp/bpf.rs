//! Classic BPF (linux/filter.h, kernel's networking/filter.rst) over `struct seccomp_data`.

/// Returned for a system call (linux/seccomp.h); the low 16 bits are data.
pub const KILL_PROCESS: u32 = 0x8000_0000;
pub const KILL_THREAD: u32 = 0;
pub const TRAP: u32 = 0x0003_0000;
pub const ERRNO: u32 = 0x0005_0000;
pub const TRACE: u32 = 0x7ff0_0000;
pub const LOG: u32 = 0x7ffc_0000;
pub const ALLOW: u32 = 0x7fff_0000;

/// BPF_MAXINSNS (linux/bpf_common.h).
const INSTRUCTIONS_MAX: usize = 4096;

/// Instruction codes: class | size or operation | mode or source.
pub const LOAD: u16 = 0x20;
pub const AND: u16 = 0x54;
pub const JUMP: u16 = 0x05;
pub const JUMP_EQ: u16 = 0x15;
pub const JUMP_GT: u16 = 0x25;
pub const JUMP_GE: u16 = 0x35;
pub const RETURN: u16 = 0x06;

/// Offsets into `struct seccomp_data`.
pub const NUMBER_AT: u32 = 0;
pub const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// An instruction: `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub k: u32,
}

/// A program under construction. Its parts end in a return or fall through to the next.
#[derive(Clone, Debug, Default)]
pub struct Program(pub Vec<Instruction>);

/// Where a condition leads if it fails: past the instructions that follow it.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// Index of the argument, 0 to 5.
    pub index: u32,
    /// What is compared with what.
    pub test: Test,
}

/// A comparison of a 64-bit argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Eq(u64),
    Ne(u64),
    Lt(u64),
    Le(u64),
    Gt(u64),
    Ge(u64),
    /// The bits of a mask, and what they are to be.
    Masked(u64, u64),
}

impl Program {
    fn push(&mut self, code: u16, k: u32) {
        self.0.push(Instruction { code, if_true: 0, if_false: 0, k });
    }

    /// Ends with `value`.
    pub fn ret(&mut self, value: u32) {
        self.push(RETURN, value);
    }

    /// Loads the system call's number.
    pub fn load_number(&mut self) {
        self.push(LOAD, NUMBER_AT);
    }

    /// Emits `inside` for system calls of one architecture; others go on behind it.
    pub fn match_architecture<E>(
        &mut self,
        arch: u32,
        inside: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.push(LOAD, ARCH_AT);
        let mut body = Self::default();
        inside(&mut body)?;
        self.0.push(Instruction { code: JUMP_EQ, if_true: 1, if_false: 0, k: arch });
        self.push(JUMP, body.0.len() as u32);
        self.0.extend(body.0);
        Ok(())
    }

    /// Emits `low` for what is loaded and below `k`, `high` for the rest. Both must end in returns.
    pub fn split(&mut self, k: u32, low: Self, high: Self) {
        self.0.push(Instruction { code: JUMP_GE, if_true: 0, if_false: 1, k });
        self.push(JUMP, low.0.len() as u32);
        self.0.extend(low.0);
        self.0.extend(high.0);
    }

    /// Returns `value` if all comparisons hold; goes on otherwise.
    pub fn ret_if(&mut self, comparisons: &[Comparison], value: u32) {
        let mut tail = Self::default();
        tail.ret(value);
        for comparison in comparisons.iter().rev() {
            let mut part = Self::default();
            // At most 6 comparisons of 6 instructions: offsets fit a byte.
            part.compare(comparison, tail.0.len() as u8);
            part.0.extend(tail.0);
            tail = part;
        }
        self.0.extend(tail.0);
    }

    /// Falls through if the comparison holds, else skips `behind` instructions more.
    fn compare(&mut self, comparison: &Comparison, behind: u8) {
        let at = ARGUMENTS_AT + comparison.index * 8;
        let jump = |code, k, if_true, if_false| Instruction { code, if_true, if_false, k };
        let halves = |value: u64| ((value >> 32) as u32, value as u32);
        let load = |at| jump(LOAD, at, 0, 0);
        let fail = behind;
        let body = match comparison.test {
            Test::Eq(value) => {
                let (high, low) = halves(value);
                let first = [load(at + 4), jump(JUMP_EQ, high, 0, fail + 2)];
                [&first[..], &[load(at), jump(JUMP_EQ, low, 0, fail)]].concat()
            }
            Test::Ne(value) => {
                let (high, low) = halves(value);
                let first = [load(at + 4), jump(JUMP_EQ, high, 0, 2)];
                [&first[..], &[load(at), jump(JUMP_EQ, low, fail, 0)]].concat()
            }
            Test::Masked(mask, value) => {
                let ((mask_high, mask_low), (high, low)) = (halves(mask), halves(value));
                let and = |mask| jump(AND, mask, 0, 0);
                let first = [load(at + 4), and(mask_high), jump(JUMP_EQ, high, 0, fail + 3)];
                [&first[..], &[load(at), and(mask_low), jump(JUMP_EQ, low, 0, fail)]].concat()
            }
            Test::Gt(value) | Test::Ge(value) => {
                let (high, low) = halves(value);
                let last = if matches!(comparison.test, Test::Gt(_)) { JUMP_GT } else { JUMP_GE };
                let first =
                    [load(at + 4), jump(JUMP_GT, high, 3, 0), jump(JUMP_EQ, high, 0, fail + 2)];
                [&first[..], &[load(at), jump(last, low, 0, fail)]].concat()
            }
            Test::Lt(value) | Test::Le(value) => {
                let (high, low) = halves(value);
                let last = if matches!(comparison.test, Test::Lt(_)) { JUMP_GE } else { JUMP_GT };
                let first =
                    [load(at + 4), jump(JUMP_GT, high, fail + 3, 0), jump(JUMP_EQ, high, 0, 2)];
                [&first[..], &[load(at), jump(last, low, fail, 0)]].concat()
            }
        };
        self.0.extend(body);
    }

    /// The program as seccomp(2) takes it, or its length if that is more than it takes.
    pub fn bytes(&self) -> Result<Vec<u8>, usize> {
        if self.0.len() > INSTRUCTIONS_MAX {
            return Err(self.0.len());
        }
        let bytes = |i: &Instruction| {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&i.code.to_ne_bytes());
            (bytes[2], bytes[3]) = (i.if_true, i.if_false);
            bytes[4..].copy_from_slice(&i.k.to_ne_bytes());
            bytes
        };
        Ok(self.0.iter().flat_map(bytes).collect())
    }
}
