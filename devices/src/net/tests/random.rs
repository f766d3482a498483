//! Random traffic and random malice.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::testing::FREE_MEMORY;

/// Features that change how frames are laid out.
fn features() -> impl Strategy<Value = u64> {
    let choices = [
        EVENT_IDX,
        1 << VIRTIO_NET_F_MRG_RXBUF,
        1 << VIRTIO_NET_F_GUEST_TSO4,
        1 << VIRTIO_RING_F_INDIRECT_DESC,
    ];
    prop::bits::u8::between(0, 4).prop_map(move |bits| {
        let some = (0..).zip(choices).filter(|(i, _)| bits & 1 << i != 0);
        some.fold(!choices.iter().sum::<u64>(), |all, (_, feature)| all | feature)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Frames of any size, both ways, in buffers of any size, arrive whole and in order.
    #[test]
    fn traffic_arrives_as_it_was_sent(
        features in features(),
        frames in prop::collection::vec((any::<bool>(), 14usize..1500, 1usize..20), 1..60),
        buffer in 1530u32..5000,
    ) {
        let mut wire = Wire::with(features, NetConfig::default());
        let (mut to_host, mut to_guest, mut in_guest) = (Vec::new(), Vec::new(), Vec::new());
        let mut take = |wire: &mut Wire| {
            for used in wire.used(RX) {
                in_guest.push(used.bytes);
            }
            let missing = wire.driver.queue(RX).free();
            wire.post_receive(missing, buffer);
        };
        take(&mut wire);
        for (seed, (outward, len, pieces)) in (0u8..).zip(frames) {
            let whole = frame(seed, len);
            if outward {
                let cut: Vec<&[u8]> = whole.chunks(whole.len().div_ceil(pieces)).collect();
                wire.send(&cut);
                to_host.push(whole);
            } else {
                prop_assert!(wire.host_sends(&whole));
                to_guest.push(delivered(whole, 1));
            }
            if seed % 3 == 0 {
                take(&mut wire);
                wire.used(TX);
            }
        }
        take(&mut wire);
        take(&mut wire);
        let in_host: Vec<_> = std::iter::from_fn(|| wire.host_gets()).collect();
        prop_assert_eq!(in_host, to_host);
        prop_assert_eq!(in_guest, to_guest);
    }

    /// Whatever stands in the rings, the device neither panics nor hangs, hands the host nothing
    /// but well-formed frames, and works after a reset.
    #[test]
    fn any_ring_is_survived(
        features in features(),
        descriptors in prop::collection::vec(
            (0u64..0x12_0000, prop::sample::select(vec![0u32, 1, 11, 12, 26, 1536, 70_000, u32::MAX]),
             0u16..8, 0u16..40),
            32,
        ),
        heads in prop::collection::vec((0usize..2, 0u16..40), 0..80),
    ) {
        let mut wire = Wire::with(features, NetConfig::default());
        // What is read as indirect tables and headers.
        for (i, (address, len, flags, next)) in descriptors.iter().enumerate() {
            let raw = crate::testing::raw_descriptor(*address, *len, *flags, *next);
            let at = GuestAddress(FREE_MEMORY.start + 16 * i as u64);
            wire.driver.memory.write_slice(&raw, at).unwrap();
            for queue in [RX, TX] {
                wire.driver.queue(queue).write_descriptor(i as u16, *address, *len, *flags, *next);
            }
        }
        for (queue, head) in heads {
            wire.host_sends(&frame(1, 100));
            wire.driver.queue(queue).publish(head);
            wire.driver.kick(queue);
            wire.driver.run();
            while let Some(message) = wire.host_gets() {
                prop_assert!(message.len() >= header::LEN + header::ETHERNET_LEN);
                prop_assert!(message.len() <= header::FRAME_LEN_MAX);
            }
        }
        let features = wire.driver.offered_features();
        wire.driver.initialise(features);
        wire.send(&[&frame(9, 60)]);
        wire.driver.run();
        prop_assert_eq!(wire.host_gets(), Some(frame(9, 60)));
    }
}
