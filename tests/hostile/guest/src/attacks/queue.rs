//! Attacks by what is in a virtqueue's rings, on the device that does the least with it.

use super::Attack;
use crate::fail;
use crate::io::{Random, get, pause, put};
use crate::virtio::{
    BUFFERS, Device, FS, INDIRECT, NEXT, Queue, RNG, VSOCK, WRITE, describe, rng, rng_is_sane,
    rng_with,
};

/// The end of memory of a VM of 64 MiB.
const MEMORY_END: u64 = 0x0400_0000;
const INDIRECT_DESC: u32 = 1 << 28;
const EVENT_IDX: u32 = 1 << 29;

pub const ATTACKS: &[Attack] = &[
    ("chain_that_is_a_loop", chain_that_is_a_loop),
    ("chain_that_is_a_long_loop", chain_that_is_a_long_loop),
    ("chain_longer_than_the_queue", chain_longer_than_the_queue),
    ("buffers_of_no_length", buffers_of_no_length),
    ("buffers_of_4_gib", buffers_of_4_gib),
    ("buffers_out_of_memory", buffers_out_of_memory),
    ("buffers_across_the_end_of_memory", buffers_across_the_end_of_memory),
    ("buffers_that_wrap_around", buffers_that_wrap_around),
    ("buffers_over_the_rings", buffers_over_the_rings),
    ("buffers_over_device_registers", buffers_over_device_registers),
    ("heads_out_of_range", heads_out_of_range),
    ("next_out_of_range", next_out_of_range),
    ("avail_index_jumps", avail_index_jumps),
    ("head_offered_many_times", head_offered_many_times),
    ("readable_after_writable", readable_after_writable),
    ("indirect_in_indirect", indirect_in_indirect),
    ("indirect_never_negotiated", indirect_never_negotiated),
    ("indirect_tables_of_odd_length", indirect_tables_of_odd_length),
    ("indirect_table_out_of_memory", indirect_table_out_of_memory),
    ("indirect_with_next", indirect_with_next),
    ("event_index_nonsense", event_index_nonsense),
    ("rings_on_one_another", rings_on_one_another),
    ("rings_at_the_end_of_memory", rings_at_the_end_of_memory),
    ("rings_of_noise", rings_of_noise),
    ("entropy_gluttony", entropy_gluttony),
];

fn sane() {
    if !rng_is_sane() {
        fail("the entropy device does not work any more");
    }
}

/// Offers head 0 as it stands and gives the device time.
fn offer(queue: Queue) {
    queue.offer(0);
    queue.notify();
    pause(100_000);
}

fn chain_that_is_a_loop() {
    let queue = rng(8);
    queue.describe(0, BUFFERS, 64, WRITE | NEXT, 0);
    offer(queue);
    sane();
}

fn chain_that_is_a_long_loop() {
    let queue = rng(16);
    for i in 0..16 {
        queue.describe(i, BUFFERS, 1 << 16, WRITE | NEXT, (i + 1) % 16);
    }
    offer(queue);
    sane();
}

fn chain_longer_than_the_queue() {
    let queue = rng_with(8, INDIRECT_DESC);
    let table = BUFFERS + 0x10_0000;
    for i in 0..4096 {
        describe(table, i, BUFFERS, 16, WRITE | NEXT, i + 1);
    }
    queue.describe(0, table, 4096 * 16, INDIRECT, 0);
    offer(queue);
    sane();
}

fn buffers_of_no_length() {
    let queue = rng(8);
    for i in 0..8 {
        queue.describe(i, BUFFERS, 0, WRITE | if i < 7 { NEXT } else { 0 }, i + 1);
    }
    offer(queue);
    sane();
}

fn buffers_of_4_gib() {
    let queue = rng(8);
    for address in [0, BUFFERS, u64::MAX - 0xffff_fffe] {
        queue.describe(0, address, u32::MAX, WRITE, 0);
        offer(queue);
    }
    sane();
}

fn buffers_out_of_memory() {
    for address in [MEMORY_END, 0xc000_0000, 0xd000_0000, 1 << 32, 1 << 40, 1 << 63, u64::MAX] {
        let queue = rng(8);
        queue.describe(0, address, 64, WRITE, 0);
        offer(queue);
    }
    sane();
}

fn buffers_across_the_end_of_memory() {
    for before in [1, 8, 63, 4096] {
        let queue = rng(8);
        queue.describe(0, MEMORY_END - before, 1 << 16, WRITE, 0);
        offer(queue);
    }
    sane();
}

fn buffers_that_wrap_around() {
    for address in [u64::MAX, u64::MAX - 15, 0u64.wrapping_sub(1 << 20), i64::MAX as u64] {
        let queue = rng(8);
        queue.describe(0, address, u32::MAX, WRITE | NEXT, 1);
        queue.describe(1, address, 16, WRITE, 0);
        offer(queue);
    }
    sane();
}

fn buffers_over_the_rings() {
    let queue = rng(8);
    for address in [queue.desc, queue.avail, queue.used] {
        let queue = rng(8);
        queue.describe(0, address, 256, WRITE, 0);
        offer(queue);
    }
    sane();
}

fn buffers_over_device_registers() {
    let queue = rng(8);
    for window in 0..4u64 {
        queue.describe(0, 0xd000_0000 + window * 0x1000, 0x200, WRITE, 0);
        offer(queue);
    }
    queue.describe(0, 0xfee0_0000, 0x1000, WRITE, 0);
    offer(queue);
    sane();
}

fn heads_out_of_range() {
    for head in [8, 9, 255, 0x7fff, 0xffff] {
        let queue = rng(8);
        queue.offer(head);
        queue.notify();
        pause(50_000);
    }
    sane();
}

fn next_out_of_range() {
    for next in [8, 9, 0x7fff, 0xffff] {
        let queue = rng(8);
        queue.describe(0, BUFFERS, 16, WRITE | NEXT, next);
        offer(queue);
    }
    sane();
}

fn avail_index_jumps() {
    for jump in [9, 0x100, 0x7fff, 0x8000, 0xffff] {
        let queue = rng(8);
        put(queue.avail + 2, jump as u16);
        queue.notify();
        pause(50_000);
        put(queue.avail + 2, 0u16);
        queue.notify();
        pause(50_000);
    }
    sane();
}

fn head_offered_many_times() {
    let queue = rng(16);
    queue.describe(0, BUFFERS, 64, WRITE, 0);
    for slot in 0..16 {
        put(queue.avail + 4 + 2 * slot, 0u16);
    }
    for round in 1..200u16 {
        put(queue.avail + 2, round.wrapping_mul(16));
        queue.notify();
    }
    sane();
}

fn readable_after_writable() {
    let queue = rng(8);
    queue.describe(0, BUFFERS, 64, WRITE | NEXT, 1);
    queue.describe(1, BUFFERS + 64, 64, NEXT, 2);
    queue.describe(2, BUFFERS + 128, 64, WRITE, 0);
    offer(queue);
    sane();
}

fn indirect_in_indirect() {
    let queue = rng_with(8, INDIRECT_DESC);
    let table = BUFFERS + 0x10_0000;
    describe(table, 0, table, 32, INDIRECT, 0);
    describe(table, 1, table, 32, INDIRECT | NEXT, 0);
    queue.describe(0, table, 32, INDIRECT, 0);
    offer(queue);
    sane();
}

fn indirect_never_negotiated() {
    let queue = rng(8);
    let table = BUFFERS + 0x10_0000;
    describe(table, 0, BUFFERS, 64, WRITE, 0);
    queue.describe(0, table, 16, INDIRECT, 0);
    offer(queue);
    sane();
}

fn indirect_tables_of_odd_length() {
    for id in [FS, RNG] {
        for len in [0, 1, 15, 17, 31, u32::MAX, 1 << 20, 65536 * 16 + 16] {
            let device = Device::find(id);
            device.negotiate(INDIRECT_DESC);
            let queues = [0, 1].map(|index| device.queue(index, 8).enable());
            device.ok();
            for queue in queues {
                queue.describe(0, BUFFERS, len, INDIRECT, 0);
                offer(queue);
            }
        }
    }
    sane();
}

fn indirect_table_out_of_memory() {
    for address in [MEMORY_END - 8, MEMORY_END, 0xd000_0000, u64::MAX - 15, 1 << 48] {
        let queue = rng_with(8, INDIRECT_DESC);
        queue.describe(0, address, 160, INDIRECT, 0);
        offer(queue);
    }
    sane();
}

fn indirect_with_next() {
    let queue = rng_with(8, INDIRECT_DESC);
    let table = BUFFERS + 0x10_0000;
    describe(table, 0, BUFFERS, 64, WRITE | NEXT, 0xffff);
    queue.describe(0, table, 16, INDIRECT | NEXT, 0);
    offer(queue);
    sane();
}

fn event_index_nonsense() {
    let queue = rng_with(8, EVENT_IDX);
    let mut random = Random(3);
    queue.describe(0, BUFFERS, 16, WRITE, 0);
    for _ in 0..500 {
        put(queue.avail + 4 + 16, random.next() as u16); // used_event
        put(queue.used + 4 + 64, random.next() as u16); // avail_event
        put(queue.avail, random.next() as u16);
        put(queue.used, random.next() as u16);
        put(queue.used + 2, random.next() as u16);
        queue.offer(0);
        queue.notify();
    }
    sane();
}

fn rings_on_one_another() {
    for id in [FS, VSOCK, RNG] {
        let device = Device::find(id);
        device.negotiate(0);
        let last = if id == VSOCK {
            2
        } else if id == FS {
            1
        } else {
            0
        };
        for index in 0..=last {
            let mut queue = device.queue(index, 8);
            let all = queue.desc;
            (queue.avail, queue.used) = (all, all);
            queue.enable();
            for at in (0..256).step_by(4) {
                put(all + at, 0x0003_0002u32);
            }
        }
        device.ok();
        for round in 0..100u32 {
            device.set(0x50, round % (last + 1));
        }
        pause(100_000);
        device.set(0x70, 0);
    }
    sane();
}

fn rings_at_the_end_of_memory() {
    let device = Device::find(RNG);
    for spare in [0, 2, 4, 6, 64] {
        device.negotiate(0);
        let mut queue = device.queue(0, 16);
        queue.used = MEMORY_END - (6 + 8 * 16) + spare & !3;
        queue.enable();
        device.ok();
        offer(queue);
        device.negotiate(0);
        queue = device.queue(0, 16);
        queue.avail = MEMORY_END - (6 + 2 * 16) + spare & !1;
        queue.enable();
        device.ok();
        device.set(0x50, 0);
    }
    sane();
}

fn rings_of_noise() {
    let mut random = Random(0xfeed_f00d);
    for id in [FS, VSOCK, RNG] {
        let device = Device::find(id);
        for _ in 0..60 {
            device.negotiate(INDIRECT_DESC | EVENT_IDX & device.reg(0x10));
            let last = if id == VSOCK {
                2
            } else if id == FS {
                1
            } else {
                0
            };
            let queues = (0..=last).map(|index| device.queue(index, 16).enable());
            for queue in queues {
                for at in (0..512).step_by(8) {
                    let noise = random.next();
                    let near = if noise & 1 == 0 { BUFFERS + noise % 0x10_0000 } else { noise };
                    put(
                        queue.desc + at,
                        if at % 16 == 0 { near } else { noise & 0x00ff_0007_0000_ffff },
                    );
                    put(queue.avail + at, noise & 0x001f_001f_001f_001f);
                }
            }
            device.ok();
            for index in 0..=last {
                device.set(0x50, index);
            }
            pause(2_000);
        }
        device.set(0x70, 0);
    }
    sane();
}

fn entropy_gluttony() {
    let queue = rng(16);
    for i in 0..16 {
        queue.describe(i, BUFFERS, 8 << 20, WRITE, 0);
    }
    for round in 0..2_000u16 {
        queue.offer(round % 16);
        queue.notify();
    }
    if get::<u16>(queue.used + 2) == 0 {
        fail("nothing was served");
    }
    sane();
}
