//! A bulkhead-vmm without a VM, for tests/oci.rs: it takes its spec, sockets and leash as the real
//! one does and plays the agent on every connection. Its container's command is one of
//!
//! ```text
//! wait            runs until a signal ends it, with 128 + its number
//! exit N          ends with code N as soon as it is started
//! missing         cannot be executed: ENOENT
//! deaf            as wait, but once it runs, no call is answered
//! panic           the guest kernel panics when it is started
//! oom             ends with 137 when it is started, for lack of memory
//! die             the VMM dies while the container is being created
//! ```
//!
//! and a command of Exec is `exit N`, `cat`, or `hang`, which only a signal ends.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::exit;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use bulkhead_protocol::rpc::agent::{
    CreateContainerRequest, CreateContainerResponse, ExecRequest, ExecResponse, ProcessInfo,
    ProcessesResponse, SignalRequest, SignalResponse, StartContainerResponse, StartFailure,
    StatsResponse, WaitResponse,
};
use bulkhead_vmm::spec::{Outcome, Report, VmSpec};
use protobuf::Message;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use ttrpc::MessageHeader;

/// Ports of the streams of Exec.
const STDIN: u32 = 2001;
const STDOUT: u32 = 2002;

#[derive(Default)]
struct Guest {
    command: Mutex<Vec<String>>,
    started: Mutex<bool>,
    exec: Mutex<Vec<String>>,
    exec_code: Mutex<Option<u8>>,
    exec_ended: Condvar,
    input: Mutex<Vec<u8>>,
    input_ended: Condvar,
    input_is_over: Mutex<bool>,
    report_fd: i32,
}

/// A network of its own, which hooks wait for, in a user namespace for those who are not root.
fn leave_network() -> io::Result<()> {
    let network = UnshareFlags::NEWNET;
    let user = if rustix::process::geteuid().is_root() {
        UnshareFlags::empty()
    } else {
        UnshareFlags::NEWUSER
    };
    // SAFETY: there is no other thread yet, and none of the flags makes descriptors a thread's own.
    Ok(unsafe { unshare_unsafe(network | user) }?)
}

fn main() -> io::Result<()> {
    let fd = std::env::args().nth(2).and_then(|fd| fd.parse().ok()).expect("--spec-fd N");
    // SAFETY: the runtime opened these descriptors for us.
    let (mut json, text) = (unsafe { File::from_raw_fd(fd) }, &mut String::new());
    json.read_to_string(text)?;
    let vm: VmSpec = serde_json::from_str(text)?;
    assert!(vm.host_events);
    leave_network()?;
    // SAFETY: as above.
    let mut leash = unsafe { File::from_raw_fd(vm.leash_fd.expect("leash_fd")) };
    thread::spawn(move || {
        if !matches!(leash.read(&mut [0]), Ok(1)) {
            exit(125);
        }
    });
    // SAFETY: as above.
    let listener = unsafe { UnixListener::from_raw_fd(vm.vsock_fd.expect("vsock_fd")) };
    let report_fd = vm.report_fd.expect("report_fd");
    let guest = Arc::new(Guest { report_fd, ..Default::default() });
    for stream in listener.incoming() {
        let (stream, guest) = (stream?, guest.clone());
        thread::spawn(move || {
            let _ = serve(stream, &guest);
        });
    }
    Ok(())
}

fn serve(mut stream: UnixStream, guest: &Arc<Guest>) -> io::Result<()> {
    let line = line(&mut stream)?;
    stream.write_all(b"OK 1\n")?;
    match line.as_str() {
        "CONNECT 1024\n" => loop {
            let (call, request) = request(&mut stream)?;
            if guest.command() == "deaf" && guest.has_started() {
                thread::sleep(Duration::from_secs(600));
            }
            if request.method == "Wait" {
                // The connection goes on taking calls.
                let (mut stream, guest) = (stream.try_clone()?, guest.clone());
                thread::spawn(move || answer(&mut stream, call, guest.wait()?));
                continue;
            }
            let payload = guest.call(&request.method, &request.payload)?;
            answer(&mut stream, call, payload)?;
        },
        "CONNECT 2001\n" => {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            *guest.input.lock().unwrap() = bytes;
            *guest.input_is_over.lock().unwrap() = true;
            guest.input_ended.notify_all();
            Ok(())
        }
        "CONNECT 2002\n" => {
            if guest.exec.lock().unwrap()[0] == "cat" {
                let over = guest.input_is_over.lock().unwrap();
                drop(guest.input_ended.wait_while(over, |over| !*over).unwrap());
                stream.write_all(&guest.input.lock().unwrap())?;
                guest.end_exec(0);
            }
            Ok(())
        }
        other => panic!("{other}"),
    }
}

impl Guest {
    fn command(&self) -> String {
        self.command.lock().unwrap().first().cloned().unwrap_or_default()
    }

    fn has_started(&self) -> bool {
        *self.started.lock().unwrap()
    }

    fn end(&self, outcome: Outcome) -> ! {
        let code = if let Outcome::Exited { code, .. } = outcome { code } else { 125 };
        // SAFETY: the runtime opened this descriptor for us; we end here.
        let mut report = unsafe { File::from_raw_fd(self.report_fd) };
        let json = serde_json::to_vec(&Report { outcome, timeline: Vec::new() }).unwrap();
        report.write_all(&json).unwrap();
        exit(code.into())
    }

    fn end_exec(&self, code: u8) {
        *self.exec_code.lock().unwrap() = Some(code);
        self.exec_ended.notify_all();
    }

    fn start(&self) {
        *self.started.lock().unwrap() = true;
        let command = self.command.lock().unwrap().clone();
        let outcome = match command[0].as_str() {
            "exit" => {
                let code = command[1].parse().unwrap();
                Some(Outcome::Exited { code, oom_killed: false })
            }
            "oom" => Some(Outcome::Exited { code: 137, oom_killed: true }),
            "panic" => Some(Outcome::Failed {
                message: "the guest panicked".into(),
                kernel_log: vec!["Kernel panic - not syncing: test".into()],
            }),
            _ => None,
        };
        if let Some(outcome) = outcome {
            let report_fd = self.report_fd;
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(100));
                Guest { report_fd, ..Default::default() }.end(outcome)
            });
        }
    }

    fn call(&self, method: &str, payload: &[u8]) -> io::Result<Vec<u8>> {
        let answer = match method {
            "CreateContainer" => {
                let request = CreateContainerRequest::parse_from_bytes(payload)?;
                assert!(!request.start && request.host_events);
                let command = request.container.process.args.clone();
                let missing = command[0] == "missing";
                if command[0] == "die" {
                    exit(3);
                }
                *self.command.lock().unwrap() = command;
                let failure = missing.then(|| StartFailure {
                    message: "cannot run \"missing\": executable file not found in $PATH".into(),
                    errno: 2,
                    ..Default::default()
                });
                let failure = failure.into();
                CreateContainerResponse { failure, ..Default::default() }.write_to_bytes()?
            }
            "StartContainer" => {
                self.start();
                StartContainerResponse::default().write_to_bytes()?
            }
            "Signal" => {
                let request = SignalRequest::parse_from_bytes(payload)?;
                match request.id.as_str() {
                    "" if request.signal == 0 => {}
                    "" => {
                        let code = 128 + request.signal as u8;
                        self.end(Outcome::Exited { code, oom_killed: false })
                    }
                    _ => self.end_exec(128 + request.signal as u8),
                }
                SignalResponse::default().write_to_bytes()?
            }
            "Exec" => {
                let request = ExecRequest::parse_from_bytes(payload)?;
                assert!(request.kill_on_hangup);
                let args = request.process.args.clone();
                *self.exec_code.lock().unwrap() =
                    (args[0] == "exit").then(|| args[1].parse().unwrap());
                *self.exec.lock().unwrap() = args;
                *self.input_is_over.lock().unwrap() = false;
                ExecResponse { stdin_port: STDIN, stdout_port: STDOUT, ..Default::default() }
                    .write_to_bytes()?
            }
            "Processes" => {
                let init = ProcessInfo {
                    pid: 1,
                    state: "S".into(),
                    command: self.command(),
                    ..Default::default()
                };
                ProcessesResponse { processes: vec![init], ..Default::default() }
                    .write_to_bytes()?
            }
            "Stats" => StatsResponse { memory_bytes: 4096, pids: 1, ..Default::default() }
                .write_to_bytes()?,
            other => panic!("{other}"),
        };
        Ok(answer)
    }

    fn wait(&self) -> io::Result<Vec<u8>> {
        let code = self.exec_code.lock().unwrap();
        let code = self.exec_ended.wait_while(code, |code| code.is_none()).unwrap();
        let exit_code = u32::from(code.unwrap_or(255));
        Ok(WaitResponse { exit_code, ..Default::default() }.write_to_bytes()?)
    }
}

fn line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    String::from_utf8(line).map_err(io::Error::other)
}

fn request(stream: &mut UnixStream) -> io::Result<(u32, ttrpc::Request)> {
    let mut header = [0; ttrpc::proto::MESSAGE_HEADER_LENGTH];
    stream.read_exact(&mut header)?;
    let header = MessageHeader::from(header);
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body)?;
    Ok((header.stream_id, ttrpc::Request::parse_from_bytes(&body)?))
}

fn answer(stream: &mut UnixStream, call: u32, payload: Vec<u8>) -> io::Result<()> {
    let response = ttrpc::Response { payload, ..Default::default() }.write_to_bytes()?;
    let header = MessageHeader::new_response(call, response.len() as u32);
    stream.write_all(&Vec::from(header))?;
    stream.write_all(&response)
}
