//! From a checked [`Bundle`] to a [`VmSpec`] for the host and a [`ContainerSpec`] for the guest.
//! Pure: no file is touched here, and every refusal is one sentence.

mod devices;
mod ids;
mod mounts;
mod namespaces;
mod process;
pub mod resources;
mod seccomp;
pub mod shape;

use std::path::{Path, PathBuf};

use bulkhead_protocol::rpc::agent::{ContainerSpec, Device, DeviceRule, Setting};
use bulkhead_vmm::spec::{Share, VmSpec};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, LinuxResources};

use super::bundle::Bundle;
use ids::Ids;
pub use mounts::share;
pub use namespaces::{Network, network};
pub use process::process;
use shape::Shape;

/// Name of the share that is the container's root.
const ROOT_SHARE: &str = "rootfs";
/// The guest's vsock context ID. It need not be unique: no VM sees another's.
const CID: u32 = 3;
/// How many interfaces may be put into a container's network after it was created: engines connect
/// it to one network, or to two.
pub const NET_PLACES: u8 = 2;
/// As much of a container's ID as becomes its host name when it has none, as engines do.
const HOSTNAME_BYTES: usize = 12;

/// Why a bundle makes no container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Namespaces of the host, which the container's kernel does not know.
    #[error(
        "linux.namespaces: the {kind} namespace {path:?} cannot be joined: it belongs to another \
         kernel than the container's"
    )]
    Joined {
        /// Type of the namespace.
        kind: String,
        /// Where it is.
        path: PathBuf,
    },
    /// IDs that cannot be mapped.
    #[error(
        "linux.uidMappings and gidMappings: give both, of IDs below 2^32, and a user namespace for them"
    )]
    IdMapping,
    /// The clock of another time namespace.
    #[error("linux.timeOffsets is not supported; the container has its kernel's clocks")]
    TimeOffsets,
    /// A mount with IDs of its own that it cannot have.
    #[error(
        "mounts: {destination} asks for mapped IDs: give uidMappings and gidMappings, or a user \
         namespace whose are taken, and a directory or file of the host, for others map none"
    )]
    IdMappedMount {
        /// In the container.
        destination: String,
    },
    /// A mount of nothing.
    #[error("mounts: {destination} has no type")]
    NoType {
        /// In the container.
        destination: String,
    },
    /// Device rules.
    #[error(transparent)]
    Rules(#[from] devices::RuleError),
    /// A seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
    /// Scheduling that the kernel does not know.
    #[error("process.ioPriority: {0} is no priority; the kernel has 0 to 7")]
    IoPriority(i64),
    /// A device of no kind.
    #[error("linux.devices: {path} has no usable type or number; use c, u, b or p")]
    Device {
        /// In the container.
        path: String,
    },
}

impl PlanError {
    /// The namespace of this kind at `path` cannot be joined.
    pub fn joined(kind: LinuxNamespaceType, path: &Path) -> Self {
        Self::Joined { kind: kind.to_string(), path: path.to_owned() }
    }
}

/// What the host adds to a bundle.
#[derive(Clone, Debug)]
pub struct Host {
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's PID 1.
    pub agent: PathBuf,
    /// CPUs that this process may use, and no more than the profile gives.
    pub vcpus: u8,
    /// Memory of the machine, MiB, and no more than the profile gives.
    pub memory_mib: u64,
}

/// The VM for `bundle`, named `id`, with its vsock socket at `vsock`. Descriptors are filled in when
/// it is started.
pub fn vm(bundle: &Bundle, host: &Host, id: &str, vsock: PathBuf) -> VmSpec {
    let shape = Shape::of(&bundle.spec, host);
    let process = bundle.spec.process().as_ref();
    VmSpec {
        name: id.to_owned(),
        vcpus: shape.vcpus,
        memory_mib: shape.memory_mib,
        kernel: host.kernel.clone(),
        init: host.agent.clone(),
        cid: CID,
        vsock,
        shares: shares(bundle),
        host_events: true,
        terminal: process.and_then(|process| process.terminal()).unwrap_or(false),
        net_places: if network(&bundle.spec) == Network::Own { NET_PLACES } else { 0 },
        ..VmSpec::default()
    }
}

/// What the guest is to see of the host: the root first, then what the mounts show.
pub fn shares(bundle: &Bundle) -> Vec<Share> {
    let root = Share {
        name: ROOT_SHARE.to_owned(),
        source: bundle.rootfs.clone(),
        readonly: bundle.readonly(),
        ..Share::default()
    };
    std::iter::once(root).chain(mounts::shares(bundle)).collect()
}

/// `spec` with its shares by the names that they have beside another container's.
pub fn rename_shares(spec: &mut ContainerSpec, name: impl Fn(&str) -> String) {
    spec.root_share = name(&spec.root_share);
    for mount in spec.mounts.iter_mut().filter(|mount| mount.type_ == mounts::SHARE) {
        mount.source = name(&mount.source);
    }
}

/// The container for `bundle`, named `id`; `clock_ns` is the wall clock.
pub fn container(bundle: &Bundle, id: &str, clock_ns: u64) -> Result<ContainerSpec, PlanError> {
    let linux = linux(bundle);
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    namespaces::check(linux)?;
    let ids = Ids::of(linux)?;
    let spec = &bundle.spec;
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    Ok(ContainerSpec {
        hostname: hostname(spec.hostname().as_deref(), id),
        domainname: spec.domainname().clone().unwrap_or_default(),
        root_share: ROOT_SHARE.to_owned(),
        root_readonly: bundle.readonly(),
        mounts: mounts::mounts(bundle, &ids)?,
        only_these_mounts: true,
        process: spec.process().as_ref().map(|asked| process(asked, linux)).transpose()?.into(),
        clock_ns,
        devices: linux
            .and_then(|linux| linux.devices().as_deref())
            .unwrap_or_default()
            .iter()
            .filter(|device| !is_terminals_own(device))
            .map(|asked| device(asked, &ids))
            .collect::<Result<_, _>>()?,
        sysctls: linux.map(sysctls).unwrap_or_default(),
        masked_paths: list(linux.and_then(|linux| linux.masked_paths().as_ref())),
        readonly_paths: list(linux.and_then(|linux| linux.readonly_paths().as_ref())),
        root_propagation: linux
            .and_then(|linux| linux.rootfs_propagation().clone())
            .unwrap_or_default(),
        cgroup: resources.map(resources::guest).unwrap_or_default(),
        device_rules: resources
            .map(device_rules)
            .transpose()?
            .filter(|rules| !devices::deny_nothing(rules))
            .unwrap_or_default(),
        uid_mappings: ids.uids,
        gid_mappings: ids.gids,
        ..Default::default()
    })
}

/// Which devices of its guest the container may use; any, if there is no rule.
pub fn device_rules(resources: &LinuxResources) -> Result<Vec<DeviceRule>, PlanError> {
    Ok(devices::rules(resources.devices().as_deref().unwrap_or_default())?)
}

/// The host name of the container `id`, for which `asked` was configured.
pub fn hostname(asked: Option<&str>, id: &str) -> String {
    match asked {
        None | Some("") => id.chars().take(HOSTNAME_BYTES).collect(),
        Some(name) => name.to_owned(),
    }
}

fn linux(bundle: &Bundle) -> Option<&Linux> {
    bundle.spec.linux().as_ref()
}

/// In the order of their names: a map has none.
fn sysctls(linux: &Linux) -> Vec<Setting> {
    let mut settings: Vec<Setting> =
        linux.sysctl().iter().flatten().map(|(name, value)| setting(name, value)).collect();
    settings.sort_by(|a, b| a.name.cmp(&b.name));
    settings
}

fn setting(name: impl Into<String>, value: impl Into<String>) -> Setting {
    Setting { name: name.into(), value: value.into(), ..Default::default() }
}

/// Nodes that every container has as a link or a mount.
fn is_terminals_own(device: &LinuxDevice) -> bool {
    [Path::new("/dev/ptmx"), Path::new("/dev/console")].contains(&device.path().as_path())
}

fn device(device: &LinuxDevice, ids: &Ids) -> Result<Device, PlanError> {
    let path = device.path().to_string_lossy().into_owned();
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(PlanError::Device { path }),
    };
    let number =
        |number: i64| u32::try_from(number).map_err(|_| PlanError::Device { path: path.clone() });
    let (major, minor) = match kind {
        libc::S_IFIFO => (0, 0),
        _ => (number(device.major())?, number(device.minor())?),
    };
    Ok(Device {
        mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
        major,
        minor,
        uid: ids.user(device.uid().unwrap_or(0)),
        gid: ids.group(device.gid().unwrap_or(0)),
        path,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests;
