//! Firecracker's sides: a VM that boots, as its docs/getting-started.md has it, without its API and with a configuration
//! file; and one that goes on from a snapshot, as docs/snapshotting/snapshot-support.md has it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::BenchError;
use super::guest::Guest;
use super::measure::greeting;
use super::peers::{CMDLINE, mib};
use super::side::{Ended, Request, Scratch, Side};
use crate::args::BenchArgs;

/// The capability that Firecracker asks of KVM to save XCR0 (KVM_CAP_XCRS, linux/kvm.h), as a CPU template drops it.
const NO_XCRS: &str = "!56";

/// How long a guest runs before it is saved. KVM takes a saved TSC of less than a second for an attempt to bring a VM's
/// vCPUs into step (kvm_synchronize_tsc in arch/x86/kvm/x86.c), and sets another: the guest's timers would not fire.
const SETTLED: Duration = Duration::from_secs(2);

/// A VM that boots.
pub fn boot(program: &str, args: &BenchArgs, scratch: &Scratch) -> Result<Side, BenchError> {
    let guest = Guest::new(scratch)?;
    let config = configuration("firecracker", args, &guest, scratch)?.display().to_string();
    let words = [program, "--no-api", "--level", "Error", "--config-file", &config];
    Ok(Side::endless("boot/firecracker", words.map(str::to_owned).into()))
}

/// A VM that goes on from a snapshot, in which its guest was greeting.
pub fn clone(program: &str, args: &BenchArgs, scratch: &Scratch) -> Result<Side, BenchError> {
    let guest = Guest::new(scratch)?;
    let config = configuration("firecracker-snapshot", args, &guest, scratch)?;
    let (socket, state, memory) = (
        scratch.path("firecracker.sock"),
        scratch.path("firecracker.state"),
        scratch.path("firecracker.memory"),
    );
    let words = |rest: &[&str]| {
        let socket = socket.display().to_string();
        let first = [program, "--level", "Error", "--api-sock", &socket];
        first.iter().chain(rest).map(|word| (*word).to_owned()).collect()
    };
    let origin =
        Side::new("clone/firecracker", words(&["--config-file", &config.display().to_string()]));
    save(&origin, &socket, &state, &memory)?;
    let load = json!({
        "snapshot_path": state,
        "mem_backend": { "backend_type": "File", "backend_path": memory },
        "resume_vm": true,
    });
    let request = Request { socket: socket.clone(), text: http("PUT", "/snapshot/load", &load) };
    let side = Side::endless("clone/firecracker", words(&[]));
    Ok(Side { request: Some(request), socket: Some(socket), ..side })
}

fn configuration(
    name: &str,
    args: &BenchArgs,
    guest: &Guest,
    scratch: &Scratch,
) -> Result<PathBuf, BenchError> {
    let mut config = json!({
        "boot-source": {
            "kernel_image_path": guest.kernel,
            "initrd_path": guest.initramfs,
            "boot_args": CMDLINE,
        },
        "drives": [],
        "machine-config": {
            "vcpu_count": args.cpus.parse::<u32>().unwrap_or(1),
            "mem_size_mib": mib(args).parse::<u32>().unwrap_or(128),
        },
    });
    // It does not start where KVM has no XCR0 to save, for the processor has none, unless it is told that this is meant.
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !cpu.split_whitespace().any(|flag| flag == "xsave") {
        let template = json!({ "kvm_capabilities": [NO_XCRS] }).to_string();
        config["cpu-config"] = json!(scratch.write("firecracker-cpu.json", template.as_bytes())?);
    }
    scratch.write(&format!("{name}.json"), config.to_string().as_bytes())
}

/// Boots a VM, waits for its greeting, and saves it.
fn save(origin: &Side, socket: &Path, state: &Path, memory: &Path) -> Result<(), BenchError> {
    let mut command = origin.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut vm = Ended(origin.spawn(&mut command)?);
    if greeting(vm.0.stdout.as_mut(), Instant::now()).is_none() {
        return Err(origin.failed("it ended without its greeting"));
    }
    thread::sleep(SETTLED);
    let ask = |method, path, body: Value| {
        let asked = ask(socket, method, path, &body);
        asked.map_err(|error| origin.failed(format!("{method} {path}: {error}")))
    };
    ask("PATCH", "/vm", json!({ "state": "Paused" }))?;
    let files = json!({ "snapshot_type": "Full", "snapshot_path": state, "mem_file_path": memory });
    ask("PUT", "/snapshot/create", files)
}

fn http(method: &str, path: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// Asks, and waits for "204 No Content": done.
fn ask(socket: &Path, method: &str, path: &str, body: &Value) -> io::Result<()> {
    let request = Request { socket: socket.to_owned(), text: http(method, path, body) };
    let mut stream = request.send()?;
    let mut answer = [0; 512];
    let len = stream.read(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
    match answer.split_whitespace().nth(1) {
        Some("204") => Ok(()),
        _ => Err(io::Error::other(answer.lines().last().unwrap_or("no answer").to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_answer_is_done_or_says_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            for answer in
                ["HTTP/1.1 204 \r\n\r\n", "HTTP/1.1 400 \r\n\r\n{\"fault_message\":\"no\"}"]
            {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 512]).unwrap() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        ask(&socket, "PUT", "/a", &json!({})).unwrap();
        let error = ask(&socket, "PUT", "/b", &json!({})).unwrap_err();
        assert!(error.to_string().contains("fault_message"), "{error}");
        server.join().unwrap();
    }
}
