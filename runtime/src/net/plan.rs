//! Which interfaces of a namespace the guest gets, and what it is told about them. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use bulkhead_protocol::rpc::agent::{
    Interface, InterfaceAddress, NetworkNeighbour, NetworkRoute, NetworkSpec,
};

use super::inventory::{Address, Inventory, Link, Neighbour, Route};
use super::tap::NAME_PREFIX;

/// Why a namespace's network cannot be a guest's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Another VM has it.
    #[error(
        "it belongs to another running VM (whose tap is {tap}), and two kernels cannot share one \
         interface: give the container a network of its own, or join that of the other container"
    )]
    InUse {
        /// The other VM's tap.
        tap: String,
    },
    /// Not an Ethernet interface.
    #[error(
        "its interface {name} ({kind}) carries no Ethernet frames with addresses of their own, \
         which a VM's network card needs: use a bridge or macvlan network"
    )]
    NotEthernet {
        /// The interface.
        name: String,
        /// What it is.
        kind: String,
    },
    /// More than the VM has room for.
    #[error("it has {found} interfaces; the VM has room for {room}")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many there can be.
        room: usize,
    },
    /// A route with several next hops.
    #[error("its route to {destination} has several next hops, which is not supported")]
    Multipath {
        /// Where the route leads.
        destination: String,
    },
}

/// An interface that the guest takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Index in the namespace.
    pub link: u32,
    /// Name in the namespace and in the guest.
    pub name: String,
    /// Hardware address, the guest's too.
    pub mac: [u8; 6],
    /// Bytes of a frame's payload.
    pub mtu: u32,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Interfaces that get a tap, in this order.
    pub nics: Vec<Nic>,
    /// What the guest is told.
    pub spec: NetworkSpec,
}

/// Plans the network of a guest with `room` for interfaces from what a namespace has.
pub fn plan(inventory: &Inventory, room: usize) -> Result<Plan, PlanError> {
    let mut nics = Vec::new();
    for link in &inventory.links {
        if is_tap(link) {
            return Err(PlanError::InUse { tap: link.name.clone() });
        }
        // What is down and has no address was not meant for the container: kernels add tunnel
        // devices to every namespace.
        let meant = link.up || inventory.addresses.iter().any(|a| a.link == link.index);
        if meant && !link.loopback && !link.port {
            nics.push(nic(link)?);
        }
    }
    if nics.len() > room {
        return Err(PlanError::TooMany { found: nics.len(), room });
    }
    let places: HashMap<u32, u32> = nics.iter().map(|nic| nic.link).zip(0..).collect();
    let interfaces = nics.iter().map(|nic| interface(nic, &inventory.addresses)).collect();
    let spec = NetworkSpec {
        interfaces,
        routes: routes(&inventory.routes, &places)?,
        neighbours: inventory.neighbours.iter().filter_map(|n| neighbour(n, &places)).collect(),
        ..Default::default()
    };
    Ok(Plan { nics, spec })
}

/// Whether it is a VM's tap.
pub fn is_tap(link: &Link) -> bool {
    link.kind == "tun" && link.name.starts_with(NAME_PREFIX)
}

fn nic(link: &Link) -> Result<Nic, PlanError> {
    let mac = <[u8; 6]>::try_from(&*link.mac).ok().filter(|_| link.ethernet);
    let mac = mac.ok_or_else(|| PlanError::NotEthernet {
        name: link.name.clone(),
        kind: if link.kind.is_empty() { "hardware".to_owned() } else { link.kind.clone() },
    })?;
    Ok(Nic { link: link.index, name: link.name.clone(), mac, mtu: link.mtu })
}

fn interface(nic: &Nic, addresses: &[Address]) -> Interface {
    let addresses = addresses.iter().filter(|address| address.link == nic.link);
    Interface {
        name: nic.name.clone(),
        mac: nic.mac.to_vec(),
        mtu: nic.mtu,
        addresses: addresses.map(interface_address).collect(),
        ..Default::default()
    }
}

fn interface_address(address: &Address) -> InterfaceAddress {
    InterfaceAddress {
        address: octets(address.local),
        prefix_length: address.prefix_len.into(),
        peer: address.peer.map(octets).unwrap_or_default(),
        broadcast: address.broadcast.map(|ip| octets(ip.into())).unwrap_or_default(),
        scope: address.scope.into(),
        ..Default::default()
    }
}

/// Routes through the interfaces that are taken over, and those that lead nowhere; what makes a
/// gateway reachable comes before it.
fn routes(routes: &[Route], places: &HashMap<u32, u32>) -> Result<Vec<NetworkRoute>, PlanError> {
    let mut planned = Vec::new();
    for route in routes {
        let place = route.link.and_then(|link| places.get(&link));
        if route.multipath {
            let destination = format!("{}/{}", route.destination, route.prefix_len);
            return Err(PlanError::Multipath { destination });
        }
        let nowhere = route.kind != libc::RTN_UNICAST;
        if place.is_none() && !nowhere {
            continue;
        }
        planned.push(NetworkRoute {
            interface: place.copied().filter(|_| !nowhere),
            destination: octets(route.destination),
            prefix_length: route.prefix_len.into(),
            gateway: route.gateway.map(octets).unwrap_or_default(),
            source: route.source.map(octets).unwrap_or_default(),
            metric: route.metric,
            kind: route.kind.into(),
            scope: route.scope.into(),
            onlink: route.onlink,
            ..Default::default()
        });
    }
    planned.sort_by_key(|route| !route.gateway.is_empty());
    Ok(planned)
}

fn neighbour(neighbour: &Neighbour, places: &HashMap<u32, u32>) -> Option<NetworkNeighbour> {
    Some(NetworkNeighbour {
        interface: *places.get(&neighbour.link)?,
        address: octets(neighbour.address),
        mac: neighbour.mac.clone(),
        ..Default::default()
    })
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests;
