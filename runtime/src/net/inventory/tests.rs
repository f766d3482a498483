use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::route::RouteScope;

use super::*;

fn listed(messages: impl IntoIterator<Item = Message>) -> Inventory {
    let mut inventory = Inventory::default();
    messages.into_iter().for_each(|message| inventory.add(message));
    inventory
}

#[test]
fn an_interface_is_what_the_kernel_says() {
    let mut message = LinkMessage::default();
    message.header.index = 5;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up | LinkFlags::Broadcast;
    message.attributes = vec![
        LinkAttribute::IfName("eth0".to_owned()),
        LinkAttribute::Mtu(1400),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
    ];
    let expected = Link {
        index: 5,
        name: "eth0".to_owned(),
        kind: "veth".to_owned(),
        mac: vec![2, 0, 0, 0, 0, 1],
        mtu: 1400,
        up: true,
        ethernet: true,
        ..Link::default()
    };
    assert_eq!(listed([Message::NewLink(message.clone())]).links, [expected]);
    message.header.flags |= LinkFlags::Noarp;
    assert!(!listed([Message::NewLink(message)]).links[0].ethernet, "L3 modes resolve nothing");
}

fn address_message(flags: AddressHeaderFlags, attributes: Vec<AddressAttribute>) -> Message {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 24;
    message.header.flags = flags;
    message.attributes = attributes;
    Message::NewAddress(message)
}

#[test]
fn addresses_that_somebody_gave_are_kept() {
    let ip = |last| IpAddr::from([10, 0, 0, last]);
    let permanent = AddressHeaderFlags::Permanent;
    let own = address_message(
        permanent,
        vec![AddressAttribute::Address(ip(1)), AddressAttribute::Local(ip(1))],
    );
    let pair = address_message(
        permanent,
        vec![AddressAttribute::Address(ip(2)), AddressAttribute::Local(ip(1))],
    );
    let only = address_message(permanent, vec![AddressAttribute::Address(ip(3))]);
    let autoconfigured =
        address_message(AddressHeaderFlags::empty(), vec![AddressAttribute::Address(ip(4))]);
    let kept: Vec<_> = listed([own, pair, only, autoconfigured])
        .addresses
        .iter()
        .map(|address| (address.local, address.peer))
        .collect();
    assert_eq!(kept, [(ip(1), None), (ip(1), Some(ip(2))), (ip(3), None)]);
}

fn route_message(protocol: RouteProtocol, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = protocol;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes = attributes;
    message
}

#[test]
fn routes_that_somebody_added_are_kept() {
    let gateway = Ipv4Addr::new(10, 0, 0, 1);
    let hop = RouteAttribute::Gateway(RouteAddress::Inet(gateway));
    let attributes = vec![hop, RouteAttribute::Oif(4), RouteAttribute::Priority(9)];
    let default = route_message(RouteProtocol::Boot, attributes.clone());
    let routes = listed([Message::NewRoute(default)]).routes;
    let route = &routes[0];
    assert_eq!((route.destination, route.prefix_len), (Ipv4Addr::UNSPECIFIED.into(), 0));
    assert_eq!((route.gateway, route.link, route.metric), (Some(gateway.into()), Some(4), 9));
    assert_eq!((route.kind, route.scope), (libc::RTN_UNICAST, 253));

    for protocol in [RouteProtocol::Kernel, RouteProtocol::Ra] {
        let message = Message::NewRoute(route_message(protocol, attributes.clone()));
        assert!(listed([message]).routes.is_empty(), "the guest's kernel adds it itself");
    }
    let mut other = route_message(RouteProtocol::Static, attributes.clone());
    other.attributes.push(RouteAttribute::Table(100));
    assert!(listed([Message::NewRoute(other)]).routes.is_empty(), "of another table");
    let mut local = route_message(RouteProtocol::Static, attributes);
    local.header.kind = RouteType::Local;
    assert!(listed([Message::NewRoute(local)]).routes.is_empty(), "not to be forwarded");
}

#[test]
fn only_permanent_neighbours_are_kept() {
    let neighbour = |state| {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 2;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::LOCALHOST)),
            NeighbourAttribute::LinkLayerAddress(vec![1; 6]),
        ];
        Message::NewNeighbour(message)
    };
    let states = [NeighbourState::Permanent, NeighbourState::Reachable, NeighbourState::Noarp];
    assert_eq!(listed(states.map(neighbour)).neighbours.len(), 1);
}

#[test]
fn the_kernel_s_own_listing_is_understood() {
    let inventory = Inventory::read(&mut Netlink::open().unwrap()).unwrap();
    let loopback = inventory.links.iter().find(|link| link.loopback).unwrap();
    assert_eq!((loopback.index, &*loopback.name, loopback.ethernet), (1, "lo", false));
}
