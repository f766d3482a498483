//! A container's ID.

use std::fmt;

/// The longest ID: what a directory's name may have, and more than any engine's.
const LENGTH_MAX: usize = 255;

/// A text that is no ID.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a container ID: use letters, digits, `_`, `+`, `.` and `-`, at most {LENGTH_MAX}"
)]
pub struct IdError(String);

/// A checked ID: also a plain, visible file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for ContainerId {
    type Error = IdError;

    /// As runc has it: `^[\w+-\.]+$`, but not "." and "..", and none that is hidden, for such files
    /// of the root directory are ours.
    fn try_from(text: &str) -> Result<Self, IdError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
        let good = !text.is_empty() && text.len() <= LENGTH_MAX && text.chars().all(plain);
        match good && !text.starts_with('.') {
            true => Ok(Self(text.to_owned())),
            false => Err(IdError(text.to_owned())),
        }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_file_names() {
        for good in ["a", "web-1", "A_b.c+d", "-x", &"x".repeat(255)] {
            assert!(ContainerId::try_from(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".lock", "a/b", "../x", "a b", "é", "a\0", &"x".repeat(256)] {
            assert!(ContainerId::try_from(bad).is_err(), "{bad}");
        }
    }
}
