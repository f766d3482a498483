//! How many descriptors the guest may make this process hold.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept back for the server itself: its socket, /proc, the shares, and what each
/// thread opens for the length of one request.
pub const RESERVED: usize = 64;

/// The most open files worth asking for: the kernel's default `fs.nr_open`.
const OPEN_FILES_WANTED: u64 = 1 << 20;

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

/// Raises the soft limit of open files, and the hard one if this process may; returns the limit.
pub fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < OPEN_FILES_WANTED) {
        let wanted = Some(OPEN_FILES_WANTED);
        // Refused without CAP_SYS_RESOURCE; the hard limit as it is then has to do.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum: wanted });
    }
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = Some(maximum.map_or(OPEN_FILES_WANTED, |max| max.min(OPEN_FILES_WANTED)));
    // Refused where the hard limit was lowered behind our back; what counts is read below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
    let current = getrlimit(Resource::Nofile).current.unwrap_or(OPEN_FILES_WANTED);
    usize::try_from(current.min(OPEN_FILES_WANTED)).unwrap_or(usize::MAX)
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
