//! What a rule for devices (`DeviceRule`) names, as `bpf_cgroup_dev_ctx` (linux/bpf.h) has it.

/// Kinds of access: BPF_DEVCG_ACC_*. Making a node;
pub const MKNOD: u32 = 1;
/// reading;
pub const READ: u32 = 2;
/// writing;
pub const WRITE: u32 = 4;
/// all of them.
pub const ALL: u32 = MKNOD | READ | WRITE;
/// Types: BPF_DEVCG_DEV_*. A block device;
pub const BLOCK: u32 = 1;
/// a character device.
pub const CHAR: u32 = 2;
