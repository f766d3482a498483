//! Random reads, writes, truncations, mappings and copies through the server, compared with a
//! model in memory and at last with the host's file. Needs root and /dev/fuse.

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use support::mounted;

const SIZE_MAX: usize = 600_000;
const STEPS: usize = 4000;

/// xorshift64: the same run each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}

#[test]
fn random_io_agrees_with_a_model() {
    let mounted = mounted();
    let path = mounted.guest.join("file");
    let open =
        || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open().unwrap();
    let mut model: Vec<u8> = Vec::new();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for step in 0..STEPS {
        let offset = random.below(SIZE_MAX);
        let len = 1 + random.below(SIZE_MAX - offset).min(1 << (4 + random.below(14)));
        match random.below(10) {
            0..=3 => write(&file, &mut model, offset, len, step),
            4..=6 => {
                let mut found = vec![0xaa; len];
                let count = file.read_at(&mut found, offset as u64).unwrap();
                let expected = model.get(offset..).unwrap_or(&[]);
                let expected = &expected[..expected.len().min(len)];
                assert!(found[..count] == *expected, "step {step}: read {len} at {offset}");
            }
            7 => {
                file.set_len(offset as u64).unwrap();
                model.resize(offset, 0);
            }
            8 => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, punch, offset as u64, len as u64).unwrap();
                let end = model.len().min(offset + len);
                model[offset.min(end)..end].fill(0);
            }
            _ => file = open().unwrap(),
        }
        assert_eq!(file.metadata().unwrap().len(), model.len() as u64, "step {step}");
    }
    drop(file);
    assert!(std::fs::read(mounted.host.join("file")).unwrap() == model);
}

fn write(file: &File, model: &mut Vec<u8>, offset: usize, len: usize, step: usize) {
    let data: Vec<u8> = (0..len).map(|i| (i * 31 + step) as u8).collect();
    file.write_all_at(&data, offset as u64).unwrap();
    if model.len() < offset + len {
        model.resize(offset + len, 0);
    }
    model[offset..offset + len].copy_from_slice(&data);
}
