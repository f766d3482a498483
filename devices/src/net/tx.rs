//! Frames from the guest to the host.

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;

use super::header::{self, ETHERNET_LEN, TxHeader};
use super::link::Link;
use super::tap::is_gone;
use super::{FRAMES_MAX, Turn};
use crate::GuestMemory;
use crate::iovec::IoVecs;
use crate::rate_limiter::RateLimiter;
use crate::virtio::buffers::{Buffers, pop};

/// The most buffers of a frame: Linux needs MAX_SKB_FRAGS (17) and one, of pages that may straddle
/// regions of guest memory. A frame in more pieces is dropped.
const BUFFERS_MAX: usize = 64;

/// What came of a chain.
enum Sent {
    /// It is done with, whether it was sent or dropped.
    Done,
    /// The link takes no more for now.
    Blocked,
    /// The link is gone.
    Gone,
}

/// Sends what the driver has made available, as much as one turn may. Without a link, frames go
/// nowhere, as with a cable unplugged.
pub(super) fn send(
    queue: &mut Queue,
    memory: &GuestMemory,
    features: u64,
    mut link: Option<&mut Link>,
    limiter: &mut RateLimiter,
) -> Result<Turn, Error> {
    queue.disable_notification(memory)?;
    for _ in 0..FRAMES_MAX {
        if !limiter.ready() {
            return Ok(Turn::Waiting);
        }
        let Some(chain) = pop(queue, memory)? else {
            // Something may have come before notifications were wanted again.
            match queue.enable_notification(memory)? {
                true => continue,
                false => return Ok(Turn::Waiting),
            }
        };
        let head = chain.head_index();
        let frame = Buffers::readable(memory, chain, queue.size().into()).unwrap_or_default();
        let len = frame.len();
        let sent = link.as_mut().map_or(Sent::Done, |link| send_frame(link, frame, features));
        if !matches!(sent, Sent::Done) {
            queue.go_to_previous_position();
            let gone = matches!(sent, Sent::Gone);
            return Ok(if gone { Turn::Gone } else { Turn::Blocked });
        }
        limiter.charge(len);
        queue.add_used(memory, head, 0)?;
    }
    Ok(Turn::Unfinished)
}

fn send_frame(link: &mut Link, mut frame: Buffers, features: u64) -> Sent {
    if !(header::LEN + ETHERNET_LEN..=header::FRAME_LEN_MAX).contains(&frame.len()) {
        return Sent::Done;
    }
    let mut bytes = [0; header::LEN];
    frame.read(&mut bytes);
    let Some(header) = TxHeader::check(bytes, frame.len(), features) else {
        return Sent::Done;
    };
    let mut preamble = link.preamble(header, frame.len());
    let mut buffers = IoVecs::<BUFFERS_MAX>::new();
    buffers.push(&[VolatileSlice::from(preamble.bytes_mut())], header::LEN);
    if !buffers.push(frame.slices(), frame.len()) {
        return Sent::Done;
    }
    match link.send(&buffers) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Sent::Blocked,
        Err(error) if is_gone(&error) => Sent::Gone,
        // What the host does not take for a frame is lost, as on any network.
        _ => Sent::Done,
    }
}
