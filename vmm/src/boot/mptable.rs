//! The MP table (Intel MultiProcessor Specification 1.4, chapter 4): which CPUs there are and how
//! interrupts reach them. It spares the guest ACPI.

use bulkhead_devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::layout::{GSI_LAST, IO_APIC, LOCAL_APIC, MP_TABLE, MP_TABLE_LEN_MAX};
use crate::spec::VCPUS_MAX;

const APIC_VERSION: u8 = 0x14;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
/// Family 6, stepping 0, and the features APIC and FPU: what the table's readers look at.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;
const DEFAULT_POLARITY_AND_TRIGGER: u16 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Entry types and interrupt kinds of the specification's tables 4-3 and 4-11.
mod entry {
    pub const CPU: u8 = 0;
    pub const BUS: u8 = 1;
    pub const IO_APIC: u8 = 2;
    pub const IO_INTERRUPT: u8 = 3;
    pub const LOCAL_INTERRUPT: u8 = 4;
    pub const INT: u8 = 0;
    pub const NMI: u8 = 1;
    pub const EXT_INT: u8 = 3;
}

const FLOATING_POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
/// 20 bytes a CPU, 8 for each of: bus, I/O APIC, one interrupt a GSI, two local interrupts.
const LEN_MAX: usize = FLOATING_POINTER_LEN
    + HEADER_LEN
    + 20 * VCPUS_MAX as usize
    + 8 * (2 + GSI_LAST as usize + 1 + 2);
const _: () = assert!(LEN_MAX <= MP_TABLE_LEN_MAX);

/// Writes the table for `vcpus` CPUs whose APIC IDs are 0, 1, 2...
pub fn write(memory: &GuestMemory, vcpus: u8) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_slice(&table(vcpus), GuestAddress(MP_TABLE))
}

fn table(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries = Vec::with_capacity(LEN_MAX);
    for id in 0..vcpus {
        let flags = if id == 0 { CPU_ENABLED | CPU_BOOT } else { CPU_ENABLED };
        entries.extend([entry::CPU, id, APIC_VERSION, flags]);
        entries.extend(CPU_SIGNATURE.to_le_bytes());
        entries.extend(CPU_FEATURES.to_le_bytes());
        entries.extend([0; 8]);
    }
    entries.extend([entry::BUS, 0]);
    entries.extend(*b"ISA   ");
    entries.extend([entry::IO_APIC, io_apic_id, APIC_VERSION, CPU_ENABLED]);
    entries.extend(IO_APIC.to_le_bytes());
    let mut interrupt = |kind, what, source, to_apic, to_pin| {
        let [low, high] = DEFAULT_POLARITY_AND_TRIGGER.to_le_bytes();
        entries.extend([kind, what, low, high, 0, source, to_apic, to_pin]);
    };
    for gsi in 0..=GSI_LAST as u8 {
        interrupt(entry::IO_INTERRUPT, entry::INT, gsi, io_apic_id, gsi);
    }
    interrupt(entry::LOCAL_INTERRUPT, entry::EXT_INT, 0, 0, 0);
    interrupt(entry::LOCAL_INTERRUPT, entry::NMI, 0, ALL_LOCAL_APICS, 1);

    let entry_count = u16::from(vcpus) + 2 + GSI_LAST as u16 + 1 + 2;
    let mut header = Vec::with_capacity(HEADER_LEN);
    header.extend(*b"PCMP");
    header.extend(((HEADER_LEN + entries.len()) as u16).to_le_bytes());
    header.extend([4, 0]); // revision 1.4, checksum to come
    header.extend(*b"BULKHEADMICROVM     ");
    header.extend([0; 6]); // no OEM table
    header.extend(entry_count.to_le_bytes());
    header.extend(LOCAL_APIC.to_le_bytes());
    header.extend([0; 4]); // no extended table
    header[7] = checksum([&header[..], &entries].concat().as_slice());

    let mut pointer = b"_MP_".to_vec();
    pointer.extend((MP_TABLE as u32 + FLOATING_POINTER_LEN as u32).to_le_bytes());
    pointer.extend([1, 4, 0, 0, 0, 0, 0, 0]); // length in 16-byte units, revision, checksum, features
    pointer[10] = checksum(&pointer);
    [pointer, header, entries].concat()
}

/// The byte that makes the sum of `bytes` (in which it is still 0) zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_zero_and_lengths_true() {
        for vcpus in [1, 2, VCPUS_MAX] {
            let table = table(vcpus);
            assert!(table.len() <= LEN_MAX);
            let (pointer, rest) = table.split_at(FLOATING_POINTER_LEN);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |a, b| a.wrapping_add(*b));
            assert_eq!(sum(pointer), 0);
            assert_eq!(sum(rest), 0);
            assert_eq!(usize::from(u16::from_le_bytes([rest[4], rest[5]])), rest.len());
            assert_eq!(pointer.len(), usize::from(pointer[8]) * 16);
        }
    }

    #[test]
    fn only_the_first_cpu_boots() {
        let table = table(3);
        let cpus = &table[FLOATING_POINTER_LEN + HEADER_LEN..][..60];
        let flags: Vec<u8> = cpus.chunks(20).map(|cpu| cpu[3]).collect();
        assert_eq!(flags, [CPU_ENABLED | CPU_BOOT, CPU_ENABLED, CPU_ENABLED]);
    }
}
