//! The network of a VM that goes on from a snapshot, perhaps elsewhere.
//!
//! Where everything is as it was nothing is touched, and connections live on. Where anything is not,
//! every interface gets what the new network gives it, from the beginning, and connections of addresses
//! that are gone end.

use std::fs;

use bulkhead_protocol::rpc::agent::{NetworkRoute, NetworkSpec};
use rustix::net::netdevice;

use super::{
    NetworkError, add_to, address_request, connections, failed, link_request, rename, route_request,
};
use crate::netlink::Netlink;

/// Has interfaces that get an address tell their neighbours (networking/ip-sysctl.rst): they may know
/// it as another's.
const ANNOUNCE: &str = "/proc/sys/net/ipv4/conf/all/arp_notify";

/// Makes the network that was set up as `was` what `spec` says.
pub fn readdress(was: &NetworkSpec, spec: &NetworkSpec) -> Result<(), NetworkError> {
    if was == spec {
        return Ok(());
    }
    let netlink = Netlink::open().map_err(failed("open", "a netlink socket"))?;
    let links = take_down(&netlink, was)?;
    connections::end(&gone(was, spec));
    for route in was.routes.iter().filter(|route| leads_nowhere(route)) {
        // An error says that the container has removed it.
        let _ = route_request(libc::RTM_DELROUTE, 0, route, &[])
            .and_then(|request| netlink.carry_out(request));
    }
    let names = |spec: &NetworkSpec| -> Vec<String> {
        spec.interfaces.iter().map(|interface| interface.name.clone()).collect()
    };
    let kept = names(was);
    if kept.get(..spec.interfaces.len()) != Some(&names(spec)[..]) {
        rename(&netlink, &links, &spec.interfaces)?;
    }
    let announced = fs::read(ANNOUNCE);
    let _ = fs::write(ANNOUNCE, "1");
    let added = add_to(&netlink, spec, &links);
    if let Ok(announced) = announced {
        let _ = fs::write(ANNOUNCE, announced);
    }
    added
}

/// Takes the interfaces down, which removes their routes, neighbours and IPv6 addresses, and their
/// other addresses away; returns their indices.
fn take_down(netlink: &Netlink, was: &NetworkSpec) -> Result<Vec<u32>, NetworkError> {
    let mut links = Vec::new();
    for interface in &was.interfaces {
        let name = &interface.name;
        let link = netdevice::name_to_index(netlink.socket(), name);
        let link = link.map_err(failed("find the interface", name))?;
        let down = link_request(link, 0, libc::IFF_UP as u32);
        netlink.carry_out(down).map_err(failed("take down the interface", name))?;
        for address in &interface.addresses {
            // An error says that it is gone already.
            let _ = address_request(libc::RTM_DELADDR, 0, address, link)
                .and_then(|request| netlink.carry_out(request));
        }
        links.push(link);
    }
    Ok(links)
}

/// The addresses that are not there any more.
fn gone<'a>(was: &'a NetworkSpec, spec: &NetworkSpec) -> Vec<&'a [u8]> {
    let has = |spec: &NetworkSpec, address: &[u8]| {
        let mut addresses = spec.interfaces.iter().flat_map(|interface| &interface.addresses);
        addresses.any(|other| other.address == address)
    };
    let addresses = was.interfaces.iter().flat_map(|interface| &interface.addresses);
    let addresses = addresses.map(|address| address.address.as_slice());
    addresses.filter(|address| !has(spec, address)).collect()
}

fn leads_nowhere(route: &NetworkRoute) -> bool {
    route.interface.is_none()
}
