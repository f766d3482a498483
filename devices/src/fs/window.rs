//! The DAX window (virtio 1.3, 5.11.6.4): guest-physical addresses behind which files are mapped, so
//! that the guest reads the host's page cache and keeps no copy.
//!
//! It is a row of slots, each one mapping of Linux's driver. An empty slot reads as zeroes. The window
//! is no part of [`GuestMemory`]: a descriptor that points there is refused like any other that points
//! outside, and nothing here ever looks at what is mapped.
//!
//! [`GuestMemory`]: crate::GuestMemory

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::mapping::Mapping;
use crate::virtio::device::SharedMemory;

/// log2 of [`SLOT_LEN`].
const SLOT_SHIFT: u32 = 21;
/// Length of a slot: of what Linux's driver maps at once (FUSE_DAX_SZ in its fs/fuse/dax.c), and of a
/// huge page.
pub const SLOT_LEN: u64 = 1 << SLOT_SHIFT;
const PAGE: usize = 4096;

/// A window: one handle for its device, one for whoever runs the guest.
#[derive(Clone, Debug)]
pub struct Window(Arc<Mutex<Slots>>);

#[derive(Debug)]
struct Slots {
    /// Where in this process the window begins.
    start: usize,
    /// Where in the guest it begins.
    base: u64,
    /// What is mapped.
    slots: Vec<Option<Mapping>>,
}

impl Window {
    /// An empty window of `slots` slots at guest-physical address `base`, a multiple of a slot's length.
    pub fn new(base: u64, slots: usize) -> io::Result<Self> {
        let start = reserve(slots)?;
        let slots = Slots { start, base, slots: vec![None; slots] };
        slots.map_zeroes(0, slots.slots.len() * SLOT_LEN as usize)?;
        Ok(Self(Arc::new(Mutex::new(slots))))
    }

    /// Where the guest finds it.
    pub fn shared_memory(&self) -> SharedMemory {
        let slots = self.lock();
        SharedMemory { base: slots.base, len: slots.slots.len() as u64 * SLOT_LEN }
    }

    /// The address in this process at which it begins. It stays mapped for as long as a handle is there.
    pub fn host_address(&self) -> u64 {
        self.lock().start as u64
    }

    /// How many slots it has.
    pub fn slot_count(&self) -> usize {
        self.lock().slots.len()
    }

    /// What is mapped.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.lock().slots.iter().flatten().copied().collect()
    }

    /// Whether a mapping is one that there can be.
    pub fn takes(&self, mapping: &Mapping) -> bool {
        self.lock().slot(mapping).is_some()
    }

    /// Maps a file, read-only, in the place of what is mapped there.
    pub fn map(&self, mapping: Mapping, file: OwnedFd) -> io::Result<()> {
        let mut slots = self.lock();
        let index = slots.slot(&mapping).ok_or(io::ErrorKind::InvalidInput)?;
        let at = slots.start + index * SLOT_LEN as usize;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the slot lies within the reservation, which is this window's own; nobody in this
        // process looks at what is mapped there.
        unsafe {
            mmap(at as *mut c_void, SLOT_LEN as usize, ProtFlags::READ, flags, file, mapping.offset)
        }?;
        slots.slots[index] = Some(mapping);
        Ok(())
    }

    /// Empties the slots of `len` bytes at `at`; false if there is no such range.
    pub fn unmap(&self, at: u64, len: u64) -> bool {
        let mut slots = self.lock();
        let (Some(end), aligned) = (at.checked_add(len), (at | len).is_multiple_of(SLOT_LEN))
        else {
            return false;
        };
        let range = (at >> SLOT_SHIFT) as usize..(end >> SLOT_SHIFT) as usize;
        if !aligned || range.end > slots.slots.len() {
            return false;
        }
        range.for_each(|index| slots.empty(index));
        true
    }

    /// Empties all slots.
    pub fn clear(&self) {
        let mut slots = self.lock();
        (0..slots.slots.len()).for_each(|index| slots.empty(index));
    }

    /// Puts zeroes where a file has ended, or does not let itself be read, since it was mapped; false if
    /// there is no such place. For a guest that has come upon one.
    pub fn mend(&self) -> bool {
        let slots = self.lock();
        (0..slots.slots.len())
            .filter(|index| slots.slots[*index].is_some() && slots.mend(*index))
            .count()
            > 0
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn slot(&self, mapping: &Mapping) -> Option<usize> {
        let aligned = (mapping.at | mapping.offset).is_multiple_of(SLOT_LEN);
        let index = usize::try_from(mapping.at >> SLOT_SHIFT).ok()?;
        let in_file = mapping.offset <= i64::MAX as u64 - SLOT_LEN;
        (aligned && in_file && mapping.len == SLOT_LEN && index < self.slots.len()).then_some(index)
    }

    fn empty(&mut self, index: usize) {
        if self.slots[index].is_some()
            && self.map_zeroes(index * SLOT_LEN as usize, SLOT_LEN as usize).is_ok()
        {
            self.slots[index] = None;
        }
    }

    /// Maps zeroes at `len` bytes from `at` on, which must lie within the window.
    fn map_zeroes(&self, at: usize, len: usize) -> io::Result<()> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range lies within the reservation, which is this window's own; nobody in this
        // process looks at what is mapped there.
        unsafe { mmap_anonymous((self.start + at) as *mut c_void, len, ProtFlags::READ, flags) }?;
        Ok(())
    }

    fn mend(&self, index: usize) -> bool {
        let slot = index * SLOT_LEN as usize;
        if self.is_readable(slot, SLOT_LEN as usize) {
            return false;
        }
        let pages = (slot..slot + SLOT_LEN as usize).step_by(PAGE);
        pages
            .filter(|at| !self.is_readable(*at, PAGE) && self.map_zeroes(*at, PAGE).is_ok())
            .count()
            > 0
    }

    /// Where the host's kernel cannot say (before Linux 5.14), all is taken to be.
    fn is_readable(&self, at: usize, len: usize) -> bool {
        // SAFETY: the range lies within the reservation, and this advice changes no contents.
        let read =
            unsafe { madvise((self.start + at) as *mut c_void, len, Advice::LinuxPopulateRead) };
        read != Err(Errno::FAULT)
    }
}

/// Reserves addresses for `slots` slots that begin at a multiple of a slot's length, as huge pages do.
fn reserve(slots: usize) -> io::Result<usize> {
    let slot = SLOT_LEN as usize;
    let len = (slots + 1) * slot;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
    let start = start as usize;
    Ok(start.next_multiple_of(slot))
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the reservation is this window's own, and its last handle is going.
        let _ = unsafe { munmap(self.start as *mut c_void, self.slots.len() * SLOT_LEN as usize) };
    }
}
