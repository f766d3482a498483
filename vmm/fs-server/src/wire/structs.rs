//! The structures of requests, each with its parser.

use rustix::io::Errno;

use super::parse::Args;

/// Declares request structures whose fields stand on the wire in the order written; `_` fields are
/// skipped by giving them a name nobody reads.
macro_rules! request_structs {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ident),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[allow(missing_docs, dead_code, reason = "the fields are the kernel's")]
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $(pub $field: $type),+ }

        impl $name {
            /// Takes the structure off the front of `args`; EINVAL if it is cut short.
            pub fn parse(args: &mut Args<'_>) -> Result<Self, Errno> {
                Ok(Self { $($field: args.$type()?),+ })
            }
        }
    )+};
}

request_structs! {
    /// `struct fuse_init_in` without what 7.36 appended.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// `struct fuse_forget_one`.
    ForgetOne { nodeid: u64, nlookup: u64 }
    /// `struct fuse_mknod_in`.
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `struct fuse_mkdir_in`.
    MkdirIn { mode: u32, umask: u32 }
    /// `struct fuse_rename2_in`.
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    /// `struct fuse_setattr_in`.
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64,
        atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// `struct fuse_open_in`.
    OpenIn { flags: u32, open_flags: u32 }
    /// `struct fuse_create_in`.
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// `struct fuse_read_in`.
    ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32,
        lock_owner: u64, flags: u32, padding: u32,
    }
    /// `struct fuse_write_in`.
    WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32,
        lock_owner: u64, flags: u32, padding: u32,
    }
    /// `struct fuse_fsync_in`.
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32 }
    /// `struct fuse_setxattr_in`, the short form: SETXATTR_EXT is not negotiated.
    SetxattrIn { size: u32, flags: u32 }
    /// `struct fuse_getxattr_in`.
    GetxattrIn { size: u32, padding: u32 }
    /// `struct fuse_fallocate_in`.
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// `struct fuse_lseek_in`.
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// `struct fuse_copy_file_range_in`.
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// `struct fuse_setupmapping_in`.
    SetupMappingIn { fh: u64, foffset: u64, len: u64, flags: u64, moffset: u64 }
    /// `struct fuse_statx_in`.
    StatxIn { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
}
