//! Rules for devices as a program of eBPF, of type BPF_PROG_TYPE_CGROUP_DEVICE.
//!
//! Each kind of access that is asked for is decided by the last rule that speaks of it, and where none does
//! it is refused. The program goes through the rules from the last to the first, crosses out what it has
//! found allowed, and ends when all is crossed out or something is denied.
//!
//! As in runc, what a container cannot do without is allowed behind all rules.

use bulkhead_protocol::device::{ALL, BLOCK, CHAR, MKNOD};
use bulkhead_protocol::rpc::agent::DeviceRule;

/// A rule. Numbers and type that it does not name match any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl From<&DeviceRule> for Rule {
    fn from(rule: &DeviceRule) -> Self {
        let kind = (rule.type_ != 0).then_some(rule.type_);
        let (allow, access) = (rule.allow, rule.access & ALL);
        Self { allow, kind, major: rule.major, minor: rule.minor, access }
    }
}

/// Making any node, for a node is not a device yet; null, zero, full, random, urandom, tty, console, ptmx,
/// terminals, and what makes network interfaces.
const ALWAYS: [Rule; 11] = [
    Rule { allow: true, kind: Some(CHAR), major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Some(BLOCK), major: None, minor: None, access: MKNOD },
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    character(5, None),
    character(10, Some(200)),
    character(136, None),
    character(137, None),
];

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule { allow: true, kind: Some(CHAR), major: Some(major), minor, access: ALL }
}

const fn every_device(allow: bool) -> Rule {
    Rule { allow, kind: None, major: None, minor: None, access: ALL }
}

/// The program for `rules`: `struct bpf_insn` (linux/bpf.h), any number of them.
pub fn compile(rules: &[DeviceRule]) -> Vec<u8> {
    let rules: Vec<Rule> = rules.iter().map(Rule::from).chain(ALWAYS).collect();
    program(&rules).into_iter().flat_map(Instruction::bytes).collect()
}

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// The destination in the low half, the source in the high one.
    registers: u8,
    offset: i16,
    value: i32,
}

/// Codes (linux/bpf_common.h, linux/bpf.h; RFC 9669): loads of words, 32-bit arithmetic with a constant or a
/// register, a jump, and
/// 32-bit ones that compare with a constant.
const LOAD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xbc;
const SET: u8 = 0xb4;
const JUMP: u8 = 0x05;
const JUMP_NOT_EQUAL: u8 = 0x56;
const JUMP_ANY_BIT: u8 = 0x46;
const EXIT: u8 = 0x95;
/// Registers: the answer; the context; what is asked for and not allowed yet; type, major, minor.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const WANTED: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

impl Instruction {
    fn new(code: u8, destination: u8, offset: usize, value: u32) -> Self {
        // Jumps are a few instructions long.
        Self { code, registers: destination, offset: offset as i16, value: value as i32 }
    }

    fn from(self, source: u8) -> Self {
        Self { registers: self.registers | source << 4, ..self }
    }

    fn bytes(self) -> [u8; 8] {
        let ([a, b], [c, d, e, f]) = (self.offset.to_le_bytes(), self.value.to_le_bytes());
        [self.code, self.registers, a, b, c, d, e, f]
    }
}

fn program(rules: &[Rule]) -> Vec<Instruction> {
    let load = |to, offset| Instruction::new(LOAD, to, offset, 0).from(CONTEXT);
    let mut program = vec![
        load(KIND, 0),
        load(MAJOR, 4),
        load(MINOR, 8),
        Instruction::new(MOVE, WANTED, 0, 0).from(KIND),
        Instruction::new(SHIFT_RIGHT, WANTED, 0, 16),
        Instruction::new(AND, KIND, 0, 0xffff),
    ];
    for rule in rules.iter().rev() {
        program.extend(judge(rule));
        if *rule == every_device(rule.allow) {
            return program;
        }
    }
    program.extend(answer(0));
    program
}

/// What one rule says of what is wanted still.
fn judge(rule: &Rule) -> Vec<Instruction> {
    let verdict: Vec<Instruction> = match rule {
        Rule { access: ALL, allow, .. } => answer(u32::from(*allow)).to_vec(),
        Rule { allow: true, access, .. } => {
            // Crossed out; if that was all, it is granted.
            let rest = Instruction::new(AND, WANTED, 0, !access);
            let not_yet = Instruction::new(JUMP_NOT_EQUAL, WANTED, 2, 0);
            [rest, not_yet].into_iter().chain(answer(1)).collect()
        }
        Rule { allow: false, access, .. } => {
            let asked = Instruction::new(JUMP_ANY_BIT, WANTED, 1, *access);
            [asked, Instruction::new(JUMP, 0, 2, 0)].into_iter().chain(answer(0)).collect()
        }
    };
    let conditions = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
    let named: Vec<_> = conditions.iter().filter_map(|(at, is)| is.map(|is| (*at, is))).collect();
    let over = |index: usize| named.len() - index - 1 + verdict.len();
    let conditions = named
        .iter()
        .enumerate()
        .map(|(index, (at, is))| Instruction::new(JUMP_NOT_EQUAL, *at, over(index), *is));
    conditions.chain(verdict.iter().copied()).collect()
}

fn answer(granted: u32) -> [Instruction; 2] {
    [Instruction::new(SET, ANSWER, 0, granted), Instruction::new(EXIT, 0, 0, 0)]
}

#[cfg(test)]
mod tests;
