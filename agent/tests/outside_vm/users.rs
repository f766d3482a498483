//! Who the process is and what it may do.

use bulkhead_protocol::rpc::agent::{Capabilities, IdMapping, Process, Rlimit, User};

use crate::harness::*;

fn as_user(script: &str, uid: u32, gid: u32) -> Process {
    let user = User { uid, gid, additional_gids: vec![7, 8], ..Default::default() };
    Process { user: Some(user).into(), ..shell(script) }
}

#[test]
fn numeric_users_and_groups() {
    let result = run(as_user("id -u; id -g; id -G; umask; pwd; echo $HOME", 1234, 5678));
    assert_eq!(result, outcome(0, "1234\n5678\n5678 7 8\n0022\n/\n/\n", ""));
}

#[test]
fn named_users() {
    let mut process = shell("id -u; id -g; id -G; echo $HOME");
    process.user_name = "keeper".to_owned();
    assert_eq!(run(process), outcome(0, "1000\n1001\n1001 44\n/home/keeper\n", ""));
    let agent = Agent::start();
    let _host = agent.host();
    let mut process = shell("true");
    process.user_name = "stranger".to_owned();
    let failure = agent.create(&spec(process)).failure.unwrap();
    assert_eq!(failure.message, "no user \"stranger\" in the container's /etc/passwd");
}

#[test]
fn an_ordinary_user_can_reopen_its_streams() {
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; echo own > /proc/self/fd/1";
    assert_eq!(run(as_user(script, 1000, 1001)), outcome(0, "out\nown\n", "err\n"));
}

#[test]
fn environment_and_directory() {
    let mut process = shell("echo $HOME $LAMP; pwd; umask; stat -c %a .");
    process.env = vec!["HOME=/elsewhere".into(), "LAMP=lit".into()];
    process.cwd = "/made/for/it".into();
    process.user.mut_or_insert_default().umask = Some(0o077);
    assert_eq!(run(process), outcome(0, "/elsewhere lit\n/made/for/it\n0077\n755\n", ""));
    assert_eq!(run(shell("echo $HOME")).stdout, "/root\n");
}

fn status_lines(process: Process) -> Vec<(String, String)> {
    let result = run(process);
    assert_eq!(result.code, 0, "{}", result.stderr);
    let pair = |line: &str| line.split_once(":\t").map(|(k, v)| (k.to_owned(), v.to_owned()));
    result.stdout.lines().filter_map(pair).collect()
}

fn check(lines: &[(String, String)], expected: &[(&str, &str)]) {
    for (key, value) in expected {
        let line = lines.iter().find(|(k, _)| k == key).unwrap();
        assert_eq!(line.1, *value, "{key}");
    }
}

#[test]
fn capabilities_of_all_five_sets() {
    let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    let caps = Capabilities {
        bounding: names(&["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]),
        permitted: names(&["CAP_KILL", "CAP_NET_BIND_SERVICE"]),
        effective: names(&["CAP_KILL"]),
        inheritable: names(&["CAP_NET_BIND_SERVICE"]),
        ambient: names(&["CAP_NET_BIND_SERVICE"]),
        ..Default::default()
    };
    let mut process = as_user("cat /proc/self/status", 1000, 1001);
    process.capabilities = Some(caps.clone()).into();
    process.no_new_privileges = true;
    let net = "0000000000000400";
    check(
        &status_lines(process),
        &[
            ("CapInh", net),
            // What is ambient survives the execution of a program as an ordinary user.
            ("CapPrm", net),
            ("CapEff", net),
            ("CapBnd", "0000000000000421"),
            ("CapAmb", net),
            ("NoNewPrivs", "1"),
            ("Uid", "1000\t1000\t1000\t1000"),
        ],
    );

    // Root gets what the bounding set has.
    let mut process = shell("cat /proc/self/status");
    process.capabilities = Some(Capabilities { ambient: vec![], ..caps }).into();
    check(
        &status_lines(process),
        &[("CapEff", "0000000000000421"), ("CapBnd", "0000000000000421"), ("NoNewPrivs", "0")],
    );
}

#[test]
fn without_a_message_capabilities_stay() {
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |status: &str, key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().to_owned()
    };
    let root = run(shell("cat /proc/self/status")).stdout;
    assert_eq!(of(&root, "CapEff:"), of(&own, "CapEff:"));
    let user = run(as_user("cat /proc/self/status", 1000, 1001)).stdout;
    assert_eq!(of(&user, "CapEff:"), "0000000000000000");
}

#[test]
fn limits() {
    let mut process = shell("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj");
    let limit = |type_: &str, soft, hard| Rlimit {
        type_: type_.to_owned(),
        soft,
        hard,
        ..Default::default()
    };
    process.rlimits = vec![limit("RLIMIT_NOFILE", 100, 200)];
    process.oom_score_adj = "500".to_owned();
    assert_eq!(run(process), outcome(0, "100\n200\n500\n", ""));

    let agent = Agent::start();
    let _host = agent.host();
    let mut process = shell("true");
    process.rlimits = vec![limit("NOFILE", 1, 1)];
    let failure = agent.create(&spec(process)).failure.unwrap();
    assert!(failure.message.starts_with("unknown resource limit \"NOFILE\""), "{failure:?}");
}

#[test]
fn a_user_namespace_gives_other_ids() {
    let agent = Agent::start();
    let mapping = |kernel_id| IdMapping { kernel_id, size: 65536, ..Default::default() };
    let script = "id -u; tr -s ' ' </proc/self/uid_map; touch /tmp/mine; stat -c %u /tmp/mine /bin; \
        touch /bin/x 2>/dev/null || echo no; mount -t tmpfs none /mnt && echo mounted; \
        cat /proc/self/setgroups; grep CapEff /proc/self/status; echo out >/dev/stdout; sleep 1000";
    let mut process = shell(script);
    process.stderr = false;
    let mut spec = spec(process);
    spec.uid_mappings = vec![mapping(100_000)];
    spec.gid_mappings = vec![mapping(200_000)];
    std::fs::create_dir(agent.root("mnt")).unwrap();
    std::os::unix::fs::chown(agent.root("tmp"), Some(100_000), Some(200_000)).unwrap();
    let host = agent.host();
    let response = agent.create(&spec);
    assert!(response.failure.is_none(), "{response:?}");
    let said = read_until(&mut host.stdout(), "out\n");
    let caps = said.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    assert_ne!(u64::from_str_radix(caps, 16).unwrap() & 1 << 21, 0, "CAP_SYS_ADMIN is inside");
    let said = said.replace(caps, "");
    let expected = "0\n 0 100000 65536\n0\n65534\nno\nmounted\nallow\nCapEff:\t\nout\n";
    assert_eq!(said, expected);
    let owner = std::fs::metadata(agent.root("tmp/mine")).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((owner.uid(), owner.gid()), (100_000, 200_000));

    let mut process =
        as_user("id -u; id -G; stat -c %u /proc/1; echo $(grep -c /mnt /proc/mounts)", 9, 9);
    process.stdout = true;
    process.stderr = false;
    let response = agent.exec("one", process);
    assert!(response.failure.is_none(), "{response:?}");
    let said = String::from_utf8(read_all(agent.stream(response.stdout_port))).unwrap();
    assert_eq!(said, "9\n9 7 8\n0\n1\n");
    assert_eq!(agent.wait("one"), 0);
}

#[test]
fn mappings_the_kernel_does_not_take_are_refused() {
    let agent = Agent::start();
    let _host = agent.host();
    let mut spec = spec(shell("true"));
    let overlap = IdMapping { kernel_id: 1000, size: 10, ..Default::default() };
    spec.uid_mappings = vec![overlap.clone(), overlap];
    let failure = agent.create(&spec).failure.unwrap();
    assert!(failure.message.contains("cannot enter the user namespace"), "{failure:?}");
}
