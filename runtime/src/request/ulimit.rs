//! Resource limits: `nofile=1024`, `nofile=1024:4096`, `core=-1`.

use std::str::FromStr;

/// Resources of setrlimit(2).
const TYPES: [(&str, &str); 16] = [
    ("as", "RLIMIT_AS"),
    ("core", "RLIMIT_CORE"),
    ("cpu", "RLIMIT_CPU"),
    ("data", "RLIMIT_DATA"),
    ("fsize", "RLIMIT_FSIZE"),
    ("locks", "RLIMIT_LOCKS"),
    ("memlock", "RLIMIT_MEMLOCK"),
    ("msgqueue", "RLIMIT_MSGQUEUE"),
    ("nice", "RLIMIT_NICE"),
    ("nofile", "RLIMIT_NOFILE"),
    ("nproc", "RLIMIT_NPROC"),
    ("rss", "RLIMIT_RSS"),
    ("rtprio", "RLIMIT_RTPRIO"),
    ("rttime", "RLIMIT_RTTIME"),
    ("sigpending", "RLIMIT_SIGPENDING"),
    ("stack", "RLIMIT_STACK"),
];

/// Why a text is no resource limit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UlimitError {
    #[error("--ulimit {0:?}: give TYPE=SOFT or TYPE=SOFT:HARD, e.g. nofile=1024:4096")]
    Syntax(String),
    #[error("--ulimit {0:?}: there is no such resource; see setrlimit(2)")]
    Type(String),
    #[error("--ulimit {0:?}: the soft limit is above the hard one")]
    Order(String),
}

/// A resource limit; `u64::MAX` is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// `RLIMIT_NOFILE`
    pub resource: &'static str,
    pub soft: u64,
    pub hard: u64,
}

impl FromStr for Ulimit {
    type Err = UlimitError;

    fn from_str(text: &str) -> Result<Self, UlimitError> {
        let syntax = || UlimitError::Syntax(text.to_owned());
        let (name, limits) = text.split_once('=').ok_or_else(syntax)?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let known = TYPES.iter().find(|(known, _)| *known == name);
        let (_, resource) = known.ok_or_else(|| UlimitError::Type(text.to_owned()))?;
        let soft = value(soft).ok_or_else(syntax)?;
        let hard = value(hard).ok_or_else(syntax)?;
        match soft <= hard {
            true => Ok(Self { resource, soft, hard }),
            false => Err(UlimitError::Order(text.to_owned())),
        }
    }
}

fn value(text: &str) -> Option<u64> {
    match text {
        "-1" | "unlimited" => Some(u64::MAX),
        text if text.starts_with('+') => None,
        text => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let limit = |soft, hard| Ok(Ulimit { resource: "RLIMIT_NOFILE", soft, hard });
        assert_eq!("nofile=5".parse(), limit(5, 5));
        assert_eq!("nofile=5:6".parse(), limit(5, 6));
        assert_eq!("nofile=5:-1".parse(), limit(5, u64::MAX));
        for bad in ["nofile", "nofile=", "nofile=a", "nofile=1:2:3", "fly=1", "nofile=-1:5", "=1"] {
            assert!(bad.parse::<Ulimit>().is_err(), "{bad}");
        }
    }
}
