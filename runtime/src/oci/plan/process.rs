//! A process, the container's own or one to be executed in it.

use bulkhead_protocol::rpc::agent::{Capabilities, Process, Rlimit, Scheduler, Terminal, User};
use oci_spec::runtime::{
    Capabilities as Set, IOPriorityClass, Linux, LinuxCapabilities, LinuxIOPriority,
    LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    PosixRlimit, Process as Asked, Scheduler as AskedScheduler, User as AskedUser,
};

use super::{PlanError, seccomp};

/// The process as the agent starts it, with all its streams joined, in a container whose
/// configuration has `linux`.
pub fn process(asked: &Asked, linux: Option<&Linux>) -> Result<Process, PlanError> {
    let terminal = asked.terminal().unwrap_or(false);
    let size = asked.console_size().unwrap_or_default();
    let cut = |cells: u64| u32::try_from(cells).unwrap_or(u32::MAX);
    let profile = linux.and_then(|linux| linux.seccomp().as_ref());
    let personality = linux.and_then(|linux| linux.personality().as_ref());
    Ok(Process {
        args: asked.args().clone().unwrap_or_default(),
        env: asked.env().clone().unwrap_or_default(),
        cwd: asked.cwd().to_string_lossy().into_owned(),
        user: Some(user(asked.user())).into(),
        terminal: terminal
            .then(|| Terminal {
                rows: cut(size.height()),
                columns: cut(size.width()),
                ..Default::default()
            })
            .into(),
        rlimits: asked.rlimits().iter().flatten().map(rlimit).collect(),
        capabilities: Some(capabilities(asked.capabilities().as_ref())).into(),
        no_new_privileges: asked.no_new_privileges().unwrap_or(false),
        oom_score_adj: asked.oom_score_adj().map(|n| n.to_string()).unwrap_or_default(),
        stdin: true,
        stdout: true,
        stderr: true,
        seccomp: profile.map(seccomp::compile).transpose()?.into(),
        io_priority: asked.io_priority().as_ref().map(io_priority).transpose()?,
        scheduler: asked.scheduler().as_ref().map(scheduler).into(),
        personality: personality.map(self::personality),
        ..Default::default()
    })
}

/// As ioprio_set(2) takes it (linux/ioprio.h): the class above 13 bits of priority.
fn io_priority(asked: &LinuxIOPriority) -> Result<u32, PlanError> {
    let class = match asked.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(asked.priority()) {
        Ok(priority @ 0..=7) => Ok(class << 13 | priority),
        _ => Err(PlanError::IoPriority(asked.priority())),
    }
}

/// As sched_setattr(2) takes it (linux/sched.h, uapi).
fn scheduler(asked: &AskedScheduler) -> Scheduler {
    let policy = match asked.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    Scheduler {
        policy,
        flags: asked.flags().iter().flatten().map(flag).fold(0, |flags, flag| flags | flag),
        nice: asked.nice().unwrap_or(0),
        priority: asked.priority().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        runtime: asked.runtime().unwrap_or(0),
        deadline: asked.deadline().unwrap_or(0),
        period: asked.period().unwrap_or(0),
        ..Default::default()
    }
}

/// As personality(2) takes it.
fn personality(asked: &LinuxPersonality) -> u32 {
    match asked.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }
}

fn user(asked: &AskedUser) -> User {
    User {
        uid: asked.uid(),
        gid: asked.gid(),
        additional_gids: asked.additional_gids().clone().unwrap_or_default(),
        umask: asked.umask(),
        ..Default::default()
    }
}

fn rlimit(asked: &PosixRlimit) -> Rlimit {
    Rlimit {
        type_: asked.typ().to_string(),
        soft: asked.soft(),
        hard: asked.hard(),
        ..Default::default()
    }
}

/// A set that is not given is empty.
fn capabilities(asked: Option<&LinuxCapabilities>) -> Capabilities {
    let Some(asked) = asked else { return Capabilities::default() };
    Capabilities {
        bounding: names(asked.bounding()),
        effective: names(asked.effective()),
        permitted: names(asked.permitted()),
        inheritable: names(asked.inheritable()),
        ambient: names(asked.ambient()),
        ..Default::default()
    }
}

fn names(set: &Option<Set>) -> Vec<String> {
    let mut names: Vec<String> = set.iter().flatten().map(|cap| format!("CAP_{cap}")).collect();
    names.sort_unstable();
    names
}
