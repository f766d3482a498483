//! A mount's options, as mount(8) has them.

use rustix::mount::{MountFlags, MountPropagationFlags};

/// Options: kernel flags apart from the file system's own words.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// For mount(2).
    pub flags: MountFlags,
    /// To be set once the mount is there.
    pub propagation: Option<MountPropagationFlags>,
    /// The file system's own, separated by commas.
    pub data: String,
    /// A tmpfs starts with a copy of the directory it covers.
    pub copy_up: bool,
}

impl Options {
    /// Sorts options. Words that are no flag belong to the file system, which refuses those it does
    /// not know.
    pub fn parse(words: &[impl AsRef<str>]) -> Self {
        let mut options = Self {
            flags: MountFlags::empty(),
            propagation: None,
            data: String::new(),
            copy_up: false,
        };
        for word in words.iter().map(AsRef::as_ref) {
            if let Some((flag, set)) = flag(word) {
                options.flags.set(flag, set);
            } else if let Some(propagation) = propagation(word) {
                options.propagation = Some(propagation);
            } else if word == "tmpcopyup" {
                options.copy_up = true;
            } else if !matches!(word, "" | "defaults" | "bind" | "rbind") {
                if !options.data.is_empty() {
                    options.data.push(',');
                }
                options.data.push_str(word);
            }
        }
        options
    }
}

/// The mount flag an option stands for, and whether it sets or clears it. The "r" forms (of
/// mount_setattr(2), recursive) are the same here: shares have no mounts below them.
fn flag(word: &str) -> Option<(MountFlags, bool)> {
    Some(match word {
        "ro" | "rro" => (MountFlags::RDONLY, true),
        "rw" | "rrw" => (MountFlags::RDONLY, false),
        "nosuid" | "rnosuid" => (MountFlags::NOSUID, true),
        "suid" | "rsuid" => (MountFlags::NOSUID, false),
        "nodev" | "rnodev" => (MountFlags::NODEV, true),
        "dev" | "rdev" => (MountFlags::NODEV, false),
        "noexec" | "rnoexec" => (MountFlags::NOEXEC, true),
        "exec" | "rexec" => (MountFlags::NOEXEC, false),
        "noatime" | "rnoatime" => (MountFlags::NOATIME, true),
        "atime" | "ratime" => (MountFlags::NOATIME, false),
        "nodiratime" | "rnodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" | "rdiratime" => (MountFlags::NODIRATIME, false),
        "relatime" | "rrelatime" => (MountFlags::RELATIME, true),
        "norelatime" | "rnorelatime" => (MountFlags::RELATIME, false),
        "strictatime" | "rstrictatime" => (MountFlags::STRICTATIME, true),
        "nostrictatime" | "rnostrictatime" => (MountFlags::STRICTATIME, false),
        "nosymfollow" | "rnosymfollow" => (NOSYMFOLLOW, true),
        "symfollow" | "rsymfollow" => (NOSYMFOLLOW, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "mand" => (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, true),
        "nomand" => (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, false),
        "lazytime" => (MountFlags::LAZYTIME, true),
        "nolazytime" => (MountFlags::LAZYTIME, false),
        "silent" => (MountFlags::SILENT, true),
        "loud" => (MountFlags::SILENT, false),
        _ => return None,
    })
}

/// `MS_NOSYMFOLLOW` (linux/mount.h), which rustix has no name for.
const NOSYMFOLLOW: MountFlags = MountFlags::from_bits_retain(256);

/// The propagation an option stands for.
pub fn propagation(word: &str) -> Option<MountPropagationFlags> {
    let recursive = word.starts_with('r');
    let flags = match word.strip_prefix('r').unwrap_or(word) {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(if recursive { flags | MountPropagationFlags::REC } else { flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_propagation_or_the_file_systems_own() {
        let words = ["rbind", "ro", "nosuid", "size=64m", "suid", "rslave", "", "mode=0755"];
        let options = Options::parse(&words);
        assert_eq!(options.flags, MountFlags::RDONLY);
        let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        assert_eq!(options.propagation, Some(downstream));
        assert_eq!(options.data, "size=64m,mode=0755");
        let none: [&str; 0] = [];
        assert_eq!(Options::parse(&none), Options::parse(&["defaults", "bind", "rw"]));
        assert!(Options::parse(&["tmpcopyup"]).copy_up);
    }
}
