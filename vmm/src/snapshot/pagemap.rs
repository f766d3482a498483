//! Bits of an entry of /proc/PID/pagemap (the kernel's admin-guide/mm/pagemap.rst).

/// The page is in memory.
pub const PRESENT: u64 = 1 << 63;
/// It is in swap space.
pub const SWAPPED: u64 = 1 << 62;
/// It is a file's, and not this process's own.
pub const OF_FILE: u64 = 1 << 61;
