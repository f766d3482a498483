//! Containers that join the namespaces of another one of ours, as those of a pod do. An address cannot be
//! two kernels': who joins another's network is in its VM, beside it (member.rs).
//!
//! | namespace | |
//! |---|---|
//! | network | the other's VM, and with it its network, localhost and all |
//! | uts | the other's host name |
//! | ipc | the other's semaphores and queues, in one VM; across kernels there are none to be had |
//!
//! Other kinds, and namespaces of processes that are no containers of ours, are refused.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::container::Container;
use super::id::ContainerId;
use super::member;
use super::plan::{self, Network, PlanError};
use super::record::{Record, Status};
use crate::net::NetError;
use crate::state::Root;

/// What engines of Kubernetes note of a pod's containers: their kind, and the one that keeps the pod.
const KINDS: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
const KEEPERS: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];

/// What a container gets of those it joins.
#[derive(Debug)]
pub struct Joined {
    /// Whose VM it is to be in, if not its own.
    pub vm: Option<Container>,
    /// It has the message queues and semaphores of that one.
    pub ipc: bool,
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
    #[error("container {id}, whose network is to be joined, is {status}: it has to run")]
    Status { id: ContainerId, status: Status },
}

/// Finds out what a container of `spec` is to have.
pub fn join(spec: &Spec, root: &Root) -> Result<Joined, PodError> {
    let vm = vm(spec, root)?;
    let ipc = joined(spec, LinuxNamespaceType::Ipc);
    if let Some(path) = ipc
        && !is_ours(path)
    {
        return Err(PlanError::joined(LinuxNamespaceType::Ipc, path).into());
    }
    let uts = joined(spec, LinuxNamespaceType::Uts);
    let hostname = uts.and_then(|path| Some(hostname(&other(path, root)?)));
    Ok(Joined { ipc: ipc.is_some() && vm.is_some(), vm, hostname })
}

/// The container in whose VM one of `spec` is to be.
fn vm(spec: &Spec, root: &Root) -> Result<Option<Container>, PodError> {
    let Network::Joined(path) = plan::network(spec) else { return Ok(None) };
    let other = match is_ours(&path) {
        true => Some(other(&path, root).ok_or(NetError::OtherContainer)?),
        false => keeper(spec, &path, root),
    };
    let other = match other {
        Some(Container { record: Record { member: Some(member), .. }, .. }) => {
            named(Some(member.of), root)
        }
        other => other,
    };
    if let Some(other) = &other
        && !matches!(other.status(), Status::Created | Status::Running)
    {
        return Err(PodError::Status { id: other.id.clone(), status: other.status() });
    }
    Ok(other)
}

/// The container that keeps the pod of `spec`, if it has the network namespace at `path`, too.
fn keeper(spec: &Spec, path: &Path, root: &Root) -> Option<Container> {
    if is_pause(spec) {
        return None;
    }
    let annotations = spec.annotations().as_ref()?;
    let id = KEEPERS.iter().find_map(|name| annotations.get(*name))?;
    let keeper = named(Some(id.clone()), root)?;
    let config = keeper.config().ok()?;
    (plan::network(&config) == Network::Joined(path.to_owned())).then_some(keeper)
}

fn named(id: Option<String>, root: &Root) -> Option<Container> {
    Container::open(root, &ContainerId::try_from(id?.as_str()).ok()?).ok()
}

/// Whether it is the container that keeps a pod's namespaces and does nothing else: of Kubernetes'
/// engines, by what they note; of podman, by its command.
pub fn is_pause(spec: &Spec) -> bool {
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

/// Whether it is the namespace of a process that stands for a container in a VM.
fn is_ours(path: &Path) -> bool {
    let name = process(path).and_then(|process| std::fs::read(process.join("comm")).ok());
    let name = name.as_deref().and_then(|name| name.strip_suffix(b"\n"));
    name.is_some_and(|name| name == b"bulkhead-vmm" || name == member::COMM.to_bytes())
}

/// The container whose process's namespace it is.
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
    fn a_network_that_no_container_has_is_one_s_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::choose(Some(dir.path().to_owned())).unwrap();
        let linux = json!({"namespaces": [{"type": "network", "path": "/run/netns/x"}]});
        for args in [["/catatonit", "-P"], ["sleep", "1"]] {
            let mut config = process(&args);
            config["linux"] = linux.clone();
            // Of a keeper that is not there.
            config["annotations"] = json!({"io.kubernetes.cri.sandbox-id": "gone"});
            assert!(join(&spec(config), &root).unwrap().vm.is_none());
        }
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
