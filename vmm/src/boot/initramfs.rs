//! The initramfs: a newc cpio archive with one program, written straight into guest memory.
//!
//! Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use std::fs::File;
use std::path::{Path, PathBuf};

use bulkhead_devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::boot::Placed;
use crate::layout::LOW_MEMORY_END;

/// Why the initramfs could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The program cannot be read.
    #[error("cannot read the guest's init program {path}: {source}")]
    Read {
        /// The program.
        path: PathBuf,
        /// What failed.
        source: std::io::Error,
    },
    /// There is no room between the kernel and the end of memory.
    #[error("an initramfs of {len} bytes does not fit above the kernel; give the VM more memory")]
    NoRoom {
        /// Length of the archive.
        len: u64,
    },
    /// Guest memory refused it.
    #[error("cannot write the initramfs to guest memory: {0}")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// An entry of the archive without its data.
struct Entry {
    name: &'static str,
    mode: u32,
    size: u64,
    device: (u32, u32),
}

impl Entry {
    /// Header, name and padding up to the entry's data.
    fn head(&self, inode: u32) -> Vec<u8> {
        let (major, minor) = self.device;
        let fields = [
            inode,
            self.mode,
            0, // uid
            0, // gid
            1, // nlink
            0, // mtime
            self.size as u32,
            0, // device major, minor of the archive's file system
            0,
            major,
            minor,
            self.name.len() as u32 + 1,
            0, // checksum, unused
        ];
        let mut head = b"070701".to_vec();
        for field in fields {
            head.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        head.extend_from_slice(self.name.as_bytes());
        head.push(0);
        head.resize(head.len().next_multiple_of(4), 0);
        head
    }
}

/// Places an archive with `init` as /init at the top of low memory, above `kernel_end`.
pub fn load(memory: &GuestMemory, init: &Path, kernel_end: u64) -> Result<Placed, InitramfsError> {
    let read_error = |source| InitramfsError::Read { path: init.to_owned(), source };
    let mut program = File::open(init).map_err(read_error)?;
    let size = program.metadata().map_err(read_error)?.len();

    let directory = |name| Entry { name, mode: 0o040_755, size: 0, device: (0, 0) };
    let console = Entry { name: "dev/console", mode: 0o020_600, size: 0, device: (5, 1) };
    let mut head = Vec::with_capacity(1024);
    for (inode, entry) in [directory("dev"), console].iter().enumerate() {
        head.extend(entry.head(inode as u32 + 1));
    }
    head.extend(Entry { name: "init", mode: 0o100_755, size, device: (0, 0) }.head(3));
    let trailer = Entry { name: "TRAILER!!!", mode: 0, size: 0, device: (0, 0) }.head(0);

    let data_end = (head.len() as u64 + size).next_multiple_of(4);
    let len = data_end + trailer.len() as u64;
    let low_end = (memory.last_addr().0 + 1).min(LOW_MEMORY_END);
    let start = low_end.checked_sub(len).map(|start| start & !0xfff);
    let start = start.filter(|start| size < 1 << 31 && *start >= kernel_end);
    let start = start.ok_or(InitramfsError::NoRoom { len })?;

    memory.write_slice(&head, GuestAddress(start))?;
    let data = GuestAddress(start + head.len() as u64);
    memory.read_exact_volatile_from(data, &mut program, size as usize)?;
    memory.write_slice(&trailer, GuestAddress(start + data_end))?;
    Ok(Placed { start, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn program(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn archive_holds_the_program_as_init() {
        let memory = crate::memory::create(64).unwrap();
        let placed = load(&memory, program(b"#!/agent!").path(), 1 << 20).unwrap();
        assert_eq!(placed.start % 4096, 0);
        let mut archive = vec![0; placed.len as usize];
        memory.read_slice(&mut archive, GuestAddress(placed.start)).unwrap();
        let text = String::from_utf8_lossy(&archive);
        let init = text.find("init\0").unwrap();
        let data = (init + 5).next_multiple_of(4);
        assert_eq!(&text[data..data + 9], "#!/agent!");
        assert_eq!(&text[(data + 9).next_multiple_of(4)..][..6], "070701");
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }

    #[test]
    fn a_kernel_in_the_way_is_said() {
        let memory = crate::memory::create(64).unwrap();
        let error = load(&memory, program(b"x").path(), 64 << 20).unwrap_err();
        assert!(error.to_string().contains("more memory"), "{error}");
    }
}
