//! A small file system of the fuzzer's own, so that what fills it fills nothing else.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Size and number of files: enough for what one input asks for, and soon full.
const LIMITS: &std::ffi::CStr = c"size=16m,nr_inodes=4096";

/// A fresh directory on it for one input. Each thread has a mount of its own, unseen by others.
pub fn fresh() -> tempfile::TempDir {
    tempfile::tempdir_in(root()).expect("a directory on a tmpfs")
}

fn root() -> &'static Path {
    thread_local! {
        static ROOT: OnceLock<&'static Path> = const { OnceLock::new() };
    }
    ROOT.with(|root| *root.get_or_init(|| Box::leak(mounted().into_boxed_path())))
}

fn mounted() -> PathBuf {
    let at = std::env::temp_dir().join("bulkhead-fuzz");
    std::fs::create_dir_all(&at).expect("a directory to mount on");
    // SAFETY: this thread gets its own view of mounts and its own working directory; no descriptor
    // and no memory is concerned.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
        .expect("files are fuzzed on a tmpfs of their own: run it as root");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).expect("mounts of one's own");
    mount("bulkhead-fuzz", &at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, LIMITS)
        .expect("a tmpfs");
    at
}
