//! A profile's rules for one architecture.

use std::collections::{BTreeMap, HashMap};

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Operator,
    LinuxSyscall,
};

use super::bpf::{self, Comparison, Program, Test};
use super::syscalls::Table;
use super::{SeccompError, return_value};

const ENOSYS: u32 = bpf::ERRNO | libc::ENOSYS as u32;
/// The arguments of a system call.
const ARGUMENTS: usize = 6;

/// What is done about one system call.
#[derive(Clone, Debug, Default)]
struct Rule {
    /// Whatever the arguments.
    always: Option<u32>,
    /// If all comparisons hold, the first of these.
    conditional: Vec<(Vec<Comparison>, u32)>,
}

/// Rules by number.
#[derive(Debug)]
pub struct Rules {
    default: u32,
    by_number: BTreeMap<u32, Rule>,
    /// What is done about numbers that the profile is too old to know.
    unknown: u32,
    numbers_end: Option<u32>,
}

impl Rules {
    /// The rules of `profile` for the system calls of `table`.
    pub fn of(profile: &LinuxSeccomp, table: &Table) -> Result<Self, SeccompError> {
        let default = return_value(profile.default_action(), profile.default_errno_ret())?;
        let numbers: HashMap<&str, u32> = table.entries().collect();
        let mut by_number: BTreeMap<u32, Rule> = BTreeMap::new();
        for syscall in profile.syscalls().iter().flatten() {
            let value = return_value(syscall.action(), syscall.errno_ret())?;
            let conditions = conditions(syscall, table)?;
            let known = syscall.names().iter().filter_map(|name| numbers.get(name.as_str()));
            for number in known {
                let rule = by_number.entry(*number).or_default();
                match conditions.is_empty() {
                    true => drop(rule.always.get_or_insert(value)),
                    false => rule.conditional.extend(conditions.iter().map(|c| (c.clone(), value))),
                }
            }
        }
        let permits = matches!(
            profile.default_action(),
            Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace
        );
        let unknown = if permits || by_number.is_empty() { default } else { ENOSYS };
        Ok(Self { default, by_number, unknown, numbers_end: table.numbers_end })
    }

    /// Emits code that ends in a return for every number.
    pub fn emit(&self, program: &mut Program) {
        program.load_number();
        program.0.extend(tree(&self.ranges(), self.default).0);
    }

    /// Where ranges of numbers begin, up to the next, and what is done about them.
    fn ranges(&self) -> Vec<(u32, Leaf<'_>)> {
        let mut ranges = vec![(0, Leaf::Return(self.default))];
        let mut next = 0;
        for (number, rule) in &self.by_number {
            if *number > next {
                ranges.push((next, Leaf::Return(self.default)));
            }
            ranges.push((*number, rule.always.map_or(Leaf::Arguments(rule), Leaf::Return)));
            next = number + 1;
        }
        ranges.push((next, Leaf::Return(self.unknown)));
        ranges.extend(self.numbers_end.map(|end| (end, Leaf::Return(ENOSYS))));
        // Of ranges that begin at one number the last counts; neighbours of one kind are one range.
        ranges.reverse();
        ranges.dedup_by_key(|(from, _)| *from);
        ranges.reverse();
        ranges.dedup_by(|(_, next), (_, first)| next.returns_as(first));
        ranges
    }
}

#[derive(Clone, Copy, Debug)]
enum Leaf<'a> {
    Return(u32),
    Arguments(&'a Rule),
}

impl Leaf<'_> {
    fn returns_as(&self, other: &Leaf<'_>) -> bool {
        matches!((self, other), (Self::Return(a), Leaf::Return(b)) if a == b)
    }
}

/// Code that finds the range of the loaded number by halving.
fn tree(ranges: &[(u32, Leaf<'_>)], default: u32) -> Program {
    let mut program = Program::default();
    match ranges {
        [] => program.ret(default),
        [(_, Leaf::Return(value))] => program.ret(*value),
        [(_, Leaf::Arguments(rule))] => {
            for (comparisons, value) in &rule.conditional {
                program.ret_if(comparisons, *value);
            }
            program.ret(default);
        }
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            program.split(high[0].0, tree(low, default), tree(high, default));
        }
    }
    program
}

/// The alternatives of a rule, each of comparisons that must all hold; none if it has no arguments.
fn conditions(syscall: &LinuxSyscall, table: &Table) -> Result<Vec<Vec<Comparison>>, SeccompError> {
    let arguments = syscall.args().as_deref().unwrap_or_default();
    let mut seen = [0; ARGUMENTS];
    for argument in arguments {
        let index = argument.index();
        let named = || syscall.names().first().cloned().unwrap_or_default();
        *seen
            .get_mut(index)
            .ok_or_else(|| SeccompError::Argument { syscall: named(), index })? += 1;
    }
    let comparisons = arguments.iter().map(|argument| comparison(argument, table));
    Ok(match seen.iter().any(|count| *count > 1) {
        true => comparisons.map(|comparison| vec![comparison]).collect(),
        false if arguments.is_empty() => Vec::new(),
        false => vec![comparisons.collect()],
    })
}

fn comparison(argument: &LinuxSeccompArg, table: &Table) -> Comparison {
    let word = u64::MAX >> (64 - table.word_bits);
    let value = argument.value() & word;
    let test = match argument.op() {
        Operator::ScmpCmpNe => Test::Ne(value),
        Operator::ScmpCmpLt => Test::Lt(value),
        Operator::ScmpCmpLe => Test::Le(value),
        Operator::ScmpCmpEq => Test::Eq(value),
        Operator::ScmpCmpGe => Test::Ge(value),
        Operator::ScmpCmpGt => Test::Gt(value),
        Operator::ScmpCmpMaskedEq => {
            let wanted = argument.value_two().unwrap_or(0) & word;
            Test::Masked(value, wanted)
        }
    };
    // The index was checked to be below 6.
    Comparison { index: argument.index() as u32, test }
}
