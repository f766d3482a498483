//! How many descriptors the guest may make this process hold.

use std::ops::RangeInclusive;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept back for the server itself: its socket, /proc, the shares, and what each
/// thread opens for the length of one request.
pub const RESERVED: usize = 64;

/// How many files the server may be let have open. A container starts with a hundred; the kernel's
/// default `fs.nr_open` is all there is.
pub const OPEN_FILES: RangeInclusive<u32> = 1024..=1 << 20;

/// The most handles, whatever the limit is: a guest with more open files than this has lost track.
const HANDLES_MAX: usize = 1 << 16;

/// What the guest may make this process hold. One descriptor each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Inodes the guest's kernel has cached.
    pub inodes: usize,
    /// Files and directories it has open.
    pub handles: usize,
}

impl Budget {
    /// Shares out `open_files` descriptors: a quarter for handles, the rest for inodes.
    pub fn of(open_files: usize) -> Self {
        let open_files = open_files.saturating_sub(RESERVED);
        let handles = (open_files / 4).min(HANDLES_MAX);
        Self { inodes: open_files - handles, handles }
    }
}

/// Sets both limits of open files to `max`, or to the hard limit if that is lower and this process may
/// not raise it; returns what is in force. It is final: not even a server that fell gets more.
pub fn set_open_files(max: u32) -> usize {
    let max = u64::from(max);
    let set = |to| setrlimit(Resource::Nofile, Rlimit { current: Some(to), maximum: Some(to) });
    if set(max).is_err() {
        // Refused without CAP_SYS_RESOURCE; the hard limit as it is then has to do.
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(max);
        let _ = set(hard.min(max));
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(max);
    usize::try_from(current.min(max)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_never_exceed_the_limit() {
        for limit in [0, 1, 64, 65, 256, 1024, 20_000, 1 << 20] {
            let budget = Budget::of(limit);
            assert!(budget.inodes + budget.handles <= limit.saturating_sub(RESERVED));
        }
        assert_eq!(Budget::of(1024), Budget { inodes: 720, handles: 240 });
    }
}
