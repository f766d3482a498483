//! A process, the container's own or one to be executed in it.

use bulkhead_protocol::rpc::agent::{Capabilities, Process, Rlimit, Terminal, User};
use oci_spec::runtime::{
    Capabilities as Set, LinuxCapabilities, PosixRlimit, Process as Asked, User as AskedUser,
};

/// The process as the agent starts it, with all its streams joined.
pub fn process(asked: &Asked) -> Process {
    let terminal = asked.terminal().unwrap_or(false);
    let size = asked.console_size().unwrap_or_default();
    let cut = |cells: u64| u32::try_from(cells).unwrap_or(u32::MAX);
    Process {
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
        ..Default::default()
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
