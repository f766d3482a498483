//! Requests in flight, by the numbers the worker knows them by.
//!
//! A number is a slot's index and its generation, which grows whenever the slot is emptied: a
//! number is good for one reply.

use super::request::Request;

/// The requests that wait for a reply.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    max: usize,
}

const GENERATION_MAX: u32 = u32::MAX >> 1;

#[derive(Debug)]
struct Slot {
    /// Never 0, so that no number is: 0 means a notification, which nobody asked for. Has 31 bits:
    /// [`super::wire::WITH_FILE`] is no part of a number.
    generation: u32,
    request: Option<Request>,
}

impl Slots {
    /// No requests yet, and never more than `max`.
    pub fn new(max: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), max }
    }

    /// No request is in flight, and no number is reserved.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Reserves a number; `None` if too many requests are in flight. A guest that follows the
    /// rules has no more in flight than its queues have entries.
    pub fn reserve(&mut self) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.max => {
                self.slots.push(Slot { generation: 1, request: None });
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        let generation = self.slots[index as usize].generation;
        Some(u64::from(generation) << 32 | u64::from(index))
    }

    /// Puts the request into the slot reserved by `number`.
    pub fn fill(&mut self, number: u64, request: Request) {
        if let Some(slot) = self.slots.get_mut(number as u32 as usize) {
            slot.request = Some(request);
        }
    }

    /// Takes the request `number`; `None` if no such request is in flight.
    pub fn take(&mut self, number: u64) -> Option<Request> {
        let slot = self.slots.get_mut(number as u32 as usize)?;
        if u64::from(slot.generation) != number >> 32 {
            return None;
        }
        let request = slot.request.take()?;
        slot.end_generation();
        self.free.push(number as u32);
        Some(request)
    }

    /// Takes every request.
    pub fn drain(&mut self) -> impl Iterator<Item = Request> {
        let Self { slots, free, .. } = self;
        (0..).zip(slots).filter_map(|(index, slot)| {
            let request = slot.request.take()?;
            slot.end_generation();
            free.push(index);
            Some(request)
        })
    }
}

impl Slot {
    fn end_generation(&mut self) {
        self.generation = ((self.generation + 1) & GENERATION_MAX).max(1);
    }
}
