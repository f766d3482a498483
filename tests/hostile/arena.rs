//! A host with something to lose, a VM on it, and what is looked at while an attack runs.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bulkhead_tests::{Host, binary, checksums, processes, variable};

/// Memory of the attacked VM: the guest knows it.
const GUEST_MIB: u64 = 64;
/// What the monitor may take beyond guest memory, and the worker in all. Measured: 8 and 12 MiB.
const VMM_MIB_MAX: u64 = GUEST_MIB + 48;
const WORKER_MIB_MAX: u64 = 96;
const VMM_FILES_MAX: usize = 1024;
/// More than any attack asks for, and far below the worker's own limit.
const WORKER_FILES_MAX: usize = 16_384;
/// No attack takes as long.
const TIME_MAX: Duration = Duration::from_secs(120);
/// How long a guest that never ends is watched.
const WATCHED: Duration = Duration::from_secs(3);
/// Kept of an endless output.
const SAID_MAX: usize = 256 << 10;

/// How an attack is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest says that it is through and resets its machine.
    Through,
    /// The guest does not come back; the monitor says why in one sentence.
    Dead,
    /// The guest never ends: the monitor lives on and can be killed.
    Alive,
    /// The monitor exits with the code that the guest reported.
    Exits(i32),
}

/// The host's side.
pub struct Arena {
    dir: tempfile::TempDir,
    /// Members of the VM's spec besides the usual ones, as JSON: `"limits":{},`.
    more: String,
}

/// What a VM that was attacked left.
pub struct Story {
    /// Since before the monitor was started.
    pub elapsed: Duration,
    /// The last of its standard error: what the guest said.
    pub said: String,
    /// Bytes on its standard output.
    pub stdout_len: u64,
    /// The most files that the monitor had open, and the file worker.
    pub files: usize,
    pub worker_files: usize,
    /// All of it, for a test that fails.
    pub text: String,
}

/// The most that was seen of a process.
#[derive(Debug, Default)]
struct Peak {
    kib: u64,
    files: usize,
}

impl Peak {
    fn sample(&mut self, pid: u32) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = rss.and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok());
        self.kib = self.kib.max(kib.unwrap_or(0));
        let files = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        self.files = self.files.max(files);
    }
}

impl Arena {
    /// Two shares, and beside them what no guest may touch.
    pub fn new() -> Self {
        // Private, as the runtime's are: the monitor may connect to sockets in it.
        let mut dir = tempfile::Builder::new();
        let dir = dir.prefix("bulkhead-hostile-").permissions(Permissions::from_mode(0o700));
        let dir = dir.tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for name in ["share/dir", "readonly", "outside"] {
            fs::create_dir_all(at(name)).expect("a directory");
        }
        for name in ["share/file", "readonly/file", "secret", "outside/file"] {
            fs::write(at(name), "as it was\n").expect("a file");
        }
        symlink("../secret", at("share/up")).expect("a link");
        symlink("/", at("share/abs")).expect("a link");
        Self { dir, more: String::new() }
    }

    /// One whose VM has `more` members in its spec.
    pub fn with(more: &str) -> Self {
        Self { more: format!("{more},"), ..Self::new() }
    }

    /// A path of the host: "share" is the guest's to write to.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the monitor on the guest with `attack`.
    fn start(&self, attack: &str) -> Child {
        let path = |path: &Path| format!("{:?}", path.to_str().expect("paths are UTF-8"));
        let share = |name: &str, source: &str, readonly: bool| {
            let source = path(&self.path(source));
            format!(r#"{{"name":"{name}","source":{source},"readonly":{readonly}}}"#)
        };
        let guest = variable("BULKHEAD_TEST_HOSTILE");
        let spec = format!(
            r#"{{"name":"hostile","vcpus":2,"memory_mib":{GUEST_MIB},"kernel":{},"init":{},{}
            "cmdline":["{attack}"],"cid":3,"vsock":{},"console":true,"shares":[{},{}]}}"#,
            path(&guest),
            path(&guest),
            self.more,
            path(&self.path("vsock.sock")),
            share("s", "share", false),
            share("r", "readonly", true),
        );
        let spec_file = self.path("spec.json");
        fs::write(&spec_file, spec).expect("a spec");
        let mut command = Command::new(binary("bulkhead-vmm"));
        command.arg("--spec").arg(spec_file).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bulkhead-vmm starts")
    }

    /// The attacks that the guest knows.
    pub fn list(&self) -> Vec<String> {
        let output = self.start("list").wait_with_output().expect("bulkhead-vmm ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.lines().filter_map(|line| line.strip_prefix("attack ")).map(str::to_owned).collect()
    }

    /// Runs an attack and checks everything.
    #[track_caller]
    pub fn attack(&self, name: &str, end: End) -> Story {
        neighbour_answers();
        let (before, files) = (processes(), self.untouchable());
        let mut vmm = self.start(&format!("attack={name}"));
        let stdout = keep_end(vmm.stdout.take().expect("piped"));
        let stderr = keep_end(vmm.stderr.take().expect("piped"));
        let (mut peak, mut worker_peak) = (Peak::default(), Peak::default());
        let started = Instant::now();
        let limit = if end == End::Alive { WATCHED } else { TIME_MAX };
        let mut worker = None;
        let status = loop {
            if let Some(status) = vmm.try_wait().expect("the monitor can be waited for") {
                break Some(status);
            }
            if started.elapsed() > limit {
                vmm.kill().expect("the monitor can be killed");
                vmm.wait().expect("and reaped");
                break None;
            }
            peak.sample(vmm.id());
            worker = worker.or_else(|| worker_of(vmm.id()));
            worker.iter().for_each(|worker| worker_peak.sample(*worker));
            thread::sleep(Duration::from_millis(20));
        };
        let (said, _) = stderr.join().expect("the reader ends");
        let (_, stdout_len) = stdout.join().expect("the reader ends");
        let (code, elapsed) = (status.map(|status| status.code().unwrap_or(-1)), started.elapsed());
        let story = format!(
            "{name}: code {code:?} after {elapsed:?}, monitor {peak:?}, worker {worker_peak:?}, \
             {stdout_len} bytes on stdout, and on stderr:\n{said}"
        );
        check_end(name, end, code, &said, &story);
        assert!(peak.kib < VMM_MIB_MAX << 10 && peak.files < VMM_FILES_MAX, "{story}");
        assert!(worker_peak.kib < WORKER_MIB_MAX << 10, "{story}");
        assert!(worker_peak.files < WORKER_FILES_MAX, "{story}");
        assert_eq!(self.untouchable(), files, "the host's files are as they were: {story}");
        no_devices(&self.path("share"));
        bulkhead_tests::until("all processes of the VM are gone", || processes() == before);
        neighbour_answers();
        println!("{}", story.lines().next().unwrap_or_default());
        Story {
            elapsed,
            said,
            stdout_len,
            files: peak.files,
            worker_files: worker_peak.files,
            text: story,
        }
    }

    /// What no guest may change: everything but its share, and some of the host's own.
    fn untouchable(&self) -> String {
        let own: Vec<_> = ["secret", "outside/file", "readonly/file"]
            .map(|name| {
                let metadata = fs::symlink_metadata(self.path(name)).expect("it is there");
                (fs::read_to_string(self.path(name)).ok(), format!("{:?}", metadata.permissions()))
            })
            .into();
        let mut beside: Vec<_> = ["", "outside", "readonly"]
            .iter()
            .flat_map(|dir| fs::read_dir(self.path(dir)).expect("a directory").flatten())
            .map(|entry| entry.path())
            // What the monitor and this test put there themselves.
            .filter(|path| !path.ends_with("vsock.sock") && !path.ends_with("spec.json"))
            .collect();
        beside.sort();
        let host = checksums(Path::new("/etc/default"));
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        format!("{own:?} {beside:?} {host} {passwd}")
    }
}

fn worker_of(vmm: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{vmm}/task/{vmm}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[track_caller]
fn check_end(name: &str, end: End, code: Option<i32>, said: &str, story: &str) {
    let sentences = said.lines().filter(|line| line.starts_with("bulkhead-vmm: ")).count();
    assert!(!said.contains("FAILED") && !said.contains("panicked"), "{story}");
    assert!(said.contains(&format!("begin {name}")), "the attack begins: {story}");
    let through = said.contains(&format!("end {name}"));
    match end {
        End::Through => {
            assert!(through && code == Some(125) && sentences == 1, "{story}");
            assert!(said.contains("the guest restarted"), "{story}");
        }
        End::Dead => assert!(!through && code == Some(125) && sentences == 1, "{story}"),
        End::Alive => assert!(code.is_none() && sentences == 0, "{story}"),
        End::Exits(wanted) => assert!(code == Some(wanted) && sentences == 0, "{story}"),
    }
}

/// No device node was made on the host.
#[track_caller]
fn no_devices(dir: &Path) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let kind = entry.file_type().expect("a type");
        let path = entry.path();
        assert!(!kind.is_char_device() && !kind.is_block_device(), "{}", path.display());
        if kind.is_dir() {
            no_devices(&path);
        }
    }
}

/// Reads to the end, keeps the last of it, and counts its bytes.
fn keep_end(mut stream: impl Read + Send + 'static) -> JoinHandle<(String, u64)> {
    thread::spawn(move || {
        let (mut kept, mut chunk, mut total) = (Vec::new(), vec![0; 64 << 10], 0);
        while let Ok(len @ 1..) = stream.read(&mut chunk) {
            total += len as u64;
            kept.extend_from_slice(&chunk[..len]);
            if kept.len() > 2 * SAID_MAX {
                kept.drain(..kept.len() - SAID_MAX);
            }
        }
        (String::from_utf8_lossy(&kept).into_owned(), total)
    })
}

/// A container that answers every line with the same line.
struct Neighbour {
    _host: Host,
    _child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    asked: u64,
}

impl Neighbour {
    fn start() -> Self {
        let host = Host::new();
        let mut command = host.run(&["-i", "--name", "neighbour"], &["cat"]);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.expect("the neighbour starts");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { _host: host, _child: child, stdin, stdout, asked: 0 }
    }
}

/// The neighbour is well. Were it not, the runner's own time limit would tell.
fn neighbour_answers() {
    static NEIGHBOUR: OnceLock<Mutex<Neighbour>> = OnceLock::new();
    let neighbour = NEIGHBOUR.get_or_init(|| Mutex::new(Neighbour::start()));
    let mut neighbour = neighbour.lock().unwrap_or_else(PoisonError::into_inner);
    neighbour.asked += 1;
    let question = format!("are you there? {}\n", neighbour.asked);
    neighbour.stdin.write_all(question.as_bytes()).expect("the neighbour listens");
    let mut answer = String::new();
    neighbour.stdout.read_line(&mut answer).expect("the neighbour speaks");
    assert_eq!(answer, question, "the neighbour is as it was");
}
