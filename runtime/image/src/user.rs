//! Whose rights this process has.

use std::fs;

use rustix::process::geteuid;

/// Whether it is root of the whole host. Rootless engines call runtimes as root of a user namespace,
/// in which the host's own directories are others'.
pub fn is_host_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    geteuid().is_root() && is_identity(&map)
}

/// Whether there is one user to be and no other: that of a user namespace without further IDs.
pub fn is_only_one() -> bool {
    is_single(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
}

fn is_single(map: &str) -> bool {
    map.lines().count() == 1 && map.split_whitespace().nth(2) == Some("1")
}

/// Whether a uid_map (user_namespaces(7)) is that of the first user namespace.
fn is_identity(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_namespace_is_told_from_the_host() {
        assert!(is_identity("         0          0 4294967295\n"));
        assert!(!is_identity(
            "         0       1000          1\n         1     100000      65536\n"
        ));
        assert!(!is_identity(""));
        assert!(is_single("         0       1000          1\n"));
        assert!(!is_single("0 1000 1\n1 100000 65536\n") && !is_single("0 0 4294967295\n"));
    }
}
