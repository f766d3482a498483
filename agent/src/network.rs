//! Gives the guest's interfaces what the host's have: names, addresses, routes, neighbours.

use bulkhead_protocol::rpc::agent::{
    Interface, InterfaceAddress, NetworkNeighbour, NetworkRoute, NetworkSpec,
};
use rustix::io::Errno;
use rustix::net::netdevice;

use crate::netlink::{Netlink, Request};

mod connections;
mod readdress;

pub use readdress::readdress;

/// Why the network is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {step} {object}: {source}")]
pub struct NetworkError {
    /// What was to be done.
    pub step: &'static str,
    /// To what.
    pub object: String,
    /// The kernel's answer.
    pub source: Errno,
}

/// Names the step.
pub fn failed<'a>(step: &'static str, object: &'a str) -> impl FnOnce(Errno) -> NetworkError + 'a {
    move |source| NetworkError { step, object: object.to_owned(), source }
}

// linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h, linux/neighbour.h
const IFA_F_NODAD: u8 = 0x02;
const RTNH_F_ONLINK: u32 = 4;
const RTPROT_STATIC: u8 = 4;
const NUD_PERMANENT: u16 = 0x80;

/// Applies `spec`.
pub fn apply(spec: &NetworkSpec) -> Result<(), NetworkError> {
    if spec.interfaces.is_empty() && spec.routes.is_empty() {
        return Ok(());
    }
    let netlink = Netlink::open().map_err(failed("open", "a netlink socket"))?;
    let links = name(&netlink, &spec.interfaces)?;
    add_to(&netlink, spec, &links)
}

/// Gives the interfaces `links` what `spec` says.
fn add_to(netlink: &Netlink, spec: &NetworkSpec, links: &[u32]) -> Result<(), NetworkError> {
    for (interface, link) in spec.interfaces.iter().zip(links) {
        set_up(netlink, interface, *link)?;
    }
    for route in &spec.routes {
        let object = format!("{}/{}", text(&route.destination), route.prefix_length);
        route_request(libc::RTM_NEWROUTE, libc::NLM_F_CREATE, route, links)
            .and_then(|request| netlink.carry_out(request))
            .map_err(failed("add the route to", &object))?;
    }
    for neighbour in &spec.neighbours {
        add_neighbour(netlink, neighbour, links)
            .map_err(failed("add the neighbour", &text(&neighbour.address)))?;
    }
    Ok(())
}

/// Names the interfaces and returns their indices. The kernel has called them eth0, eth1, ... in the
/// order of the VM's devices: names are taken away from all before any gets its own.
fn name(netlink: &Netlink, interfaces: &[Interface]) -> Result<Vec<u32>, NetworkError> {
    let mut links = Vec::new();
    for place in 0..interfaces.len() {
        let kernels = format!("eth{place}");
        let link = netdevice::name_to_index(netlink.socket(), &kernels);
        links.push(link.map_err(failed("find the interface", &kernels))?);
    }
    let kept = interfaces.iter().enumerate().all(|(i, wanted)| wanted.name == format!("eth{i}"));
    if kept {
        return Ok(links);
    }
    rename(netlink, &links, interfaces)?;
    Ok(links)
}

/// Gives interfaces their names, any of which may be that of another yet.
fn rename(netlink: &Netlink, links: &[u32], interfaces: &[Interface]) -> Result<(), NetworkError> {
    let rename = |link: u32, name: &str| {
        let bytes = [name.as_bytes(), b"\0"].concat();
        let request = link_request(link, 0, 0).attribute(libc::IFLA_IFNAME, &bytes);
        netlink.carry_out(request).map_err(failed("name the interface", name))
    };
    for link in links {
        rename(*link, &format!("nic{link}"))?;
    }
    for (interface, link) in interfaces.iter().zip(links) {
        rename(*link, &interface.name)?;
    }
    Ok(())
}

/// Addresses come before the interface goes up, so that no IPv6 address of the kernel's own making
/// waits for a second to find out that it is nobody else's.
fn set_up(netlink: &Netlink, interface: &Interface, link: u32) -> Result<(), NetworkError> {
    let name = &interface.name;
    let mut request = link_request(link, 0, 0).optional(libc::IFLA_ADDRESS, &interface.mac);
    if interface.mtu != 0 {
        request = request.number(libc::IFLA_MTU, interface.mtu);
    }
    netlink.carry_out(request).map_err(failed("set the MAC address and MTU of", name))?;
    for address in &interface.addresses {
        let object = format!("{}/{} to {name}", text(&address.address), address.prefix_length);
        address_request(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, address, link)
            .and_then(|request| netlink.carry_out(request))
            .map_err(failed("add the address", &object))?;
    }
    let up = link_request(link, libc::IFF_UP as u32, libc::IFF_UP as u32);
    netlink.carry_out(up).map_err(failed("bring up the interface", name))
}

/// `struct ifinfomsg`: family, pad, type, index, flags, which flags to change.
fn link_request(link: u32, flags: u32, change: u32) -> Request {
    let body = [[0; 4], [0; 4], flags.to_ne_bytes(), change.to_ne_bytes()];
    let mut body = body.concat();
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    Request::new(libc::RTM_NEWLINK, 0, &body)
}

/// RTM_NEWADDR or RTM_DELADDR.
fn address_request(
    kind: u16,
    request_flags: libc::c_int,
    address: &InterfaceAddress,
    link: u32,
) -> rustix::io::Result<Request> {
    let family = family(&address.address)?;
    let prefix = byte(address.prefix_length)?;
    // The host has made sure of it before; asking again would delay the start.
    let flags = if family == libc::AF_INET6 as u8 { IFA_F_NODAD } else { 0 };
    // `struct ifaddrmsg`: family, length of the prefix, flags, scope, index.
    let mut body = vec![family, prefix, flags, byte(address.scope)?];
    body.extend(link.to_ne_bytes());
    let other = if address.peer.is_empty() { &address.address } else { &address.peer };
    Ok(Request::new(kind, request_flags, &body)
        .attribute(libc::IFA_LOCAL, &address.address)
        .attribute(libc::IFA_ADDRESS, other)
        .optional(libc::IFA_BROADCAST, &address.broadcast))
}

/// RTM_NEWROUTE or RTM_DELROUTE.
fn route_request(
    message: u16,
    request_flags: libc::c_int,
    route: &NetworkRoute,
    links: &[u32],
) -> rustix::io::Result<Request> {
    let own = family(&route.destination)?;
    let flags = if route.onlink { RTNH_F_ONLINK } else { 0 };
    // `struct rtmsg`: family, lengths of the prefixes, TOS, table, protocol, scope, type, flags.
    let (scope, kind) = (byte(route.scope)?, byte(route.kind)?);
    let prefix = byte(route.prefix_length)?;
    let mut body = vec![own, prefix, 0, 0, libc::RT_TABLE_MAIN, RTPROT_STATIC, scope, kind];
    body.extend(flags.to_ne_bytes());
    let mut request = Request::new(message, request_flags, &body)
        .attribute(libc::RTA_DST, &route.destination)
        .optional(libc::RTA_PREFSRC, &route.source);
    if !route.gateway.is_empty() {
        let of_gateway = family(&route.gateway)?;
        request = if of_gateway == own {
            request.attribute(libc::RTA_GATEWAY, &route.gateway)
        } else {
            // `struct rtvia`: family and address.
            let via = [&u16::from(of_gateway).to_ne_bytes()[..], &route.gateway].concat();
            request.attribute(libc::RTA_VIA, &via)
        };
    }
    if route.metric != 0 {
        request = request.number(libc::RTA_PRIORITY, route.metric);
    }
    if let Some(place) = route.interface {
        request = request.number(libc::RTA_OIF, at(links, place)?);
    }
    Ok(request)
}

fn add_neighbour(
    netlink: &Netlink,
    neighbour: &NetworkNeighbour,
    links: &[u32],
) -> rustix::io::Result<()> {
    // `struct ndmsg`: family, pad, index, state, flags, type.
    let mut body = vec![family(&neighbour.address)?, 0, 0, 0];
    body.extend(at(links, neighbour.interface)?.to_ne_bytes());
    body.extend(NUD_PERMANENT.to_ne_bytes());
    body.extend([0, 0]);
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let request = Request::new(libc::RTM_NEWNEIGH, flags, &body)
        .attribute(libc::NDA_DST, &neighbour.address)
        .attribute(libc::NDA_LLADDR, &neighbour.mac);
    netlink.carry_out(request)
}

fn at(links: &[u32], place: u32) -> rustix::io::Result<u32> {
    links.get(place as usize).copied().ok_or(Errno::NODEV)
}

fn family(address: &[u8]) -> rustix::io::Result<u8> {
    match address.len() {
        4 => Ok(libc::AF_INET as u8),
        16 => Ok(libc::AF_INET6 as u8),
        _ => Err(Errno::INVAL),
    }
}

fn byte(number: u32) -> rustix::io::Result<u8> {
    u8::try_from(number).map_err(|_| Errno::INVAL)
}

/// An address as people write it.
fn text(address: &[u8]) -> String {
    if let Ok(octets) = <[u8; 4]>::try_from(address) {
        return std::net::Ipv4Addr::from(octets).to_string();
    }
    match <[u8; 16]>::try_from(address) {
        Ok(octets) => std::net::Ipv6Addr::from(octets).to_string(),
        Err(_) => format!("of {} bytes", address.len()),
    }
}
