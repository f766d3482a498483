//! The guest buffers of one descriptor chain.

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT};
use vm_memory::{Bytes, GuestMemoryBackend, VolatileSlice};

use crate::GuestMemory;

/// Takes the next available chain. An error is an available ring that the driver has corrupted;
/// `QueueT::pop_descriptor_chain` hides it, and a loop that waits for the ring to be empty would
/// never end.
pub fn pop<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
) -> Result<Option<DescriptorChain<&'m GuestMemory>>, virtio_queue::Error> {
    Ok(queue.iter(memory)?.next())
}

/// A chain that no device can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuffersError {
    /// A buffer outside of guest memory.
    #[error("a descriptor points outside of guest memory")]
    OutOfRange,
    /// More descriptors than the queue has (virtio 1.3, 2.7.5.3.1), or a loop.
    #[error("a descriptor chain is longer than {0} descriptors")]
    TooLong(usize),
}

/// The readable or the writable part of a descriptor chain, consumed from the front.
///
/// Unlike virtio-queue's `Reader` and `Writer` it shows its [slices](Self::slices), so that system
/// calls can move bytes between guest memory and a file descriptor without a copy in between.
#[derive(Clone, Debug, Default)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    /// Slices before it are used up.
    first: usize,
    len: usize,
}

impl<'m> Buffers<'m> {
    /// What the device may read of `chain`, which may have up to `descriptors_max` descriptors.
    pub fn readable(
        memory: &'m GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        descriptors_max: usize,
    ) -> Result<Self, BuffersError> {
        Self::collect(memory, chain, descriptors_max, false)
    }

    /// What the device may write of `chain`, which may have up to `descriptors_max` descriptors.
    pub fn writable(
        memory: &'m GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        descriptors_max: usize,
    ) -> Result<Self, BuffersError> {
        Self::collect(memory, chain, descriptors_max, true)
    }

    fn collect(
        memory: &'m GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        descriptors_max: usize,
        writable: bool,
    ) -> Result<Self, BuffersError> {
        let mut slices = Vec::with_capacity(4);
        let mut len = 0;
        for (count, descriptor) in chain.enumerate() {
            if count == descriptors_max {
                return Err(BuffersError::TooLong(descriptors_max));
            }
            if descriptor.is_write_only() != writable {
                continue;
            }
            // The iterator ends a chain before its lengths add up to more than 32 bits.
            let bytes = descriptor.len() as usize;
            for slice in memory.get_slices(descriptor.addr(), bytes) {
                slices.push(slice.map_err(|_| BuffersError::OutOfRange)?);
            }
            len += bytes;
        }
        Ok(Self { slices, first: 0, len })
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is left, slice by slice.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices[self.first..]
    }

    /// Consumes `count` bytes, or all that is left if that is less.
    pub fn advance(&mut self, count: usize) {
        let mut count = count.min(self.len);
        self.len -= count;
        while let Some(slice) = self.slices.get_mut(self.first) {
            match slice.offset(count) {
                Ok(rest) if !rest.is_empty() => return *slice = rest,
                _ => count -= slice.len(),
            }
            self.first += 1;
        }
    }

    /// Forgets all but the next `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        let mut left = len.min(self.len);
        self.len = left;
        let mut kept = self.first;
        while left > 0 {
            let slice = &mut self.slices[kept];
            if let Ok(head) = slice.subslice(0, left.min(slice.len())) {
                *slice = head;
            }
            left -= slice.len();
            kept += 1;
        }
        self.slices.truncate(kept);
    }

    /// Copies the next bytes to `to`, as many as there are and fit, and returns how many.
    pub fn read(&mut self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            if done == to.len() {
                break;
            }
            done += slice.copy_to(&mut to[done..]);
        }
        self.advance(done);
        done
    }

    /// Copies as much of `from` as there is room for, and returns how much that was.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            if done == from.len() {
                break;
            }
            // A slice takes what it has room for; only an empty one is an error.
            done += Bytes::write(slice, &from[done..], 0).unwrap_or(0);
        }
        self.advance(done);
        done
    }
}

impl<'m> From<&'m mut [u8]> for Buffers<'m> {
    fn from(bytes: &'m mut [u8]) -> Self {
        let len = bytes.len();
        Self { slices: vec![VolatileSlice::from(bytes)], first: 0, len }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn buffers(data: &mut [Vec<u8>]) -> Buffers<'_> {
        let slices: Vec<_> =
            data.iter_mut().map(|bytes| VolatileSlice::from(&mut bytes[..])).collect();
        let len = slices.iter().map(|slice| slice.len()).sum();
        Buffers { slices, first: 0, len }
    }

    proptest! {
        /// Reading in any pieces is reading the concatenation.
        #[test]
        fn reads_are_of_the_concatenation(
            mut data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5), 0..6),
            limit in 0usize..30,
            pieces in proptest::collection::vec((0usize..7, any::<bool>()), 0..12),
        ) {
            let mut expected = data.concat();
            let mut buffers = buffers(&mut data);
            buffers.truncate(limit);
            expected.truncate(limit);
            let mut expected = &expected[..];
            for (count, skip) in pieces {
                let count_left = count.min(expected.len());
                if skip {
                    buffers.advance(count);
                } else {
                    let mut piece = vec![0; count];
                    prop_assert_eq!(buffers.read(&mut piece), count_left);
                    prop_assert_eq!(&piece[..count_left], &expected[..count_left]);
                }
                expected = &expected[count_left..];
                prop_assert_eq!(buffers.len(), expected.len());
                let left: usize = buffers.slices().iter().map(|slice| slice.len()).sum();
                prop_assert_eq!(left, expected.len());
            }
        }

        /// What was written in any pieces reads back.
        #[test]
        fn writes_read_back(
            sizes in proptest::collection::vec(0usize..5, 0..6),
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..7), 0..6),
        ) {
            let mut data: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0; *size]).collect();
            let room: usize = sizes.iter().sum();
            let written: usize = {
                let mut buffers = buffers(&mut data);
                pieces.iter().map(|piece| buffers.write(piece)).sum()
            };
            let wanted = pieces.concat();
            prop_assert_eq!(written, wanted.len().min(room));
            prop_assert_eq!(&data.concat()[..written], &wanted[..written]);
        }
    }
}
