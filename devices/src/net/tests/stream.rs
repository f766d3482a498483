//! A stream in place of the tap: framing, and a peer that does not keep to it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;

/// A guest's driver and the peer's end of the stream.
struct Peer {
    driver: Driver,
    socket: UnixStream,
}

impl Peer {
    fn new() -> Self {
        let (socket, guest) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let link = Some(Link::Stream(Stream::new(guest.into()).unwrap()));
        let config = NetConfig { mac: MAC, link, plain: true, ..NetConfig::default() };
        let mut driver = Driver::new(Box::new(Net::new(config).unwrap()));
        let offered = driver.offered_features();
        driver.initialise(offered | VERSION_1);
        Self { driver, socket }
    }

    fn sends(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
        self.driver.run();
    }

    fn post_receive(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.queue(RX).post(&[], &[2048]);
        }
        self.driver.kick(RX);
        self.driver.run();
    }

    fn gets(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.socket.read_to_end(&mut bytes);
        bytes
    }

    fn received(&mut self) -> Vec<Used> {
        std::iter::from_fn(|| self.driver.queue(RX).take_used()).collect()
    }

    fn is_up(&self) -> bool {
        let mut status = [0; 2];
        self.driver.read_config(6, &mut status);
        status == [1, 0]
    }
}

fn framed(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes(), payload].concat()
}

#[test]
fn frames_are_plain_behind_their_length() {
    let mut peer = Peer::new();
    assert_eq!(peer.driver.offered_features() & OFFLOADS, 0);
    let sent = frame(1, 60);
    peer.driver.queue(TX).post(&[&sent], &[]);
    peer.driver.kick(TX);
    peer.driver.run();
    assert_eq!(peer.gets(), framed(&sent[header::LEN..]));
    peer.post_receive(4);
    peer.sends(&framed(&sent[header::LEN..]));
    assert_eq!(peer.received()[0].bytes, delivered(sent, 1));
}

#[test]
fn a_peer_that_reads_slowly_gets_everything_in_order() {
    let mut peer = Peer::new();
    let mut expected = Vec::new();
    let mut got = Vec::new();
    for seed in 0..200 {
        let sent = frame(seed, 9000);
        expected.extend(framed(&sent[header::LEN..]));
        peer.driver.queue(TX).post(&[&sent], &[]);
        peer.driver.kick(TX);
        peer.driver.run();
        while peer.driver.queue(TX).take_used().is_some() {}
        let mut some = [0; 5000];
        if let Ok(len) = peer.socket.read(&mut some) {
            got.extend(&some[..len]);
        }
    }
    for _ in 0..1000 {
        got.extend(peer.gets());
        peer.driver.run();
    }
    assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
}

#[test]
fn lengths_that_no_frame_has_end_the_link() {
    for length in [0u32, 13, 65_551, u32::MAX] {
        let mut peer = Peer::new();
        peer.post_receive(64);
        peer.sends(&[&length.to_be_bytes()[..], &[0; 64]].concat());
        assert!(!peer.is_up(), "{length}");
        assert!(peer.received().is_empty());
    }
    let mut peer = Peer::new();
    drop(std::mem::replace(&mut peer.socket, UnixStream::pair().unwrap().0));
    peer.driver.run();
    assert!(!peer.is_up());
}

proptest! {
    /// However the bytes of frames come in, frames come out.
    #[test]
    fn frames_come_out_whole(
        lens in prop::collection::vec(14usize..3000, 1..20),
        cuts in prop::collection::vec(1usize..4000, 1..40),
    ) {
        let frames: Vec<_> = lens.iter().zip(0..).map(|(len, seed)| frame(seed, *len)).collect();
        let bytes: Vec<u8> = frames.iter().flat_map(|f| framed(&f[header::LEN..])).collect();
        let mut peer = Peer::new();
        peer.post_receive(100);
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            peer.sends(now);
            rest = later;
        }
        // One buffer could hold the largest frame of the MTU: what does not fit into it is lost.
        let kept = frames.iter().filter(|frame| frame.len() <= 2048);
        let kept: Vec<_> = kept.map(|frame| delivered(frame.clone(), 1)).collect();
        let received: Vec<_> = peer.received().into_iter().map(|used| used.bytes).collect();
        prop_assert!(received == kept, "{} of {}", received.len(), kept.len());
    }
}
