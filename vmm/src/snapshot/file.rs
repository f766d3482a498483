//! The state file: a header, then [`VmState`] in postcard's format.
//!
//! ```text
//! 0   magic "BULKSNAP"
//! 8   format version, u32
//! 12  CRC-32 of the body, u32
//! 16  length of the body, u64
//! 24  body
//! ```
//!
//! Numbers are little-endian. The checksum finds accidents; who may write the file may write
//! anything, and what it says is checked in any case.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use super::{SnapshotError, VmState, file};

const MAGIC: &[u8; 8] = b"BULKSNAP";
/// Grows with every change of [`VmState`] or of what it means.
pub const VERSION: u32 = 5;
const HEADER_LEN: usize = 24;
/// What a file server knows, and 4 MiB of which some 12 KiB a vCPU are used.
const BODY_MAX: usize = bulkhead_fs_server::STATE_MAX + (4 << 20);

/// Writes `state` as a whole state file.
pub fn write(mut to: &File, state: &VmState) -> Result<(), SnapshotError> {
    to.write_all(&encode(state)?).map_err(file("write"))
}

/// Reads a state file.
pub fn read(from: &File) -> Result<VmState, SnapshotError> {
    decode(&bytes(from)?)
}

/// Whether a state file is whole: its header and its checksum. What it says is not looked at.
pub fn verify(from: &File) -> Result<(), SnapshotError> {
    body(&bytes(from)?).map(drop)
}

pub(super) fn bytes(from: &File) -> Result<Vec<u8>, SnapshotError> {
    let len = from.metadata().map_err(file("examine"))?.len();
    if len > (HEADER_LEN + BODY_MAX) as u64 {
        return Err(SnapshotError::Damaged("it is too long"));
    }
    let mut bytes = vec![0; len as usize];
    from.read_exact_at(&mut bytes, 0).map_err(file("read"))?;
    Ok(bytes)
}

/// A whole state file with any body.
pub fn seal(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A state file of `state`.
pub fn encode(state: &VmState) -> Result<Vec<u8>, SnapshotError> {
    let body = postcard::to_stdvec(state);
    Ok(seal(&body.map_err(|_| SnapshotError::Busy("its state does not encode"))?))
}

/// The state in a whole file.
pub fn decode(bytes: &[u8]) -> Result<VmState, SnapshotError> {
    match postcard::take_from_bytes(body(bytes)?) {
        Ok((state, [])) => Ok(state),
        _ => Err(SnapshotError::Damaged("it does not decode")),
    }
}

/// The body of a whole file.
pub(super) fn body(bytes: &[u8]) -> Result<&[u8], SnapshotError> {
    let Some((header, body)) = bytes.split_at_checked(HEADER_LEN) else {
        return Err(SnapshotError::Foreign);
    };
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
    if &header[..8] != MAGIC {
        return Err(SnapshotError::Foreign);
    }
    if word(8) != VERSION {
        return Err(SnapshotError::Version { found: word(8) });
    }
    if u64::from(word(16)) | u64::from(word(20)) << 32 != body.len() as u64 {
        return Err(SnapshotError::Damaged("its length is not what it says"));
    }
    if word(12) != crc32fast::hash(body) {
        return Err(SnapshotError::Damaged("its checksum does not fit"));
    }
    Ok(body)
}
