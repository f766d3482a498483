//! Which cgroup hierarchies the host has, and where.

use std::fs;
use std::path::PathBuf;

use super::CgroupError;

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where its root directory is.
    pub root: PathBuf,
    /// It is version 2.
    pub unified: bool,
    /// Controllers (and the name) of a version 1 hierarchy.
    pub controllers: Vec<String>,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(pub Vec<Hierarchy>);

impl Layout {
    /// Asks the kernel.
    pub fn of_this_host() -> Result<Self, CgroupError> {
        fs::read_to_string("/proc/self/mountinfo")
            .map(|text| Self::parse(&text))
            .map_err(CgroupError::Layout)
    }

    /// Takes the hierarchies from mountinfo (proc(5)); the first mount of each counts.
    fn parse(mountinfo: &str) -> Self {
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let root = mount.split(' ').nth(4).map(unescape).unwrap_or_default();
            let mut words = filesystem.split(' ');
            let hierarchy = match (words.next(), words.nth(1)) {
                (Some("cgroup2"), _) => Hierarchy { root, unified: true, controllers: Vec::new() },
                (Some("cgroup"), Some(options)) => {
                    let words = options.split(',').map(str::to_owned);
                    let controllers = words.filter(|word| !is_option(word)).collect();
                    Hierarchy { root, unified: false, controllers }
                }
                _ => continue,
            };
            let same = |other: &Hierarchy| {
                other.unified == hierarchy.unified && other.controllers == hierarchy.controllers
            };
            if !found.iter().any(same) {
                found.push(hierarchy);
            }
        }
        Self(found)
    }
}

/// Options of the mount that name no controller.
fn is_option(word: &str) -> bool {
    matches!(word, "rw" | "ro" | "xattr" | "clone_children" | "noprefix" | "cpuset_v2_mode")
        || word.starts_with("release_agent=")
}

/// Octal escapes of mountinfo: "\040" is a space.
fn unescape(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                path.push(byte.into());
                path.push_str(&part[3..]);
            }
            None => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(root: &str, controllers: &[&str]) -> Hierarchy {
        let controllers: Vec<_> = controllers.iter().map(|&name| name.to_owned()).collect();
        Hierarchy { root: root.into(), unified: controllers.is_empty(), controllers }
    }

    #[test]
    fn version_2_version_1_and_both_are_told_apart() {
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(Layout::parse(v2).0, [hierarchy("/sys/fs/cgroup", &[])]);
        let both = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            34 31 0:38 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n\
            35 31 0:38 / /elsewhere rw - cgroup2 cgroup2 rw";
        assert_eq!(
            Layout::parse(both).0,
            [
                hierarchy("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
                hierarchy("/sys/fs/cgroup/systemd", &["name=systemd"]),
                hierarchy("/sys/fs/cgroup/uni fied", &[]),
            ]
        );
        assert_eq!(Layout::parse("nonsense\n - \n1 2 3 - cgroup").0, []);
    }
}
