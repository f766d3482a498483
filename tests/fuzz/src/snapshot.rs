//! What a snapshot's file says, and what a dead guest's memory does.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bulkhead_devices::GuestMemory;
use bulkhead_devices::fs::FsDevice;
use bulkhead_devices::net::{Net, NetConfig};
use bulkhead_devices::rng::Rng;
use bulkhead_devices::testing::{CountingInterrupt, Driver};
use bulkhead_devices::virtio::VirtioDevice;
use bulkhead_devices::virtio::mmio::Transport;
use bulkhead_vmm::snapshot::{Cpu, InterruptState, VmState, decode, encode, seal};
use bulkhead_vmm::{VmSpec, kernel_log as log};
use vm_memory::{Bytes, GuestAddress};

use crate::input::Input;

/// Before a state file's body.
const HEADER_LEN: usize = 24;

/// The input is a state file's body, whose checksum is made to fit; then the file itself.
pub fn run(input: &[u8]) {
    let _ = decode(input);
    let Ok(state) = decode(&seal(input)) else { return };
    let again = encode(&state).and_then(|bytes| decode(&bytes)).expect("what was read is written");
    assert_eq!(again.devices, state.devices);
    let _ = state.check(&VmSpec { vcpus: 1, memory_mib: 128, ..VmSpec::default() });
    let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    for saved in &state.devices {
        let (socket, _worker) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let device: Box<dyn VirtioDevice> = match saved.device_id {
            1 => Box::new(Net::new(NetConfig::default()).unwrap()),
            19 => crate::queues::vsock_at(&dir.path().join("vm")),
            26 => Box::new(FsDevice::new("fuzz", OwnedFd::from(socket))),
            _ => Box::new(Rng::new()),
        };
        let line = Arc::new(CountingInterrupt::default());
        let mut transport = Transport::new(device, memory.clone(), line).unwrap();
        let _ = transport.restore(saved);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let saved = |device| Driver::start(device).transport.lock().unwrap().save();
    let (socket, _worker) = UnixStream::pair().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let devices = vec![
        saved(Box::new(Rng::new())),
        saved(Box::new(FsDevice::new("fuzz", OwnedFd::from(socket)))),
        saved(crate::queues::vsock_at(&dir.path().join("vm"))),
        saved(Box::new(Net::new(NetConfig::default()).unwrap())),
    ];
    let state = VmState {
        cpu: Cpu::of_this_host(),
        memory_mib: 128,
        own_pages: None,
        window_mib: 64,
        files: vec![1, 2],
        vcpus: Vec::new(),
        interrupts: InterruptState::default(),
        devices,
    };
    let file = encode(&state).unwrap();
    vec![file[HEADER_LEN..].to_vec(), file]
}

/// Virtual address of the kernel's pointer to its ring; physical address of everything here.
const PRB: u64 = 0xffff_ffff_8000_1000;
const MEMORY: u64 = 0x1000;

/// The input is guest memory from the ring's pointer on.
pub fn kernel_log(input: &[u8]) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let mut input = Input(input);
    let fields = input.bytes(80);
    let _ = memory.write_slice(fields, GuestAddress(MEMORY));
    let _ = memory.write_slice(input.0, GuestAddress(MEMORY + 0x100));
    for line in log::lines_at(&memory, PRB) {
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
    }
}

pub fn kernel_log_seeds() -> Vec<Vec<u8>> {
    let at = |offset: u64| (PRB + offset).to_le_bytes();
    let word = |value: u64| value.to_le_bytes();
    let fields =
        [at(8), word(1), at(0x100), at(0x200), word(1), word(0), word(0), word(8), at(0x400)];
    let descriptors = [word(1 << 63), word(0), word(24), word(1 << 63 | 1), word(24), word(48)];
    let mut bytes = [fields.concat(), vec![0; 8], descriptors.concat()].concat();
    bytes.resize(80 + 0x400, 0);
    for (place, value) in [(80 + 0x110, 5), (80 + 0x110 + 88, 6), (80 + 0x300 + 24, 1)] {
        bytes[place] = value;
    }
    vec![bytes]
}
