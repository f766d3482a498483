//! Requests about the window: what the device makes of FUSE_SETUPMAPPING and FUSE_REMOVEMAPPING, of
//! which it reads one copy. The first goes to the worker, whose reply brings the file; the second does
//! not concern it.

use serde::{Deserialize, Serialize};

use super::request::{Refused, Request};
use super::window::Window;
use super::wire::{HEADER_LEN_IN, InHeader};
use crate::GuestMemory;

/// `FUSE_SETUPMAPPING`.
pub const SETUP_MAPPING: u32 = 48;
const REMOVE_MAPPING: u32 = 49;
/// Length of `struct fuse_setupmapping_in`.
const SETUP_LEN: usize = 40;
/// `FUSE_SETUPMAPPING_FLAG_READ`.
const FLAG_READ: u64 = 1 << 1;
/// No handle: Linux's driver names none.
const NO_HANDLE: u64 = u64::MAX;

/// What is mapped, or is to be: the node of a request, and of its `struct fuse_setupmapping_in` what
/// the device goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The file's node ID.
    pub node: u64,
    /// From where in the file on, bytes.
    pub offset: u64,
    /// How much, bytes.
    pub len: u64,
    /// Where in the window, bytes.
    pub at: u64,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the worker.
    PassOn,
    /// It is done.
    Done,
    /// It fails with this error.
    Refused(i32),
}

impl Mapping {
    fn parse(node: u64, body: &[u8; SETUP_LEN]) -> Self {
        Self { node, offset: word(body, 1), len: word(body, 2), at: word(body, 4) }
    }

    /// A request of the device's own for this mapping, whose reply repeats `unique`.
    pub fn request(&self, unique: u64) -> Vec<u8> {
        let body = [NO_HANDLE, self.offset, self.len, FLAG_READ, self.at];
        let header =
            InHeader::of((HEADER_LEN_IN + SETUP_LEN) as u32, SETUP_MAPPING, unique, self.node);
        let body = body.iter().flat_map(|word| word.to_le_bytes());
        header.bytes().iter().copied().chain(body).collect()
    }
}

/// Looks at a request that was found to be one: notes in it what is to be mapped once the file is
/// there, or takes mappings away.
pub fn look(window: Option<&Window>, memory: &GuestMemory, request: &mut Request) -> Verdict {
    match (request.header.opcode(), window) {
        (SETUP_MAPPING | REMOVE_MAPPING, None) => Verdict::Refused(libc::ENOSYS),
        (SETUP_MAPPING, Some(window)) => {
            let body = request.body(memory, 0).ok();
            let mapping = body.map(|body| Mapping::parse(request.header.node(), &body));
            request.mapping = mapping.filter(|mapping| window.takes(mapping));
            if request.mapping.is_some() { Verdict::PassOn } else { Verdict::Refused(libc::EINVAL) }
        }
        (REMOVE_MAPPING, Some(window)) => match remove(window, memory, request) {
            Ok(()) => Verdict::Done,
            Err(Refused) => Verdict::Refused(libc::EINVAL),
        },
        _ => Verdict::PassOn,
    }
}

/// `struct fuse_removemapping_in`, a count, then as many `struct fuse_removemapping_one`.
fn remove(window: &Window, memory: &GuestMemory, request: &Request) -> Result<(), Refused> {
    let count = u32::from_le_bytes(request.body(memory, 0)?) as usize;
    if count > window.slot_count() {
        return Err(Refused);
    }
    for index in 0..count {
        let one = request.body::<16>(memory, 4 + 16 * index)?;
        if !window.unmap(word(&one, 0), word(&one, 1)) {
            return Err(Refused);
        }
    }
    Ok(())
}

fn word(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|at| bytes[8 * index + at]))
}
