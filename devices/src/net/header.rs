//! `struct virtio_net_hdr` (virtio 1.3, 5.1.6), which precedes every frame, and what a driver may
//! ask for in it.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of the header as VIRTIO_F_VERSION_1 has it, with `num_buffers` at its end.
pub const LEN: usize = 12;
/// Offset of `num_buffers`.
pub const NUM_BUFFERS: usize = 10;
/// An Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// The largest frame with its header (5.1.6.3.1): one of segmentation offload.
pub const FRAME_LEN_MAX: usize = 65562;

/// A checksum is two bytes.
const CHECKSUM_LEN: usize = 2;

/// The header of a frame that the driver sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxHeader([u8; LEN]);

impl TxHeader {
    /// Checks a header that precedes `frame_len` bytes against what was negotiated; `None` for what
    /// a driver must not send. Pass on this copy: what is in guest memory may change.
    pub fn check(bytes: [u8; LEN], frame_len: usize, features: u64) -> Option<Self> {
        let [flags, gso_type, ..] = bytes.map(u32::from);
        let field = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let [header_len, gso_size, csum_start, csum_offset] = [2, 4, 6, 8].map(field);
        let has = |feature: u32| features & 1 << feature != 0;

        if flags & !VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
            return None;
        }
        let needs_csum = flags != 0;
        let csum_fits = csum_start + csum_offset + CHECKSUM_LEN <= frame_len;
        if needs_csum && !(has(VIRTIO_NET_F_CSUM) && csum_fits) {
            return None;
        }
        let segments = match gso_type & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE => false,
            VIRTIO_NET_HDR_GSO_TCPV4 if has(VIRTIO_NET_F_HOST_TSO4) => true,
            VIRTIO_NET_HDR_GSO_TCPV6 if has(VIRTIO_NET_F_HOST_TSO6) => true,
            _ => return None,
        };
        let ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN != 0;
        if ecn && !(segments && has(VIRTIO_NET_F_HOST_ECN)) {
            return None;
        }
        if segments && !(needs_csum && gso_size > 0 && header_len <= frame_len) {
            return None;
        }
        let mut header = bytes;
        if !segments {
            // Mere hints then, which a driver may leave as they were.
            header[2..6].fill(0);
        }
        header[NUM_BUFFERS..].fill(0);
        Some(Self(header))
    }

    /// The header's bytes.
    pub fn bytes(self) -> [u8; LEN] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: u64 = 1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6
        | 1 << VIRTIO_NET_F_HOST_ECN;

    fn header(flags: u8, gso_type: u8, fields: [u16; 4]) -> [u8; LEN] {
        let mut bytes = [0xee; LEN];
        (bytes[0], bytes[1]) = (flags, gso_type);
        for (to, from) in bytes[2..].chunks_mut(2).zip(fields) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }

    fn passes(flags: u8, gso_type: u8, fields: [u16; 4], features: u64) -> bool {
        TxHeader::check(header(flags, gso_type, fields), 100, features).is_some()
    }

    #[test]
    fn what_was_negotiated_passes() {
        assert!(passes(0, 0, [0; 4], 0));
        assert!(passes(1, 0, [0, 0, 34, 16], ALL));
        assert!(passes(1, 1, [54, 1448, 34, 16], ALL));
        assert!(passes(1, 4, [74, 1428, 54, 16], ALL));
        assert!(passes(1, 0x81, [54, 1448, 34, 16], ALL));
    }

    #[test]
    fn what_was_not_does_not() {
        for (flags, gso_type, fields, features, why) in [
            (1, 0, [0, 0, 34, 16], 0, "checksum offload was not accepted"),
            (1, 1, [54, 1448, 34, 16], 1, "segmentation offload was not accepted"),
            (1, 0x81, [54, 1448, 34, 16], ALL & !(1 << VIRTIO_NET_F_HOST_ECN), "nor was ECN"),
            (1, 3, [42, 1448, 34, 6], ALL, "UDP fragmentation is never offered"),
            (1, 5, [42, 1448, 34, 6], ALL, "UDP segmentation is never offered"),
            (0, 1, [54, 1448, 34, 16], ALL, "segments need checksums"),
            (1, 1, [54, 0, 34, 16], ALL, "segments have a size"),
            (1, 1, [101, 1448, 34, 16], ALL, "headers end within the frame"),
            (1, 0, [0, 0, 83, 16], ALL, "the checksum lies within the frame"),
            (1, 0, [0, 0, u16::MAX, u16::MAX], ALL, "far outside"),
            (2, 0, [0; 4], ALL, "DATA_VALID is the device's to say"),
            (4, 0, [0; 4], ALL, "so is RSC_INFO"),
            (0, 0x80, [0; 4], ALL, "ECN of nothing"),
        ] {
            assert!(!passes(flags, gso_type, fields, features), "{why}");
        }
    }

    #[test]
    fn hints_and_num_buffers_are_not_passed_on() {
        let checked = TxHeader::check(header(0, 0, [9, 9, 9, 9]), 60, ALL);
        assert_eq!(checked, Some(TxHeader([0, 0, 0, 0, 0, 0, 9, 0, 9, 0, 0, 0])));
    }

    proptest! {
        /// Whatever passes stays within the frame and within what was negotiated.
        #[test]
        fn what_passes_is_within_bounds(
            bytes in prop::array::uniform12(any::<u8>()),
            gso in prop::sample::select(vec![0u8, 1, 3, 4, 5, 0x80, 0x81, 0x84]),
            frame_len in 0usize..70_000,
            features in 0u64..1 << 16,
        ) {
            let bytes = { let mut b = bytes; b[0] &= 3; b[1] = gso; b };
            if let Some(TxHeader(out)) = TxHeader::check(bytes, frame_len, features) {
                let field = |at: usize| usize::from(u16::from_le_bytes([out[at], out[at + 1]]));
                prop_assert!(out[0] <= 1);
                if out[0] == 1 {
                    prop_assert!(features & 1 == 1 && field(6) + field(8) + 2 <= frame_len);
                }
                prop_assert!(field(2) <= frame_len || out[1] == 0);
                prop_assert_eq!(field(NUM_BUFFERS), 0);
                prop_assert!(out[1] == 0 || features & (1 << 11 | 1 << 12) != 0);
            }
        }
    }
}
