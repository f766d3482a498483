//! Serving a queue whose requests are answered at once, each into buffers of its own.

use virtio_queue::{Error, QueueT};

use super::Active;
use super::buffers::{Buffers, pop};
use crate::rate_limiter::RateLimiter;

/// Answers up to `max` requests of the queue `index`, as far as `limiter` lets it: `answer` gets a
/// request's writable buffers and returns how many bytes it wrote. A chain that is none goes back
/// with nothing in it. What is left after `max` has its turn behind other devices'. An error is a ring
/// that the driver has corrupted.
pub fn writable(
    active: &mut Active,
    index: usize,
    max: usize,
    limiter: &mut RateLimiter,
    mut answer: impl FnMut(Buffers) -> usize,
) -> Result<(), Error> {
    let memory = &*active.memory;
    let queue = &mut active.queues[index];
    let mut served = 0;
    while served < max && limiter.ready() {
        match pop(queue, memory)? {
            Some(chain) => {
                let head = chain.head_index();
                let buffers = Buffers::writable(memory, chain, queue.size().into());
                let written = buffers.map_or(0, &mut answer);
                limiter.charge(written);
                queue.add_used(memory, head, written as u32)?;
                served += 1;
            }
            None if queue.enable_notification(memory)? => {}
            None => break,
        }
    }
    if served > 0 && queue.needs_notification(memory)? {
        active.interrupt.used();
    }
    if served == max {
        active.notify_again(index);
    }
    Ok(())
}
