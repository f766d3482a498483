//! A kernel's file: what its headers say is put into guest memory.

use std::fs;

use bulkhead_devices::GuestMemory;
use bulkhead_vmm::{VmSpec, boot, cmdline};
use vm_memory::GuestAddress;

use crate::scratch;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const READABLE: u32 = 4;
const ALL: u32 = 7;

/// The input is the file, an ELF or a bzImage.
pub fn run(input: &[u8]) {
    let dir = scratch::fresh();
    let [kernel, init] = ["kernel", "init"].map(|name| dir.path().join(name));
    fs::write(&kernel, input).unwrap();
    fs::write(&init, "init").unwrap();
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let cmdline = cmdline::build(&VmSpec::default(), 1).unwrap();
    let _ = boot::load(&memory, &kernel, &init, &cmdline, 1);
}

pub fn seeds() -> Vec<Vec<u8>> {
    vec![elf(), bzimage()]
}

/// A note with an entry, a segment that is read and one that is mapped.
fn elf() -> Vec<u8> {
    let mut file = vec![0u8; 4 * PAGE as usize];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 3, 0, 64, 0, 0, 0, 0, 0]);
    let headers = [
        (PT_NOTE, ALL, 512, 0, 20, 20),
        (PT_LOAD, ALL, PAGE, 2 * MIB, PAGE + 10, 2 * PAGE),
        (PT_LOAD, READABLE, 3 * PAGE, 3 * MIB, PAGE, PAGE),
    ];
    for (place, (kind, flags, offset, address, in_file, in_memory)) in
        (64..).step_by(56).zip(headers)
    {
        put(place, &[kind.to_le_bytes(), flags.to_le_bytes()].concat());
        let fields = [offset, address, address, in_file, in_memory, 4u64];
        put(place + 8, fields.map(u64::to_le_bytes).as_flattened());
    }
    put(512, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(524, b"Xen\0\0\0\x20\0");
    file
}

/// A set-up sector and a page of kernel (Documentation/arch/x86/boot.rst).
fn bzimage() -> Vec<u8> {
    let mut file = vec![0u8; 1024 + PAGE as usize];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x236, &[1, 0]);
    put(0x258, &(MIB).to_le_bytes());
    put(0x260, &(2 * MIB as u32).to_le_bytes());
    file
}
