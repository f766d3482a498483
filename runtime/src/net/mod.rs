//! The network of a container, from its network namespace on the host to its guest.
//!
//! ```text
//!  namespace ▶ Inventory ▶ Plan (pure) ▶ taps joined to interfaces by tc ▶ Network
//!                                                      │
//!  bridge ── veth pair ── eth0 ◀── every frame ──▶ bhtap0 ── VMM ── eth0 in the guest
//! ```
//!
//! Whoever made the namespace (an engine's network plugins) finds it as it was: the interfaces keep
//! names and addresses. The guest's interfaces have the same, MAC addresses included, so that to
//! the network nothing changed but the kernel that answers. A tap lives as long as its VM: one that is
//! there tells a second VM that the namespace is taken.

mod inventory;
mod netlink;
pub mod passt;
mod plan;
mod redirect;
mod tap;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use bulkhead_protocol::rpc::agent::NetworkSpec;
use bulkhead_vmm::spec::{LinkKind, NETS_MAX, NetSpec};
use rustix::fs::FlockOperation;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use self::inventory::Inventory;
use self::netlink::Netlink;
use self::plan::{Nic, PlanError};
use crate::oci::record::HostProcess;

/// Why a container cannot have its network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The host's own network.
    #[error(
        "the container asks for the host's network, which belongs to the host's kernel and not to \
         the container's own: give it another one (podman: --network bridge or none)"
    )]
    Host,
    /// Another container's network, by way of its process.
    #[error(
        "the container asks for the network of a VM that is no running container's here: give the \
         other container's --root, or join both to one network instead"
    )]
    OtherContainer,
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace {}: {source}", .path.display())]
    Enter {
        /// The namespace.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The namespace cannot be listed.
    #[error("cannot list the network namespace {}: {source}", .path.display())]
    List {
        /// The namespace.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// It cannot be a guest's.
    #[error("the network namespace {} cannot be used: {source}", .path.display())]
    Plan {
        /// The namespace.
        path: PathBuf,
        /// Why.
        source: PlanError,
    },
    /// A tap.
    #[error("cannot make a tap for {interface} (is there /dev/net/tun?): {source}")]
    Tap {
        /// The interface it is for.
        interface: String,
        /// What failed.
        source: io::Error,
    },
    /// Traffic control.
    #[error(
        "cannot redirect the traffic of {interface} (the kernel needs the ingress qdisc, the u32 \
         filter and the mirred action): {source}"
    )]
    Redirect {
        /// The interface.
        interface: String,
        /// What failed.
        source: io::Error,
    },
}

/// A container's network, ready for its VM.
#[derive(Debug, Default)]
pub struct Network {
    /// One tap an interface, or other link: they have to stay open until the VMM has inherited them.
    pub taps: Vec<OwnedFd>,
    /// The VM's devices, in the same order, which refer to [`Network::taps`] by number.
    pub nets: Vec<NetSpec>,
    /// What the guest is told.
    pub spec: NetworkSpec,
}

impl Network {
    /// Takes over the interfaces of the network namespace at `path`. One that has none but loopback
    /// makes an empty network.
    pub fn take_over(path: &Path) -> Result<Self, NetError> {
        let enter = |source| NetError::Enter { path: path.to_owned(), source };
        let namespace = File::open(path).map_err(enter)?;
        if is_own(&namespace).map_err(enter)? {
            return Err(NetError::Host);
        }
        // One at a time: who comes second is to find the first one's taps.
        rustix::fs::flock(&namespace, FlockOperation::LockExclusive)
            .map_err(|error| enter(error.into()))?;
        within(&namespace, || set_up(path, NETS_MAX)).map_err(enter)?
    }

    /// Takes over what was put into the network namespace of a VMM since it runs: an engine finds it
    /// as that of the container's process. The VM has `room` for so many interfaces.
    pub fn of_vmm(vmm: HostProcess, room: usize) -> Result<Self, NetError> {
        if !rustix::process::geteuid().is_root() {
            // Its namespace is below a user namespace that only the VMM itself is in.
            return Ok(Self::default());
        }
        let path = PathBuf::from(format!("/proc/{}/ns/net", vmm.pid));
        let enter = |source| NetError::Enter { path: path.clone(), source };
        let namespace = File::open(&path).map_err(enter)?;
        // Only now: while it lives, its ID is nobody else's.
        if vmm.find().is_none() {
            return Err(enter(io::ErrorKind::NotFound.into()));
        }
        // One that is not jailed is still in ours, where nothing is its own.
        if is_own(&namespace).map_err(enter)? {
            return Ok(Self::default());
        }
        within(&namespace, || set_up(&path, room)).map_err(enter)?
    }
}

/// Undoes what [`Network::of_vmm`] has done: the interfaces are the engine's again. What fails is no
/// worse than before; the taps go with the VMM at last.
pub fn give_back(vmm: HostProcess) {
    let namespace = File::open(format!("/proc/{}/ns/net", vmm.pid));
    let own = namespace
        .ok()
        .filter(|namespace| vmm.find().is_some() && !is_own(namespace).unwrap_or(true));
    let undo = || {
        let mut netlink = Netlink::open()?;
        for link in Inventory::read(&mut netlink)?.links {
            match plan::is_tap(&link) {
                true => redirect::delete(&mut netlink, link.index),
                false => redirect::remove(&mut netlink, link.index),
            }
        }
        io::Result::Ok(())
    };
    let _ = own.map(|namespace| within(&namespace, undo));
}

/// Whether a VMM has left our network namespace for its own, as one that is jailed does before all
/// else.
pub fn has_left(vmm: HostProcess) -> bool {
    File::open(format!("/proc/{}/ns/net", vmm.pid)).is_ok_and(|ns| !is_own(&ns).unwrap_or(true))
}

/// Whether it is the namespace that we are in ourselves.
fn is_own(namespace: &File) -> io::Result<bool> {
    let (own, asked) = (std::fs::metadata("/proc/self/ns/net")?, namespace.metadata()?);
    Ok((own.dev(), own.ino()) == (asked.dev(), asked.ino()))
}

/// Has a thread of its own do `work` in a network namespace.
fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let enter_and_work = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(work())
    };
    thread::scope(|scope| match scope.spawn(enter_and_work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// In the namespace.
fn set_up(path: &Path, room: usize) -> Result<Network, NetError> {
    let list = |source| NetError::List { path: path.to_owned(), source };
    let mut netlink = Netlink::open().map_err(list)?;
    let inventory = Inventory::read(&mut netlink).map_err(list)?;
    let plan = plan::plan(&inventory, room)
        .map_err(|source| NetError::Plan { path: path.to_owned(), source })?;
    let mut network = Network { spec: plan.spec, ..Network::default() };
    for (done, nic) in plan.nics.iter().enumerate() {
        match take(&mut netlink, nic) {
            Ok(tap) => network.add(nic, tap),
            Err(error) => {
                // The taps go with their descriptors.
                for nic in &plan.nics[..=done] {
                    redirect::remove(&mut netlink, nic.link);
                }
                return Err(error);
            }
        }
    }
    Ok(network)
}

/// Joins an interface to a new tap.
fn take(netlink: &mut Netlink, nic: &Nic) -> Result<OwnedFd, NetError> {
    let failed = |source| NetError::Tap { interface: nic.name.clone(), source };
    let tap = tap::create().map_err(failed)?;
    let index = rustix::net::netdevice::name_to_index(netlink.socket(), &tap.name)
        .map_err(|error| failed(error.into()))?;
    redirect::bring_up(netlink, index, nic.mtu).map_err(failed)?;
    redirect::join(netlink, nic.link, index)
        .map_err(|source| NetError::Redirect { interface: nic.name.clone(), source })?;
    Ok(tap.fd)
}

impl Network {
    fn add(&mut self, nic: &Nic, tap: OwnedFd) {
        self.nets.push(NetSpec {
            link_fd: Some(tap.as_raw_fd()),
            kind: LinkKind::Tap,
            mac: nic.mac,
            mtu: u16::try_from(nic.mtu).ok(),
        });
        self.taps.push(tap);
    }
}
