//! The guest kernel's last words, read from its log buffer in guest memory after it died.
//!
//! It costs a running guest nothing: no console, no exits. The layout is that of Linux 6.12's
//! kernel/printk/printk_ringbuffer.h; the address of the ring comes from the kernel file's symbol
//! table. The guest may have written anything there, so every number is checked and every line
//! made printable.

use std::fs::File;
use std::io::Read;

use bulkhead_devices::GuestMemory;
use elf::ElfBytes;
use elf::endian::LittleEndian;
use vm_memory::{Bytes, GuestAddress};

/// What is returned at the most.
const LINES_MAX: usize = 40;
const LINE_LEN_MAX: usize = 512;
/// Bounds for the ring's own numbers: Linux' CONFIG_LOG_BUF_SHIFT ends at 25.
const SIZE_BITS_MAX: u32 = 25;
/// Records that are looked at: few that hold no line stand between the last lines.
const RECORDS_MAX: u64 = 4096;

/// x86-64 virtual addresses of the kernel image and of all physical memory (4-level paging), as
/// in the kernel's Documentation/arch/x86/x86_64/mm.rst; both without KASLR.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const DIRECT_MAP_LEN: u64 = 1 << 46;

/// Sizes of struct prb_desc and struct printk_info, and where the text's length is in the latter.
const DESCRIPTOR_LEN: u64 = 24;
const INFO_LEN: u64 = 88;
const INFO_TEXT_LEN: u64 = 16;
/// The two top bits of a descriptor's state; the rest is its ID.
const STATE_SHIFT: u32 = 62;
const STATE_COMMITTED: u64 = 1;
const STATE_FINALIZED: u64 = 2;
/// A text block begins with its descriptor's ID.
const BLOCK_HEAD_LEN: u64 = 8;

/// The last lines of the guest kernel's log, oldest first; empty if they cannot be found.
/// `kernel` is the file the guest was booted from.
pub fn last_lines(memory: &GuestMemory, kernel: File) -> Vec<String> {
    symbol(kernel, "prb").map(|prb| lines_at(memory, prb)).unwrap_or_default()
}

/// The same, for a kernel whose `prb` is at the virtual address `prb`.
pub fn lines_at(memory: &GuestMemory, prb: u64) -> Vec<String> {
    Ring::read(memory, prb).map(|ring| ring.lines()).unwrap_or_default()
}

fn symbol(mut kernel: File, name: &str) -> Option<u64> {
    let mut file = Vec::new();
    kernel.read_to_end(&mut file).ok()?;
    let elf = ElfBytes::<LittleEndian>::minimal_parse(&file).ok()?;
    let (symbols, names) = elf.symbol_table().ok()??;
    let found = symbols
        .iter()
        .find(|symbol| names.get(symbol.st_name as usize).is_ok_and(|found| found == name))?;
    Some(found.st_value)
}

/// Reads `T` from a kernel virtual address.
fn read<T: vm_memory::ByteValued>(memory: &GuestMemory, address: u64) -> Option<T> {
    let physical = match address {
        KERNEL_MAP.. => address - KERNEL_MAP,
        DIRECT_MAP.. if address < DIRECT_MAP + DIRECT_MAP_LEN => address - DIRECT_MAP,
        _ => return None,
    };
    memory.read_obj(GuestAddress(physical)).ok()
}

/// struct printk_ringbuffer, with what it points to still in guest memory.
struct Ring<'a> {
    memory: &'a GuestMemory,
    count_bits: u32,
    descriptors: u64,
    infos: u64,
    head_id: u64,
    tail_id: u64,
    size_bits: u32,
    text: u64,
}

impl<'a> Ring<'a> {
    /// Follows the kernel's `prb` pointer.
    fn read(memory: &'a GuestMemory, prb: u64) -> Option<Self> {
        let ring: u64 = read(memory, prb)?;
        let field = |offset| read::<u64>(memory, ring.checked_add(offset)?);
        let ring = Self {
            memory,
            count_bits: field(0)? as u32,
            descriptors: field(8)?,
            infos: field(16)?,
            head_id: field(24)?,
            tail_id: field(32)?,
            size_bits: field(48)? as u32,
            text: field(56)?,
        };
        let sane = ring.count_bits <= SIZE_BITS_MAX && ring.size_bits <= SIZE_BITS_MAX;
        sane.then_some(ring)
    }

    fn lines(&self) -> Vec<String> {
        let records = self.head_id.wrapping_sub(self.tail_id).wrapping_add(1);
        let records = records.min(1 << self.count_bits).min(RECORDS_MAX);
        let mut lines: Vec<String> = (0..records)
            .map_while(|back| self.head_id.checked_sub(back))
            .filter_map(|id| self.record(id))
            .take(LINES_MAX)
            .collect();
        lines.reverse();
        lines
    }

    fn record(&self, id: u64) -> Option<String> {
        let index = id & ((1 << self.count_bits) - 1);
        let at = |base: u64, offset| base.checked_add(offset);
        let descriptor = at(self.descriptors, index * DESCRIPTOR_LEN)?;
        let state: u64 = read(self.memory, descriptor)?;
        let live = matches!(state >> STATE_SHIFT, STATE_COMMITTED | STATE_FINALIZED);
        let begin: u64 = read(self.memory, at(descriptor, 8)?)?;
        let next: u64 = read(self.memory, at(descriptor, 16)?)?;
        // An odd position means that the record has no text.
        if !live || state << 2 != id << 2 || begin & 1 != 0 {
            return None;
        }
        let info = at(self.infos, index * INFO_LEN)?;
        let len: u16 = read(self.memory, at(info, INFO_TEXT_LEN)?)?;
        // A block that would cross the end of the ring is put at its beginning instead.
        let wraps = begin >> self.size_bits != next.wrapping_sub(1) >> self.size_bits;
        let offset = if wraps { 0 } else { begin & ((1 << self.size_bits) - 1) };
        let block = at(self.text, offset)?;
        if read::<u64>(self.memory, block)? != id {
            return None; // newer text overwrote it
        }
        let text = at(block, BLOCK_HEAD_LEN)?;
        let len = u64::from(len).min(LINE_LEN_MAX as u64);
        let bytes = (0..len).map_while(|i| read::<u8>(self.memory, at(text, i)?));
        let printable = |byte| if (b' '..=b'~').contains(&byte) { byte as char } else { '.' };
        Some(bytes.map(printable).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PRB: u64 = KERNEL_MAP + 0x1000;
    const RING: u64 = 0x2000;
    const DESCRIPTORS: u64 = 0x3000;
    const INFOS: u64 = 0x4000;
    const TEXT: u64 = 0x8000;
    const TEXT_BITS: u32 = 8;

    /// Guest memory with a ring of 4 records and 256 bytes that holds `texts` as printk leaves it.
    fn memory_with(texts: &[&str]) -> std::sync::Arc<GuestMemory> {
        let memory = crate::memory::create(64).unwrap();
        let put =
            |address: u64, value: u64| memory.write_obj(value, GuestAddress(address)).unwrap();
        let mut begin = 0u64;
        for (id, text) in (0u64..).zip(texts) {
            let block = (BLOCK_HEAD_LEN + text.len() as u64).next_multiple_of(8);
            let mut next = begin + block;
            let wraps = begin >> TEXT_BITS != (next - 1) >> TEXT_BITS;
            let at = if wraps { 0 } else { begin % (1 << TEXT_BITS) };
            if wraps {
                next = (((begin >> TEXT_BITS) + 1) << TEXT_BITS) + block;
            }
            let descriptor = DESCRIPTORS + id % 4 * DESCRIPTOR_LEN;
            put(descriptor, id | STATE_FINALIZED << STATE_SHIFT);
            put(descriptor + 8, begin);
            put(descriptor + 16, next);
            let info = GuestAddress(INFOS + id % 4 * INFO_LEN + INFO_TEXT_LEN);
            memory.write_obj(text.len() as u16, info).unwrap();
            put(TEXT + at, id);
            let data = GuestAddress(TEXT + at + BLOCK_HEAD_LEN);
            memory.write_slice(text.as_bytes(), data).unwrap();
            begin = next;
        }
        put(0x1000, DIRECT_MAP + RING);
        let head = texts.len() as u64 - 1;
        let fields =
            [2, KERNEL_MAP + DESCRIPTORS, KERNEL_MAP + INFOS, head, head.saturating_sub(3)];
        for (slot, field) in (0..).zip(fields) {
            put(RING + slot * 8, field);
        }
        put(RING + 48, u64::from(TEXT_BITS));
        put(RING + 56, KERNEL_MAP + TEXT);
        memory
    }

    fn lines(memory: &GuestMemory) -> Vec<String> {
        lines_at(memory, PRB)
    }

    #[test]
    fn lines_come_oldest_first_and_printable() {
        let memory = memory_with(&["Linux version", "Kernel panic\x1b[0m"]);
        assert_eq!(lines(&memory), ["Linux version", "Kernel panic.[0m"]);
    }

    #[test]
    fn a_ring_that_went_round_keeps_its_newest() {
        let long = "x".repeat(60);
        // The text ring has room for three blocks, so the fourth-newest is gone.
        let texts: Vec<String> = (0..9).map(|i| format!("{i}{long}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(lines(&memory_with(&texts)), &texts[6..]);
    }

    proptest! {
        #[test]
        fn a_ring_of_nonsense_ends(
            fields in prop::collection::vec(any::<u64>(), 8),
            at in 0u64..1 << 26,
        ) {
            let memory = crate::memory::create(64).unwrap();
            memory.write_obj(KERNEL_MAP + RING, GuestAddress(0x1000)).unwrap();
            for (slot, field) in (0..).zip(fields) {
                let _ = memory.write_obj(field, GuestAddress(RING + slot * 8));
            }
            let _ = memory.write_obj(KERNEL_MAP + at, GuestAddress(RING + 8));
            prop_assert!(lines(&memory).len() <= LINES_MAX);
        }
    }
}
