//! Namespaces: a container has a kernel of its own, and with it namespaces of its own of every kind.
//! What is left to be decided is the network, which is the host's.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};

use super::PlanError;

/// The network the container is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// A new network namespace, empty but for loopback. The VMM's own stands for it: what is put
    /// there before the container is started becomes the guest's.
    Own,
    /// The network namespace at this path.
    Joined(PathBuf),
    /// The host's own.
    Host,
}

/// The network `spec` asks for.
pub fn network(spec: &Spec) -> Network {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let mut namespaces = namespaces.into_iter().flatten();
    match namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::Network) {
        None => Network::Host,
        Some(namespace) => match namespace.path() {
            Some(path) if !path.as_os_str().is_empty() => Network::Joined(path.clone()),
            _ => Network::Own,
        },
    }
}

/// Refuses what another kernel cannot give. A UTS namespace may be named: all of it that a
/// container sees are host and domain name, which the configuration has. So may a cgroup namespace,
/// for the cgroups inside are the guest's, and the IPC namespace of a pod (see `pod`).
pub fn check(linux: Option<&Linux>) -> Result<(), PlanError> {
    let Some(linux) = linux else { return Ok(()) };
    for namespace in linux.namespaces().iter().flatten() {
        let Some(path) = namespace.path() else { continue };
        let harmless = matches!(
            namespace.typ(),
            LinuxNamespaceType::Network
                | LinuxNamespaceType::Uts
                | LinuxNamespaceType::Ipc
                | LinuxNamespaceType::Cgroup
        );
        if !harmless && !path.as_os_str().is_empty() {
            return Err(PlanError::joined(namespace.typ(), path));
        }
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
        return Err(PlanError::TimeOffsets);
    }
    Ok(())
}
