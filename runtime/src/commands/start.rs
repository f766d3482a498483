//! `bulkhead start`: executes the process of a created container.

use std::time::Duration;

use bulkhead_protocol::rpc::agent::{
    Hook, NetworkSpec, StartContainerRequest, StartContainerResponse,
};

use super::oci::{self, OciError};
use crate::args::oci::IdArgs;
use crate::net;
use crate::oci::container::Container;
use crate::oci::record::Phase;
use crate::oci::{hooks, log::Log, plan, plug, status::State};
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
    if let Err(error) = execute(container) {
        // Nothing has become of it, so that it can be tried again.
        net::give_back(container.record.process);
        return Err(error);
    }
    container.set_phase(Phase::Running)?;
    let state = State::of(container).json();
    if let Err(error) = hooks::run("poststart", container.hooks().poststart().as_ref(), &state) {
        log.error(&error.to_string());
    }
    Ok(())
}

/// Connects the container to its network and executes its process.
fn execute(container: &Container) -> Result<(), OciError> {
    let network = plug_in(container)?;
    let mut agent = container.agent(PATIENCE)?;
    let hooks = container.hooks();
    let request = StartContainerRequest {
        network: Some(network).into(),
        hooks: hooks.start_container().iter().flatten().map(hook).collect(),
        state: State::of(container).json(),
        container: container.name_in_vm(),
        ..Default::default()
    };
    let response: StartContainerResponse = agent.call("StartContainer", &request, PATIENCE)?;
    if let Some(failure) = response.failure.into_option() {
        return Err(OciError::Start { id: container.id.clone(), message: failure.message });
    }
    Ok(())
}

fn hook(asked: &oci_spec::runtime::Hook) -> Hook {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    Hook {
        path: asked.path().to_string_lossy().into_owned(),
        args: list(asked.args()),
        env: list(asked.env()),
        timeout_s: asked.timeout().map_or(0, |seconds| seconds.max(0).unsigned_abs()),
        ..Default::default()
    }
}

/// Gives the VM what an engine has put into the container's network since it was created.
fn plug_in(container: &Container) -> Result<NetworkSpec, OciError> {
    let config = container.config()?;
    if plan::network(&config) != plan::Network::Own || container.is_member() {
        return Ok(NetworkSpec::default());
    }
    let (vmm, room) = (container.record.process, plan::NET_PLACES.into());
    Ok(plug::plug_in(vmm, container.dir(), room)?)
}
