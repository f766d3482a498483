//! A bulkhead-vmm without a VM, for tests/cli.rs: it takes its spec and its socket as the real one
//! does, plays the agent itself, and "runs" these commands:
//!
//! ```text
//! exit N         ends with code N
//! cat            copies stdin to stdout
//! signal         writes "ready", ends with 128 + the first signal that is passed on
//! ignore         writes "ready", writes each signal and goes on
//! size           writes "ROWSxCOLUMNS" of its terminal, then of the first resize
//! missing, bad   cannot be executed: ENOENT, EACCES
//! panic          the guest kernel panics
//! die            the VMM ends without a word
//! ```
//!
//! A VM named `deaf` never gets as far as an agent.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::exit;
use std::time::Duration;

use bulkhead_protocol::rpc::agent::{
    CreateContainerRequest, CreateContainerResponse, Process, ResizeRequest, SignalRequest,
    StartFailure,
};
use bulkhead_vmm::spec::{Mark, Outcome, Report, VmSpec};
use protobuf::Message;
use ttrpc::MessageHeader;

fn main() -> io::Result<()> {
    let fd = std::env::args().nth(2).and_then(|fd| fd.parse().ok()).expect("--spec-fd N");
    // SAFETY: the runtime opened these descriptors for us.
    let (mut json, vm) = (unsafe { File::from_raw_fd(fd) }, &mut String::new());
    json.read_to_string(vm)?;
    let vm: VmSpec = serde_json::from_str(vm)?;
    vm.dies_with.map(bulkhead_vmm::parent::die_with).transpose()?;
    // SAFETY: as above.
    let mut report = unsafe { File::from_raw_fd(vm.report_fd.expect("report_fd")) };
    if let Some(files) = &vm.template {
        // SAFETY: as above.
        let file = |fd| unsafe { File::from_raw_fd(fd) };
        file(files.state_fd).write_all(&bulkhead_vmm::snapshot::seal(b"a state"))?;
        file(files.memory_fd).set_len(u64::from(vm.memory_mib) << 20)?;
        let saved = Report { outcome: Outcome::Saved, timeline: Vec::new() };
        return report.write_all(&serde_json::to_vec(&saved)?);
    }
    if vm.name == "deaf" {
        std::thread::sleep(Duration::from_secs(60));
    }
    // SAFETY: as above.
    let listener = unsafe { UnixListener::from_raw_fd(vm.vsock_fd.expect("vsock_fd")) };
    let mut agent = Agent(listener.accept()?.0);
    assert_eq!(agent.line()?, "CONNECT 1024\n");
    agent.0.write_all(b"OK 1073741824\n")?;
    let (stream, request) = agent.request()?;
    let create = CreateContainerRequest::parse_from_bytes(&request.payload)?;
    let outcome = play(&mut agent, stream, &create.container.process)?;
    let marks = vm.timeline_from_ns.map(|_| Mark { phase: "init".into(), ns: 1, exits: Some(42) });
    let code = if let Outcome::Exited { code, .. } = outcome { code } else { 125 };
    let timeline = marks.into_iter().collect();
    report.write_all(&serde_json::to_vec(&Report { outcome, timeline })?)?;
    exit(code.into())
}

fn play(agent: &mut Agent, stream: u32, process: &Process) -> io::Result<Outcome> {
    let args: Vec<&str> = process.args.iter().map(String::as_str).collect();
    let failure = match args[0] {
        "missing" => Some(2),
        "bad" => Some(13),
        _ => None,
    };
    let failure = failure.map(|errno| StartFailure {
        message: format!("cannot execute {}", args[0]),
        errno,
        ..Default::default()
    });
    let failed = failure.is_some();
    let created = CreateContainerResponse { pid: 1, failure: failure.into(), ..Default::default() };
    agent.answer(stream, &created)?;
    if failed {
        std::thread::sleep(Duration::from_secs(60));
    }
    if let ["signal" | "ignore"] = args[..] {
        writeln!(io::stdout(), "ready")?;
    }
    let code = match args[..] {
        // The first clone of a template, which is killed when it has said a line.
        ["/trial", ..] => {
            writeln!(io::stdout(), "hello")?;
            std::thread::sleep(Duration::from_secs(60));
            0
        }
        ["exit", code] => code.parse().expect("a code"),
        ["cat"] => io::copy(&mut io::stdin(), &mut io::stdout()).map(|_| 0)?,
        ["signal"] => agent.signal()? as u8 | 128,
        ["ignore"] => loop {
            writeln!(io::stdout(), "got {}", agent.signal()?)?;
        },
        ["size"] => {
            writeln!(io::stdout(), "{}x{}", process.terminal.rows, process.terminal.columns)?;
            let (stream, request) = agent.request()?;
            agent.answer(stream, &CreateContainerResponse::default())?;
            let resize = ResizeRequest::parse_from_bytes(&request.payload)?;
            writeln!(io::stdout(), "{}x{}", resize.rows, resize.columns)?;
            0
        }
        ["panic"] => {
            let kernel_log = vec!["Kernel panic - not syncing: test".to_owned()];
            return Ok(Outcome::Failed { message: "the guest panicked".to_owned(), kernel_log });
        }
        _ => exit(3),
    };
    Ok(Outcome::Exited { code, oom_killed: false })
}

struct Agent(UnixStream);

impl Agent {
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        String::from_utf8(line).map_err(io::Error::other)
    }

    fn request(&mut self) -> io::Result<(u32, ttrpc::Request)> {
        let mut header = [0; ttrpc::proto::MESSAGE_HEADER_LENGTH];
        self.0.read_exact(&mut header)?;
        let header = MessageHeader::from(header);
        let mut body = vec![0; header.length as usize];
        self.0.read_exact(&mut body)?;
        Ok((header.stream_id, ttrpc::Request::parse_from_bytes(&body)?))
    }

    fn answer(&mut self, stream: u32, message: &impl Message) -> io::Result<()> {
        let payload = message.write_to_bytes()?;
        let response = ttrpc::Response { payload, ..Default::default() }.write_to_bytes()?;
        let header = MessageHeader::new_response(stream, response.len() as u32);
        self.0.write_all(&Vec::from(header))?;
        self.0.write_all(&response)
    }

    fn signal(&mut self) -> io::Result<u32> {
        let (stream, request) = self.request()?;
        assert_eq!(request.method, "Signal");
        self.answer(stream, &CreateContainerResponse::default())?;
        Ok(SignalRequest::parse_from_bytes(&request.payload)?.signal)
    }
}
