use bulkhead_protocol::device::{READ, WRITE};
use proptest::prelude::*;

use super::*;

/// What a device access is: type, kinds of access, major, minor.
type Access = (u32, u32, u32, u32);

/// Executes a program: as many instructions as it has at the most, for it has no loops.
fn run(program: &[u8], (kind, access, major, minor): Access) -> bool {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [0_u32; 6];
    let mut at = 0;
    for _ in 0..=program.len() / 8 {
        let bytes: [u8; 8] = program[at * 8..][..8].try_into().unwrap();
        let (to, source) = (usize::from(bytes[1] & 15), usize::from(bytes[1] >> 4));
        let offset = usize::try_from(i16::from_le_bytes([bytes[2], bytes[3]])).unwrap();
        let value = u32::from_le_bytes(bytes[4..].try_into().unwrap());
        at += 1;
        let jumps = match bytes[0] {
            EXIT => return registers[0] == 1,
            LOAD => {
                assert_eq!(source, usize::from(CONTEXT));
                registers[to] = context[offset / 4];
                continue;
            }
            MOVE => {
                registers[to] = registers[source];
                continue;
            }
            SET => {
                registers[to] = value;
                continue;
            }
            AND => {
                registers[to] &= value;
                continue;
            }
            SHIFT_RIGHT => {
                registers[to] >>= value;
                continue;
            }
            JUMP => true,
            JUMP_NOT_EQUAL => registers[to] != value,
            JUMP_ANY_BIT => registers[to] & value != 0,
            code => panic!("{code:#x} is no instruction of ours"),
        };
        at += if jumps { offset } else { 0 };
    }
    panic!("the program does not end");
}

/// The same, by the words of the specification: for each kind of access the last rule that speaks of it.
fn decide(rules: &[Rule], (kind, access, major, minor): Access) -> bool {
    let speaks = |rule: &Rule, bit: u32| {
        rule.access & bit != 0
            && rule.kind.is_none_or(|is| is == kind)
            && rule.major.is_none_or(|is| is == major)
            && rule.minor.is_none_or(|is| is == minor)
    };
    let mut bits = [MKNOD, READ, WRITE].into_iter().filter(|bit| access & bit != 0);
    bits.all(|bit| {
        rules
            .iter()
            .chain(&ALWAYS)
            .rev()
            .find(|rule| speaks(rule, bit))
            .is_some_and(|rule| rule.allow)
    })
}

fn asked(allow: bool, kind: u32, numbers: [Option<u32>; 2], access: u32) -> DeviceRule {
    let [major, minor] = numbers;
    DeviceRule { allow, type_: kind, major, minor, access, ..Default::default() }
}

#[test]
fn the_last_rule_that_speaks_of_an_access_decides() {
    let program = compile(&[
        asked(false, 0, [None, None], ALL),
        asked(true, CHAR, [Some(1), Some(11)], READ | WRITE),
        asked(true, CHAR, [Some(10), Some(229)], ALL),
        asked(false, CHAR, [Some(10), None], WRITE),
        asked(true, BLOCK, [Some(259), None], READ),
    ]);
    for (access, allowed) in [
        ((CHAR, READ, 1, 11), true),
        ((CHAR, READ | WRITE, 1, 11), true),
        ((CHAR, MKNOD, 1, 11), true),
        ((CHAR, READ, 1, 1), false),
        ((CHAR, MKNOD, 1, 1), true),
        ((BLOCK, READ, 1, 11), false),
        ((CHAR, READ, 10, 229), true),
        ((CHAR, READ | WRITE, 10, 229), false),
        ((BLOCK, READ, 259, 7), true),
        ((BLOCK, WRITE, 259, 7), false),
        ((CHAR, ALL, 1, 3), true),
        ((CHAR, ALL, 136, 77), true),
        ((CHAR, ALL, 5, 2), true),
        ((CHAR, READ, u32::MAX, u32::MAX), false),
    ] {
        assert_eq!(run(&program, access), allowed, "{access:?}");
    }
    let open = compile(&[asked(false, 0, [None, None], ALL), asked(true, 0, [None, None], ALL)]);
    assert!(run(&open, (BLOCK, ALL, 9, 9)));
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let number = || proptest::option::of(prop_oneof![0..4_u32, Just(u32::MAX)]);
    let kind = proptest::option::of(BLOCK..=CHAR);
    let rule = (any::<bool>(), kind, number(), number(), 1..=ALL)
        .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access });
    proptest::collection::vec(rule, 0..12)
}

proptest! {
    #[test]
    fn the_program_is_what_the_rules_say(
        rules in rules(), kind in BLOCK..=CHAR, access in 1..=ALL, major in 0..5_u32, minor in 0..5_u32,
    ) {
        let program = program(&rules.iter().copied().chain(ALWAYS).collect::<Vec<_>>());
        let bytes: Vec<u8> = program.into_iter().flat_map(Instruction::bytes).collect();
        let access = (kind, access, major, minor);
        prop_assert_eq!(run(&bytes, access), decide(&rules, access));
    }
}
