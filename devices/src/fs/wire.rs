//! The part of the FUSE protocol the device looks at: the headers of Linux's
//! `include/uapi/linux/fuse.h`.

/// Length of `struct fuse_in_header`.
pub const HEADER_LEN_IN: usize = 40;
/// Length of `struct fuse_out_header`.
pub const HEADER_LEN_OUT: usize = 16;

/// The longest message either way, as the file server has it: 1 MiB of data, its headers, and room
/// for names.
pub const MESSAGE_MAX: usize = (1 << 20) + 4096 + 256;

/// Errors of requests are above it (`fuse_dev_do_write`).
const ERROR_MIN: i32 = -512;

/// Asks for more than it brings or takes.
pub const COPY_FILE_RANGE: u32 = 47;
/// Length of `struct fuse_copy_file_range_in`.
pub const COPY_LEN: usize = 56;
/// The most one of them copies, as the file server has it.
pub const COPY_MAX: u64 = 256 << 20;

const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// A bit of the numbers the device gives requests: a reply without an error brings a file (SCM_RIGHTS).
/// Files come in the order of their replies, so one that nobody waits for any more must be told from
/// the next.
pub const WITH_FILE: u64 = 1 << 63;

/// The number of the monitor's own request, of which there is one at a time. No slot has it.
pub const MONITORS: u64 = 1;

/// Request codes from here on are not FUSE's, which ends at CUSE's 4096 but for INIT with its bytes
/// swapped: they pass between monitor and file server.
const MONITORS_MIN: u32 = 0x424b_0000;

/// `struct fuse_in_header`, as the guest wrote it when it was looked at, the once.
#[derive(Clone, Copy, Debug)]
pub struct InHeader([u8; HEADER_LEN_IN]);

/// `struct fuse_out_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutHeader {
    /// Length of the whole reply.
    pub len: u32,
    /// 0 or a negated errno.
    pub error: i32,
    /// What the request had.
    pub unique: u64,
}

impl InHeader {
    /// A header of nothing, for requests not yet taken.
    pub const EMPTY: Self = Self([0; HEADER_LEN_IN]);

    /// Takes the bytes as a header.
    pub fn new(bytes: [u8; HEADER_LEN_IN]) -> Self {
        Self(bytes)
    }

    /// The header of a request of the device's own.
    pub fn of(len: u32, opcode: u32, unique: u64, node: u64) -> Self {
        let mut bytes = [0; HEADER_LEN_IN];
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
        bytes[8..16].copy_from_slice(&unique.to_le_bytes());
        bytes[16..24].copy_from_slice(&node.to_le_bytes());
        Self(bytes)
    }

    /// The header's bytes.
    pub fn bytes(&self) -> &[u8; HEADER_LEN_IN] {
        &self.0
    }

    /// Length of the whole request, as announced.
    pub fn len(&self) -> u32 {
        self.u32_at(0)
    }

    /// The number its reply repeats.
    pub fn unique(&self) -> u64 {
        self.u64_at(8)
    }

    /// Changes the number its reply repeats.
    pub fn set_unique(&mut self, unique: u64) {
        self.0[8..16].copy_from_slice(&unique.to_le_bytes());
    }

    /// The request's code.
    pub fn opcode(&self) -> u32 {
        self.u32_at(4)
    }

    /// The node ID it is about.
    pub fn node(&self) -> u64 {
        self.u64_at(16)
    }

    /// Whether the request gets no reply.
    pub fn is_silent(&self) -> bool {
        matches!(self.u32_at(4), FORGET | INTERRUPT | BATCH_FORGET)
    }

    /// Whether it is a request that no guest may make.
    pub fn is_monitors(&self) -> bool {
        self.u32_at(4) >= MONITORS_MIN
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from(self.u32_at(at)) | u64::from(self.u32_at(at + 4)) << 32
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

impl OutHeader {
    /// Takes bytes as a header; `None` if no reply begins with them.
    pub fn parse(bytes: &[u8; HEADER_LEN_OUT]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, unique @ ..] = *bytes;
        let len = u32::from_le_bytes([a, b, c, d]);
        let error = i32::from_le_bytes([e, f, g, h]);
        let fits = (HEADER_LEN_OUT..=MESSAGE_MAX).contains(&(len as usize));
        let errs = error > ERROR_MIN && error < 0 && len as usize == HEADER_LEN_OUT;
        (fits && (error == 0 || errs)).then(|| Self {
            len,
            error,
            unique: u64::from_le_bytes(unique),
        })
    }

    /// The header's bytes.
    pub fn bytes(&self) -> [u8; HEADER_LEN_OUT] {
        let mut bytes = [0; HEADER_LEN_OUT];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_le_bytes());
        bytes[8..].copy_from_slice(&self.unique.to_le_bytes());
        bytes
    }
}
