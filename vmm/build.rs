//! Compiles the system call policies of resources/seccomp to BPF, as Rust arrays.
//!
//! The files are in seccompiler's JSON format, but its programs ask for one system call after the
//! other, and the kernel, when it installs a program, runs it once for every system call there is:
//! 2.3 ms of a start on the lab's exact clock. Programs from here search by halves: 0.3 ms. They end with
//! the verdicts, each once, for the kernel makes machine code of every instruction, in several passes.
//! A test (src/jail/seccomp.rs) has seccompiler compile the same files, and compares verdicts.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::CStr;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

// linux/bpf_common.h, linux/seccomp.h, linux/audit.h
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
/// ENOSYS: glibc goes on with clone(2), whose flags a filter can see; those of clone3 are in memory.
const NO_SUCH_CALL: u32 = 0x0005_0000 | 38;
const ARCH_X86_64: u32 = 0xc000_003e;
/// `offsetof(struct seccomp_data, ...)`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// More system calls than any kernel's table has.
const NUMBERS: u32 = 512;

/// Where a program goes on.
#[derive(Clone, Copy)]
enum To {
    /// So many instructions further than the next.
    Skip(usize),
    /// At its end, with this action.
    Return(u32),
}

/// An instruction; those that do not jump go on with the next.
#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    k: u32,
    yes: To,
    no: To,
}

/// One comparison of an argument's low word.
#[derive(Clone, Copy, PartialEq)]
struct Condition {
    index: u32,
    mask: u32,
    value: u32,
}

/// What becomes of a system call: allowed if all conditions of any rule hold.
#[derive(Clone, PartialEq)]
enum Verdict {
    Return(u32),
    Rules(Vec<Vec<Condition>>),
}

fn main() -> Result<(), Box<dyn Error>> {
    pack_relocations();
    let policies = Path::new("../resources/seccomp");
    println!("cargo::rerun-if-changed={}", policies.display());
    let mut source = String::new();
    let mut files: Vec<_> =
        fs::read_dir(policies)?.map(|file| Ok(file?.path())).collect::<Result<_, io::Error>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    for path in files {
        let policies: BTreeMap<String, Value> = serde_json::from_slice(&fs::read(&path)?)?;
        for (name, policy) in policies {
            let rules = verdicts(&policy)
                .map_err(|error| format!("{}: {name}: {error}", path.display()))?;
            let program = program(&rules).map_err(|error| format!("{name}: {error}"))?;
            write_array(&mut source, &name, &program)?;
        }
    }
    fs::write(Path::new(&std::env::var("OUT_DIR")?).join("seccomp.rs"), source)?;
    Ok(())
}

/// Lists relocations as a bitmap where that is understood: there is one of bulkhead-vmm for each VM, and
/// one for its files, and each relocates itself.
fn pack_relocations() {
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    // SAFETY: a string of the C library's own, which is the one that will be linked.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) }.to_string_lossy();
    let minor = version.strip_prefix("2.").and_then(|minor| minor.parse().ok());
    if features.split(',').any(|feature| feature == "crt-static") && minor >= Some(36) {
        println!("cargo::rustc-link-arg-bin=bulkhead-vmm=-Wl,-z,pack-relative-relocs");
    }
}

fn write_array(source: &mut String, name: &str, program: &[String]) -> std::fmt::Result {
    writeln!(source, "pub const {}: &[sock_filter] = &[", name.to_uppercase())?;
    program.iter().try_for_each(|instruction| writeln!(source, "sock_filter {instruction},"))?;
    writeln!(source, "];")
}

/// The verdict on each system call that a policy names.
fn verdicts(policy: &Value) -> Result<BTreeMap<u32, Verdict>, String> {
    if policy["mismatch_action"] != "kill_process" || policy["match_action"] != "allow" {
        return Err("policies allow what they name and kill the process otherwise".into());
    }
    let mut verdicts = BTreeMap::new();
    verdicts.insert(number("clone3")?, Verdict::Return(NO_SUCH_CALL));
    for rule in policy["filter"].as_array().ok_or("there is no filter")? {
        let name = rule["syscall"].as_str().ok_or("a rule without a system call")?;
        let conditions: Vec<Condition> = match &rule["args"] {
            Value::Null => Vec::new(),
            args => {
                args.as_array().into_iter().flatten().map(condition).collect::<Result<_, _>>()?
            }
        };
        let entry = verdicts.entry(number(name)?).or_insert(Verdict::Rules(Vec::new()));
        match entry {
            Verdict::Return(_) => return Err(format!("{name} is decided twice")),
            _ if conditions.is_empty() => *entry = Verdict::Return(ALLOW),
            Verdict::Rules(rules) => rules.push(conditions),
        }
    }
    Ok(verdicts)
}

fn condition(argument: &Value) -> Result<Condition, String> {
    let word = |value: &Value| value.as_u64().and_then(|value| u32::try_from(value).ok());
    let mask = match &argument["op"] {
        Value::String(op) if op == "eq" => Some(u32::MAX),
        op => word(&op["masked_eq"]),
    };
    let (index, value) = (word(&argument["index"]), word(&argument["val"]));
    match (index, mask, value, argument["type"] == "dword") {
        (Some(index @ 0..=5), Some(mask), Some(value), true) => {
            Ok(Condition { index, mask, value })
        }
        _ => Err(format!("cannot compile the condition {argument}")),
    }
}

fn program(verdicts: &BTreeMap<u32, Verdict>) -> Result<Vec<String>, String> {
    let mut ranges: Vec<(u32, Verdict)> = vec![(0, Verdict::Return(KILL_PROCESS))];
    for (number, verdict) in verdicts {
        push(&mut ranges, *number, verdict.clone());
        push(&mut ranges, number + 1, Verdict::Return(KILL_PROCESS));
    }
    let mut code = vec![
        load(ARCH),
        jump(JUMP_IF_EQUAL, ARCH_X86_64, To::Skip(0), To::Return(KILL_PROCESS)),
        load(NUMBER),
    ];
    code.extend(search(&ranges, NUMBERS));
    assemble(&code)
}

/// Begins a range of numbers at `first`, unless it goes on as the one before.
fn push(ranges: &mut Vec<(u32, Verdict)>, first: u32, verdict: Verdict) {
    if ranges.last().is_some_and(|(start, _)| *start == first) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|(_, last)| *last != verdict) {
        ranges.push((first, verdict));
    }
}

/// Finds the range that a number is in; the last of them ends before `end`. The kernel looks for every
/// number as often: where the ranges are halved, numbers are.
fn search(ranges: &[(u32, Verdict)], end: u32) -> Vec<Instruction> {
    if let [(_, verdict)] = ranges {
        return decide(verdict);
    }
    let half = (ranges[0].0 + end) / 2;
    let (_, at) = (1..ranges.len()).map(|at| (ranges[at].0.abs_diff(half), at)).min().unwrap();
    let (low, high) = ranges.split_at(at);
    let middle = high[0].0;
    let left = search(low, middle);
    let to = |part: &[(u32, Verdict)], skip| match part {
        [(_, Verdict::Return(action))] => To::Return(*action),
        _ => To::Skip(skip),
    };
    let mut code = vec![jump(JUMP_IF_AT_LEAST, middle, to(high, left.len()), to(low, 0))];
    code.extend(left);
    code.extend(search(high, end));
    code
}

/// Decides by the arguments, where that takes any.
fn decide(verdict: &Verdict) -> Vec<Instruction> {
    let Verdict::Rules(rules) = verdict else { return Vec::new() };
    let mut code = Vec::new();
    // The argument that is loaded, whole, wherever the next rule is come to from.
    let mut loaded = None;
    for (index, rule) in rules.iter().enumerate() {
        let mut parts: Vec<Vec<Instruction>> = rule.iter().map(compare).collect();
        let whole = |condition: &Condition| condition.mask == u32::MAX;
        if loaded == Some(rule[0].index) && whole(&rule[0]) {
            parts[0].remove(0);
        }
        loaded = rule.first().filter(|first| rule.len() == 1 && whole(first)).map(|c| c.index);
        let len: usize = parts.iter().map(Vec::len).sum();
        let (last_rule, mut done) = (index + 1 == rules.len(), 0);
        for (number, mut part) in parts.into_iter().enumerate() {
            done += part.len();
            let last = part.len() - 1;
            let kill = To::Return(KILL_PROCESS);
            part[last].no = if last_rule { kill } else { To::Skip(len - done) };
            if number + 1 == rule.len() {
                part[last].yes = To::Return(ALLOW);
            }
            code.extend(part);
        }
    }
    code
}

fn compare(condition: &Condition) -> Vec<Instruction> {
    let mut code = vec![load(ARGUMENTS + 8 * condition.index)];
    if condition.mask != u32::MAX {
        code.push(Instruction { code: AND, ..load(condition.mask) });
    }
    code.push(jump(JUMP_IF_EQUAL, condition.value, To::Skip(0), To::Skip(0)));
    code
}

/// Writes the instructions as Rust has them, the returns they go to at the end.
fn assemble(code: &[Instruction]) -> Result<Vec<String>, String> {
    let targets = code.iter().flat_map(|instruction| [instruction.yes, instruction.no]);
    let mut actions: Vec<u32> = Vec::new();
    for target in targets {
        match target {
            To::Return(action) if !actions.contains(&action) => actions.push(action),
            _ => {}
        }
    }
    let distance = |at: usize, to: To| {
        let distance = match to {
            To::Skip(distance) => distance,
            To::Return(action) => {
                let action = actions.iter().take_while(|known| **known != action).count();
                code.len() + action - at - 1
            }
        };
        u8::try_from(distance).map_err(|_| "too long: a jump spans 255 instructions at most")
    };
    let mut program = Vec::new();
    for (at, Instruction { code, k, yes, no }) in code.iter().enumerate() {
        let (jt, jf) = (distance(at, *yes)?, distance(at, *no)?);
        program.push(format!("{{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }}"));
    }
    let end = |action| format!("{{ code: {RETURN}, jt: 0, jf: 0, k: {action} }}");
    program.extend(actions.iter().map(end));
    Ok(program)
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, k: offset, yes: To::Skip(0), no: To::Skip(0) }
}

fn jump(code: u16, k: u32, yes: To, no: To) -> Instruction {
    Instruction { code, k, yes, no }
}

/// A system call's number on x86-64.
fn number(name: &str) -> Result<u32, String> {
    macro_rules! table {
        ($($constant:ident)*) => { [$((stringify!($constant), libc::$constant)),*] };
    }
    let table = table!(
        SYS_accept4 SYS_brk SYS_capget SYS_capset SYS_clock_gettime SYS_clock_nanosleep SYS_clone
        SYS_clone3 SYS_close SYS_connect SYS_copy_file_range SYS_epoll_ctl SYS_epoll_pwait
        SYS_epoll_wait SYS_eventfd2 SYS_exit SYS_exit_group SYS_fallocate SYS_fchdir SYS_fchmodat
        SYS_fchmodat2 SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fstat SYS_fstatfs SYS_fsync
        SYS_ftruncate SYS_futex SYS_getdents64 SYS_getegid SYS_geteuid SYS_getpid SYS_getrandom
        SYS_getrlimit SYS_gettid SYS_getxattr SYS_ioctl SYS_linkat SYS_listxattr SYS_lseek
        SYS_madvise SYS_mkdirat SYS_mknodat SYS_mmap SYS_mprotect SYS_mremap SYS_munmap
        SYS_newfstatat SYS_openat SYS_pidfd_send_signal SYS_poll SYS_ppoll SYS_prctl SYS_pread64
        SYS_prlimit64 SYS_pwrite64 SYS_read SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmsg
        SYS_removexattr SYS_renameat SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction
        SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sched_getaffinity SYS_sched_yield SYS_sendmsg
        SYS_sendto SYS_set_robust_list SYS_setfsgid SYS_setfsuid SYS_setgroups SYS_setrlimit
        SYS_setxattr SYS_shutdown SYS_sigaltstack SYS_socket SYS_statx SYS_symlinkat SYS_syncfs
        SYS_tgkill SYS_timerfd_create SYS_timerfd_settime SYS_umask SYS_unlinkat SYS_unshare
        SYS_utimensat SYS_waitid SYS_write SYS_writev
    );
    let found = table.iter().find(|(known, _)| known.strip_prefix("SYS_") == Some(name));
    let number = found.and_then(|(_, number)| u32::try_from(*number).ok());
    number.ok_or_else(|| format!("{name} is not in the table of vmm/build.rs: add it there"))
}
