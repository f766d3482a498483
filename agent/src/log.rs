//! The agent's log: the guest kernel's own, which the VMM can read.

use std::fmt::{Arguments, Write as _};

use rustix::fs::{FileType, Mode, OFlags};

/// The longest line written; /dev/kmsg refuses more than about 1,000 bytes a record.
const LINE_MAX: usize = 900;

/// Writes one line to /dev/kmsg (PID 1) or stderr (tests). Failures have nowhere to go.
pub fn line(text: Arguments<'_>) {
    let mut line = String::from("bulkhead-agent: ");
    let _ = line.write_fmt(text);
    let mut end = line.len().min(LINE_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line.push('\n');
    if rustix::process::getpid().is_init() {
        // LOG_ERR, so that `quiet` kernels show it on a console too (kernel, dev-kmsg ABI).
        line.insert_str(0, "<3>");
        if let Ok(kmsg) = open_kmsg() {
            let _ = rustix::io::write(kmsg, line.as_bytes());
        }
    } else {
        let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
    }
}

fn open_kmsg() -> rustix::io::Result<std::os::fd::OwnedFd> {
    // Major and minor of /dev/kmsg (kernel, admin-guide/devices.txt); it may exist already.
    let _ = rustix::fs::mknodat(
        rustix::fs::CWD,
        "/dev/kmsg",
        FileType::CharacterDevice,
        Mode::RUSR | Mode::WUSR,
        rustix::fs::makedev(1, 11),
    );
    rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Logs a line, formatted as by `format!`.
macro_rules! log {
    ($($arg:tt)*) => { $crate::log::line(format_args!($($arg)*)) };
}
pub(crate) use log;
