//! The root file system and volumes over virtio-fs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use bulkhead_tests::{Host, checksums, debian, finish};

#[test]
fn writes_are_seen_on_the_host_and_back() {
    let host = Host::new();
    fs::write(host.rootfs.join("from-host"), "hello guest").expect("a file");
    let said = host
        .sh("cat from-host; echo hello host >from-guest; chmod 640 from-guest; mkdir -p a/b")
        .ok();
    assert_eq!(said, "hello guest");
    assert_eq!(fs::read_to_string(host.rootfs.join("from-guest")).expect("a file"), "hello host\n");
    assert_eq!(fs::metadata(host.rootfs.join("from-guest")).expect("a file").mode() & 0o777, 0o640);
    assert!(host.rootfs.join("a/b").is_dir());
}

#[test]
fn ten_thousand_files_are_copied_faithfully() {
    const FILES: usize = 10_000;
    let host = Host::new();
    for file in 0..FILES {
        let directory = host.rootfs.join(format!("src/{}", file / 100));
        fs::create_dir_all(&directory).expect("a directory");
        let content = format!("this is file {file}\n").repeat(file % 300);
        fs::write(directory.join(file.to_string()), content).expect("a file");
    }
    let script = "cp -r /src /dst && find /dst -type f | wc -l";
    assert_eq!(host.sh(script).ok(), format!("{FILES}\n"));
    let (source, copy) = (checksums(&host.rootfs.join("src")), checksums(&host.rootfs.join("dst")));
    assert_eq!(source.lines().count(), FILES);
    assert!(source == copy, "every file of the copy has its original's checksum");
}

#[test]
fn kinds_of_files_and_their_metadata_survive() {
    let host = Host::new();
    symlink("target/elsewhere", host.rootfs.join("link")).expect("a symlink");
    let script = "readlink link; ln -s x s; ln /bin/busybox hard; mkfifo pipe; \
        (echo through a pipe >pipe &); cat pipe; touch -d '2001-02-03 04:05:06' old; \
        chown 12:34 old; chmod 4711 old; mv s renamed; rm link; truncate -s 5M big; \
        truncate -s 10M sparse; echo end >>sparse; df -P / | tail -1 | wc -l";
    let said = host.sh(script).ok();
    assert_eq!(said, "target/elsewhere\nthrough a pipe\n1\n");
    let stat = |name: &str| fs::symlink_metadata(host.rootfs.join(name)).expect(name);
    assert!(stat("renamed").is_symlink());
    assert_eq!(stat("hard").ino(), stat("bin/busybox").ino());
    let old = stat("old");
    assert_eq!((old.uid(), old.gid(), old.permissions().mode() & 0o7777), (12, 34, 0o4711));
    assert_eq!(old.mtime(), 981_173_106);
    assert_eq!(stat("big").len(), 5 << 20);
    assert!(stat("sparse").blocks() < 100, "a hole stays a hole");
    assert!(!host.rootfs.join("link").exists());
}

/// What no shell can ask for: run by Python in the guest.
const SYSTEM_CALLS: &str = r#"
import ctypes, fcntl, mmap, os
os.chdir('/tmp/case')
libc = ctypes.CDLL(None, use_errno=True)
# O_TMPFILE, linked into place
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(fd, b'temporary')
AT_FDCWD, FOLLOW = -100, 0x400
assert libc.linkat(AT_FDCWD, b'/proc/self/fd/%d' % fd, AT_FDCWD, b'linked', FOLLOW) == 0
assert open('linked').read() == 'temporary'
# rename flags
NOREPLACE, EXCHANGE = 1, 2
open('a', 'w').write('a'); open('b', 'w').write('b')
assert libc.renameat2(AT_FDCWD, b'a', AT_FDCWD, b'b', NOREPLACE) == -1 and ctypes.get_errno() == 17
assert libc.renameat2(AT_FDCWD, b'a', AT_FDCWD, b'b', EXCHANGE) == 0
assert open('a').read() == 'b' and open('b').read() == 'a'
# mmap, shared and private
fd = os.open('mapped', os.O_RDWR | os.O_CREAT)
os.write(fd, b'.' * 8192)
shared = mmap.mmap(fd, 8192)
shared[5000:5005] = b'hello'
private = mmap.mmap(fd, 8192, flags=mmap.MAP_PRIVATE)
private[0:4] = b'mine'
shared.flush()
assert os.pread(fd, 5, 5000) == b'hello' and os.pread(fd, 4, 0) == b'....'
# extended attributes
os.setxattr('a', 'user.colour', b'blue')
assert os.getxattr('a', 'user.colour') == b'blue' and os.listxattr('a') == ['user.colour']
os.removexattr('a', 'user.colour')
assert os.listxattr('a') == []
# locks between two processes
fcntl.flock(fd, fcntl.LOCK_EX)
fcntl.lockf(fd, fcntl.LOCK_EX)
child = os.fork()
if child == 0:
    other = os.open('mapped', os.O_RDWR)
    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os._exit(1)
        except BlockingIOError:
            pass
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
# holes
fd = os.open('holes', os.O_RDWR | os.O_CREAT)
os.posix_fallocate(fd, 0, 1 << 20)
os.pwrite(fd, b'x' * (1 << 20), 0)
os.ftruncate(fd, 2 << 20)
PUNCH = 3
assert libc.fallocate(fd, PUNCH, ctypes.c_long(0), ctypes.c_long(65536)) == 0
assert os.lseek(fd, 0, os.SEEK_DATA) == 65536
# large I/O, O_DIRECT excepted, and O_APPEND
blob = os.urandom(3 << 20)
fd = os.open('large', os.O_RDWR | os.O_CREAT | os.O_APPEND)
assert os.write(fd, blob) == len(blob)
assert os.pread(fd, len(blob), 0) == blob
# an unlinked file lives while it is open; a directory that is not empty stays
os.unlink('large')
assert os.pread(fd, 10, 0) == blob[:10] and os.fstat(fd).st_nlink == 0
os.mkdir('d'); open('d/f', 'w').close()
try:
    os.rmdir('d'); raise SystemExit('a full directory was removed')
except OSError as error:
    assert error.errno == 39, error
# long names
open('n' * 255, 'w').close()
try:
    open('n' * 256, 'w'); raise SystemExit('256 bytes are a name')
except OSError as error:
    assert error.errno == 36, error
assert os.statvfs('.').f_bsize > 0
print('all of it')
"#;

#[test]
fn system_calls_on_files_do_what_they_do_elsewhere() {
    let host = Host::new();
    let case = host.path("case");
    fs::create_dir(&case).expect("a directory");
    let mut run = host.bulkhead(["run", "--memory", "256m", "--rootfs"]);
    run.arg(debian()).arg("--volume").arg(format!("{}:/tmp/case", case.display()));
    run.args(["--", "python3", "-c", SYSTEM_CALLS]);
    assert_eq!(finish(run).ok(), "all of it\n");
    assert_eq!(fs::read(case.join("mapped")).expect("a file")[5000..5005], *b"hello");
}

#[test]
fn volumes_are_joined_and_read_only_ones_stay_so() {
    let host = Host::new();
    let (rw, ro, file) = (host.path("rw"), host.path("ro"), host.path("file"));
    fs::create_dir(&rw).and_then(|()| fs::create_dir(&ro)).expect("directories");
    fs::write(ro.join("kept"), "kept")
        .and_then(|()| fs::write(&file, "one file\n"))
        .expect("files");
    let volume = |path: &Path, rest: &str| format!("{}:{rest}", path.display());
    let (rw_option, ro_option) = (volume(&rw, "/data"), volume(&ro, "/deep/in/ro:ro"));
    let file_option = volume(&file, "/etc/one:ro");
    let options = ["--volume", &rw_option, "--volume", &ro_option, "--volume", &file_option];
    let script = "echo new >/data/new; cat /deep/in/ro/kept /etc/one; \
        echo no >/deep/in/ro/kept; rm /deep/in/ro/kept; touch /deep/in/ro/x; echo no >/etc/one; \
        mount -o remount,rw /deep/in/ro; echo no >/deep/in/ro/kept; true";
    let said = finish(host.run(&options, &["sh", "-c", script])).ok();
    assert_eq!(said, "keptone file\n");
    assert_eq!(fs::read_to_string(rw.join("new")).expect("a file"), "new\n");
    assert_eq!(fs::read_to_string(ro.join("kept")).expect("a file"), "kept");
    assert_eq!(fs::read_to_string(&file).expect("a file"), "one file\n");
    assert_eq!(fs::read_dir(&ro).expect("a directory").count(), 1);
}

#[test]
fn a_read_only_root_refuses_writes() {
    let host = Host::new();
    let finished = finish(host.run(&["--read-only"], &["sh", "-c", "touch /x || exit 8"]));
    assert_eq!(finished.code, 8, "{finished:?}");
    assert!(!host.rootfs.join("x").exists());
}

#[test]
fn nothing_outside_the_root_is_there() {
    let host = Host::new();
    fs::write(host.path("secret"), "secret").expect("a file");
    symlink(host.path("secret"), host.rootfs.join("escape")).expect("a symlink");
    let script = "cat /escape /../secret ../../secret; cd /; ls ..; find / -xdev -name secret";
    let finished = host.sh(script);
    assert!(!finished.stdout.contains("secret"), "{finished:?}");
}

/// Root of the container is somebody else on the host, in the files it finds and in those it makes.
#[test]
fn the_container_s_users_can_be_others_on_the_host() {
    let host = Host::new();
    let dir = host.path("mapped");
    // A file system that maps IDs, whatever the lab's own does.
    let prepare = "mkdir \"$0\" && mount -t tmpfs mapped \"$0\" && cp -a \"$1\" \"$0/root\" &&
        chown -Rh 100000:100000 \"$0/root\" && touch \"$0/root/stranger\"";
    let mut command = Command::new("sh");
    let prepared = command.args(["-c", prepare]).arg(&dir).arg(&host.rootfs).status();
    assert!(prepared.expect("sh runs").success());
    let script = "stat -c %u:%g /bin/busybox /stranger; touch /new; chown 5:6 /new
        cp /bin/busybox /tool; chmod 4755 /tool; chown 70000 /new 2>/dev/null || echo no such user
        rm /stranger 2>/dev/null; id -u";
    let mut run = host.bulkhead(["run", "--idmap", "100000", "--rootfs"]);
    run.arg(dir.join("root")).args(["--", "sh", "-c", script]);
    let said = finish(run);
    let owner = |name: &str| {
        let found = fs::metadata(dir.join("root").join(name)).expect("a file");
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    let (new, tool) = (owner("new"), owner("tool"));
    let unmounted = Command::new("umount").arg("-l").arg(&dir).status();
    assert!(unmounted.expect("umount runs").success());
    assert_eq!(said.ok(), "0:0\n65534:65534\nno such user\n0\n");
    assert_eq!((new.0, new.1), (100_005, 100_006));
    assert_eq!(tool, (100_000, 100_000, 0o4755));
}
