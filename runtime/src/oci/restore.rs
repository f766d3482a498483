//! A container that goes on from a snapshot: its VM is shaped like the saved one, and its agent told who
//! and where it is now.

use std::time::Duration;

use bulkhead_protocol::rpc::agent::{NetworkSpec, RestoreRequest, RestoreResponse};
use bulkhead_vmm::snapshot::{self, SnapshotError};
use bulkhead_vmm::spec::{LinkKind, NetSpec, VmSpec};

use crate::agent::AgentError;
use crate::client::Client;
use crate::launch;
use crate::templates::Snapshot;

/// How long the agent may take to set the network up and let the processes go on.
const RESTORE_MAX: Duration = Duration::from_secs(120);
/// Ethernet's own (RFC 894), of an interface that has no tap to say another.
const MTU_DEFAULT: u16 = 1500;

/// Why the snapshot is not that of such a container.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It has no room for the network.
    #[error(
        "the container was saved with {saved} network interfaces, and its network namespace has \
         {found} now: give it one with {saved} at most"
    )]
    Interfaces {
        /// Of the saved VM.
        saved: usize,
        /// Of the network it is to have.
        found: usize,
    },
    /// Its state file.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// `vm` with the saved one's window, and as many interfaces and places as that has, if it goes on from
/// that. What the network does not have any more is an interface without a cable.
pub fn shape(mut vm: VmSpec, files: Option<&Snapshot>) -> Result<VmSpec, RestoreError> {
    let Some(files) = files else { return Ok(vm) };
    let state = snapshot::read(&files.state)?;
    vm.window_mib = Some(state.window_mib);
    let (saved, places) = state.nets();
    let found = vm.nets.len();
    if found > saved {
        return Err(RestoreError::Interfaces { saved, found });
    }
    vm.nets.resize(saved, NetSpec { mtu: Some(MTU_DEFAULT), ..launch::unplugged(LinkKind::Tap) });
    // What does not fit is more than a VM has, and refused by the VMM.
    vm.net_places = u8::try_from(places).unwrap_or(u8::MAX);
    Ok(vm)
}

/// Lets the container go on, as who it was if `machine_id` is empty.
pub fn go_on(
    agent: &mut Client,
    hostname: String,
    network: NetworkSpec,
    machine_id: String,
) -> Result<(), AgentError> {
    let network = Some(network).into();
    let request = RestoreRequest { hostname, network, machine_id, ..Default::default() };
    let _: RestoreResponse = agent.call("Restore", &request, RESTORE_MAX)?;
    Ok(())
}
