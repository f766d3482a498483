//! A process from clone to execve: what the child does, and how the agent hears of it.
//!
//! ```text
//! agent   spawn ──▶ Launch ── created() ──▶ go() ── started() ──▶ the reaper's
//!           │           ▲ 0: ready  │ a byte          ▲ end of file: executed
//! child     └ set-up ───┴─ waits ───┴─▶ execve ───────┘ errno, message: failed
//! ```
//!
//! The agent has one thread, so a child may do all that the agent may: allocate, format, read files.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bulkhead_protocol::rpc::agent::{Process, StartFailure};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid};

use crate::caps::{self, CapsError};
use crate::clone::{Memory, Place, clone, exit};
use crate::mounts::{self, MountError};
use crate::program::{self, ExecError};
use crate::stdio::{Ends, Stream};
use crate::user::{Identity, UserError};
use crate::user_namespace::Entrance;
use crate::{scheduling, seccomp};

/// Why a process was not executed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Its file systems.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Its user.
    #[error(transparent)]
    User(#[from] UserError),
    /// Its capabilities.
    #[error(transparent)]
    Caps(#[from] CapsError),
    /// Its program.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A resource limit of no known name.
    #[error("unknown resource limit {0:?}; names are like \"RLIMIT_NOFILE\"")]
    UnknownRlimit(String),
    /// A working directory that cannot be entered.
    #[error("cannot use {path:?} as the working directory: {source}")]
    Directory {
        /// The directory.
        path: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// Any other step.
    #[error("cannot {step}: {source}")]
    Step {
        /// What was to be done.
        step: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
}

impl ProcessError {
    fn errno(&self) -> Errno {
        match self {
            Self::Mount(error) => error.errno(),
            Self::User(error) => error.errno(),
            Self::Caps(error) => error.errno(),
            Self::Exec(error) => error.errno(),
            Self::UnknownRlimit(_) => Errno::INVAL,
            Self::Directory { source, .. } | Self::Step { source, .. } => *source,
        }
    }
}

/// Names the step for [`ProcessError::Step`].
pub fn step(step: &'static str) -> impl FnOnce(Errno) -> ProcessError {
    move |source| ProcessError::Step { step, source }
}

impl From<ProcessError> for StartFailure {
    fn from(error: ProcessError) -> Self {
        let errno = error.errno().raw_os_error().unsigned_abs();
        StartFailure { message: error.to_string(), errno, ..Default::default() }
    }
}

/// A process that was spawned and may not have been executed yet.
#[derive(Debug)]
pub struct Launch {
    /// Its PID, as the agent sees it.
    pub pid: Pid,
    status: OwnedFd,
    gate: Option<OwnedFd>,
}

/// The child's side of a [`Launch`].
#[derive(Debug)]
pub struct Report {
    status: OwnedFd,
    gate: Option<OwnedFd>,
}

/// How a child gets to its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// At once, with a memory of its own.
    AtOnce,
    /// At once, in the agent's memory: quicker, but leaks a little. For the container's own process.
    Fast,
    /// As [`Launch::go`] lets it.
    Gated,
}

/// Starts a child that runs `body`, which does not return unless it fails.
pub fn spawn(
    place: Place<'_>,
    course: Course,
    body: impl Fn(&Report) -> ProcessError,
) -> Result<Launch, ProcessError> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(step("make a pipe"));
    let (status, status_of_child) = pipe()?;
    let (gate_of_child, mut gate) = match course {
        Course::Gated => pipe().map(|(read, write)| (Some(read), Some(write)))?,
        Course::AtOnce | Course::Fast => (None, None),
    };
    let report = Report { status: status_of_child, gate: gate_of_child };
    let memory = if course == Course::Fast { Memory::Shared } else { Memory::Copied };
    let pid = clone(place, memory, || {
        // The agent's end, which would keep the gate from ever closing.
        drop(gate.take());
        report.fail(body(&report))
    });
    Ok(Launch { pid: pid.map_err(step("start a process"))?, status, gate })
}

/// The calling thread's errno after a libc call failed.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

impl Launch {
    /// Waits until a gated child is ready for [`Self::go`].
    pub fn created(&self) -> Result<(), StartFailure> {
        let mut errno = [0; 4];
        match read_full(self.status.as_fd(), &mut errno) {
            4 if errno == [0; 4] => Ok(()),
            4 => Err(self.failure(u32::from_le_bytes(errno))),
            _ => Err(StartFailure {
                message: "the container's process died before it was ready".to_owned(),
                errno: Errno::CHILD.raw_os_error().unsigned_abs(),
                ..Default::default()
            }),
        }
    }

    /// Lets a gated child execute its program.
    pub fn go(&mut self) {
        if let Some(gate) = self.gate.take() {
            // A child that died meanwhile shows in `started`.
            let _ = rustix::io::write(gate, &[1]);
        }
    }

    /// Waits until the program is executed.
    pub fn started(&self) -> Result<(), StartFailure> {
        let mut errno = [0; 4];
        match read_full(self.status.as_fd(), &mut errno) {
            4 => Err(self.failure(u32::from_le_bytes(errno))),
            // Closed by execve (or by a death that the reaper sees).
            _ => Ok(()),
        }
    }

    fn failure(&self, errno: u32) -> StartFailure {
        let mut message = vec![0; MESSAGE_MAX];
        let length = read_full(self.status.as_fd(), &mut message);
        let message = String::from_utf8_lossy(&message[..length]).into_owned();
        StartFailure { message, errno, ..Default::default() }
    }
}

/// The longest message a child reports, bytes; PIPE_BUF makes it one write.
const MESSAGE_MAX: usize = 4096 - 4;

/// Reads until `buffer` is full or the pipe ends; returns how much there was.
fn read_full(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> usize {
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::read(fd, &mut buffer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    length
}

impl Report {
    /// If the child is gated: says that it is ready and waits.
    fn wait_at_gate(&self) {
        let Some(gate) = &self.gate else { return };
        let _ = rustix::io::write(&self.status, &[0; 4]);
        if read_full(gate.as_fd(), &mut [0]) == 0 {
            exit(1);
        }
    }

    fn fail(&self, error: ProcessError) -> ! {
        let failure = StartFailure::from(error);
        let mut bytes = failure.errno.max(1).to_le_bytes().to_vec();
        let message = failure.message.as_bytes();
        bytes.extend_from_slice(&message[..message.len().min(MESSAGE_MAX)]);
        let _ = rustix::io::write(&self.status, &bytes);
        exit(127)
    }
}

/// Becomes `process`: the last part of every child. The root directory and the namespaces are in
/// place; returns only if that fails.
pub fn become_process(
    process: &Process,
    ids: Option<Entrance<'_>>,
    ends: &Ends,
    null: BorrowedFd<'_>,
    report: &Report,
) -> ProcessError {
    match prepare(process, ids, ends, null, report) {
        Ok(program) => program.exec().into(),
        Err(error) => error,
    }
}

fn prepare(
    process: &Process,
    ids: Option<Entrance<'_>>,
    ends: &Ends,
    null: BorrowedFd<'_>,
    report: &Report,
) -> Result<program::Program, ProcessError> {
    let caps = process.capabilities.as_ref().map(caps::Sets::try_from).transpose()?;
    let has_home = process.env.iter().any(|var| var.starts_with("HOME="));
    let user = Identity::resolve(process, !has_home)?;
    set_limits(process)?;
    let owner = (user.uid, user.gid);
    let owner = ids.map_or(owner, |ids| ids.outside(owner.0, owner.1));
    join_streams(ends, null, owner).map_err(step("join the standard streams"))?;
    if let Some(ids) = ids {
        ids.enter().map_err(step("enter the user namespace"))?;
    }
    enter_directory(&process.cwd)?;
    become_user(process, &user, caps.as_ref())?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    }
    let home = (!has_home).then(|| user.home.as_deref().unwrap_or("/"));
    let program = program::Program::new(process, home)?;
    if report.gate.is_some() {
        program.find()?;
    }
    report.wait_at_gate();
    unblock_signals();
    close_on_exec().map_err(step("close what the agent has open"))?;
    if let Some(filter) = process.seccomp.as_ref() {
        // As late as can be: from here on the filter judges the agent too.
        seccomp::load(filter).map_err(step("load the seccomp filter"))?;
        if let Some(caps) = caps.filter(|_| loads_by_privilege(process)) {
            caps.after_user_change()?;
        }
    }
    Ok(program)
}

fn set_limits(process: &Process) -> Result<(), ProcessError> {
    if !process.oom_score_adj.is_empty() {
        std::fs::write("/proc/self/oom_score_adj", &process.oom_score_adj)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .map_err(step("set oom_score_adj"))?;
    }
    for limit in &process.rlimits {
        let resource =
            resource(&limit.type_).ok_or(ProcessError::UnknownRlimit(limit.type_.clone()))?;
        let value = |n: u64| (n != libc::RLIM_INFINITY).then_some(n);
        let limit = Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
        rustix::process::setrlimit(resource, limit).map_err(step("set a resource limit"))?;
    }
    scheduling::apply(process).map_err(step("set scheduling, I/O priority or personality"))
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    })
}

/// Makes a session, and `ends` the standard streams of the process, /dev/null what is missing.
/// They become `owner`'s.
fn join_streams(ends: &Ends, null: BorrowedFd<'_>, owner: (u32, u32)) -> rustix::io::Result<()> {
    rustix::process::setsid()?;
    let end = |stream| ends.iter().find(|(s, _)| *s == stream).map(|(_, fd)| fd.as_fd());
    let terminal = end(Stream::Terminal);
    if let Some(terminal) = terminal {
        rustix::process::ioctl_tiocsctty(terminal)?;
    }
    if owner.0 != 0 {
        for (_, fd) in ends {
            give_to(fd.as_fd(), owner)?;
        }
    }
    let end = |stream| end(stream).or(terminal).unwrap_or(null);
    rustix::stdio::dup2_stdin(end(Stream::Stdin))?;
    rustix::stdio::dup2_stdout(end(Stream::Stdout))?;
    rustix::stdio::dup2_stderr(end(Stream::Stderr))
}

/// A process may open its streams anew by /dev/stdout only if they are its own. A terminal's group
/// stays "tty".
fn give_to(fd: BorrowedFd<'_>, (uid, gid): (u32, u32)) -> rustix::io::Result<()> {
    let terminal = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_char_device();
    let group = (!terminal).then(|| Gid::from_raw(gid));
    rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), group)
}

/// As runc does: a working directory that is missing is made.
fn enter_directory(cwd: &str) -> Result<(), ProcessError> {
    let path = if cwd.is_empty() { "/" } else { cwd };
    let failed = |source| ProcessError::Directory { path: path.to_owned(), source };
    if !path.starts_with('/') {
        return Err(failed(Errno::INVAL));
    }
    match rustix::process::chdir(path) {
        Err(Errno::NOENT) => {
            mounts::make_directories(path.as_ref()).map_err(failed)?;
            rustix::process::chdir(path).map_err(failed)
        }
        result => result.map_err(failed),
    }
}

fn become_user(
    process: &Process,
    user: &Identity,
    caps: Option<&caps::Sets>,
) -> Result<(), ProcessError> {
    let umask = process.user.get_or_default().umask.unwrap_or(0o022);
    rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
    if let Some(caps) = caps {
        caps.before_user_change()?;
    }
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).map_err(step("set the supplementary groups"))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("set the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("set the user"))?;
    match caps {
        Some(caps) if loads_by_privilege(process) => Ok(caps.keep_sys_admin()?),
        Some(caps) => Ok(caps.after_user_change()?),
        None => Ok(()),
    }
}

/// A process that may gain privileges needs one to load a filter (seccomp(2)).
fn loads_by_privilege(process: &Process) -> bool {
    process.seccomp.is_some() && !process.no_new_privileges
}

/// The agent blocks the signals it takes by signalfd; its children take them as they come.
fn unblock_signals() {
    // SAFETY: sigset_t is plain memory that sigemptyset initialises; sigprocmask reads it.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Marks everything but the standard streams close-on-exec. All the agent opens is so already; what
/// it inherited may not be.
fn close_on_exec() -> rustix::io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    // SAFETY: close_range touches no memory, and with this flag it closes nothing yet.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, flags) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}
