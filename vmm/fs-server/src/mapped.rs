//! Files that the guest maps (FUSE_ATTR_DAX) rather than reads: it has them from the host's page cache,
//! and keeps no copy.
//!
//! ```text
//!  looked up: code, and there is room ──▶ mapped ── opened for writing, truncated ──▶ ESTALE, and
//!                                                                    looked up again: another file
//! ```
//!
//! Mappings are read-only. What a guest writes to is therefore not mapped: the first attempt to is
//! answered with ESTALE, upon which the guest's kernel looks the name up again, and finds a node of
//! another ID that is read and written as any other. Whoever has the old one mapped keeps it, as it
//! would on the host, where an overlay's file stays what it was for those who had it open before it
//! was copied up.

use rustix::fs::{FileType, OFlags, Statx};
use rustix::io::Errno;

use crate::inodes::Inode;
use crate::server::{Request, Server};
use crate::wire::{MAP_ALIGNMENT_SHIFT, Reply, SETUPMAPPING_WRITE, SetupMappingIn};

/// Smaller files cost less to read.
const LEN_MIN: u64 = 64 << 10;

/// Whether a file is worth mapping: code, which is used in part, by many, and hardly ever written to.
pub fn is_code(stat: &Statx, name: &[u8]) -> bool {
    let regular = FileType::from_raw_mode(u32::from(stat.stx_mode)).is_file();
    let library = name.ends_with(b".so") || name.windows(4).any(|part| part == b".so.");
    regular && stat.stx_size >= LEN_MIN && (library || stat.stx_mode & 0o111 != 0)
}

/// How many slots of the window a file of this length takes.
pub fn slots(len: u64) -> u64 {
    len.div_ceil(1 << MAP_ALIGNMENT_SHIFT)
}

/// How many of `slots` slots the files may take together that the guest knows: with fewer than a fifth
/// left free, Linux's driver takes mappings away that are in use (FUSE_DAX_RECLAIM_THRESHOLD).
pub fn budget(slots: u16) -> u64 {
    u64::from(slots) - u64::from(slots).div_ceil(4)
}

impl Server {
    /// SETUPMAPPING: hands over the file. Where it is mapped is the device's affair.
    pub(crate) fn set_up_mapping(
        &self,
        mut request: Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let asked = SetupMappingIn::parse(&mut request.args)?;
        if asked.flags & SETUPMAPPING_WRITE != 0 {
            return Err(Errno::ROFS);
        }
        let inode = self.inodes.get(request.header.nodeid)?;
        reply.attach(self.open_file(&inode, OFlags::RDONLY)?);
        inode.set_mapped();
        Ok(())
    }

    /// To be called before a file is changed: ESTALE if it is one that the guest maps.
    pub(crate) fn before_writing(&self, inode: &Inode) -> Result<(), Errno> {
        if !inode.dax || inode.readonly {
            return Ok(());
        }
        self.inodes.set_written(inode.id);
        Err(Errno::STALE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_window_stays_free() {
        for count in 0..1000u16 {
            let free = u64::from(count) - budget(count);
            assert!(free >= u64::from(count / 5), "{count}");
        }
        assert_eq!((slots(0), slots(1), slots(2 << 20), slots((2 << 20) + 1)), (0, 1, 1, 2));
    }
}
