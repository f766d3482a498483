//! The container: its one process and the namespaces around it, and processes added by Exec.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bulkhead_protocol::rpc::agent::{ContainerSpec, Process};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::ThreadNameSpaceType;

use crate::clone::{self, Place};
use crate::guest::{self, Cgroup, Guest};
use crate::mounts::{self, Sources};
use crate::process::{self, Course, Launch, ProcessError, step};
use crate::stdio::{self, Ends, Stream};
use crate::user_namespace::{Entrance, UserNamespace};

/// The container, once its process was spawned.
#[derive(Debug)]
pub struct Container {
    /// Its process, PID 1 of its own PID namespace.
    pub launch: Launch,
    /// Its program was executed.
    pub started: bool,
    /// The agent's end of its terminal.
    pub terminal: Option<OwnedFd>,
    /// The container's devpts, in which all its terminals live.
    devpts: OwnedFd,
    users: Option<UserNamespace>,
    /// That of a further container; the VM's own has the guest's.
    cgroup: Option<Cgroup>,
}

/// What a further container has that the VM's own has not.
#[derive(Debug)]
pub struct Member<'a> {
    /// Its cgroup; there is none outside of a VM.
    pub cgroup: Option<Cgroup>,
    /// The container whose IPC namespace it joins.
    pub ipc: Option<&'a Container>,
}

/// A process of Exec.
#[derive(Debug)]
pub struct Exec {
    /// The process.
    pub launch: Launch,
    /// The agent's end of its terminal.
    pub terminal: Option<OwnedFd>,
}

impl Container {
    /// Spawns the container's process and lets it set its world up; it waits to be executed.
    /// Also returns the agent's ends of its streams.
    pub fn spawn(
        spec: &ContainerSpec,
        course: Course,
        guest: &Guest,
        null: BorrowedFd<'_>,
        member: Option<Member<'_>>,
    ) -> Result<(Self, Ends), ProcessError> {
        let (cgroup, ipc) = member.map_or((None, None), |member| (member.cgroup, member.ipc));
        let ipc = ipc.map(|other| pidfd(other.launch.pid)).transpose();
        let ipc = ipc.map_err(step("find the VM's own container"))?;
        let devpts = mounts::new_devpts(spec).map_err(step("mount devpts"))?;
        let process = spec.process.get_or_default();
        let (theirs, ours) =
            stdio::open(process, devpts.as_fd()).map_err(step("make the standard streams"))?;
        let terminal = clone_terminal(&ours)?;
        let sources = Sources {
            shares: &guest.shares_path,
            devpts: devpts.as_fd(),
            console: terminal.is_some(),
            cgroups: guest.cgroup.is_some(),
            machine_id: guest.give_machine_id(&spec.machine_id)?,
        };
        let place = Place {
            namespaces: libc::CLONE_NEWNS
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWUTS
                | if ipc.is_some() { 0 } else { libc::CLONE_NEWIPC },
            cgroup: cgroup.as_ref().or(guest.cgroup.as_ref()).map(|cgroup| cgroup.dir.as_fd()),
        };
        let users = UserNamespace::of(spec);
        let ids = users.as_ref().map(Entrance::New);
        // Who shares its memory cannot leave its user namespace.
        let course = if course == Course::Fast && ids.is_some() { Course::AtOnce } else { course };
        let launch =
            process::spawn(place, course, |report| match enter(spec, sources, ipc.as_ref()) {
                Ok(()) => process::become_process(process, ids, &theirs, null, report),
                Err(error) => error,
            })?;
        Ok((Self { launch, started: false, terminal, devpts, users, cgroup }, ours))
    }

    /// Its cgroup; there is none outside of a VM.
    pub fn cgroup<'a>(&'a self, guest: &'a Guest) -> Option<&'a Cgroup> {
        self.cgroup.as_ref().or(guest.cgroup.as_ref())
    }

    /// A file of its cgroup.
    pub fn cgroup_file(&self, guest: &Guest, name: &str) -> Option<String> {
        self.cgroup(guest)?.file(name)
    }

    /// Processes of it that the kernel killed for lack of memory.
    pub fn oom_kills(&self, guest: &Guest) -> u64 {
        let events = self.cgroup_file(guest, "memory.events").unwrap_or_default();
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Spawns a further process in the container's namespaces.
    pub fn exec(
        &self,
        process: &Process,
        guest: &Guest,
        null: BorrowedFd<'_>,
    ) -> Result<(Exec, Ends), ProcessError> {
        let (theirs, ours) =
            stdio::open(process, self.devpts.as_fd()).map_err(step("make the standard streams"))?;
        let terminal = clone_terminal(&ours)?;
        let spawn = |cgroup: Option<BorrowedFd<'_>>| {
            let place = Place { namespaces: 0, cgroup };
            self.in_pid_namespace(|container| {
                let ids = self.users.as_ref().map(|users| Entrance::Of(users, container));
                process::spawn(place, Course::AtOnce, |report| match join_namespaces(container) {
                    Ok(()) => process::become_process(process, ids, &theirs, null, report),
                    Err(error) => error,
                })
            })
        };
        let launch = match spawn(self.cgroup(guest).map(|cgroup| cgroup.dir.as_fd())) {
            // A container that manages cgroups itself has moved its processes into children of
            // its own, and the kernel allows no process above them.
            Err(ProcessError::Step { source: Errno::BUSY, .. }) => {
                let cgroup = guest::cgroup_of(self.launch.pid).map_err(step("find the cgroup"))?;
                spawn(Some(cgroup.as_fd()))
            }
            launch => launch,
        }?;
        Ok((Exec { launch, terminal }, ours))
    }

    /// Sets the container's host name.
    pub fn set_hostname(&self, name: &[u8]) -> Result<(), ProcessError> {
        let container = pidfd(self.launch.pid).map_err(step("find the container's process"))?;
        let agent = pidfd(rustix::process::getpid()).map_err(step("find the agent's process"))?;
        let enter = |process: &OwnedFd| set_namespaces(process.as_fd(), libc::CLONE_NEWUTS);
        enter(&container).map_err(step("enter the container's UTS namespace"))?;
        let set = rustix::system::sethostname(name).map_err(step("set the host name"));
        enter(&agent).map_err(step("leave the container's UTS namespace"))?;
        set
    }

    /// Sends a signal to a process of the container. One that is to be executed yet ends at any
    /// signal that would end its program: as PID 1 it would not notice.
    pub fn signal_process(&self, pid: Pid, signal: libc::c_int) -> Result<(), ProcessError> {
        let waits = !self.started && pid == self.launch.pid;
        let harmless = [0, libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
        let signal = if waits && !harmless.contains(&signal) { libc::SIGKILL } else { signal };
        signal_one(pid, signal).map_err(step("signal the process"))
    }

    /// Sends a signal to every process of the container.
    pub fn signal_all(&self, signal: libc::c_int) -> Result<(), ProcessError> {
        // kill(-1) from inside the PID namespace reaches all of it but its PID 1 and the sender.
        self.in_pid_namespace(|_| {
            process::spawn(Place::default(), Course::AtOnce, |_| {
                // SAFETY: kill touches no memory.
                unsafe { libc::kill(-1, signal) };
                clone::exit(0)
            })
        })?;
        self.signal_process(self.launch.pid, signal)
    }

    /// Runs `spawn`, whose children are born into the container's PID namespace.
    fn in_pid_namespace<T>(
        &self,
        spawn: impl FnOnce(BorrowedFd<'_>) -> Result<T, ProcessError>,
    ) -> Result<T, ProcessError> {
        let container = pidfd(self.launch.pid).map_err(step("find the container's process"))?;
        let agent = pidfd(rustix::process::getpid()).map_err(step("find the agent's process"))?;
        let enter = |process: &OwnedFd| set_namespaces(process.as_fd(), libc::CLONE_NEWPID);
        enter(&container).map_err(step("enter the container's PID namespace"))?;
        let result = spawn(container.as_fd());
        enter(&agent).map_err(step("leave the container's PID namespace"))?;
        result
    }
}

fn pidfd(pid: Pid) -> rustix::io::Result<OwnedFd> {
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}

/// Sends a signal to one process, which must not have been reaped yet.
pub fn signal_one(pid: Pid, signal: libc::c_int) -> rustix::io::Result<()> {
    // SAFETY: kill touches no memory.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(process::last_errno()),
    }
}

fn clone_terminal(ours: &Ends) -> Result<Option<OwnedFd>, ProcessError> {
    let terminal = ours.iter().find(|(stream, _)| *stream == Stream::Terminal);
    let dup = |(_, fd): &(Stream, OwnedFd)| rustix::io::fcntl_dupfd_cloexec(fd, 0);
    terminal.map(dup).transpose().map_err(step("open the terminal"))
}

/// The container's process: makes its world and enters it.
fn enter(
    spec: &ContainerSpec,
    sources: Sources<'_>,
    ipc: Option<&OwnedFd>,
) -> Result<(), ProcessError> {
    if let Some(other) = ipc {
        set_namespaces(other.as_fd(), libc::CLONE_NEWIPC).map_err(step("join the pod's IPC"))?;
    }
    if !spec.hostname.is_empty() {
        rustix::system::sethostname(spec.hostname.as_bytes()).map_err(step("set the host name"))?;
    }
    if !spec.domainname.is_empty() {
        rustix::system::setdomainname(spec.domainname.as_bytes())
            .map_err(step("set the domain name"))?;
    }
    if sources.cgroups {
        // SAFETY: no other thread shares the namespace, and it has no fds of its own.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
            .map_err(step("make a cgroup namespace"))?;
    }
    Ok(mounts::enter(spec, sources)?)
}

/// A process of Exec: joins the namespaces of the container's process, and so its root.
fn join_namespaces(container: BorrowedFd<'_>) -> Result<(), ProcessError> {
    let namespaces =
        libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP;
    set_namespaces(container, namespaces).map_err(step("join the container's namespaces"))
}

fn set_namespaces(process: BorrowedFd<'_>, namespaces: libc::c_int) -> rustix::io::Result<()> {
    let namespaces = ThreadNameSpaceType::from_bits_retain(namespaces.unsigned_abs());
    rustix::thread::move_into_thread_name_spaces(process, namespaces)
}
