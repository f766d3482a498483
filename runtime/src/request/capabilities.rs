//! Which of capabilities(7) the container's process may have.

/// Why a text is no capability.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    #[error("{option} {name}: there is no such capability; see capabilities(7)")]
    Unknown {
        /// The option it was given to.
        option: &'static str,
        /// What was typed.
        name: String,
    },
}

/// What containers have unless told otherwise, in docker and podman alike.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// All, in the order of linux/capability.h.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The default set with what was added and without what was dropped; a drop wins, except over the
/// capabilities that are named one by one beside `--cap-drop ALL`.
pub fn chosen(add: &[String], drop: &[String]) -> Result<Vec<&'static str>, CapabilityError> {
    let add = known("--cap-add", add)?;
    let drop = known("--cap-drop", drop)?;
    let base = if drop.all {
        &[][..]
    } else if add.all {
        &ALL[..]
    } else {
        &DEFAULT[..]
    };
    let has = |name: &&'static str| base.contains(name) || add.named.contains(name);
    Ok(ALL.into_iter().filter(has).filter(|name| !drop.named.contains(name)).collect())
}

struct Known {
    all: bool,
    named: Vec<&'static str>,
}

fn known(option: &'static str, names: &[String]) -> Result<Known, CapabilityError> {
    let mut known = Known { all: false, named: Vec::new() };
    for name in names {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let found = ALL.into_iter().find(|known| known.strip_prefix("CAP_") == Some(short));
        match found {
            Some(found) => known.named.push(found),
            None if short == "ALL" => known.all = true,
            None => return Err(CapabilityError::Unknown { option, name: name.clone() }),
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let owned =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        chosen(&owned(add), &owned(drop)).unwrap()
    }

    #[test]
    fn added_and_dropped() {
        assert_eq!(set(&[], &[]).len(), DEFAULT.len());
        assert!(set(&["net_admin"], &[]).contains(&"CAP_NET_ADMIN"));
        assert!(!set(&[], &["CAP_CHOWN"]).contains(&"CAP_CHOWN"));
        assert_eq!(set(&["ALL"], &[]), ALL);
        assert_eq!(set(&[], &["all"]), [""; 0]);
        assert_eq!(set(&["kill"], &["ALL"]), ["CAP_KILL"]);
        assert_eq!(set(&["ALL"], &["sys_boot"]).len(), ALL.len() - 1);
    }

    #[test]
    fn the_default_is_part_of_all() {
        assert!(DEFAULT.iter().all(|name| ALL.contains(name)));
    }
}
