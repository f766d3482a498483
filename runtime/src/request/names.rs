//! Names of VMs and hosts.

/// The longest name of either: the kernel's limit for host names (`__NEW_UTS_LEN`).
const LENGTH_MAX: usize = 64;

/// Why a text is no name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error(
        "--name {0:?}: use letters, digits, `_`, `.` and `-`, a letter or digit first, at most \
         {LENGTH_MAX}"
    )]
    Vm(String),
    #[error("--hostname {0:?}: use letters, digits, `.` and `-`, at most {LENGTH_MAX}")]
    Host(String),
}

/// Checks a VM's name; it is also a directory's name.
pub fn vm(text: &str) -> Result<String, NameError> {
    let first = text.starts_with(|first: char| first.is_ascii_alphanumeric());
    let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    match first && rest && text.len() <= LENGTH_MAX {
        true => Ok(text.to_owned()),
        false => Err(NameError::Vm(text.to_owned())),
    }
}

/// Checks a host name.
pub fn host(text: &str) -> Result<String, NameError> {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
    let dash = text.starts_with(['-', '.']) || text.ends_with('-');
    match plain && !dash && (1..=LENGTH_MAX).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err(NameError::Host(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_file_names() {
        for good in ["a", "web-1", "A_b.c", &"x".repeat(64)] {
            assert_eq!(vm(good).as_deref(), Ok(good));
        }
        for bad in ["", ".", "..", ".lock", "-a", "_a", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(vm(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_names() {
        assert!(host("web-1.example").is_ok());
        for bad in ["", "-a", "a-", ".a", "a_b", "a/b", &"x".repeat(65)] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }
}
