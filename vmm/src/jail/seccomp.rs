//! System call filters: one policy for each kind of thread, from resources/seccomp/*.json by
//! build.rs. A call that a policy does not allow kills the process, as does one of another
//! architecture.

use std::io;

use libc::sock_filter;
use rustix::process::getpid;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Runs a vCPU and serves its exits.
    Vcpu,
    /// Serves the devices; the main thread of the VMM.
    EventLoop,
    /// Serves files.
    FsWorker,
}

mod compiled {
    use libc::sock_filter;
    include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));
}

/// Stands in policies for the ID of the process itself.
const OWN_ID: u32 = u32::MAX;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;

impl Policy {
    /// Puts the calling thread behind this policy, for good. Needs no_new_privs.
    pub fn apply(self) -> io::Result<()> {
        install(&self.program(getpid().as_raw_nonzero().get() as u32))
    }

    fn program(self, own_id: u32) -> Vec<sock_filter> {
        let compiled = match self {
            Self::Vcpu => compiled::VCPU,
            Self::EventLoop => compiled::EVENT_LOOP,
            Self::FsWorker => compiled::FS_WORKER,
        };
        let mut program = compiled.to_vec();
        for instruction in &mut program {
            if instruction.code == JUMP_IF_EQUAL && instruction.k == OWN_ID {
                instruction.k = own_id;
            }
        }
        program
    }
}

fn install(filter: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the `len` instructions that `filter` points to, and changes none.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;

    use super::*;

    const POLICIES: [(Policy, &str); 3] = [
        (Policy::Vcpu, "vcpu"),
        (Policy::EventLoop, "event_loop"),
        (Policy::FsWorker, "fs_worker"),
    ];
    const ARCH_X86_64: u32 = 0xc000_003e;

    /// A classic BPF machine, as far as filters use it.
    fn verdict(program: &[(u16, u8, u8, u32)], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let load = |offset: u32| match offset {
            0 => number,
            4 => arch,
            16.. => (args[(offset as usize - 16) / 8] >> (8 * (offset % 8))) as u32,
            _ => 0,
        };
        let (mut at, mut a) = (0, 0);
        loop {
            let (code, jt, jf, k) = program[at];
            at += 1;
            let mut jump = |taken: bool| at += usize::from(if taken { jt } else { jf });
            match code {
                0x20 => a = load(k),
                0x54 => a &= k,
                0x05 => at += k as usize,
                0x15 => jump(a == k),
                0x35 => jump(a >= k),
                0x25 => jump(a > k),
                0x06 => return k,
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    fn ours(policy: Policy) -> Vec<(u16, u8, u8, u32)> {
        policy.program(77).iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
    }

    fn seccompiler_s(name: &str) -> Vec<(u16, u8, u8, u32)> {
        let path = format!("{}/../resources/seccomp/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let arch = seccompiler::TargetArch::x86_64;
        let all = seccompiler::compile_from_json(File::open(path).unwrap(), arch).unwrap();
        all[name].iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
    }

    #[test]
    fn verdicts_are_seccompiler_s() {
        let arguments: Vec<u64> = vec![
            0,
            1,
            2,
            3,
            4,
            5,
            6,
            7,
            9,
            15,
            0x100,
            0x200,
            0x10100,
            0x10000,
            0x5421,
            0xae80,
            1030,
            0x3d_0f00,
            0x4000_0000 | 0x10100,
            0x8090_ae81,
            u64::MAX >> 32,
            u64::MAX,
        ];
        for (policy, name) in POLICIES {
            let (ours, theirs) = (ours(policy), seccompiler_s(name));
            for number in (0..600).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
                for first in &arguments {
                    for second in &arguments {
                        let args = [*first, *second, *second, *first, 0, 0];
                        let wanted = match number as i64 {
                            libc::SYS_clone3 => 0x5_0000 | libc::ENOSYS as u32,
                            libc::SYS_tgkill if *first as u32 == u32::MAX => 0x8000_0000,
                            _ => verdict(&theirs, ARCH_X86_64, number, args),
                        };
                        let got = verdict(&ours, ARCH_X86_64, number, args);
                        assert_eq!(got, wanted, "{name}: call {number} with {args:x?}");
                    }
                }
            }
            assert_eq!(verdict(&ours, 3, 0, [0; 6]), 0x8000_0000, "{name}: i386");
        }
    }

    /// The policies' calls by name: whether each allows any arguments, or some.
    fn table() -> BTreeMap<String, [&'static str; 3]> {
        let mut table: BTreeMap<String, [&str; 3]> = BTreeMap::new();
        for (column, (_, name)) in POLICIES.iter().enumerate() {
            let path = format!("{}/../resources/seccomp/{name}.json", env!("CARGO_MANIFEST_DIR"));
            let json: serde_json::Value =
                serde_json::from_reader(File::open(path).unwrap()).unwrap();
            for rule in json[name]["filter"].as_array().unwrap() {
                let call = rule["syscall"].as_str().unwrap().to_owned();
                let cell = &mut table.entry(call).or_default()[column];
                let any = rule.get("args").is_none() || *cell == "yes";
                *cell = if any { "yes" } else { "some" };
            }
        }
        table
    }

    #[test]
    fn the_table_of_calls_is_the_policies() {
        let table = table();
        let text = include_str!("../../../resources/seccomp/README.md");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| ")).skip(1);
        let rows = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
        let written: BTreeMap<String, [&str; 3]> =
            rows.map(|row| (row[0].to_owned(), [row[1], row[2], row[3]])).collect();
        for (call, cells) in &table {
            assert_eq!(written.get(call), Some(cells), "{call} in resources/seccomp/README.md");
        }
        assert_eq!(written.len(), table.len(), "no call is in the table alone");
        let allowed = |column: usize| table.values().filter(|row| !row[column].is_empty()).count();
        let counts = [0, 1, 2].map(allowed);
        let said = format!(
            "Allowed: vCPU {}, event loop {}, file worker {}.",
            counts[0], counts[1], counts[2]
        );
        assert!(text.contains(&said), "it should say {said:?}");
    }

    #[test]
    fn nothing_executable_no_namespace_no_one_else_s_thread() {
        let allowed = |policy, number: i64, args| {
            verdict(&ours(policy), ARCH_X86_64, number as u32, args) == libc::SECCOMP_RET_ALLOW
        };
        for (policy, _) in POLICIES {
            for call in [libc::SYS_mmap, libc::SYS_mprotect] {
                assert!(allowed(policy, call, [0, 0, 3, 0, 0, 0]));
                assert!(!allowed(policy, call, [0, 0, 7, 0, 0, 0]));
            }
            assert!(allowed(policy, libc::SYS_tgkill, [77, 1, 6, 0, 0, 0]));
            assert!(!allowed(policy, libc::SYS_tgkill, [78, 1, 6, 0, 0, 0]));
            for call in [libc::SYS_execve, libc::SYS_ptrace, libc::SYS_kill, libc::SYS_bpf] {
                assert!(!allowed(policy, call, [0; 6]));
            }
        }
        let thread = 0x3d_0f00;
        assert!(allowed(Policy::FsWorker, libc::SYS_clone, [thread, 0, 0, 0, 0, 0]));
        for flags in [0, 17, thread | 0x1000_0000, thread & !0x10000] {
            assert!(!allowed(Policy::FsWorker, libc::SYS_clone, [flags, 0, 0, 0, 0, 0]));
        }
        let socket = |family| allowed(Policy::EventLoop, libc::SYS_socket, [family, 1, 0, 0, 0, 0]);
        assert!(socket(libc::AF_UNIX as u64) && !socket(libc::AF_INET as u64));
    }
}
