//! What is in a network namespace, as plain data.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
    RouteVia,
};

use super::netlink::Netlink;

/// All of a namespace that matters to a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Interfaces in the order of their indices.
    pub links: Vec<Link>,
    /// Addresses that somebody gave to them.
    pub addresses: Vec<Address>,
    /// Routes that somebody added to the main table.
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is, as ip(8) has it: "veth". Empty for hardware and loopback.
    pub kind: String,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// Bytes of a frame's payload.
    pub mtu: u32,
    /// It is administratively up.
    pub up: bool,
    /// It is a loopback interface.
    pub loopback: bool,
    /// It carries Ethernet frames and resolves addresses.
    pub ethernet: bool,
    /// It is a port of another interface.
    pub port: bool,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub link: u32,
    /// The address.
    pub local: IpAddr,
    /// Length of its network's prefix.
    pub prefix_len: u8,
    /// The other end, for an address of a pair.
    pub peer: Option<IpAddr>,
    /// IPv4's broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// rtnetlink(7), `ifa_scope`.
    pub scope: u8,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface.
    pub link: Option<u32>,
    /// Where it leads; unspecified with a prefix length of 0 for the default route.
    pub destination: IpAddr,
    /// Length of the destination's prefix.
    pub prefix_len: u8,
    /// The next hop, which may be of another family.
    pub gateway: Option<IpAddr>,
    /// The source address to prefer.
    pub source: Option<IpAddr>,
    /// Less wins.
    pub metric: u32,
    /// rtnetlink(7), `rtm_type` and `rtm_scope`.
    pub kind: u8,
    /// As above.
    pub scope: u8,
    /// The gateway is taken to be on the link, whatever its address.
    pub onlink: bool,
    /// It has several next hops.
    pub multipath: bool,
}

/// A permanent neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the interface.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: Vec<u8>,
}

impl Inventory {
    /// Lists the namespace of `netlink`.
    pub fn read(netlink: &mut Netlink) -> io::Result<Self> {
        let mut inventory = Self::default();
        for request in [
            Message::GetLink(LinkMessage::default()),
            Message::GetAddress(AddressMessage::default()),
            Message::GetRoute(RouteMessage::default()),
            Message::GetNeighbour(NeighbourMessage::default()),
        ] {
            netlink.dump(request)?.into_iter().for_each(|message| inventory.add(message));
        }
        inventory.links.sort_by_key(|link| link.index);
        Ok(inventory)
    }

    /// Takes one message of a listing.
    pub fn add(&mut self, message: Message) {
        match message {
            Message::NewLink(message) => self.links.push(link(message)),
            Message::NewAddress(message) => self.addresses.extend(address(message)),
            Message::NewRoute(message) => self.routes.extend(route(message)),
            Message::NewNeighbour(message) => self.neighbours.extend(neighbour(message)),
            _ => {}
        }
    }
}

fn link(message: LinkMessage) -> Link {
    let header = message.header;
    let has = |flag| header.flags.contains(flag);
    let mut link = Link {
        index: header.index,
        up: has(LinkFlags::Up),
        loopback: has(LinkFlags::Loopback),
        ethernet: header.link_layer_type == LinkLayerType::Ether && !has(LinkFlags::Noarp),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(_) => link.port = true,
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

/// `None` for addresses that the kernel made up itself, from a router's advertisements: the guest's
/// kernel hears those too.
fn address(message: AddressMessage) -> Option<Address> {
    const PERMANENT: u8 = 0x80; // IFA_F_PERMANENT, linux/if_addr.h
    let header = message.header;
    if header.flags.bits() & PERMANENT == 0 {
        return None;
    }
    let (mut local, mut address, mut broadcast) = (None, None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(ip),
            _ => {}
        }
    }
    let local_or_only = local.or(address)?;
    Some(Address {
        link: header.index,
        local: local_or_only,
        prefix_len: header.prefix_len,
        peer: address.filter(|address| *address != local_or_only),
        broadcast,
        scope: header.scope.into(),
    })
}

/// `None` for routes that the kernel adds itself, in the guest as here: to networks of its own
/// addresses, and what routers advertise.
fn route(message: RouteMessage) -> Option<Route> {
    let header = message.header;
    let added = matches!(
        header.kind,
        RouteType::Unicast | RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
    ) && !matches!(
        header.protocol,
        RouteProtocol::Kernel | RouteProtocol::Ra | RouteProtocol::IcmpRedirect
    ) && !header.flags.contains(RouteFlags::Cloned);
    let mut table = u32::from(header.table);
    let mut route = Route {
        link: None,
        destination: unspecified(header.address_family)?,
        prefix_len: header.destination_prefix_length,
        gateway: None,
        source: None,
        metric: 0,
        kind: header.kind.into(),
        scope: header.scope.into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        multipath: false,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = number,
            RouteAttribute::Oif(index) => route.link = Some(index),
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::Destination(to) => route.destination = ip(to)?,
            RouteAttribute::Gateway(hop) => route.gateway = ip(hop),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Via(RouteVia::Inet6(hop)) => route.gateway = Some(hop.into()),
            RouteAttribute::Via(RouteVia::Inet(hop)) => route.gateway = Some(hop.into()),
            RouteAttribute::MultiPath(_) => route.multipath = true,
            _ => {}
        }
    }
    (added && table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(route)
}

fn neighbour(message: NeighbourMessage) -> Option<Neighbour> {
    let header = message.header;
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(ip.into());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(ip.into());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(bytes),
            _ => {}
        }
    }
    let neighbour = Neighbour { link: header.ifindex, address: address?, mac: mac? };
    (header.state == NeighbourState::Permanent).then_some(neighbour)
}

fn unspecified(family: netlink_packet_route::AddressFamily) -> Option<IpAddr> {
    match family {
        netlink_packet_route::AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        netlink_packet_route::AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(ip.into()),
        RouteAddress::Inet6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
