//! One set-up call gives a test its agent; the test plays runtime and VMM.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_protocol::rpc::agent::{
    ContainerSpec, CreateContainerRequest, CreateContainerResponse, ExecRequest, ExecResponse,
    Process, SignalRequest, WaitRequest,
};
use bulkhead_protocol::rpc::agent_ttrpc::AgentClient;
use bulkhead_protocol::{AGENT_PORT, ExitReport, HostPort};

/// No step of any test takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent that runs on this machine, and a root file system with busybox for its container.
pub struct Agent {
    pub client: AgentClient,
    dir: tempfile::TempDir,
    agent: Child,
}

/// The VMM's side of the container's streams.
pub struct Host {
    stdin: UnixListener,
    stdout: UnixListener,
    stderr: UnixListener,
    terminal: UnixListener,
    events: UnixListener,
    exit: UnixListener,
}

/// All that came of a container.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub code: u8,
    pub stdout: String,
    pub stderr: String,
}

pub fn outcome(code: u8, stdout: &str, stderr: &str) -> Outcome {
    Outcome { code, stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

/// A shell that runs `script`, stdout and stderr joined.
pub fn shell(script: &str) -> Process {
    Process {
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

/// A container of the root file system "rootfs".
pub fn spec(process: Process) -> ContainerSpec {
    ContainerSpec {
        hostname: "lighthouse".to_owned(),
        root_share: "rootfs".to_owned(),
        process: Some(process).into(),
        ..Default::default()
    }
}

/// Runs a container with this process from beginning to end.
pub fn run(process: Process) -> Outcome {
    run_spec(&Agent::start(), &spec(process))
}

pub fn run_spec(agent: &Agent, spec: &ContainerSpec) -> Outcome {
    let host = agent.host();
    let response = agent.create(spec);
    assert!(response.failure.is_none(), "{response:?}");
    host.outcome(spec.process.stdout, spec.process.stderr)
}

/// Tries `ready` until it says yes.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

impl Agent {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_root(&dir.path().join("shares/rootfs"));
        let agent = Command::new(env!("CARGO_BIN_EXE_bulkhead-agent"))
            .arg("--outside-vm")
            .arg(dir.path())
            .spawn()
            .unwrap();
        let socket = dir.path().join(format!("guest_{AGENT_PORT}"));
        wait_until("the agent listens", || UnixStream::connect(&socket).is_ok());
        let address = format!("unix://{}", socket.display());
        let client = AgentClient::new(ttrpc::Client::connect(&address).unwrap());
        Self { client, dir, agent }
    }

    /// One more connection to the service; closed when dropped.
    pub fn another_client(&self) -> AgentClient {
        let socket = self.dir.path().join(format!("guest_{AGENT_PORT}"));
        AgentClient::new(ttrpc::Client::connect(&format!("unix://{}", socket.display())).unwrap())
    }

    /// A path in the container's root.
    pub fn root(&self, path: &str) -> PathBuf {
        self.share("rootfs").join(path)
    }

    /// A path among the shares.
    pub fn share(&self, name: &str) -> PathBuf {
        self.dir.path().join("shares").join(name)
    }

    /// Listens for the container's streams, anew each time.
    pub fn host(&self) -> Host {
        let listen = |port: HostPort| {
            let path = self.dir.path().join(format!("host_{}", port as u32));
            let _ = fs::remove_file(&path);
            UnixListener::bind(path).unwrap()
        };
        Host {
            stdin: listen(HostPort::Stdin),
            stdout: listen(HostPort::Stdout),
            stderr: listen(HostPort::Stderr),
            terminal: listen(HostPort::Terminal),
            events: listen(HostPort::Events),
            exit: listen(HostPort::Exit),
        }
    }

    pub fn create(&self, spec: &ContainerSpec) -> CreateContainerResponse {
        let request = CreateContainerRequest {
            container: Some(spec.clone()).into(),
            start: true,
            ..Default::default()
        };
        self.client.create_container(context(), &request).unwrap()
    }

    /// Starts a container that only sleeps until it is killed.
    pub fn create_sleeper(&self) {
        let mut process = shell("sleep 1000");
        (process.stdout, process.stderr) = (false, false);
        let response = self.create(&spec(process));
        assert!(response.failure.is_none(), "{response:?}");
    }

    pub fn exec(&self, id: &str, process: Process) -> ExecResponse {
        let request =
            ExecRequest { id: id.to_owned(), process: Some(process).into(), ..Default::default() };
        self.client.exec(context(), &request).unwrap()
    }

    /// Connects to a stream of Exec.
    pub fn stream(&self, port: u32) -> UnixStream {
        let path = self.dir.path().join(format!("guest_{port}"));
        patient(UnixStream::connect(path).unwrap())
    }

    pub fn wait(&self, id: &str) -> u32 {
        let request = WaitRequest { id: id.to_owned(), ..Default::default() };
        self.client.wait(context(), &request).unwrap().exit_code
    }

    pub fn signal(&self, id: &str, signal: i32, all: bool) {
        let signal = signal as u32;
        let request = SignalRequest { id: id.to_owned(), signal, all, ..Default::default() };
        self.client.signal(context(), &request).unwrap();
    }

    /// Processor time that the agent itself has used, in clock ticks (proc_pid_stat(5): 14, 15).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.agent.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Open fds of the agent.
    pub fn open_fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.agent.id())).unwrap().count()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Its container dies with it only if told to.
        let request = SignalRequest { signal: 9, ..Default::default() };
        let _ = self.client.signal(context(), &request);
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

impl Host {
    pub fn stdin(&self) -> UnixStream {
        accept(&self.stdin)
    }

    pub fn stdout(&self) -> UnixStream {
        accept(&self.stdout)
    }

    pub fn terminal(&self) -> UnixStream {
        accept(&self.terminal)
    }

    /// Where the VMM's events go.
    pub fn events(&self) -> UnixStream {
        accept(&self.events)
    }

    /// The exit report.
    pub fn exit(&self) -> ExitReport {
        ExitReport::from_bytes(read_all(accept(&self.exit)).as_slice()).unwrap()
    }

    pub fn outcome(&self, stdout: bool, stderr: bool) -> Outcome {
        let text = |listener: &UnixListener, wanted: bool| {
            if wanted {
                String::from_utf8(read_all(accept(listener))).unwrap()
            } else {
                String::new()
            }
        };
        let (stdout, stderr) = (text(&self.stdout, stdout), text(&self.stderr, stderr));
        Outcome { code: self.exit().code, stdout, stderr }
    }
}

fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let mut stream = None;
    wait_until("the agent connects", || {
        stream = listener.accept().ok();
        stream.is_some()
    });
    let (stream, _) = stream.unwrap();
    stream.set_nonblocking(false).unwrap();
    patient(stream)
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub fn read_all(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Reads until `text` has arrived.
pub fn read_until(stream: &mut UnixStream, text: &str) -> String {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let mut chunk = [0; 1024];
        let n = match stream.read(&mut chunk) {
            // A socket with a time limit is not read again by itself (signal(7)).
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read.unwrap(),
        };
        assert!(n > 0, "{:?} ended without {text:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(seen).unwrap()
}

pub fn write(stream: &mut UnixStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}

pub fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(PATIENCE)
}

/// A root file system of busybox alone.
fn make_root(root: &Path) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    let busybox = busybox.expect("install busybox-static to run this test");
    for dir in ["bin", "etc", "tmp", "root"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    let applets = Command::new(busybox).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(applets).unwrap().lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nkeeper:x:1000:1001::/home/keeper:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nkeeper:x:1001:\nlamp:x:44:keeper\n").unwrap();
}
