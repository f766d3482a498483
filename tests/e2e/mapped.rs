//! Programs and libraries, which the guest maps from the host's page cache.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::PermissionsExt;

use bulkhead_tests::{Host, checksums, child_named, debian, start, until, wait};

/// Files that are mapped, of lengths and with holes that are easy to get wrong.
const FILES: [(&str, u64, u64); 6] = [
    ("shortest", 64 << 10, 0),
    ("odd", (64 << 10) + 1, 0),
    ("one-mapping", 2 << 20, 0),
    ("one-byte-more", (2 << 20) + 1, 0),
    ("three", 5_000_001, 0),
    ("holes", 3 << 20, 1 << 20),
];

#[test]
fn programs_are_mapped_and_read_the_same() {
    let host = Host::new();
    let directory = host.rootfs.join("code");
    fs::create_dir(&directory).expect("a directory");
    let noise = fs::read(host.rootfs.join("bin/busybox")).expect("busybox");
    for (name, len, hole) in FILES {
        let path = directory.join(name);
        let mut file = File::create(&path).expect("a file");
        let content = noise.iter().cycle().skip(len as usize % 1000).copied();
        let content: Vec<u8> = content.take((len - hole) as usize).collect();
        let (first, rest) = content.split_at(content.len() / 2);
        file.write_all(first).expect("room");
        file.seek_relative(hole as i64).expect("a hole");
        file.write_all(rest).expect("room");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    fs::create_dir(host.rootfs.join("copy")).expect("a directory");
    fs::copy(host.rootfs.join("bin/busybox"), host.rootfs.join("copy/busybox")).expect("room");
    // Twice: the second time all of it is mapped. Then a program that runs is written to, once it does not.
    let script = format!(
        "{sums}; {sums}; /copy/busybox echo runs; /copy/busybox sleep 9 & sleep 1
         printf x 2>/dev/null >>/copy/busybox && echo it was written to while it ran
         kill %1; wait; printf x >>/copy/busybox; tail -c 1 /copy/busybox; /copy/busybox echo still runs
         cat /bin/busybox >/copy/busybox; cmp /copy/busybox /bin/busybox; : >/copy/busybox; wc -c </copy/busybox
         cp /bin/busybox /copy/busybox; /copy/busybox echo runs again; touch /ready
         until test -e /go; do sleep 0.1; done; tail -c 5 /code/odd; sha256sum /code/odd | cut -c 1-64",
        sums = "(cd /code; find . -type f | LC_ALL=C sort | xargs sha256sum)",
    );
    let before = checksums(&directory);
    let run = start(host.run(&[], &["sh", "-c", &script]));
    until("it has run them", || host.rootfs.join("ready").exists());
    let maps = fs::read_to_string(format!("/proc/{}/maps", child_named(run.id(), "bulkhead-vmm")));
    let maps = maps.expect("it is there");
    for name in ["bin/busybox", "code/odd", "code/three"] {
        let is_mapped = |line: &str| line.contains(" r--s ") && line.ends_with(&format!("/{name}"));
        assert!(maps.lines().any(is_mapped), "{name}: {maps}");
    }
    let is_writable = |line: &str| line.contains(" rw") && line.contains("/rootfs/");
    assert!(!maps.lines().any(is_writable), "{maps}");
    // It grows behind the guest's back.
    let odd = directory.join("odd");
    OpenOptions::new().append(true).open(&odd).expect("a file").write_all(b"grown").expect("room");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    fs::write(host.rootfs.join("go"), "").expect("a file");
    let after = checksums(&directory);
    let odd = after.lines().find(|line| line.ends_with("/odd")).expect("it is there");
    let expected = format!(
        "{before}{before}runs\nxstill runs\n0\nruns again\ngrown{}\n",
        odd.split_once(' ').expect("a sum and a name").0
    );
    assert_eq!(wait(run).ok(), expected);
}

/// Maps a program of 1 MiB, has it shortened, and looks at what was behind its end.
const SHORTENED: &str = r#"
import mmap, os, time
page = mmap.PAGESIZE
fd = os.open('/v/program', os.O_RDONLY)
code = mmap.mmap(fd, 1 << 20, prot=mmap.PROT_READ)
seen = code[200 * page]
open('/v/ready', 'w').close()
while not os.path.exists('/v/go'):
    time.sleep(0.01)
print(seen, code[0], code[200 * page], code[201 * page], flush=True)
"#;

#[test]
fn a_file_that_is_shortened_behind_the_guest_s_back_costs_no_vm() {
    let host = Host::new();
    let volume = host.path("volume");
    fs::create_dir(&volume).expect("a directory");
    let program = volume.join("program");
    fs::write(&program, vec![7; 1 << 20]).expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    let mut run = host.bulkhead(["run", "--rootfs"]);
    run.arg(debian()).arg("-v").arg(format!("{}:/v", volume.display()));
    run.args(["--", "python3", "-c", SHORTENED]);
    let run = start(run);
    until("it has mapped it", || volume.join("ready").exists());
    let shortened = OpenOptions::new().write(true).open(&program).expect("a file");
    shortened.set_len(4096).expect("it can be shortened");
    fs::write(volume.join("go"), "").expect("a file");
    assert_eq!(wait(run).ok(), "7 7 0 0\n");
}
