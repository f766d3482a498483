use std::process::Command;

use bulkhead_tests::{Host, binary, finish};

#[test]
fn doctor_says_yes_where_linux_runs() {
    let host = Host::new();
    let said = finish(host.bulkhead(["doctor"])).ok();
    assert!(said.contains("SYSCALL"), "it names the checks: {said}");
    assert!(!said.contains("FAILED"), "and none failed: {said}");
}

#[test]
fn doctor_speaks_json() {
    let host = Host::new();
    let json = finish(host.bulkhead(["doctor", "--json"])).ok();
    let mut python = Command::new("python3");
    python
        .args(["-c", "import json,sys; d=json.loads(sys.argv[1]); assert d['checks'], d"])
        .arg(json);
    finish(python).ok();
}

#[test]
fn binaries_tell_their_version() {
    for name in ["bulkhead", "bulkhead-vmm"] {
        let mut command = Command::new(binary(name));
        command.arg("--version");
        assert!(finish(command).ok().starts_with(name), "{name} names itself");
    }
}
