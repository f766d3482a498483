//! A root that is an overlay of the host's, as container engines mount them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;

use bulkhead_tests::{Host, debian, finish};

/// An overlay over a root file system, unmounted when dropped.
struct Overlay {
    host: Host,
    merged: PathBuf,
    upper: PathBuf,
}

impl Overlay {
    fn over(lower: &std::path::Path) -> Self {
        let host = Host::new();
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| host.path(name));
        for dir in [&upper, &work, &merged] {
            fs::create_dir(dir).expect("a directory");
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let mount = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&merged)
            .status();
        assert!(mount.expect("mount runs").success(), "the overlay can be mounted: {options}");
        Self { host, merged, upper }
    }

    fn run(&self, command: &[&str]) -> bulkhead_tests::Finished {
        let mut run = self.host.bulkhead(["run", "--memory", "256m", "--rootfs"]);
        run.arg(&self.merged).arg("--").args(command);
        finish(run)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.merged).status();
        assert!(std::thread::panicking() || unmounted.is_ok_and(|status| status.success()));
    }
}

#[test]
fn what_is_changed_goes_to_the_upper_layer_and_nothing_else() {
    let lower = Host::new();
    let at = |name: &str| lower.rootfs.join(name);
    fs::create_dir_all(at("d/sub")).expect("a directory");
    for name in ["gone", "changed", "moved", "d/sub/kept", "linked", "appended"] {
        fs::write(at(name), format!("{name}\n")).expect("a file");
    }
    let overlay = Overlay::over(&lower.rootfs);
    let script = "set -e; rm gone; echo new >changed; mv moved renamed; mv d e; ln linked link2; \
        echo more >>appended; chmod 4755 appended; rm -r e/sub; mkdir e/sub; ls e/sub; \
        touch -d 2001-02-03 e; ! test -e gone; ! test -e moved; ! test -e d; \
        cat changed renamed appended; stat -c %h linked; mkdir gone; rmdir gone; \
        test $(stat -c %i linked) = $(stat -c %i link2)";
    assert_eq!(overlay.run(&["sh", "-c", script]).ok(), "new\nmoved\nappended\nmore\n2\n");
    for name in ["gone", "moved", "d"] {
        let whiteout = fs::symlink_metadata(overlay.upper.join(name)).expect(name);
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0, "{name}");
    }
    assert_eq!(
        fs::metadata(overlay.merged.join("appended")).expect("there").mode() & 0o7777,
        0o4755
    );
    assert_eq!(fs::read_to_string(at("changed")).expect("there"), "changed\n");
    assert!(at("gone").exists() && at("d/sub/kept").exists(), "the lower layer is as it was");
}

/// Run by Python in the guest.
const SYSTEM_CALLS: &str = r#"
import ctypes, errno, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
# a file of the lower layer, open while it is copied up
reader = os.open('/etc/os-release', os.O_RDONLY)
before = os.pread(reader, 100, 0)
inode = os.fstat(reader).st_ino
with open('/etc/os-release', 'r+b') as f:
    f.write(b'X')
assert os.stat('/etc/os-release').st_ino == inode, 'the inode number stays'
assert open('/etc/os-release', 'rb').read(3) == b'X' + before[1:3]
# extended attributes, of a file and of a directory that are below
os.setxattr('/etc/debian_version', 'user.colour', b'blue')
assert os.getxattr('/etc/debian_version', 'user.colour') == b'blue'
os.setxattr('/etc', 'user.colour', b'red')
assert 'user.colour' in os.listxattr('/etc')
os.setxattr('/etc/debian_version', 'security.capability', bytes.fromhex('0000000200040000' + '00' * 12))
assert len(os.getxattr('/etc/debian_version', 'security.capability')) == 20
# rename over a file below, exchange, and a new file over a whiteout
open('/etc/new', 'w').write('new')
os.rename('/etc/new', '/etc/debian_version')
assert open('/etc/debian_version').read() == 'new'
open('/etc/a', 'w').write('a')
assert libc.renameat2(-100, b'/etc/a', -100, b'/etc/debian_version', 2) == 0
assert open('/etc/debian_version').read() == 'a'
os.unlink('/etc/debian_version')
open('/etc/debian_version', 'x').write('again')
# mapped and shared
fd = os.open('/etc/os-release', os.O_RDWR)
m = mmap.mmap(fd, 10)
m[0:4] = b'WXYZ'
m.flush()
assert os.pread(fd, 4, 0) == b'WXYZ'
# a directory with entries of both layers, listed while it changes
names = set(os.listdir('/usr/bin'))
open('/usr/bin/zz-new', 'w').close()
os.unlink('/usr/bin/env')
assert set(os.listdir('/usr/bin')) == names - {'env'} | {'zz-new'}
fd = os.open('/tmp', os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(fd, b'temporary')
assert libc.linkat(-100, b'/proc/self/fd/%d' % fd, -100, b'/tmp/linked', 0x400) == 0
print('all of it')
"#;

#[test]
fn system_calls_on_an_overlay_do_what_they_do_elsewhere() {
    let overlay = Overlay::over(&debian());
    assert_eq!(overlay.run(&["python3", "-c", SYSTEM_CALLS]).ok(), "all of it\n");
    assert_eq!(fs::read(overlay.merged.join("etc/os-release")).expect("there")[..4], *b"WXYZ");
    assert!(!overlay.merged.join("usr/bin/env").exists());
}
