//! `bulkhead-agent`: PID 1 of the guest. Mounts what a container needs, starts its process, moves
//! its standard streams, and reports how it ended.
//!
//! It is the only file of its initramfs and finds nothing there. `bulkhead-agent --trial` is a
//! container's process that says a line and waits. `bulkhead-agent --outside-vm DIR`
//! serves on Unix sockets in DIR instead, with DIR/shares for shares, and leaves the machine's
//! clock, network, cgroups and power alone: for tests.
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code, reason = "the test harness brings its own main"))]

mod agent;
mod boot_mark;
mod caps;
mod checkpoint;
mod clone;
mod container;
mod devices;
mod guest;
mod hooks;
mod host_events;
mod identity;
mod limits;
mod log;
mod members;
mod mounts;
mod netlink;
mod network;
mod plug;
mod process;
mod processes;
mod program;
mod reaper;
mod rpc;
mod scheduling;
mod seccomp;
mod service;
mod stats;
mod stdio;
mod user;
mod user_namespace;
mod vsock;

use std::ffi::{CStr, OsStr, c_int};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use bulkhead_protocol::BootMark;

use crate::agent::Agent;
use crate::boot_mark::BootMarks;
use crate::guest::Guest;
use crate::log::log;
use crate::vsock::Transport;

/// The C entry point. Rust's own set-up opens /dev/null where a standard stream is missing and
/// aborts if it cannot: in this initramfs there is no /dev/null.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg(not(test))]
extern "C" fn main(argc: c_int, argv: *const *const std::ffi::c_char) -> c_int {
    // SAFETY: the C runtime passes argc pointers to NUL-terminated strings that live for ever.
    let args: Vec<&CStr> =
        (1..argc.max(1) as usize).map(|i| unsafe { CStr::from_ptr(*argv.add(i)) }).collect();
    run(&args)
}

fn run(args: &[&CStr]) -> c_int {
    if args == [c"--trial"] {
        trial();
    }
    if rustix::process::getpid().is_init() {
        let marks = BootMarks::enable();
        marks.stamp(BootMark::Init);
        std::panic::set_hook(Box::new(|info| log!("{info}")));
        serve(Transport::Vsock, marks, Guest::prepare);
        // Only reached when the VMM did not end the VM, or there is nothing to serve.
        if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::Restart) {
            log!("cannot reboot: {error}");
        }
        return 1;
    }
    let [flag, dir] = args else { return usage() };
    if flag.to_bytes() != b"--outside-vm" {
        return usage();
    }
    let dir = PathBuf::from(OsStr::from_bytes(dir.to_bytes()));
    let shares = dir.join("shares");
    serve(Transport::unix(dir), BootMarks::disabled(), || Guest::outside_vm(&shares))
}

/// Says a line and waits: what the container does in which a new template is tried.
fn trial() -> ! {
    // SAFETY: descriptor 1 is what this process was given as its standard output.
    let stdout = unsafe { BorrowedFd::borrow_raw(1) };
    if rustix::io::write(stdout, b"hello\n").is_err() {
        crate::clone::exit(1);
    }
    loop {
        // SAFETY: pause(2) takes nothing.
        unsafe { libc::pause() };
    }
}

fn usage() -> c_int {
    log!("this program is PID 1 of a bulkhead VM; outside of one use --outside-vm DIR");
    2
}

/// Serves one container from beginning to end; returns 0 if there was one.
fn serve(
    transport: Transport,
    marks: BootMarks,
    prepare: impl FnOnce() -> Result<Guest, guest::GuestError>,
) -> c_int {
    let null = match guest::open_null() {
        Ok(null) => null,
        Err(error) => {
            log!("cannot open /dev/null: {error}");
            return 1;
        }
    };
    match Agent::listen(transport, marks, null, prepare) {
        Ok(mut agent) => {
            let report = agent.run();
            agent.report(report);
            0
        }
        Err(error) => {
            log!("cannot listen for the host: {error}");
            1
        }
    }
}
