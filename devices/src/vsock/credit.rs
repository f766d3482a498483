//! Flow control: how much each side may still send (virtio 1.3, 5.10.6.3).
//!
//! Counters are of bytes since the connection began, modulo 2^32.

use std::num::Wrapping;

use serde::{Deserialize, Serialize};

use super::caps::BUFFER_BYTES;

/// Both directions' counters of one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// Bytes from the guest that may wait for the host, as the guest was told.
    buffer: u32,
    peer_buffer: u32,
    peer_forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>,
}

impl Credit {
    /// Nothing was sent yet; `buffer` bytes from the guest may wait for the host.
    pub fn new(buffer: u32) -> Self {
        Self {
            buffer,
            peer_buffer: 0,
            peer_forwarded: Wrapping(0),
            sent: Wrapping(0),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
        }
    }

    /// Whether there ever was such a connection.
    pub fn is_possible(&self) -> bool {
        BUFFER_BYTES.contains(&self.buffer) && self.waiting() <= self.buffer
    }

    /// Every packet of the guest says how its buffer is.
    pub fn peer_says(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buffer = buf_alloc;
        self.peer_forwarded = Wrapping(fwd_cnt);
    }

    /// Bytes that may be sent to the guest now.
    pub fn to_send(&self) -> u32 {
        self.peer_buffer.saturating_sub((self.sent - self.peer_forwarded).0)
    }

    /// Bytes were sent to the guest.
    pub fn sent(&mut self, bytes: u32) {
        self.sent += bytes;
    }

    /// The guest sent bytes; false if it had no credit for them.
    #[must_use]
    pub fn received(&mut self, bytes: u32) -> bool {
        let fits = bytes <= self.buffer.saturating_sub(self.waiting());
        if fits {
            self.received += bytes;
        }
        fits
    }

    /// The host took bytes that the guest sent.
    pub fn forwarded(&mut self, bytes: usize) {
        self.forwarded += bytes as u32;
    }

    /// Bytes of the guest's that the host has not taken.
    pub fn waiting(&self) -> u32 {
        (self.received - self.forwarded).0
    }

    /// The guest may run out of credit unless it is told of what was forwarded.
    pub fn needs_update(&self) -> bool {
        (self.forwarded - self.announced).0 >= self.buffer / 2
    }

    /// `buf_alloc` and `fwd_cnt` for a packet to the guest.
    pub fn says(&self) -> (u32, u32) {
        (self.buffer, self.forwarded.0)
    }

    /// A packet with [`Credit::says`] was sent.
    pub fn announced(&mut self) {
        self.announced = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUFFER: u32 = 256 << 10;

    #[test]
    fn a_guest_that_claims_to_have_forwarded_more_than_it_got_gets_nothing() {
        let mut credit = Credit::new(BUFFER);
        credit.peer_says(1000, 10);
        assert_eq!(credit.to_send(), 0);
    }

    #[test]
    fn a_shrunk_peer_buffer_leaves_no_credit() {
        let mut credit = Credit::new(BUFFER);
        credit.peer_says(1000, 0);
        credit.sent(800);
        assert_eq!(credit.to_send(), 200);
        credit.peer_says(500, 100);
        assert_eq!(credit.to_send(), 0);
        credit.peer_says(500, 800);
        assert_eq!(credit.to_send(), 500);
    }

    proptest! {
        /// An honest guest is never refused, never starves for want of an update, and a guest that
        /// sends one byte more than it may is refused; across the counters' wrap too.
        #[test]
        fn credit_is_neither_lost_nor_invented(
            start: u32,
            buffer in BUFFER_BYTES,
            steps in proptest::collection::vec((0u32..100_000, 0usize..100_000), 1..60),
        ) {
            let wrap = Wrapping(start);
            let mut credit =
                Credit { received: wrap, forwarded: wrap, announced: wrap, ..Credit::new(buffer) };
            let (mut waiting, mut unannounced) = (0u32, 0u32);
            for (send, forward) in steps {
                // What the guest believes to be free.
                let free = buffer - waiting - unannounced;
                let send = send.min(free);
                prop_assert!(credit.received(send));
                waiting += send;
                prop_assert!(!credit.clone().received(buffer - waiting + 1));
                let forward = (forward as u32).min(waiting);
                credit.forwarded(forward as usize);
                waiting -= forward;
                unannounced += forward;
                if credit.needs_update() {
                    prop_assert_eq!(credit.says().0, buffer);
                    credit.announced();
                    unannounced = 0;
                }
                // Once the host has taken all, the guest can always go on.
                prop_assert!(waiting > 0 || buffer - unannounced > 0);
            }
        }
    }
}
