//! Saving a running container, for `checkpoint` and `clone`.
//!
//! ```text
//!  control socket: snapshot, two files ──▶ armed
//!  agent: Checkpoint ──▶ processes frozen ──▶ mark ──▶ the VMM saves ──▶ control socket: done
//!                                                  └──▶ processes thawed ──▶ the agent's answer
//! ```

use std::os::fd::AsFd as _;
use std::time::Duration;

use bulkhead_protocol::rpc::agent::{CheckpointRequest, CheckpointResponse};
use bulkhead_vmm::control::{Client, Then};
use bulkhead_vmm::snapshot;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::container::Container;
use super::pagemap;
use crate::agent::AgentError;
use crate::commands::oci::{OciError, PATIENCE};
use crate::templates::{Snapshot, TemplateError};

/// How long the agent may take to freeze the processes, and the VMM to write its memory to a disk.
const SAVE_MAX: Duration = Duration::from_secs(600);

/// Saves a running container to empty files, as the difference from a base if it is that one's; else
/// there is no base any more. If it is to stand then, it does for as long as what is returned is there.
pub fn save(container: &Container, files: &mut Snapshot, then: Then) -> Result<Client, OciError> {
    let (id, status) = (container.id.clone(), container.status());
    if !status.can_pause() {
        return Err(OciError::Status { verb: "save", id, status });
    }
    if container.is_member() {
        return Err(OciError::Member(id));
    }
    let mut agent = container.agent(PATIENCE)?;
    let mut control = container.control()?;
    let pagemap = files.base.as_ref().and_then(|_| pagemap::open(container.record.process));
    let mut sent = vec![files.state.as_fd(), files.memory.as_fd()];
    if let (Some(base), Some(pagemap)) = (&files.base, &pagemap) {
        sent.extend([base.as_fd(), pagemap.as_fd()]);
    }
    control.snapshot(&sent, then)?;
    let call = agent.send("Checkpoint", &CheckpointRequest::default(), PATIENCE)?;
    // An agent that cannot says so, and then nothing is saved.
    let mut fds = [PollFd::new(&control, PollFlags::IN), PollFd::new(&agent, PollFlags::IN)];
    let timeout = Timespec { tv_sec: SAVE_MAX.as_secs() as i64, tv_nsec: 0 };
    let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)));
    if !matches!(ready, Ok(1..)) {
        return Err(AgentError::Silent.into());
    }
    let saved = !fds[0].revents().is_empty();
    let mut answer = || -> Result<(), OciError> {
        let answer = agent.receive(SAVE_MAX)?;
        debug_assert_eq!(answer.call, call, "nothing else was asked");
        answer.message::<CheckpointResponse>("Checkpoint")?;
        Ok(())
    };
    if !saved {
        answer()?;
    }
    control.saved()?;
    if saved && then == Then::GoOn {
        answer()?;
    }
    let state = snapshot::read(&files.state).map_err(TemplateError::from)?;
    if state.own_pages.is_none() {
        files.base = None;
    }
    Ok(control)
}
