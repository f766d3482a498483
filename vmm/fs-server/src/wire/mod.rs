//! The FUSE wire protocol, 7.31 to 7.41: numbers, structures, and bytes in and out.
//!
//! Names and layouts are those of Linux's `include/uapi/linux/fuse.h`. Every structure is a run of
//! little-endian fields without implicit padding, so requests are parsed field by field from
//! bytes, with lengths checked, and replies are written field by field.

mod parse;
mod reply;
mod structs;

pub use parse::{Args, HEADER_LEN_IN, InHeader, Name, is_name, request_without_body};
pub use reply::{HEADER_LEN_OUT, Reply};
pub use structs::*;

/// The protocol's major version.
pub const MAJOR: u32 = 7;
/// The oldest minor version served: Linux 5.4, the first with virtio-fs.
pub const MINOR_MIN: u32 = 31;
/// The newest minor version served: Linux 6.12.
pub const MINOR_MAX: u32 = 41;

/// The node ID of the root directory.
pub const ROOT_ID: u64 = 1;

/// The most bytes a WRITE or READ carries: 256 pages, what `max_pages` below allows.
pub const PAYLOAD_MAX: usize = 1 << 20;
/// The most pages of a request.
pub const PAGES_MAX: u16 = 256;
/// The longest message either way: a payload, the headers before it, and room for a name or an
/// attribute's name. No message without a payload comes near it (a value of an extended attribute
/// has 64 KiB at most).
pub const MESSAGE_MAX: usize = PAYLOAD_MAX + 4096 + 256;

/// Request codes (`enum fuse_opcode`).
pub mod op {
    #![allow(missing_docs, reason = "the names are the kernel's")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    /// Not the kernel's, and out of its numbers' reach: the monitor's own, see `crate::state`.
    pub const SAVE: u32 = 0x424b_0001;
    /// The same, see `crate::shares`.
    pub const SHARE: u32 = 0x424b_0002;
    pub const UNSHARE: u32 = 0x424b_0003;

    /// Whether a request gets no reply, whatever becomes of it.
    pub const fn is_silent(opcode: u32) -> bool {
        matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT)
    }
}

/// INIT flags (`FUSE_ASYNC_READ` and so on) that are of use here.
pub mod init {
    #![allow(missing_docs, reason = "the names are the kernel's")]
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const MAP_ALIGNMENT: u32 = 1 << 26;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    pub const INIT_EXT: u32 = 1 << 30;
    /// Of the second word of flags.
    pub const HAS_INODE_DAX: u32 = 1 << 1;
}

/// `fuse_attr.flags` (`FUSE_ATTR_DAX`): the file is to be mapped, not read.
pub const ATTR_DAX: u32 = 1 << 1;
/// log2 of the alignment of mappings: what Linux's driver maps at once, and a huge page.
pub const MAP_ALIGNMENT_SHIFT: u32 = 21;
/// `fuse_setupmapping_in.flags`.
pub const SETUPMAPPING_WRITE: u64 = 1 << 0;

/// Flags of replies to OPEN and CREATE (`FOPEN_*`).
pub mod fopen {
    /// Keep the pages already cached.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// Send no FLUSH at close.
    pub const NOFLUSH: u32 = 1 << 5;
}

/// `fuse_setattr_in.valid` (`FATTR_*`).
pub mod fattr {
    #![allow(missing_docs, reason = "the names are the kernel's")]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `fuse_write_in.write_flags`: a page of the cache is written back; the handle is any that the
/// guest found open for writing.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `fuse_write_in.write_flags`: the writer may not keep set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `fuse_open_in.open_flags`: the opener may not keep set-id bits when truncating.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `fuse_fsync_in.fsync_flags`: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
