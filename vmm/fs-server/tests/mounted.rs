//! Real file work through the server, by way of this machine's own FUSE. Needs root and /dev/fuse.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, StatxFlags, fallocate, linkat, openat,
    renameat_with, statx,
};
use rustix::io::Errno;

use support::{mounted, sh, sh_as};

#[test]
fn a_copied_tree_is_the_same_on_both_sides() {
    let mounted = mounted();
    let source = mounted.outside();
    fs::create_dir(&source).unwrap();
    sh(
        &source,
        "mkdir -p a/b/c d; printf hello > a/x; head -c 3000000 /dev/urandom > a/b/big
         ln a/x d/hard; ln -s ../a/x d/soft; ln -s /nowhere a/dangling; mkfifo a/b/c/fifo
         touch -d '2001-02-03 04:05:06.789' d/old; chmod 4751 a/x; chown 12:34 a/b/big
         mkdir 'na me'; printf y > 'na me/ü\"\\'; chmod 01777 'na me'; : > d/empty",
    );
    sh(&mounted.guest, &format!("cp -a {}/. copy", source.display()));
    let listing = "find . -printf '%P %y %m %n %U %G %T@ %l\\n' | grep -v '^ ' | sort";
    let expected = sh(&source, listing);
    assert!(expected.lines().count() >= 14, "{expected}");
    for copy in [mounted.guest.join("copy"), mounted.host.join("copy")] {
        assert_eq!(sh(&copy, listing), expected);
        let same = "for f in a/x a/b/big d/old; do cmp $f";
        sh(&copy, &format!("{same} {}/$f || exit 1; done", source.display()));
    }
    // And back out again, read through the server.
    let back = mounted.outside().join("back");
    sh(&mounted.guest, &format!("cp -a copy {0} && cmp {0}/a/b/big copy/a/b/big", back.display()));
    sh(&mounted.guest, "rm -r copy");
    assert!(!mounted.host.join("copy").exists());
}

/// Programs are files that a guest maps, and those are not written to under their first node ID: the
/// kernel has to look the name up again, which programs do not notice.
#[test]
fn programs_are_written_to_in_every_way() {
    let mounted = mounted();
    let ways = [
        "printf x >> p",
        "printf x > p",
        "cp -f /bin/true p",
        "truncate -s 5 p",
        "truncate -s 200000 p",
        "dd if=/bin/true of=p bs=1000 seek=3 count=2 conv=notrunc status=none",
        "fallocate -l 300000 p",
        "python3 -c 'import os; os.truncate(\"p\", 7)'",
        "python3 -c 'f = open(\"p\", \"r+b\"); f.seek(70000); f.write(b\"x\")'",
    ];
    for (index, way) in ways.iter().enumerate() {
        let [host, guest, beside] = [&mounted.host, &mounted.guest, &mounted.outside()]
            .map(|dir| dir.join(index.to_string()));
        for dir in [&host, &beside] {
            fs::create_dir_all(dir).unwrap();
            sh(dir, "head -c 100000 /bin/sh > p; chmod +x p; ln p q");
        }
        // Known and open before it is changed.
        sh(&guest, &format!("cmp p {}/q; exec 3< p; {way}", beside.display()));
        sh(&beside, way);
        for dir in [&guest, &host] {
            sh(dir, &format!("cmp p {0}/p && cmp q {0}/p", beside.display()));
        }
    }
}

#[test]
fn many_files() {
    let mounted = mounted();
    let dir = mounted.guest.join("many");
    fs::create_dir(&dir).unwrap();
    for i in 0..10_000 {
        fs::write(dir.join(format!("file-{i}")), format!("{i}\n")).unwrap();
    }
    let sums = "cat $(seq -f file-%.0f 0 9999) | md5sum; ls | wc -l; ls -l | wc -l";
    assert_eq!(sh(&mounted.host.join("many"), sums), sh(&dir, sums));
    // Taken away while being read, as rm does.
    sh(&mounted.guest, "rm -r many");
    assert!(!mounted.host.join("many").exists());
}

#[test]
fn temporary_files_can_be_named() {
    let mounted = mounted();
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let mut file = File::from(openat(CWD, &mounted.guest, flags, Mode::from(0o640)).unwrap());
    file.write_all(b"unnamed").unwrap();
    assert_eq!(fs::read_dir(&mounted.host).unwrap().count(), 1);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    linkat(CWD, path, CWD, mounted.guest.join("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!(fs::read(mounted.host.join("named")).unwrap(), b"unnamed");
    assert_eq!(fs::metadata(mounted.guest.join("named")).unwrap().nlink(), 1);
}

#[test]
fn renames_with_flags() {
    let mounted = mounted();
    let path = |name: &str| mounted.guest.join(name);
    let rename = |from: &str, to: &str, flags| renameat_with(CWD, path(from), CWD, path(to), flags);
    fs::write(path("a"), "A").unwrap();
    fs::write(path("b"), "B").unwrap();
    assert_eq!(rename("a", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename("a", "b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(path("a")).unwrap(), b"B");
    rename("a", "c", RenameFlags::WHITEOUT).unwrap();
    assert_eq!(fs::symlink_metadata(path("a")).unwrap().rdev(), 0);
    assert_eq!(fs::read(mounted.host.join("c")).unwrap(), b"B");
    rename("c", "b", RenameFlags::empty()).unwrap();
    assert_eq!(fs::read(mounted.host.join("b")).unwrap(), b"B");
    // Shares are file systems apart, whatever the host thinks.
    let across = renameat_with(CWD, path("b"), CWD, mounted.at("ro/b2"), RenameFlags::empty());
    assert_eq!(across, Err(Errno::ROFS));
    assert_eq!(
        fs::hard_link(path("b"), mounted.at("ro/b3")).unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
}

#[test]
fn extended_attributes() {
    let mounted = mounted();
    let path = mounted.guest.join("f");
    fs::write(&path, "").unwrap();
    use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
    let value = vec![7; 2000];
    setxattr(&path, "user.large", &value, XattrFlags::CREATE).unwrap();
    assert_eq!(setxattr(&path, "user.large", b"", XattrFlags::CREATE), Err(Errno::EXIST));
    setxattr(&path, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    let mut buffer = vec![0; 4096];
    assert_eq!(getxattr(mounted.host.join("f"), "user.large", &mut buffer[..]).unwrap(), 2000);
    assert_eq!(getxattr(&path, "user.large", &mut buffer[..]).unwrap(), 2000);
    assert_eq!(buffer[..2000], value);
    assert_eq!(getxattr(&path, "user.large", &mut buffer[..100]), Err(Errno::RANGE));
    let len = listxattr(&path, &mut buffer[..]).unwrap();
    let names = String::from_utf8_lossy(&buffer[..len]);
    assert!(names.contains("user.large\0") && names.contains("trusted.overlay.opaque\0"));
    removexattr(&path, "user.large").unwrap();
    assert_eq!(getxattr(&path, "user.large", &mut buffer[..]), Err(Errno::NODATA));
    assert_eq!(
        setxattr(&path, "system.posix_acl_access", b"", XattrFlags::empty()),
        Err(Errno::OPNOTSUPP)
    );
    // On what cannot be opened too.
    sh(&mounted.guest, "mkfifo fifo; ln -s nowhere link");
    setxattr(mounted.guest.join("fifo"), "trusted.t", b"1", XattrFlags::empty()).unwrap();
}

#[test]
fn holes_are_made_and_found() {
    let mounted = mounted();
    let file = open_new(&mounted.guest.join("holes"));
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    file.write_all_at(&[1; 65536], 0).unwrap();
    file.write_all_at(&[2; 65536], 131_072).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 0, 65536).unwrap();
    let mut start = [9; 16];
    file.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(start, [0; 16]);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)), Ok(0));
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(131_000)), Ok(131_072));
    file.set_len(100).unwrap();
    assert_eq!(fs::metadata(mounted.host.join("holes")).unwrap().len(), 100);
}

#[test]
fn ranges_are_copied() {
    let mounted = mounted();
    let (from, to) = (mounted.guest.join("from"), mounted.guest.join("to"));
    let data: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 7) >> 5) as u8).collect();
    fs::write(&from, &data).unwrap();
    let (from, target) = (File::open(from).unwrap(), open_new(&to));
    let mut done = 0;
    while done < data.len() {
        let len = rustix::fs::copy_file_range(&from, None, &target, None, data.len()).unwrap();
        assert!(len > 0);
        done += len;
    }
    assert_eq!(fs::read(mounted.host.join("to")).unwrap(), data);
}

#[test]
fn links_and_special_files() {
    let mounted = mounted();
    sh(
        &mounted.guest,
        "echo x > f; ln f g; ln -s f s; ln s t; mkfifo p; mknod c c 1 3; mknod b b 259 300
         python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'",
    );
    assert_eq!(fs::metadata(mounted.guest.join("f")).unwrap().nlink(), 2);
    assert_eq!(fs::read_link(mounted.guest.join("t")).unwrap().to_str(), Some("f"));
    let listing = "stat -c '%n %F %t:%T %h' *";
    assert_eq!(sh(&mounted.guest, listing), sh(&mounted.host, listing));
    // Inode numbers are the host's, so that tools find hard links.
    assert_eq!(sh(&mounted.guest, "stat -c %i f g"), sh(&mounted.host, "stat -c %i f g"));
    // The guest's kernel opens devices and pipes itself.
    sh(&mounted.guest, "echo lost > c; (echo through > p) & read x < p; [ $x = through ]");
    sh(
        &mounted.guest,
        "python3 -c 'import socket
s = socket.socket(socket.AF_UNIX); s.bind(\"l\"); s.listen()
socket.socket(socket.AF_UNIX).connect(\"l\")'",
    );
}

#[test]
fn shared_mappings_reach_the_host() {
    let mounted = mounted();
    sh(
        &mounted.guest,
        "python3 -c '
import mmap, os
for flags in (os.O_RDWR, os.O_RDWR | os.O_APPEND):
    f = os.open(\"m\", flags | os.O_CREAT, 0o644)
    os.ftruncate(f, 100000)
    m = mmap.mmap(f, 100000)
    m[70000:70005] = b\"hello\"
    p = mmap.mmap(f, 100000, flags=mmap.MAP_PRIVATE)
    p[0:4] = b\"mine\"
    m.flush(); m.close(); os.close(f)
'",
    );
    let bytes = fs::read(mounted.host.join("m")).unwrap();
    assert_eq!(bytes.len(), 100_000);
    assert_eq!(&bytes[70000..70005], b"hello");
    assert_eq!(bytes[..4], [0; 4]);
}

#[test]
fn locks_hold_within_the_guest() {
    let mounted = mounted();
    sh(
        &mounted.guest,
        "python3 -c '
import fcntl, os
for lock in (fcntl.flock, fcntl.lockf):
    f = open(\"l\", \"w\"); lock(f, fcntl.LOCK_EX)
    if os.fork() == 0:
        try: lock(open(\"l\", \"w\"), fcntl.LOCK_EX | fcntl.LOCK_NB); os._exit(1)
        except BlockingIOError: os._exit(0)
    assert os.wait()[1] == 0
    f.close(); lock(open(\"l\", \"w\"), fcntl.LOCK_EX | fcntl.LOCK_NB)
'",
    );
}

#[test]
fn the_host_s_changes_are_seen() {
    let mounted = mounted();
    let (host, guest) = (mounted.host.join("f"), mounted.guest.join("f"));
    fs::write(&host, "first").unwrap();
    assert_eq!(fs::read(&guest).unwrap(), b"first");
    // Same size and changed at once: the next open must notice, whatever is still cached.
    fs::write(&host, "other").unwrap();
    assert_eq!(fs::read(&guest).unwrap(), b"other");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(fs::read(&guest).unwrap(), b"other");
    assert_eq!(fs::read(&guest).unwrap(), b"other");
    fs::write(&host, "third").unwrap();
    assert_eq!(fs::read(&guest).unwrap(), b"third");
    fs::write(&host, "other").unwrap();
    assert_eq!(fs::read(&guest).unwrap(), b"other");
    // A log both sides append to.
    let mut log = OpenOptions::new().append(true).open(&guest).unwrap();
    log.write_all(b"+guest").unwrap();
    OpenOptions::new().append(true).open(&host).unwrap().write_all(b"+host").unwrap();
    log.write_all(b"+guest").unwrap();
    assert_eq!(fs::read(&host).unwrap(), b"other+guest+host+guest");
    // A new name.
    fs::write(mounted.host.join("new"), "n").unwrap();
    assert_eq!(fs::read(mounted.guest.join("new")).unwrap(), b"n");
    // A name gone, after the entry's timeout.
    fs::remove_file(&host).unwrap();
    let begun = Instant::now();
    while guest.exists() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn read_only_shares_stay_as_they_are() {
    let mounted = mounted();
    fs::create_dir(mounted.host.join("d")).unwrap();
    fs::write(mounted.host.join("d/f"), "keep").unwrap();
    let listing = "find . -printf '%P %y %m %n %U %G %T@ %C@ %s\\n' | sort; cat d/f";
    let before = sh(&mounted.host, listing);
    for attempt in [
        "echo x > d/new",
        "echo x > d/f",
        ": >> d/f",
        "truncate -s 1 d/f",
        "mkdir d/e",
        "rmdir d",
        "rm d/f",
        "mv d/f d/g",
        "ln d/f d/g",
        "ln -s f d/g",
        "mkfifo d/p",
        "chmod 777 d/f",
        "chown 1 d/f",
        "touch d/f",
        "setfattr -n user.x -v 1 d/f || false",
        "mv d/f ../rw/f2x && false",
        "python3 -c 'import os; os.open(\"d\", os.O_TMPFILE | os.O_RDWR)'",
        "python3 -c 'import os; os.open(\"d/f\", os.O_RDONLY | os.O_TRUNC)'",
    ] {
        sh(&mounted.at("ro"), &format!("if ( {attempt} ) 2>/dev/null; then exit 1; fi"));
    }
    fs::remove_file(mounted.host.join("f2x")).ok();
    assert_eq!(sh(&mounted.at("ro"), "cat d/f"), "keep");
    let after = sh(&mounted.host, listing);
    assert_eq!(strip_root(&after), strip_root(&before));
}

/// Drops the line of the directory itself, whose time changed when `mv` copied.
fn strip_root(listing: &str) -> Vec<&str> {
    listing.lines().filter(|line| !line.starts_with(" d ")).collect()
}

#[test]
fn the_root_directory_lists_the_shares() {
    let mounted = mounted();
    assert_eq!(sh(&mounted.at(""), "ls -a"), ".\n..\nfile\nro\nrw\n");
    assert_eq!(sh(&mounted.at(""), "stat -c '%F %a %h' . ; df . | wc -l"), "directory 555 5\n2\n");
    sh(&mounted.at(""), "! mkdir x 2>/dev/null; ! rmdir rw 2>/dev/null; ! mv rw x 2>/dev/null");
    assert_eq!(fs::read(mounted.at("file")).unwrap(), b"one file\n");
    sh(&mounted.at(""), "echo two >> file; sync -f file");
    assert_eq!(fs::read(mounted.host.join("single")).unwrap(), b"one file\ntwo\n");
}

#[test]
fn new_files_belong_to_their_maker() {
    let mounted = mounted();
    sh(&mounted.guest, "mkdir open group; chmod 777 open; chown 0:77 group; chmod 2777 group");
    sh_as(
        1000,
        1001,
        &mounted.guest,
        "umask 027; cd open; mkdir d; echo x > f; ln -s f s; mkfifo p",
    );
    sh_as(1000, 1001, &mounted.guest, "cd group; mkdir d; : > f; umask 0; : > g; chmod 2755 g");
    let listing = "stat -c '%n %u:%g %a' open/* group/*";
    let expected = "open/d 1000:1001 750\nopen/f 1000:1001 640\nopen/p 1000:1001 640\n\
                    open/s 1000:1001 777\ngroup/d 1000:77 2755\ngroup/f 1000:77 644\n\
                    group/g 1000:77 755\n";
    assert_eq!(sh(&mounted.host, listing), expected);
    assert_eq!(sh(&mounted.guest, listing), expected);
    // A new set-group-ID file in a directory of a group its maker is not in (CVE-2022-0358).
    sh_as(
        1000,
        1001,
        &mounted.guest,
        "python3 -c 'import os; os.umask(0)
os.open(\"group/evil\", os.O_CREAT | os.O_WRONLY, 0o2755)'",
    );
    assert_eq!(sh(&mounted.host, "stat -c %a group/evil"), "755\n");
    let made = sh(&mounted.host, "stat -c %u group; touch group/after; stat -c %u:%g group/after");
    assert_eq!(made, "0\n0:77\n");
}

#[test]
fn writing_clears_set_id_bits() {
    let mounted = mounted();
    let set =
        "for f in w t c o r; do echo data > $f; chmod 6777 $f; done; chown 5:5 c; chmod 6777 c";
    sh(&mounted.guest, set);
    sh_as(1000, 1000, &mounted.guest, "echo more >> w; truncate -s 1 t; : > o");
    sh(&mounted.guest, "chown 7 c; echo root >> r");
    let modes = sh(&mounted.host, "stat -c '%n %a' w t o c r");
    assert_eq!(modes, "w 777\nt 777\no 777\nc 777\nr 6777\n");
    // The guest's kernel believes the mode it knows for as long as it may.
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(sh(&mounted.guest, "stat -c '%n %a' w t o c r"), modes);
}

/// As CVE-2021-20263 taught: a file that was given capabilities must not keep them once another has
/// written to it.
#[test]
fn writing_drops_file_capabilities() {
    let mounted = mounted();
    let file = mounted.guest.join("capable");
    fs::write(&file, "x").unwrap();
    // struct vfs_ns_cap_data, revision 2: CAP_NET_RAW, effective.
    let mut value = [0; 20];
    value[..6].copy_from_slice(&[1, 0, 0, 2, 0, 0x20]);
    let name = c"security.capability";
    rustix::fs::setxattr(&file, name, &value, rustix::fs::XattrFlags::empty()).unwrap();
    let host = mounted.host.join("capable");
    assert!(rustix::fs::getxattr(&host, name, &mut [0; 20]).is_ok());
    fs::write(&file, "y").unwrap();
    let kept = rustix::fs::getxattr(&host, name, &mut [0; 20]);
    assert_eq!(kept, Err(Errno::NODATA));
}

#[test]
fn statx_tells_the_birth() {
    let mounted = mounted();
    let path = mounted.guest.join("f");
    fs::write(&path, "12345").unwrap();
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let [guest, host] = [&path, &mounted.host.join("f")]
        .map(|path| statx(CWD, path, AtFlags::empty(), mask).unwrap());
    assert!(guest.stx_mask & StatxFlags::BTIME.bits() != 0, "no birth time");
    assert_eq!(guest.stx_btime.tv_sec, host.stx_btime.tv_sec);
    assert_eq!((guest.stx_size, guest.stx_ino, guest.stx_mode), (5, host.stx_ino, host.stx_mode));
    statx(CWD, mounted.at(""), AtFlags::empty(), mask).unwrap();
}

#[test]
fn deleted_files_live_until_closed() {
    let mounted = mounted();
    let path = mounted.guest.join("gone");
    let mut file = open_new(&path);
    fs::remove_file(&path).unwrap();
    file.write_all(b"still here").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    rustix::fs::fsync(file.as_fd()).unwrap();
}

#[test]
fn several_at_once() {
    let mounted = mounted();
    sh(
        &mounted.guest,
        "for i in 1 2 3 4 5 6 7 8; do
           (head -c 4000000 /dev/urandom > f$i; sync -d f$i; cp f$i g$i; cmp f$i g$i
            mkdir d$i; for j in $(seq 100); do echo $j > d$i/$j; done) &
         done; wait; for i in 1 2 3 4 5 6 7 8; do cmp f$i g$i; [ $(ls d$i | wc -l) = 100 ]; done",
    );
}

#[test]
fn long_names_are_refused_and_longest_work() {
    let mounted = mounted();
    let longest = mounted.guest.join("n".repeat(255));
    fs::write(&longest, "x").unwrap();
    assert_eq!(fs::read(&longest).unwrap(), b"x");
    let error = fs::write(mounted.guest.join("n".repeat(256)), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    let target = "t/".repeat(2000);
    std::os::unix::fs::symlink(&target, mounted.guest.join("s")).unwrap();
    assert_eq!(fs::read_link(mounted.guest.join("s")).unwrap().to_str().unwrap(), target);
}

fn open_new(path: &std::path::Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path).unwrap()
}
