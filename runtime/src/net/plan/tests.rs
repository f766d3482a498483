use std::net::{Ipv4Addr, Ipv6Addr};

use bulkhead_vmm::spec::NETS_MAX;
use proptest::prelude::*;

use super::*;

const ETH0: u32 = 7;

fn veth(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: "veth".to_owned(),
        mac: vec![2, 0, 0, 0, 0, index as u8],
        mtu: 1500,
        up: true,
        ethernet: true,
        ..Link::default()
    }
}

fn loopback() -> Link {
    Link { index: 1, name: "lo".to_owned(), up: true, loopback: true, ..Link::default() }
}

fn address(link: u32, local: &str, prefix_len: u8) -> Address {
    let local = local.parse().unwrap();
    Address { link, local, prefix_len, peer: None, broadcast: None, scope: 0 }
}

fn route(destination: &str, prefix_len: u8, gateway: Option<&str>) -> Route {
    Route {
        link: Some(ETH0),
        destination: destination.parse().unwrap(),
        prefix_len,
        gateway: gateway.map(|ip| ip.parse().unwrap()),
        source: None,
        metric: 0,
        kind: libc::RTN_UNICAST,
        scope: 0,
        onlink: false,
        multipath: false,
    }
}

fn container() -> Inventory {
    Inventory {
        links: vec![loopback(), veth(ETH0, "eth0")],
        addresses: vec![
            address(1, "127.0.0.1", 8),
            address(ETH0, "10.88.0.2", 16),
            address(ETH0, "fd00::2", 64),
        ],
        routes: vec![route("0.0.0.0", 0, Some("10.88.0.1")), route("::", 0, Some("fd00::1"))],
        neighbours: Vec::new(),
    }
}

#[test]
fn the_guest_gets_what_the_namespace_has() {
    let plan = plan(&container(), NETS_MAX).unwrap();
    let mac = [2, 0, 0, 0, 0, 7];
    let nic = Nic { link: ETH0, name: "eth0".to_owned(), mac, mtu: 1500 };
    assert_eq!(plan.nics, [nic]);
    let interface = &plan.spec.interfaces[0];
    assert_eq!((&*interface.name, &*interface.mac, interface.mtu), ("eth0", &mac[..], 1500));
    let addresses: Vec<_> =
        interface.addresses.iter().map(|a| (a.address.clone(), a.prefix_length)).collect();
    let v6 = "fd00::2".parse::<Ipv6Addr>().unwrap().octets().to_vec();
    assert_eq!(addresses, [(vec![10, 88, 0, 2], 16), (v6, 64)]);
    let routes = &plan.spec.routes;
    assert_eq!((routes.len(), routes[0].interface), (2, Some(0)));
    assert_eq!((&*routes[0].destination, &*routes[0].gateway), (&[0; 4][..], &[10, 88, 0, 1][..]));
    assert_eq!((&*routes[1].destination, routes[1].gateway.len()), (&[0; 16][..], 16));
}

#[test]
fn a_namespace_with_nothing_but_loopback_is_no_network() {
    let mut tunnel = veth(3, "tunl0");
    (tunnel.up, tunnel.ethernet, tunnel.kind) = (false, false, "ipip".to_owned());
    let inventory = Inventory { links: vec![loopback(), tunnel], ..Inventory::default() };
    assert_eq!(plan(&inventory, NETS_MAX), Ok(Plan::default()));
}

#[test]
fn what_makes_a_gateway_reachable_comes_first() {
    let mut inventory = container();
    inventory.routes =
        vec![route("0.0.0.0", 0, Some("169.254.1.1")), route("169.254.1.1", 32, None)];
    let routes = plan(&inventory, NETS_MAX).unwrap().spec.routes;
    assert_eq!(routes[0].destination, [169, 254, 1, 1]);
    assert_eq!(routes[1].gateway, [169, 254, 1, 1]);
}

#[test]
fn routes_follow_their_interface_and_lead_nowhere_without_one() {
    let mut inventory = container();
    inventory.links.push(veth(9, "eth1"));
    let nowhere = libc::RTN_BLACKHOLE;
    inventory.routes = vec![
        Route { link: Some(9), ..route("10.1.0.0", 16, None) },
        Route { link: Some(1), ..route("10.2.0.0", 16, None) },
        Route { link: None, kind: nowhere, ..route("10.3.0.0", 16, None) },
    ];
    let routes = plan(&inventory, NETS_MAX).unwrap().spec.routes;
    let places: Vec<_> = routes.iter().map(|r| (r.destination[1], r.interface)).collect();
    assert_eq!(places, [(1, Some(1)), (3, None)]);
}

#[test]
fn static_neighbours_are_carried_over() {
    let mut inventory = container();
    let address = Ipv4Addr::new(10, 88, 0, 1).into();
    let neighbour = |link| Neighbour { link, address, mac: vec![6; 6] };
    inventory.neighbours = vec![neighbour(ETH0), neighbour(1)];
    let neighbours = plan(&inventory, NETS_MAX).unwrap().spec.neighbours;
    assert_eq!((neighbours.len(), &*neighbours[0].mac), (1, &[6; 6][..]));
}

#[test]
fn what_no_guest_can_have_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Inventory)| {
        let mut inventory = container();
        change(&mut inventory);
        plan(&inventory, NETS_MAX).unwrap_err().to_string()
    };
    let tap = Link { kind: "tun".to_owned(), ..veth(12, "bhtap0") };
    let error = refused(&|inventory| inventory.links.push(tap.clone()));
    assert!(error.contains("another running VM") && error.contains("bhtap0"), "{error}");

    let wireguard =
        Link { kind: "wireguard".to_owned(), ethernet: false, mac: vec![], ..veth(8, "wg0") };
    let error = refused(&|inventory| inventory.links.push(wireguard.clone()));
    assert!(error.contains("wg0 (wireguard)"), "{error}");

    let error = refused(&|inventory| inventory.links[1].ethernet = false);
    assert!(error.contains("eth0 (veth)"), "{error}");

    let error = refused(&|inventory| inventory.links.extend((10..18).map(|i| veth(i, "x"))));
    assert!(error.contains("9 interfaces"), "{error}");

    let error = refused(&|inventory| inventory.routes[1].multipath = true);
    assert!(error.contains("::/0"), "{error}");
}

#[test]
fn another_program_s_tap_is_an_interface_like_others() {
    let mut inventory = container();
    inventory.links[1] = Link { kind: "tun".to_owned(), ..veth(ETH0, "tap0") };
    assert_eq!(plan(&inventory, NETS_MAX).unwrap().nics[0].name, "tap0");
}

proptest! {
    /// Whatever refers to interfaces refers to one that is there.
    #[test]
    fn every_reference_leads_to_an_interface(
        links in prop::collection::vec((1u32..12, any::<bool>(), any::<bool>()), 0..8),
        routes in prop::collection::vec((0u32..12, any::<bool>()), 0..12),
        neighbours in prop::collection::vec(0u32..12, 0..6),
    ) {
        let inventory = Inventory {
            links: links
                .iter()
                .map(|(index, up, loopback)| Link {
                    up: *up,
                    loopback: *loopback,
                    ..veth(*index, "x")
                })
                .collect(),
            addresses: vec![address(3, "10.0.0.1", 8)],
            routes: routes
                .iter()
                .map(|(link, via)| Route {
                    link: Some(*link),
                    ..route("10.0.0.0", 8, via.then_some("10.0.0.2"))
                })
                .collect(),
            neighbours: neighbours
                .iter()
                .map(|link| Neighbour {
                    link: *link,
                    address: Ipv4Addr::LOCALHOST.into(),
                    mac: vec![0; 6],
                })
                .collect(),
        };
        let Ok(plan) = plan(&inventory, NETS_MAX) else { return Ok(()) };
        let count = plan.nics.len() as u32;
        prop_assert_eq!(plan.spec.interfaces.len() as u32, count);
        prop_assert!(plan.spec.routes.iter().all(|r| r.interface.is_none_or(|i| i < count)));
        prop_assert!(plan.spec.neighbours.iter().all(|n| n.interface < count));
        let gateways: Vec<_> = plan.spec.routes.iter().map(|r| !r.gateway.is_empty()).collect();
        prop_assert!(gateways.is_sorted());
    }
}
