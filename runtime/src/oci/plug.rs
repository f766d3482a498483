//! Interfaces that an engine or a hook has put into a VMM's own network since that runs: each is joined
//! to a tap, and that plugged into the VM.
//!
//! Where a bundle names no network namespace, the empty one of the VMM's jail is what engines find as the
//! container's, by its pid. Such a VM has two places (`VmSpec::net_places`): virtio-mmio devices with the
//! ID of no device, which cost the guest three reads, until `start` finds what is in the namespace by then.

use std::os::fd::AsFd as _;
use std::path::Path;

use bulkhead_protocol::rpc::agent::NetworkSpec;
use bulkhead_vmm::control::ClientError;

use super::container::control;
use super::record::HostProcess;
use crate::net::{NetError, Network};

/// Why they do not reach the guest.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PlugError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Control(#[from] ClientError),
}

/// Plugs them into the VM of a container, whose directory is `dir` and which has `room` for so many;
/// returns what its agent is to be told.
pub fn plug_in(vmm: HostProcess, dir: &Path, room: usize) -> Result<NetworkSpec, PlugError> {
    let network = Network::of_vmm(vmm, room)?;
    if !network.nets.is_empty() {
        let mut control = control(dir)?;
        for (net, tap) in network.nets.iter().zip(&network.taps) {
            control.plug(net.mac, net.mtu, tap.as_fd())?;
        }
    }
    Ok(network.spec)
}
