//! Snapshot files as they may come: whole, damaged, another's.

use bulkhead_devices::virtio::mmio::QueueState;
use kvm_ioctls::Kvm;
use proptest::prelude::*;

use super::file::{VERSION, decode, encode};
use super::*;

/// A state as a real VM has it, if there is a KVM: its vCPU is fresh.
fn state() -> VmState {
    let queue = QueueState {
        size: 256,
        ready: true,
        desc_table: 0x1000,
        avail_ring: 0x2000,
        used_ring: 0x3000,
        next_avail: 7,
        next_used: 7,
        notified_early: false,
    };
    let device = TransportState {
        device_id: 4,
        status: 15,
        device_features_select: 1,
        driver_features_select: 1,
        driver_features: 1 << 32,
        queue_select: 0,
        shared_memory_select: 0,
        interrupt_pending: 1,
        config_generation: 2,
        queues: vec![queue],
        device: vec![1, 2, 3],
    };
    VmState {
        cpu: Cpu::of_this_host(),
        memory_mib: 128,
        own_pages: None,
        window_mib: 64,
        files: vec![1, 2],
        vcpus: Vec::new(),
        interrupts: InterruptState::default(),
        devices: vec![device],
    }
}

fn sentence(bytes: &[u8]) -> String {
    let sentence = decode(bytes).unwrap_err().to_string();
    assert!(!sentence.contains('\n') && sentence.len() < 120, "{sentence}");
    sentence
}

#[test]
fn a_state_survives_the_file() {
    let state = state();
    let again = decode(&encode(&state).unwrap()).unwrap();
    assert_eq!(again.devices, state.devices);
    assert_eq!((again.cpu, again.memory_mib, again.files), (state.cpu, 128, state.files));
}

#[test]
fn what_is_wrong_with_a_file_is_said_in_one_sentence() {
    let good = encode(&state()).unwrap();
    assert!(sentence(b"").contains("not one of bulkhead's"));
    assert!(sentence(&[0; 64]).contains("not one of bulkhead's"));
    let mut newer = good.clone();
    newer[8] = VERSION as u8 + 1;
    assert!(sentence(&newer).contains(&format!("format {}", VERSION + 1)));
    assert!(sentence(&good[..good.len() - 1]).contains("length"));
    let mut longer = good.clone();
    longer.push(0);
    assert!(sentence(&longer).contains("length"));
    let mut flipped = good;
    *flipped.last_mut().unwrap() ^= 1;
    assert!(sentence(&flipped).contains("checksum"));
}

#[test]
fn another_processor_and_another_shape_are_refused() {
    let spec = |vcpus, memory_mib| -> VmSpec {
        let json = format!(
            r#"{{"name":"n","vcpus":{vcpus},"memory_mib":{memory_mib},"kernel":"k","init":"i","cid":3,"vsock":"v"}}"#
        );
        serde_json::from_str(&json).unwrap()
    };
    let state = state();
    let refused = |spec: VmSpec| state.check(&spec).unwrap_err().to_string();
    assert!(refused(spec(1, 128)).contains("other vCPUs"));
    assert!(refused(spec(0, 256)).contains("other memory"));
    assert!(state.check(&spec(0, 128)).is_ok());
    let mut bytes = encode(&state).unwrap();
    // The first letter of the processor's maker, and a checksum that fits.
    bytes[24] ^= 0x20;
    let sum = crc32fast::hash(&bytes[24..]);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    let foreign = decode(&bytes).unwrap();
    let said = foreign.check(&spec(0, 128)).unwrap_err().to_string();
    assert!(said.contains("another processor"), "{said}");
}

#[test]
fn a_vcpu_and_its_vm_take_their_own_state() {
    let Ok(kvm) = Kvm::new() else { return };
    let make = || {
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        (vm, vcpu)
    };
    let (vm, vcpu) = make();
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
    vcpu.set_cpuid2(&cpuid).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    (regs.rax, regs.rip) = (0x1234, 0x5678);
    vcpu.set_regs(&regs).unwrap();
    let saved = VcpuState::save(&vcpu, &msr_indices(&kvm).unwrap()).unwrap();
    let interrupts = InterruptState::save(&vm, false).unwrap();
    let state = VmState { vcpus: vec![saved], interrupts, ..state() };
    let state = decode(&encode(&state).unwrap()).unwrap();
    let (vm, vcpu) = make();
    state.vcpus[0].restore(&vcpu, 1 << 40).unwrap();
    state.interrupts.restore(&vm, false).unwrap();
    assert_eq!(vcpu.get_regs().unwrap(), regs);
    assert!(state.interrupts.restore(&vm, true).is_err(), "a timer is missing");
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        fix_checksum: bool,
    ) {
        let mut bytes = encode(&state()).unwrap();
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if fix_checksum && bytes.len() > 24 {
            let (sum, len) = (crc32fast::hash(&bytes[24..]), bytes.len() as u64 - 24);
            bytes[12..16].copy_from_slice(&sum.to_le_bytes());
            bytes[16..24].copy_from_slice(&len.to_le_bytes());
        }
        let _ = decode(&bytes);
    }
}
