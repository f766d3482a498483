//! Filters of system calls, and how a process is scheduled.

use bulkhead_protocol::rpc::agent::{Capabilities, Process, Scheduler, Seccomp, User};

use crate::harness::*;

/// A filter (linux/filter.h, linux/seccomp.h) under which mkdir(2) fails with EXDEV.
fn no_mkdir() -> Seccomp {
    let instruction = |code: u16, if_true: u8, if_false: u8, k: u32| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([if_true, if_false]);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    let program = [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, libc::SYS_mkdir as u32),
        instruction(0x06, 0, 0, 0x0005_0000 | libc::EXDEV as u32),
        instruction(0x06, 0, 0, 0x7fff_0000),
    ];
    Seccomp { program: program.concat(), ..Default::default() }
}

fn filtered(no_new_privileges: bool) -> Process {
    let script = "mkdir /tmp/x; grep -E '^(NoNewPrivs|Seccomp|CapEff|CapPrm)' /proc/self/status";
    let mut process = shell(script);
    process.seccomp = Some(no_mkdir()).into();
    process.no_new_privileges = no_new_privileges;
    process.user = Some(User { uid: 1000, gid: 1000, ..Default::default() }).into();
    let kill = vec!["CAP_KILL".to_owned()];
    process.capabilities = Some(Capabilities {
        bounding: kill.clone(),
        effective: kill.clone(),
        permitted: kill.clone(),
        inheritable: kill.clone(),
        ambient: kill,
        ..Default::default()
    })
    .into();
    process
}

#[test]
fn a_filter_holds_with_and_without_new_privileges() {
    for no_new_privileges in [false, true] {
        let result = run(filtered(no_new_privileges));
        assert!(result.stderr.contains("cross-device"), "{result:?}");
        let privileges = format!("NoNewPrivs:\t{}\n", u8::from(no_new_privileges));
        assert!(result.stdout.contains(&privileges), "{result:?}");
        assert!(result.stdout.contains("Seccomp:\t2\n"), "{result:?}");
        // What loading the filter took is gone.
        for set in ["CapPrm", "CapEff"] {
            assert!(result.stdout.contains(&format!("{set}:\t0000000000000020\n")), "{result:?}");
        }
    }
}

#[test]
fn a_filter_that_is_none_is_refused() {
    let agent = Agent::start();
    let _host = agent.host();
    let mut long = no_mkdir().program.repeat(1100);
    for program in [vec![], vec![0; 7], vec![0xff; 8], std::mem::take(&mut long)] {
        let mut process = filtered(true);
        process.seccomp = Some(Seccomp { program, ..Default::default() }).into();
        let failure = agent.create(&spec(process)).failure.unwrap();
        assert!(failure.message.contains("cannot load the seccomp filter"), "{failure:?}");
    }
}

#[test]
fn a_process_of_exec_is_filtered_too() {
    let agent = Agent::start();
    agent.create_sleeper();
    let mut process = shell("mkdir /tmp/y || exit 9");
    (process.stdout, process.stderr) = (false, false);
    process.seccomp = Some(no_mkdir()).into();
    assert!(agent.exec("one", process).failure.is_none());
    assert_eq!(agent.wait("one"), 9);
}

#[test]
fn a_process_is_scheduled_as_asked() {
    // 3 is SCHED_BATCH; field 19 of stat is the nice value, 41 the policy (proc_pid_stat(5)).
    let mut process = shell("set -- $(cat /proc/self/stat); echo ${19} ${41}; ionice; uname -m");
    process.scheduler = Some(Scheduler { policy: 3, nice: 5, ..Default::default() }).into();
    process.io_priority = Some(2 << 13 | 6);
    process.personality = Some(8);
    let result = run(process);
    assert_eq!(result.stdout, "5 3\nbest-effort: prio 6\ni686\n", "{result:?}");
    let agent = Agent::start();
    let _host = agent.host();
    let mut process = shell("true");
    process.scheduler = Some(Scheduler { policy: 77, ..Default::default() }).into();
    let failure = agent.create(&spec(process)).failure.unwrap();
    assert!(failure.message.contains("cannot set scheduling"), "{failure:?}");
}
