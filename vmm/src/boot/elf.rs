//! The segments of an ELF kernel, put into guest memory: no byte more than is needed.
//!
//! Holes of the file are left out, for guest memory is zero already. A segment that is neither code
//! nor writable (our kernel's unwind tables, read when it panics) is mapped from the file instead of
//! read: its pages are the host's page cache until somebody wants them.

use std::fs::File;
use std::os::fd::AsFd;

use bulkhead_devices::GuestMemory;
use elf::ElfStream;
use elf::abi::{PF_R, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;
use elf::segment::ProgramHeader;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// XEN_ELFNOTE_PHYS32_ENTRY (Xen's public/elfnote.h): where a PVH guest is entered.
const NOTE_PHYS32_ENTRY: u64 = 18;
const PAGE: u64 = 4096;

/// Why an ELF kernel is not in guest memory.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Not an ELF file of this machine, or cut short.
    #[error("its headers make no sense: {0}")]
    Headers(#[from] elf::ParseError),
    /// A segment that memory or file does not have.
    #[error("its segment of {len} bytes at {address:#x} is outside of memory or file")]
    Outside {
        /// Physical address.
        address: u64,
        /// Bytes in memory.
        len: u64,
    },
    /// A segment's bytes.
    #[error("its segment at {address:#x} cannot be read: {source}")]
    Read {
        /// Physical address.
        address: u64,
        /// What failed.
        source: vm_memory::GuestMemoryError,
    },
}

/// An ELF kernel in guest memory.
pub struct Loaded {
    /// Where its PVH note says it is entered, if it has one.
    pub pvh_entry: Option<GuestAddress>,
    /// The first byte behind it.
    pub end: u64,
}

/// Loads the ELF kernel `image`, all of it at `lowest` or above.
pub fn load(memory: &GuestMemory, image: &mut File, lowest: u64) -> Result<Loaded, ElfError> {
    let mut elf = ElfStream::<LittleEndian, _>::open_stream(&*image)?;
    let headers = elf.segments().clone();
    let mut pvh_entry = None;
    for header in headers.iter().filter(|header| header.p_type == PT_NOTE) {
        let mut notes = elf.segment_data_as_notes(header)?;
        pvh_entry = pvh_entry.or_else(|| notes.find_map(entry));
    }
    let mut end = lowest;
    for header in headers.iter().filter(|header| header.p_type == PT_LOAD) {
        let segment = Segment::check(header, memory, image, lowest)?;
        if segment.is_mapped && segment.map(memory, image).is_ok() {
            segment.part(segment.len & !(PAGE - 1)..segment.len).read(memory, image)?;
        } else {
            segment.read(memory, image)?;
        }
        end = end.max(header.p_paddr + header.p_memsz);
    }
    Ok(Loaded { pvh_entry, end })
}

fn entry(note: Note<'_>) -> Option<GuestAddress> {
    let Note::Unknown(note) = note else { return None };
    let name = note.name.strip_suffix(b"\0").unwrap_or(note.name);
    let address = note.desc.first_chunk::<4>()?;
    (name == b"Xen" && note.n_type == NOTE_PHYS32_ENTRY)
        .then(|| GuestAddress(u32::from_le_bytes(*address).into()))
}

/// A range of the file and its place in memory, both of which are there.
#[derive(Clone, Copy)]
struct Segment {
    address: u64,
    offset: u64,
    len: u64,
    is_mapped: bool,
}

impl Segment {
    fn check(
        header: &ProgramHeader,
        memory: &GuestMemory,
        image: &File,
        lowest: u64,
    ) -> Result<Self, ElfError> {
        let ProgramHeader { p_paddr: address, p_offset: offset, p_filesz: len, .. } = *header;
        let file_len = image.metadata().map_or(0, |metadata| metadata.len());
        let in_file = offset.checked_add(len).is_some_and(|end| end <= file_len);
        let in_memory = usize::try_from(header.p_memsz)
            .is_ok_and(|size| memory.check_range(GuestAddress(address), size));
        if !in_file || !in_memory || address < lowest || len > header.p_memsz {
            return Err(ElfError::Outside { address, len: header.p_memsz });
        }
        let is_mapped = header.p_flags == PF_R && (address | offset).is_multiple_of(PAGE);
        Ok(Self { address, offset, len, is_mapped })
    }

    fn part(&self, range: std::ops::Range<u64>) -> Self {
        let Self { address, offset, is_mapped, .. } = *self;
        let (start, len) = (range.start, range.end - range.start);
        Self { address: address + start, offset: offset + start, len, is_mapped }
    }

    /// Reads what of the segment is not a hole.
    fn read(&self, memory: &GuestMemory, image: &mut File) -> Result<(), ElfError> {
        let mut done = 0;
        while let Some(data) = self.next_data(done, image) {
            let Self { address, offset, len, .. } = self.part(data.clone());
            let read_error = |source| ElfError::Read { address, source };
            let sought = rustix::fs::seek(&*image, SeekFrom::Start(offset));
            sought
                .map_err(|errno| read_error(vm_memory::GuestMemoryError::IOError(errno.into())))?;
            memory
                .read_exact_volatile_from(GuestAddress(address), image, len as usize)
                .map_err(read_error)?;
            done = data.end;
        }
        Ok(())
    }

    /// The next range of the segment at or behind `from` that is not a hole of the file.
    fn next_data(&self, from: u64, image: &File) -> Option<std::ops::Range<u64>> {
        let within = |offset: u64| (offset - self.offset).min(self.len);
        let start = match rustix::fs::seek(image, SeekFrom::Data(self.offset + from)) {
            Ok(offset) => within(offset),
            Err(Errno::NXIO) => self.len,
            // A file system that knows no holes.
            Err(_) => from,
        };
        let end = rustix::fs::seek(image, SeekFrom::Hole(self.offset + start));
        let end = end.map_or(self.len, within);
        (start < end).then_some(start..end)
    }

    /// Has the segment's whole pages be those of the file. A host with memory in pages of another
    /// kind refuses.
    fn map(&self, memory: &GuestMemory, image: &File) -> Result<(), Errno> {
        let len = (self.len & !(PAGE - 1)) as usize;
        let place = memory.get_slice(GuestAddress(self.address), len).map_err(|_| Errno::INVAL)?;
        // SAFETY: the range lies in one mapping of guest memory, which `memory` keeps and unmaps
        // whole; guest memory is accessed by volatile means alone, which no reference forbids.
        unsafe {
            rustix::mm::mmap(
                place.ptr_guard_mut().as_ptr().cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED,
                image.as_fd(),
                self.offset,
            )?;
        }
        Ok(())
    }
}
