//! linux.cgroupsPath, in either form.

use std::path::{Component, Path, PathBuf};

/// Where containers are that name no place.
const DEFAULT_PARENT: &str = "bulkhead";
/// The longest name of a cgroup, bytes: NAME_MAX.
const NAME_BYTES_MAX: usize = 255;

/// A path that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It would leave the hierarchy.
    #[error("linux.cgroupsPath {0:?} contains \"..\"")]
    Climbs(String),
    /// Not three parts.
    #[error("linux.cgroupsPath {0:?} is not SLICE:PREFIX:NAME, which --systemd-cgroup asks for")]
    Systemd(String),
    /// The root of the hierarchy is everybody's.
    #[error("linux.cgroupsPath {0:?} names no cgroup of the container's own")]
    Root(String),
    /// A name no directory can have.
    #[error(
        "linux.cgroupsPath {0:?} contains a name that is longer than 255 bytes or a slice's that is none"
    )]
    Name(String),
}

/// Relative to the root of each hierarchy; never empty, without "..".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath(PathBuf);

impl CgroupPath {
    /// The place of container `id`, as its configuration (`asked`) has it. With `systemd`, that is
    /// SLICE:PREFIX:NAME.
    pub fn of(asked: Option<&Path>, id: &str, systemd: bool) -> Result<Self, PathError> {
        let asked = asked.map(Path::to_string_lossy).unwrap_or_default();
        let path = match (&*asked, systemd) {
            ("", _) => Path::new(DEFAULT_PARENT).join(id),
            (asked, true) => scope(asked)?,
            (asked, false) => asked.into(),
        };
        let mut plain = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) if name.len() > NAME_BYTES_MAX => {
                    return Err(PathError::Name(asked.into_owned()));
                }
                Component::Normal(name) => plain.push(name),
                Component::ParentDir => return Err(PathError::Climbs(asked.into_owned())),
                _ => {}
            }
        }
        match plain.as_os_str().is_empty() {
            true => Err(PathError::Root(asked.into_owned())),
            false => Ok(Self(plain)),
        }
    }

    /// The directory in the hierarchy whose root is `root`.
    pub fn below(&self, root: &Path) -> PathBuf {
        root.join(&self.0)
    }
}

/// SLICE:PREFIX:NAME is the unit PREFIX-NAME.scope in SLICE, or NAME itself if that is a slice
/// (systemd.slice(5): "a-b.slice" is in "a.slice").
fn scope(asked: &str) -> Result<PathBuf, PathError> {
    let parts: Vec<&str> = asked.split(':').collect();
    let [slice, prefix, name] = parts[..] else {
        return Err(PathError::Systemd(asked.to_owned()));
    };
    if name.is_empty() || parts.iter().any(|part| part.contains('/')) {
        return Err(PathError::Systemd(asked.to_owned()));
    }
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let path = expand(slice).ok_or_else(|| PathError::Name(asked.to_owned()))?;
    Ok(path.join(match (name.ends_with(".slice"), prefix) {
        (true, _) => name.to_owned(),
        (false, "") => format!("{name}.scope"),
        (false, prefix) => format!("{prefix}-{name}.scope"),
    }))
}

fn expand(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    let mut path = PathBuf::new();
    if name == "-" {
        return Some(path);
    }
    let mut whole = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        if !whole.is_empty() {
            whole.push('-');
        }
        whole.push_str(part);
        path.push(format!("{whole}.slice"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(asked: &str, systemd: bool) -> Result<String, PathError> {
        let path = CgroupPath::of(Some(Path::new(asked)), "id", systemd)?;
        Ok(path.below(Path::new("/cg")).to_str().expect("text").to_owned())
    }

    #[test]
    fn both_forms_are_paths() {
        for (asked, systemd, path) in [
            ("", false, "/cg/bulkhead/id"),
            ("", true, "/cg/bulkhead/id"),
            ("/libpod_parent/libpod-1", false, "/cg/libpod_parent/libpod-1"),
            ("relative//./x/", false, "/cg/relative/x"),
            ("a:b:c", false, "/cg/a:b:c"),
            ("machine.slice:libpod:1", true, "/cg/machine.slice/libpod-1.scope"),
            ("a-b.slice:p:1", true, "/cg/a.slice/a-b.slice/p-1.scope"),
            (":p:1", true, "/cg/system.slice/p-1.scope"),
            ("-.slice::1", true, "/cg/1.scope"),
            ("a.slice:p:x.slice", true, "/cg/a.slice/x.slice"),
        ] {
            assert_eq!(of(asked, systemd).as_deref(), Ok(path), "{asked}");
        }
        assert!(CgroupPath::of(None, "id", true).is_ok());
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for (asked, systemd) in [
            ("/", false),
            ("..", false),
            ("/a/../../b", false),
            ("a", true),
            ("/a/b", true),
            ("a.slice:p:", true),
            ("a.slice:../x:y", true),
            ("a:b:c", true),
            ("a--b.slice:p:1", true),
            ("a.slice:b:c:d", true),
        ] {
            assert!(of(asked, systemd).is_err(), "{asked}");
        }
        assert!(of(&"x".repeat(256), false).is_err());
    }

    proptest! {
        #[test]
        fn any_path_stays_below_the_root(asked in "[a.:/-]{0,20}(slice)?[a.:/-]{0,8}", systemd: bool) {
            if let Ok(path) = of(&asked, systemd) {
                prop_assert!(path.starts_with("/cg/") && path.len() > 4, "{}", path);
                prop_assert!(!path.split('/').any(|word| word == ".."), "{}", path);
            }
        }
    }
}
