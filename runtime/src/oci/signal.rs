//! Names of signals.

/// Names of the signals 1 to 31 on x86, without SIG (signal(7)).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// Other names of some.
const ALIASES: [(&str, u8); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];
const REAL_TIME: std::ops::RangeInclusive<u8> = 34..=64;
/// The last signal.
const MAX: u8 = 64;

/// Not a signal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown signal {0:?}; give a name such as TERM or SIGTERM, or a number from 0 to {MAX}")]
pub struct SignalError(String);

/// The number of a signal: "15", "TERM", "SIGTERM", "sigrtmin+3". 0 only asks whether there is a
/// process.
pub fn parse(text: &str) -> Result<u8, SignalError> {
    let unknown = || SignalError(text.to_owned());
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return text.parse().ok().filter(|number| *number <= MAX).ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().zip(1..).chain(ALIASES.iter().map(|(name, number)| (name, *number)));
    let found = known.into_iter().find(|(known, _)| **known == name).map(|(_, number)| number);
    found.or_else(|| real_time(name)).ok_or_else(unknown)
}

fn real_time(name: &str) -> Option<u8> {
    let number = match name.strip_prefix("RTMIN") {
        Some("") => *REAL_TIME.start(),
        Some(offset) => REAL_TIME.start().checked_add(offset.strip_prefix('+')?.parse().ok()?)?,
        None => match name.strip_prefix("RTMAX")? {
            "" => *REAL_TIME.end(),
            offset => REAL_TIME.end().checked_sub(offset.strip_prefix('-')?.parse().ok()?)?,
        },
    };
    REAL_TIME.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("0", 0),
            ("64", 64),
            ("CLD", 17),
            ("SYS", 31),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for bad in
            ["", "SIG", "-9", "65", "256", "9x", "TERMINATE", "RTMIN+31", "RTMAX-31", "RTMIN3"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
