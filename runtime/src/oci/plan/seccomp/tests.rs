use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const EPERM: u32 = bpf::ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = bpf::ERRNO | libc::ENOSYS as u32;
const X86_64: u32 = syscalls::AUDIT_X86_64;
const I386: u32 = syscalls::AUDIT_I386;

/// A system call as the filter sees it.
#[derive(Clone, Copy, Debug)]
struct Call {
    arch: u32,
    number: u32,
    arguments: [u64; 6],
}

/// Runs a program as the kernel would; panics where the kernel would have refused it.
fn run(filter: &Seccomp, call: Call) -> u32 {
    let mut data = [0; 64];
    data[..4].copy_from_slice(&call.number.to_ne_bytes());
    data[4..8].copy_from_slice(&call.arch.to_ne_bytes());
    for (i, argument) in call.arguments.iter().enumerate() {
        data[16 + i * 8..][..8].copy_from_slice(&argument.to_ne_bytes());
    }
    let word = |at: u32| u32::from_ne_bytes(data[at as usize..][..4].try_into().expect("4 bytes"));
    let code: Vec<&[u8]> = filter.program.chunks_exact(8).collect();
    let (mut at, mut a) = (0, 0);
    loop {
        let instruction = code[at];
        let k = u32::from_ne_bytes(instruction[4..].try_into().expect("4 bytes"));
        let jump = |taken: bool| usize::from(if taken { instruction[2] } else { instruction[3] });
        at += 1;
        match u16::from_ne_bytes([instruction[0], instruction[1]]) {
            bpf::LOAD => a = word(k),
            bpf::AND => a &= k,
            bpf::JUMP => at += k as usize,
            bpf::JUMP_EQ => at += jump(a == k),
            bpf::JUMP_GT => at += jump(a > k),
            bpf::JUMP_GE => at += jump(a >= k),
            bpf::RETURN => return k,
            code => panic!("no instruction {code:#x}"),
        }
    }
}

fn filter(profile: Value) -> Seccomp {
    compile(&serde_json::from_value(profile).expect("a profile")).expect("a filter")
}

fn call(name: &str, arguments: &[u64]) -> Call {
    let (_, number) = syscalls::X86_64.entries().find(|(n, _)| *n == name).expect(name);
    let mut call = Call { arch: X86_64, number, arguments: [0; 6] };
    call.arguments[..arguments.len()].copy_from_slice(arguments);
    call
}

#[test]
fn each_system_call_has_its_action() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM"],
        "syscalls": [
            {"names": ["read", "write", "statx", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["acct"], "action": "SCMP_ACT_KILL"},
            {"names": ["swapon"], "action": "SCMP_ACT_TRAP"},
            {"names": ["ptrace"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
            {"names": ["sync"], "action": "SCMP_ACT_LOG"},
        ]
    }));
    for (name, value) in [
        ("read", bpf::ALLOW),
        ("write", bpf::ALLOW),
        ("open", EPERM),
        ("chmod", bpf::ERRNO | 5),
        ("reboot", bpf::KILL_PROCESS),
        ("acct", bpf::KILL_THREAD),
        ("swapon", bpf::TRAP),
        ("ptrace", bpf::TRACE | 7),
        ("sync", bpf::LOG),
        ("statx", bpf::ALLOW),
        // Younger than all that the profile names.
        ("mseal", ENOSYS),
    ] {
        assert_eq!(run(&filter, call(name, &[])), value, "{name}");
    }
    let other = |arch, number| run(&filter, Call { arch, number, arguments: [0; 6] });
    assert_eq!(other(I386, 3), bpf::ALLOW, "read of 32-bit programs");
    assert_eq!(other(I386, 5), EPERM, "open of 32-bit programs");
    assert_eq!(other(0xc000_00b7, 0), bpf::KILL_THREAD, "another architecture");
    assert_eq!(other(X86_64, 0x4000_0000), ENOSYS, "x32");
    assert_eq!(other(X86_64, u32::MAX), ENOSYS);
}

#[test]
fn without_an_architecture_only_the_machines_own_remains() {
    let filter = filter(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    assert_eq!(run(&filter, call("read", &[])), bpf::ALLOW);
    assert_eq!(run(&filter, Call { arch: X86_64, number: 5000, arguments: [0; 6] }), bpf::ALLOW);
    assert_eq!(run(&filter, Call { arch: I386, number: 3, arguments: [0; 6] }), bpf::KILL_THREAD);
    let filter = self::filter(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 3}));
    assert_eq!(
        run(&filter, Call { arch: X86_64, number: 5000, arguments: [0; 6] }),
        bpf::ERRNO | 3
    );
}

#[test]
fn arguments_decide() {
    let allow = |names: &str, args: Value| json!({"names": [names], "action": "SCMP_ACT_ALLOW", "args": args});
    let arg = |index: u32, value: u64, op: &str| json!({"index": index, "value": value, "op": op});
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            // All must hold.
            allow("socket", json!([arg(0, 1, "SCMP_CMP_EQ"), arg(1, 2, "SCMP_CMP_NE")])),
            // Alternatives.
            allow("personality", json!([arg(0, 0, "SCMP_CMP_EQ")])),
            allow("personality", json!([arg(0, 8, "SCMP_CMP_EQ")])),
            // Conditions on one argument are alternatives too.
            allow("kill", json!([arg(0, 5, "SCMP_CMP_EQ"), arg(0, 6, "SCMP_CMP_EQ")])),
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args":
                [{"index": 0, "value": 0x7e020000u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            // A rule without arguments wins.
            allow("dup", json!([arg(0, 1, "SCMP_CMP_EQ")])),
            {"names": ["dup"], "action": "SCMP_ACT_KILL_PROCESS"},
        ]
    }));
    for (name, arguments, value) in [
        ("socket", &[1, 1][..], bpf::ALLOW),
        ("socket", &[1, 2], EPERM),
        ("socket", &[2, 1], EPERM),
        ("personality", &[8], bpf::ALLOW),
        ("personality", &[0], bpf::ALLOW),
        ("personality", &[1 << 32], EPERM),
        ("kill", &[6], bpf::ALLOW),
        ("kill", &[7], EPERM),
        ("clone", &[0x11], bpf::ALLOW),
        ("clone", &[0x1000_0000], EPERM),
        ("dup", &[1], bpf::KILL_PROCESS),
    ] {
        assert_eq!(run(&filter, call(name, arguments)), value, "{name} {arguments:x?}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |profile| {
        compile(&serde_json::from_value(profile).expect("a profile")).expect_err("refused")
    };
    assert_eq!(refused(json!({"defaultAction": "SCMP_ACT_NOTIFY"})), SeccompError::Notify);
    let errno = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000});
    assert_eq!(refused(errno), SeccompError::Errno(5000));
    let rule = |names: Value, args: Value| {
        json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": names, "action": "SCMP_ACT_KILL", "args": args}]})
    };
    let sixth = json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]);
    assert!(matches!(
        refused(rule(json!(["read"]), sixth)),
        SeccompError::Argument { index: 6, .. }
    ));
    let many: Vec<Value> = syscalls::X86_64.entries().map(|(name, _)| json!(name)).collect();
    let long = json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_MASKED_EQ"},
        {"index": 1, "value": 1, "op": "SCMP_CMP_MASKED_EQ"},
        {"index": 2, "value": 1, "op": "SCMP_CMP_MASKED_EQ"},
    ]);
    assert!(matches!(refused(rule(json!(many), long)), SeccompError::Long(_)));
}

#[test]
fn flags_are_passed_on() {
    let flags =
        |flags: Value| filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags})).flags;
    assert_eq!(flags(Value::Null), libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32);
    assert_eq!(flags(json!([])), 0);
    let both = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"];
    assert_eq!(flags(json!(both)), libc::SECCOMP_FILTER_FLAG_LOG as u32);
}

/// The kernel takes the program, and does with it what the rules say.
#[test]
fn the_kernel_loads_it() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
            {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 78,
             "args": [{"index": 0, "value": 0o7654, "op": "SCMP_CMP_EQ"}]},
        ]
    }));
    let load = move || {
        rustix::thread::set_no_new_privs(true).expect("no new privileges");
        let mut program: Vec<u64> = filter
            .program
            .chunks_exact(8)
            .map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("8 bytes")))
            .collect();
        let fprog =
            libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr().cast() };
        // SAFETY: fprog and the instructions it points to live through the call; sock_filter is 8
        // bytes of integers. The filter is this thread's alone.
        let loaded = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const fprog)
        };
        assert_eq!(loaded, 0, "{}", std::io::Error::last_os_error());
        let errno = |call: i64, argument: u64| {
            // SAFETY: neither call takes a pointer.
            match unsafe { libc::syscall(call, argument, 0) } {
                -1 => std::io::Error::last_os_error().raw_os_error(),
                _ => None,
            }
        };
        assert_eq!(errno(libc::SYS_getpriority, 0), Some(77));
        assert_eq!(errno(libc::SYS_umask, 0o7654), Some(78));
    };
    std::thread::spawn(load).join().expect("the thread's assertions hold");
}

const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

fn holds(op: &str, value: u64, two: u64, argument: u64) -> bool {
    match op {
        "SCMP_CMP_NE" => argument != value,
        "SCMP_CMP_LT" => argument < value,
        "SCMP_CMP_LE" => argument <= value,
        "SCMP_CMP_EQ" => argument == value,
        "SCMP_CMP_GE" => argument >= value,
        "SCMP_CMP_GT" => argument > value,
        _ => argument & value == two,
    }
}

/// Values around which comparisons of halves may go wrong.
fn edge() -> impl Strategy<Value = u64> {
    let half = prop_oneof![Just(0u32), Just(1), Just(2), Just(u32::MAX - 1), Just(u32::MAX)];
    (half.clone(), half).prop_map(|(high, low)| u64::from(high) << 32 | u64::from(low))
}

proptest! {
    #[test]
    fn comparisons_are_of_64_bits(
        operators in prop::collection::vec((0usize..7, edge(), edge()), 1..6),
        arguments in prop::array::uniform6(edge()),
    ) {
        let args: Vec<Value> = operators
            .iter()
            .enumerate()
            .map(|(index, (op, value, two))| {
                json!({"index": index, "value": value, "valueTwo": two, "op": OPERATORS[*op]})
            })
            .collect();
        let filter = filter(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["mmap"], "action": "SCMP_ACT_ALLOW", "args": args}],
        }));
        let all = operators
            .iter()
            .zip(arguments)
            .all(|((op, value, two), argument)| holds(OPERATORS[*op], *value, *two, argument));
        let expected = if all { bpf::ALLOW } else { EPERM };
        prop_assert_eq!(run(&filter, call("mmap", &arguments)), expected);
    }

    #[test]
    fn every_number_has_the_action_of_its_rule(
        allowed in prop::collection::btree_set(0usize..370, 1..80),
        killed in prop::collection::btree_set(0usize..370, 0..80),
    ) {
        let table: Vec<_> = syscalls::X86_64.entries().collect();
        let names = |set: &std::collections::BTreeSet<usize>| -> Vec<&str> {
            set.iter().map(|index| table[*index].0).collect()
        };
        let filter = filter(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": names(&allowed), "action": "SCMP_ACT_ALLOW"},
                {"names": names(&killed), "action": "SCMP_ACT_KILL_PROCESS"},
            ],
        }));
        let last = *allowed.union(&killed).max().expect("one");
        for (index, (name, number)) in table.iter().enumerate() {
            let expected = match () {
                () if allowed.contains(&index) => bpf::ALLOW,
                () if killed.contains(&index) => bpf::KILL_PROCESS,
                () if index > last => ENOSYS,
                () => EPERM,
            };
            let call = Call { arch: X86_64, number: *number, arguments: [0; 6] };
            prop_assert_eq!(run(&filter, call), expected, "{}", name);
        }
    }
}
