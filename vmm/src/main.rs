//! `bulkhead-vmm`: runs one micro-VM.
//!
//! ```text
//! bulkhead-vmm --spec-fd N      runs the VM whose VmSpec, as JSON, is read from descriptor N
//! bulkhead-vmm --spec FILE      the same from a file
//! bulkhead-vmm fs-worker ...    serves a VM's shares; bulkhead-vmm starts it itself
//! ```
//!
//! Its exit code is the container's, or 125 if the VM failed.

#![no_main]

use std::ffi::{OsString, c_char, c_int};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;

use bulkhead_vmm::ending::Ended;
use bulkhead_vmm::fs_worker;
use bulkhead_vmm::jail::Jail;
use bulkhead_vmm::kernel_log;
use bulkhead_vmm::machine::{Machine, MachineError};
use bulkhead_vmm::spec::{Outcome, Report, VmSpec};
use bulkhead_vmm::timeline::Timeline;
use bulkhead_vmm::{parent, program};

/// What container tools use for "the runtime failed, not the container".
const EXIT_FAILED: u8 = 125;

/// What the C library calls; std has the arguments from it already.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    program::begin();
    std::process::exit(code().into())
}

/// Does what the arguments say; returns the exit code.
fn code() -> u8 {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().unwrap_or_default();
    if verb == fs_worker::VERB {
        return match fs_worker::main(arguments) {
            Ok(()) => 0,
            Err(error) => fail(&error.to_string()),
        };
    }
    if verb == "--version" {
        println!("bulkhead-vmm {}", env!("CARGO_PKG_VERSION"));
        return 0;
    }
    match spec(verb, arguments.next()) {
        Ok(spec) => run(&spec),
        Err(message) => fail(&message),
    }
}

fn fail(message: &str) -> u8 {
    eprintln!("bulkhead-vmm: {message}");
    EXIT_FAILED
}

fn spec(option: OsString, value: Option<OsString>) -> Result<VmSpec, String> {
    let mut source = match (option.to_str(), value) {
        (Some("--spec-fd"), Some(number)) => {
            let fd = number.to_str().and_then(|number| number.parse().ok()).filter(|fd| *fd > 2);
            let fd = fd.ok_or_else(|| format!("--spec-fd {number:?} is not a descriptor"))?;
            // SAFETY: the caller opened this descriptor for us to read the spec from; nothing else
            // in this process knows of it. A wrong number only makes the read below fail.
            unsafe { File::from_raw_fd(fd) }
        }
        (Some("--spec"), Some(path)) => File::open(&path)
            .map_err(|error| format!("cannot open the VM spec {}: {error}", path.display()))?,
        _ => return Err("usage: bulkhead-vmm --spec-fd N | --spec FILE | --version".to_owned()),
    };
    let mut json = String::new();
    source
        .read_to_string(&mut json)
        .and_then(|_| Ok(serde_json::from_str(&json)?))
        .map_err(|error| format!("cannot read the VM spec: {error}"))
}

fn run(spec: &VmSpec) -> u8 {
    let timeline = Timeline::new(spec.timeline_from_ns);
    timeline.mark("vmm_main");
    if let Some(Err(error)) = spec.dies_with.map(parent::die_with) {
        return fail(&format!("cannot live as long as who started it: {error}"));
    }
    let jail = Jail::begin(spec);
    // Opened now, for there are no files in the jail.
    let kernel = File::open(&spec.kernel);
    let ended = jail
        .map_err(MachineError::from)
        .and_then(|jail| Machine::build(spec, jail, &timeline))
        .and_then(Machine::run);
    let outcome = match ended {
        Ok((Ended::Reported(exit), _)) => {
            Outcome::Exited { code: exit.code, oom_killed: exit.oom_killed }
        }
        Ok((Ended::Saved, _)) => Outcome::Saved,
        Ok((Ended::Unexpected(end), memory)) => Outcome::Failed {
            message: end.to_string(),
            kernel_log: kernel.map_or(Vec::new(), |file| kernel_log::last_lines(&memory, file)),
        },
        Err(error) => Outcome::Failed { message: error.to_string(), kernel_log: Vec::new() },
    };
    let code = match &outcome {
        Outcome::Exited { code, .. } => *code,
        Outcome::Saved => 0,
        Outcome::Failed { .. } => EXIT_FAILED,
    };
    report(spec, Report { outcome, timeline: timeline.marks() });
    code
}

/// Tells whoever started us, or stderr, how the VM ended.
fn report(spec: &VmSpec, report: Report) {
    let written = spec.report_fd.map(|fd| {
        // SAFETY: the spec says that this descriptor was inherited for this use alone.
        let mut file = unsafe { File::from_raw_fd(fd) };
        let json = serde_json::to_string(&report).map_err(io::Error::from);
        json.and_then(|json| file.write_all(json.as_bytes()))
    });
    if let (Outcome::Failed { message, kernel_log }, None | Some(Err(_))) =
        (&report.outcome, &written)
    {
        fail(message);
        kernel_log.iter().for_each(|line| eprintln!("  {line}"));
    }
}
