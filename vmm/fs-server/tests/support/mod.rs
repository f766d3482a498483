//! Mounts a share through this machine's own FUSE: what /dev/fuse hands out is pumped to the
//! server's socket, and the replies back, so that real file work reaches the server.
//!
//! Needs root and /dev/fuse. Each mount is seen by the test's own thread, and the commands it
//! starts, alone (a mount namespace), and goes away with them.

#![allow(dead_code, reason = "each test file uses a part of it")]

mod bridge;
pub mod client;

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};

use bulkhead_fs_server::{Options, ServeError, ShareRoot, serve};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

/// A directory of the host, shared read-write as "rw" and read-only as "ro", and one file of it as
/// "file".
pub struct Mounted {
    /// The directory as the host sees it.
    pub host: PathBuf,
    /// The same through the server.
    pub guest: PathBuf,
    mountpoint: PathBuf,
    temp: TempDir,
    threads: Vec<JoinHandle<()>>,
    server: Option<JoinHandle<Result<(), ServeError>>>,
}

/// Mounts with /dev/fuse joined to the server directly.
pub fn mounted() -> Mounted {
    mounted_with(bridge::pump)
}

/// Mounts with a virtio-fs device, and a mock of its driver, in between.
pub fn mounted_through_device() -> Mounted {
    mounted_with(bridge::pump_through_device)
}

fn mounted_with(pump: fn(File, UnixStream) -> Vec<JoinHandle<()>>) -> Mounted {
    // SAFETY: the test's thread gets its own view of mounts and its own working directory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
        .expect("this test mounts a file system: run it as root");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let [host, mountpoint] = ["host", "mnt"].map(|name| temp.path().join(name));
    std::fs::create_dir(&host).unwrap();
    std::fs::create_dir(&mountpoint).unwrap();
    std::fs::write(host.join("single"), "one file\n").unwrap();

    let device = openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .expect("this test needs /dev/fuse");
    let (near, far) = UnixStream::pair().unwrap();
    let shares = vec![
        share("rw", &host, false),
        share("ro", &host, true),
        share("file", &host.join("single"), false),
    ];
    // No kernel has a window on /dev/fuse, but what a window does to writers shows.
    let options = Options { window_slots: 32, ..Options::default() };
    let server = thread::spawn(move || serve(OwnedFd::from(far), shares, options));
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let data = CString::new(data).unwrap();
    mount("bulkhead-test", &mountpoint, "fuse", MountFlags::empty(), data.as_c_str()).unwrap();
    let threads = pump(File::from(device), near);
    let guest = mountpoint.join("rw");
    Mounted { host, guest, mountpoint, temp, threads, server: Some(server) }
}

fn share(name: &str, path: &Path, readonly: bool) -> ShareRoot {
    let fd = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    ShareRoot { name: name.to_owned(), fd, readonly, copied: false }
}

impl Mounted {
    /// A path of the mount's root directory.
    pub fn at(&self, path: &str) -> PathBuf {
        self.mountpoint.join(path)
    }

    /// A directory beside the share, reached by no request.
    pub fn outside(&self) -> PathBuf {
        self.temp.path().join("outside")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = unmount(&self.mountpoint, UnmountFlags::DETACH);
        if thread::panicking() {
            return;
        }
        unmounted.unwrap();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.server.take().unwrap().join().unwrap().expect("the server ends when its socket does");
    }
}

/// Runs a shell script in `dir` and returns what it printed.
pub fn sh(dir: &Path, script: &str) -> String {
    finish(script, Command::new("sh").args(["-euc", script]).current_dir(dir))
}

/// As [`sh`], as another user, who is in no other group (std sees to that).
pub fn sh_as(user: u32, group: u32, dir: &Path, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(dir).uid(user).gid(group);
    finish(script, &mut command)
}

fn finish(script: &str, command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{script}\n{}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
