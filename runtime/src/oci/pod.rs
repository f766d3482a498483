//! Containers that join the namespaces of another one of ours, as those of a pod do. Its kernel is not
//! theirs, so that joining means
//!
//! | namespace | |
//! |---|---|
//! | network | what the other's namespace holds, if the other leaves it alone, as a pod's pause process does: one container has it at a time, and localhost is each one's own |
//! | uts | the other's host name |
//! | ipc | nothing: semaphores, queues and shared memory stay within a kernel |
//!
//! Other kinds, and namespaces of processes that are no containers of ours, are refused.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::container::Container;
use super::id::ContainerId;
use super::plan::{self, Network, PlanError};
use crate::net::NetError;
use crate::state::Root;

/// What a container gets of those it joins.
#[derive(Debug, PartialEq, Eq)]
pub struct Joined {
    /// Its network.
    pub network: Network,
    /// The host name, if it joins another's.
    pub hostname: Option<String>,
}

/// Why a container cannot join another.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PodError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Finds out what a container of `spec` is to have.
pub fn join(spec: &Spec, root: &Root) -> Result<Joined, PodError> {
    if let Some(path) = joined(spec, LinuxNamespaceType::Ipc)
        && !is_vmm_s(path)
    {
        return Err(PlanError::joined(LinuxNamespaceType::Ipc, path).into());
    }
    let uts = joined(spec, LinuxNamespaceType::Uts);
    let hostname = uts.and_then(|path| Some(hostname(&other(path, root)?)));
    Ok(Joined { network: network(spec, root)?, hostname })
}

fn network(spec: &Spec, root: &Root) -> Result<Network, NetError> {
    let network = plan::network(spec);
    let Network::Joined(path) = &network else { return Ok(network) };
    if is_pause(spec) {
        // It is there for others.
        return Ok(Network::Own);
    }
    if !is_vmm_s(path) {
        return Ok(network);
    }
    let other = other(path, root).and_then(|other| other.config().ok());
    match other.filter(is_pause).as_ref().map(plan::network) {
        Some(Network::Own) => Ok(network),
        Some(theirs @ Network::Joined(_)) => Ok(theirs),
        Some(Network::Host) | None => Err(NetError::OtherContainer),
    }
}

/// Whether it is the container that keeps a pod's namespaces and does nothing else: of Kubernetes'
/// engines, by what they note; of podman, by its command.
pub fn is_pause(spec: &Spec) -> bool {
    const KINDS: [&str; 2] =
        ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
    let note = |name: &&str| spec.annotations().as_ref()?.get(*name);
    let args = spec.process().as_ref().and_then(|process| process.args().as_deref());
    let args: Vec<&str> = args.unwrap_or_default().iter().map(String::as_str).collect();
    KINDS.iter().filter_map(note).any(|kind| kind == "sandbox")
        || matches!(args[..], ["/catatonit", "-P"] | ["/pause"])
}

/// The path of the namespace to be joined.
fn joined(spec: &Spec, kind: LinuxNamespaceType) -> Option<&Path> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let namespace = namespaces.iter().find(|namespace| namespace.typ() == kind)?;
    namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

/// The process of a path below /proc.
fn process(path: &Path) -> Option<PathBuf> {
    let name = path.strip_prefix("/proc").ok()?.iter().next()?;
    Some(Path::new("/proc").join(name))
}

/// Whether it is the namespace of a process that is a VMM.
fn is_vmm_s(path: &Path) -> bool {
    let name = process(path).and_then(|process| std::fs::read(process.join("comm")).ok());
    name.is_some_and(|name| name == b"bulkhead-vmm\n")
}

/// The container whose VMM's namespace it is.
fn other(path: &Path, root: &Root) -> Option<Container> {
    let pid: i32 = process(path)?.file_name()?.to_str()?.parse().ok()?;
    let ids = root.containers();
    let ids = ids.iter().filter_map(|id| ContainerId::try_from(id.as_str()).ok());
    let mut containers = ids.filter_map(|id| Container::open(root, &id).ok());
    containers.find(|other| {
        let process = other.record.process;
        process.pid == pid && process.find().is_some()
    })
}

fn hostname(other: &Container) -> String {
    let config = other.config().ok();
    plan::hostname(config.as_ref().and_then(|spec| spec.hostname().as_deref()), other.id.as_str())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;
    use serde_json::json;

    use super::*;

    fn spec(value: serde_json::Value) -> Spec {
        let mut whole = json!({"ociVersion": "1.0.2", "root": {"path": "r"}});
        whole.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    fn process(args: &[&str]) -> serde_json::Value {
        json!({"process": {"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}}})
    }

    #[test]
    fn who_keeps_a_pod_is_known() {
        assert!(is_pause(&spec(process(&["/catatonit", "-P"]))));
        assert!(is_pause(&spec(process(&["/pause"]))));
        assert!(!is_pause(&spec(process(&["/catatonit", "--", "sh"]))));
        for name in ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"] {
            assert!(is_pause(&spec(json!({"annotations": {name: "sandbox"}}))));
            assert!(!is_pause(&spec(json!({"annotations": {name: "container"}}))));
        }
    }

    #[test]
    fn a_pause_process_leaves_its_network_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::choose(Some(dir.path().to_owned())).unwrap();
        let linux = json!({"namespaces": [{"type": "network", "path": "/run/netns/x"}]});
        let mut config = process(&["/catatonit", "-P"]);
        config["linux"] = linux.clone();
        assert_eq!(join(&spec(config.clone()), &root).unwrap().network, Network::Own);
        config["process"]["args"] = json!(["sh"]);
        let network = join(&spec(config), &root).unwrap().network;
        assert_eq!(network, Network::Joined("/run/netns/x".into()));
    }

    #[test]
    fn what_is_no_container_of_ours_is_not_joined() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::choose(Some(dir.path().to_owned())).unwrap();
        let path = format!("/proc/{}/ns/ipc", std::process::id());
        let mut config = process(&["sh"]);
        config["linux"] = json!({"namespaces": [{"type": "ipc", "path": path}]});
        let error = join(&spec(config), &root).unwrap_err().to_string();
        assert!(error.contains("ipc") && error.contains(&path), "{error}");
    }
}
