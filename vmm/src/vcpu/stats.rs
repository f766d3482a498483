//! How many VM exits KVM counts (KVM_GET_STATS_FD; the kernel's Documentation/virt/kvm/api.rst,
//! 4.134 and 4.135), for the timeline.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);

/// struct kvm_stats_header
const HEADER_LEN: usize = 24;
/// struct kvm_stats_desc without its name
const DESCRIPTOR_LEN: usize = 16;
/// The name KVM gives the counter of all exits of a vCPU.
const EXITS: &[u8] = b"exits";
/// More than any kernel has, so that a strange file cannot make us read on.
const DESCRIPTORS_MAX: u32 = 1024;

/// Reads a vCPU's count of VM exits.
pub struct ExitCounter {
    file: File,
    offset: u64,
}

impl ExitCounter {
    /// `None` where KVM has no binary statistics (before Linux 5.14).
    pub fn new(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the ioctl takes no argument and touches no memory of ours.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return None;
        }
        debug_assert_ne!(fd, vcpu.as_raw_fd());
        // SAFETY: the kernel just handed this descriptor out and nothing else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let offset = exits_offset(&file)?;
        Some(Self { file, offset })
    }

    /// The count so far, or `None` if it cannot be read.
    pub fn exits(&self) -> Option<u64> {
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, self.offset).ok()?;
        Some(u64::from_ne_bytes(value))
    }
}

fn exits_offset(file: &File) -> Option<u64> {
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0).ok()?;
    let [_flags, name_len, count, _id, descriptors, data] = words(&header)[..] else { return None };
    let len = DESCRIPTOR_LEN + usize::try_from(name_len).ok().filter(|len| *len <= 256)?;
    let mut table = vec![0; len * count.min(DESCRIPTORS_MAX) as usize];
    file.read_exact_at(&mut table, u64::from(descriptors)).ok()?;
    let found = table.chunks(len).find(|descriptor| {
        let name = &descriptor[DESCRIPTOR_LEN..];
        name.split(|byte| *byte == 0).next() == Some(EXITS)
    })?;
    let offset = *words(&found[8..12]).first()?;
    Some(u64::from(data) + u64::from(offset))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |four: &[u8]| u32::from_ne_bytes([four[0], four[1], four[2], four[3]]);
    bytes.chunks_exact(4).map(word).collect()
}
