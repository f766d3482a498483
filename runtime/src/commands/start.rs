//! `bulkhead start`: executes the process of a created container.

use std::time::Duration;

use bulkhead_protocol::rpc::agent::{StartContainerRequest, StartContainerResponse};

use super::oci::{self, OciError};
use crate::args::oci::IdArgs;
use crate::oci::container::Container;
use crate::oci::record::Phase;
use crate::oci::{hooks, log::Log, status::State};
use crate::state::Root;

/// How long execve(2) may take: the program is read over virtio-fs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts it. What fails after that is logged, as runc does: it runs.
pub fn run(args: &IdArgs, root: &Root, log: &Log) -> Result<(), OciError> {
    start(&mut oci::open(root, &args.id)?, log)
}

/// Starts a container.
pub fn start(container: &mut Container, log: &Log) -> Result<(), OciError> {
    let status = container.status();
    if !status.can_start() {
        return Err(OciError::Status { verb: "start", id: container.id.clone(), status });
    }
    let mut agent = container.agent(PATIENCE)?;
    let response: StartContainerResponse =
        agent.call("StartContainer", &StartContainerRequest::default(), PATIENCE)?;
    if let Some(failure) = response.failure.into_option() {
        return Err(OciError::Start { id: container.id.clone(), message: failure.message });
    }
    container.set_phase(Phase::Running)?;
    let hooks = container.hooks();
    let state = State::of(container).json();
    if let Err(error) = hooks::run("poststart", hooks.poststart().as_ref(), &state) {
        log.error(&error.to_string());
    }
    Ok(())
}
