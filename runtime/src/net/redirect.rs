//! Traffic control that joins an interface and a tap: what arrives at one leaves by the other.
//!
//! The interface keeps its addresses, so that the namespace looks as it did, but the host's kernel
//! sees none of its traffic any more: an ingress qdisc takes every frame before the stack does.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};

use super::netlink::Netlink;

/// The ingress qdisc's own handle; there is one per interface (tc(8)).
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// The first filter to be asked.
const PRIORITY: u32 = 1;

/// Brings a tap up with this MTU. It gets no IPv6 address: the host's kernel has nothing to say
/// there.
pub fn bring_up(netlink: &mut Netlink, tap: u32, mtu: u32) -> io::Result<()> {
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let mut quiet = LinkMessage::default();
    quiet.header.index = tap;
    quiet.attributes = vec![LinkAttribute::AfSpecUnspec(vec![mode])];
    match netlink.request(Message::SetLink(quiet), 0) {
        // A kernel without IPv6 has no addresses to make up.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        result => result?,
    }
    let mut up = LinkMessage::default();
    up.header.index = tap;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    up.attributes = vec![LinkAttribute::Mtu(mtu)];
    netlink.request(Message::SetLink(up), 0)
}

/// Joins two interfaces, given by their indices.
pub fn join(netlink: &mut Netlink, interface: u32, tap: u32) -> io::Result<()> {
    // What a VM that is gone has left, whose tap is gone too.
    remove(netlink, interface);
    for (from, to) in [(interface, tap), (tap, interface)] {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        netlink.request(Message::NewQueueDiscipline(ingress(from)), flags)?;
        netlink.request(Message::NewTrafficFilter(filter(from, to)), flags)?;
    }
    Ok(())
}

/// Deletes a tap, whoever has it open.
pub fn delete(netlink: &mut Netlink, tap: u32) {
    let mut link = LinkMessage::default();
    link.header.index = tap;
    // One that is gone already need not be deleted.
    let _ = netlink.request(Message::DelLink(link), 0);
}

/// Lets the host's kernel have the interface's traffic again.
pub fn remove(netlink: &mut Netlink, interface: u32) {
    // An error says that there is nothing to be removed, or no such interface any more.
    let _ = netlink.request(Message::DelQueueDiscipline(ingress(interface)), 0);
}

fn ingress(interface: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = INGRESS;
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}

/// Every frame that arrives at `from` leaves by `to`.
fn filter(from: u32, to: u32) -> TcMessage {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let parameters = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![parameters]),
    ];
    // One key that masks everything out matches everything.
    let mut all = TcU32Selector::default();
    all.flags = TcU32SelectorFlags::Terminal;
    all.keys = vec![TcU32Key::default()];
    all.nkeys = 1;

    let mut message = TcMessage::with_index(from.cast_signed());
    message.header.parent = INGRESS;
    let every_protocol = u32::from((libc::ETH_P_ALL as u16).to_be());
    message.header.info = PRIORITY << 16 | every_protocol;
    message.attributes = vec![
        TcAttribute::Kind("u32".to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(all)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    message
}
