//! Attacks on the registers of virtio-mmio devices and on the buses.

use super::Attack;
use crate::fail;
use crate::io::{Random, get, inb, inl, inw, outb, outl, outw, put};
use crate::virtio::{ACKNOWLEDGE, DRIVER, Device, FS, RNG, VSOCK, rng, rng_is_sane, windows};

pub const ATTACKS: &[Attack] = &[
    ("mmio_read_every_offset_and_width", mmio_read_every_offset_and_width),
    ("mmio_write_every_offset_and_width", mmio_write_every_offset_and_width),
    ("mmio_where_nothing_is", mmio_where_nothing_is),
    ("mmio_across_windows", mmio_across_windows),
    ("mmio_random_storm", mmio_random_storm),
    ("pio_read_every_port", pio_read_every_port),
    ("pio_write_every_port", pio_write_every_port),
    ("status_without_features", status_without_features),
    ("status_bits_at_random", status_bits_at_random),
    ("features_never_offered", features_never_offered),
    ("features_after_driver_ok", features_after_driver_ok),
    ("queue_sizes_that_are_none", queue_sizes_that_are_none),
    ("queue_addresses_out_of_memory", queue_addresses_out_of_memory),
    ("queue_moved_after_driver_ok", queue_moved_after_driver_ok),
    ("queue_selected_out_of_range", queue_selected_out_of_range),
    ("queue_ready_twice_and_never", queue_ready_twice_and_never),
    ("notify_storm", notify_storm),
    ("notify_of_no_queue", notify_of_no_queue),
    ("config_written_everywhere", config_written_everywhere),
    ("reset_storm", reset_storm),
    ("interrupts_acknowledged_unasked", interrupts_acknowledged_unasked),
];

fn sane() {
    if !rng_is_sane() {
        fail("the entropy device does not work any more");
    }
}

fn mmio_read_every_offset_and_width() {
    for device in windows() {
        for offset in 0..0x200 {
            let at = device.0 + offset;
            core::hint::black_box((get::<u8>(at), get::<u16>(at), get::<u32>(at), get::<u64>(at)));
        }
        for offset in (0x200..0x1000).step_by(61) {
            core::hint::black_box(get::<u64>(device.0 + offset));
        }
    }
    sane();
}

fn mmio_write_every_offset_and_width() {
    for device in windows() {
        for value in [0, u64::MAX, 0x5555_5555_5555_5555] {
            for offset in 0..0x180 {
                let at = device.0 + offset;
                put(at, value as u8);
                put(at, value as u16);
                put(at, value as u32);
                put(at, value);
            }
        }
    }
    sane();
}

fn mmio_where_nothing_is() {
    for at in (0xd000_8000..0xd010_0000u64).step_by(0x3ffc) {
        put(at, u64::MAX);
        if get::<u32>(at) != u32::MAX {
            fail("something answers where nothing is");
        }
    }
    // Above memory, below and behind the windows, the interrupt controllers' neighbours.
    for at in [0x0800_0000u64, 0xbfff_fff8, 0xcfff_fff8, 0xfec0_1000, 0xfee0_1000, 0xffff_fff0] {
        put(at, u32::MAX);
        core::hint::black_box(get::<u64>(at));
    }
    sane();
}

fn mmio_across_windows() {
    for device in windows() {
        for before in 1..8 {
            put(device.0 + 0x1000 - before, u64::MAX);
            core::hint::black_box(get::<u64>(device.0 + 0x1000 - before));
            put(device.0.wrapping_sub(before), u64::MAX);
        }
    }
    sane();
}

fn mmio_random_storm() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for _ in 0..30_000 {
        let at = 0xd000_0000 + random.next() % 0x4000;
        let value = random.next();
        match value >> 60 {
            0..4 => put(at, value as u32),
            4..8 => put(at & !3, value as u32 % 16),
            8 => put(at, value),
            9 => put(at, value as u8),
            _ => drop(core::hint::black_box(get::<u32>(at))),
        }
    }
    sane();
}

/// Not the reset line, nor the console, which is how we speak.
fn is_harmless(port: u16) -> bool {
    port != 0x64 && !(0x3f8..0x400).contains(&port)
}

fn pio_read_every_port() {
    for port in (0..=u16::MAX).filter(|port| is_harmless(*port)) {
        core::hint::black_box(inb(port));
        if port < 0x800 {
            core::hint::black_box((inw(port), inl(port)));
        }
    }
}

fn pio_write_every_port() {
    let near = |port: u16| (port..port.saturating_add(4)).all(is_harmless);
    for port in (0..=u16::MAX).filter(|port| near(*port)) {
        outb(port, 0xff);
        if port < 0x800 {
            outw(port, 0xffff);
            outl(port, 0);
        }
    }
    sane();
}

fn status_without_features() {
    for id in [FS, VSOCK, RNG] {
        let device = Device::find(id);
        for status in [4, 0xf, ACKNOWLEDGE | 4, ACKNOWLEDGE | DRIVER | 4, 0x8f, u32::MAX] {
            device.set(0x70, 0);
            device.set(0x70, status);
            device.set(0x50, 0);
        }
    }
    sane();
}

fn status_bits_at_random() {
    let mut random = Random(77);
    for id in [FS, VSOCK, RNG] {
        let device = Device::find(id);
        for _ in 0..3_000 {
            device.set(0x70, random.next() as u32);
            device.set(0x50, random.next() as u32 % 4);
        }
        device.set(0x70, 0);
    }
    sane();
}

fn features_never_offered() {
    for id in [FS, VSOCK, RNG] {
        let device = Device::find(id);
        for (select, bits) in [(0, u32::MAX), (1, u32::MAX), (2, 1), (u32::MAX, u32::MAX)] {
            device.set(0x70, 0);
            device.set(0x70, ACKNOWLEDGE | DRIVER);
            device.set(0x24, 1);
            device.set(0x20, 1);
            device.set(0x24, select);
            device.set(0x20, bits);
            device.set(0x70, ACKNOWLEDGE | DRIVER | 8);
            if device.status() & 8 != 0 {
                fail("features that were never offered are accepted");
            }
        }
    }
    sane();
}

fn features_after_driver_ok() {
    let queue = rng(8);
    for select in 0..4 {
        queue.device.set(0x24, select);
        queue.device.set(0x20, u32::MAX);
        queue.device.set(0x70, 0xf);
    }
    sane();
}

fn queue_sizes_that_are_none() {
    let device = Device::find(RNG);
    for size in [0, 3, 5, 17, 32, 0x8000, 0xffff, 0x1_0000, 0x1_0010, u32::MAX] {
        device.negotiate(0);
        let mut queue = device.queue(0, 16);
        device.set(0x30, 0);
        queue = queue.enable();
        device.set(0x44, 0);
        device.set(0x38, size);
        device.set(0x44, 1);
        device.ok();
        queue.offer(0);
        queue.notify();
    }
    sane();
}

fn queue_addresses_out_of_memory() {
    let device = Device::find(RNG);
    let bad = [
        0x0400_0000u64 - 16,
        0x0400_0000,
        0x0800_0000,
        0xd000_0000,
        0xfee0_0000,
        1 << 32,
        1 << 52,
        1,
        3,
        u64::MAX,
        u64::MAX - 15,
        0u64.wrapping_sub(0x100),
    ];
    for address in bad {
        for which in 0..3 {
            device.negotiate(0);
            let mut queue = device.queue(0, 16);
            match which {
                0 => queue.desc = address,
                1 => queue.avail = address,
                _ => queue.used = address,
            }
            queue.enable();
            device.ok();
            device.set(0x50, 0);
        }
    }
    sane();
}

fn queue_moved_after_driver_ok() {
    let queue = rng(8);
    for address in [0u64, u64::MAX, 0xd000_0000, 0x0100_0000] {
        for register in [0x80, 0x90, 0xa0] {
            queue.device.set(register, address as u32);
            queue.device.set(register + 4, (address >> 32) as u32);
        }
        queue.device.set(0x38, 0xffff);
        queue.device.set(0x44, 0);
        queue.device.set(0x44, 1);
        queue.notify();
    }
    sane();
}

fn queue_selected_out_of_range() {
    for id in [FS, VSOCK, RNG] {
        let device = Device::find(id);
        device.negotiate(0);
        for select in [1, 2, 3, 4, 0xff, 0xffff, 0x8000_0000, u32::MAX] {
            device.set(0x30, select);
            for register in (0x38..0xb0).step_by(4) {
                device.set(register, u32::MAX);
                core::hint::black_box(device.reg(register));
            }
        }
        device.set(0x70, 0);
    }
    sane();
}

fn queue_ready_twice_and_never() {
    for id in [FS, VSOCK, RNG] {
        let device = Device::find(id);
        device.negotiate(0);
        device.ok(); // no queue is ready
        device.set(0x50, 0);
        device.negotiate(0);
        for value in [1, 1, 0, 2, u32::MAX, 1] {
            device.set(0x30, 0);
            device.set(0x44, value);
        }
        device.ok();
        device.set(0x50, 0);
        device.set(0x70, 0);
    }
    sane();
}

fn notify_storm() {
    let queue = rng(8);
    for _ in 0..200_000 {
        queue.notify();
    }
    sane();
}

fn notify_of_no_queue() {
    for id in [FS, VSOCK, RNG] {
        let device = Device::find(id);
        for value in [1, 2, 3, 4, 0xff, 0xffff, 0x1_0000, u32::MAX] {
            device.set(0x50, value);
            put(device.0 + 0x50, value as u8);
            put(device.0 + 0x50, value as u16);
            put(device.0 + 0x50, u64::from(value));
        }
    }
    sane();
}

fn config_written_everywhere() {
    for device in windows() {
        device.negotiate(0);
        for offset in 0x100..0x1000u64 {
            put(device.0 + offset, 0xffu8);
        }
        for offset in 0xf9..0x100u64 {
            put(device.0 + offset, u64::MAX);
        }
    }
    sane();
}

fn reset_storm() {
    for _ in 0..2_000 {
        let queue = rng(8);
        queue.describe(0, crate::virtio::BUFFERS, 1 << 20, 2, 0);
        queue.offer(0);
        queue.notify();
        queue.device.set(0x70, 0);
    }
    sane();
}

fn interrupts_acknowledged_unasked() {
    for device in windows() {
        for value in [0, 1, 2, 3, u32::MAX] {
            device.set(0x64, value);
            device.set(0x60, value);
        }
    }
    sane();
}
