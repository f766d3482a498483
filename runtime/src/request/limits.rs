//! Limits as they are typed and as profiles hold them: NAME=RATE[:BURST] or NAME=MAX, each a number, or
//! one of k, m or g; a second's worth is the burst if none is given.

use std::num::NonZeroU64;

use bulkhead_vmm::spec::{Limits, Rate};

/// Why a text is no limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error(
        "{0}: give NAME=RATE, NAME=RATE:BURST or NAME=MAX, e.g. fs-bytes=100m or vsock-buffer=64k"
    )]
    Syntax(String),
    #[error("{0:?}: there are {names}", names = NAMES.join(", "))]
    Name(String),
}

/// Bytes, and requests, packets or frames, in a second; open files, vsock connections, and bytes of the
/// buffer of each.
const NAMES: [&str; 14] = [
    "fs-bytes",
    "fs-ops",
    "vsock-bytes",
    "vsock-ops",
    "rng-bytes",
    "rng-ops",
    "net-rx-bytes",
    "net-rx-ops",
    "net-tx-bytes",
    "net-tx-ops",
    "console-bytes",
    "fs-files",
    "vsock-connections",
    "vsock-buffer",
];

/// Where a limit is.
enum Place<'l> {
    Rate(&'l mut Option<Rate>),
    Max(&'l mut Option<u32>),
}

/// The limits that `texts` name, the last of a name.
pub fn of(texts: &[String]) -> Result<Limits, LimitError> {
    let mut limits = Limits::default();
    for text in texts {
        let syntax = || LimitError::Syntax(text.clone());
        let (name, given) = text.split_once('=').ok_or_else(syntax)?;
        let place = place(&mut limits, name).ok_or_else(|| LimitError::Name(name.to_owned()))?;
        match place {
            Place::Rate(place) => *place = Some(rate(given).ok_or_else(syntax)?),
            Place::Max(place) => *place = Some(max(given).ok_or_else(syntax)?),
        }
    }
    Ok(limits)
}

/// `asked`, and `usual` where nothing was asked for.
pub fn or(asked: Limits, usual: Limits) -> Limits {
    each(asked, usual, Option::or, Option::or)
}

/// The lower of both.
pub fn lower(one: Limits, other: Limits) -> Limits {
    each(
        one,
        other,
        |one, other| one.into_iter().chain(other).min_by_key(|rate| rate.per_second),
        |one, other| one.into_iter().chain(other).min(),
    )
}

fn each(
    mut one: Limits,
    mut other: Limits,
    rate: fn(Option<Rate>, Option<Rate>) -> Option<Rate>,
    max: fn(Option<u32>, Option<u32>) -> Option<u32>,
) -> Limits {
    for name in NAMES {
        match (place(&mut one, name), place(&mut other, name)) {
            (Some(Place::Rate(one)), Some(Place::Rate(other))) => *one = rate(*one, *other),
            (Some(Place::Max(one)), Some(Place::Max(other))) => *one = max(*one, *other),
            _ => {}
        }
    }
    one
}

fn place<'l>(limits: &'l mut Limits, name: &str) -> Option<Place<'l>> {
    match name {
        "fs-files" => return Some(Place::Max(&mut limits.fs_files)),
        "vsock-connections" => return Some(Place::Max(&mut limits.vsock_connections)),
        "vsock-buffer" => return Some(Place::Max(&mut limits.vsock_buffer)),
        _ => {}
    }
    let (device, what) = name.rsplit_once('-')?;
    let device = match device {
        "fs" => &mut limits.fs,
        "vsock" => &mut limits.vsock,
        "rng" => &mut limits.rng,
        "net-rx" => &mut limits.net_rx,
        "net-tx" => &mut limits.net_tx,
        "console" => return (what == "bytes").then_some(Place::Rate(&mut limits.console)),
        _ => return None,
    };
    match what {
        "bytes" => Some(Place::Rate(&mut device.bytes)),
        "ops" => Some(Place::Rate(&mut device.operations)),
        _ => None,
    }
}

fn max(text: &str) -> Option<u32> {
    u32::try_from(number(text)?.get()).ok()
}

fn rate(text: &str) -> Option<Rate> {
    let (per_second, burst) = text.split_once(':').unwrap_or((text, text));
    Some(Rate { per_second: number(per_second)?, burst: number(burst)? })
}

fn number(text: &str) -> Option<NonZeroU64> {
    let digits = text.trim_end_matches(['k', 'm', 'g', 'K', 'M', 'G']);
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = plain.then(|| digits.parse::<u64>().ok()).flatten()?;
    NonZeroU64::new(number.checked_mul(unit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Limits, LimitError> {
        of(&[text.to_owned()])
    }

    #[test]
    fn every_name_has_a_place_of_its_own() {
        let texts = (1..).zip(NAMES).map(|(n, name)| format!("{name}={n}")).collect::<Vec<_>>();
        let json = serde_json::to_string(&of(&texts).unwrap()).unwrap();
        for (n, name) in (1..).zip(NAMES) {
            let value = match name {
                "fs-files" => format!("\"fs_files\":{n},"),
                "vsock-connections" => format!("\"vsock_connections\":{n},"),
                "vsock-buffer" => format!("\"vsock_buffer\":{n},"),
                _ => format!("{{\"per_second\":{n},\"burst\":{n}}}"),
            };
            assert_eq!(json.matches(&value).count(), 1, "{value} in {json}");
        }
    }

    #[test]
    fn the_last_of_a_name_counts_and_burst_is_a_second_by_default() {
        let rate = |per_second, burst| {
            let number = |number| NonZeroU64::new(number).unwrap();
            Some(Rate { per_second: number(per_second), burst: number(burst) })
        };
        let limits = of(&["fs-ops=1".into(), "fs-ops=2k:3M".into()]).unwrap();
        assert_eq!(limits.fs.operations, rate(2048, 3 << 20));
        assert_eq!(one("console-bytes=10").unwrap().console, rate(10, 10));
        assert_eq!(one("vsock-buffer=64k").unwrap().vsock_buffer, Some(64 << 10));
    }

    #[test]
    fn what_is_no_limit_is_named() {
        for name in ["", "fs", "fs-", "-ops", "console-ops", "disk-bytes", "fs-bytes-ops"] {
            let error = one(&format!("{name}=1")).unwrap_err();
            assert_eq!(error, LimitError::Name(name.to_owned()));
        }
        for rate in ["", "0", "-1", "+1", "1x", "1kk", "1:", ":1", "1:0", "1.5", "99999999999g"] {
            let text = format!("fs-ops={rate}");
            assert_eq!(one(&text), Err(LimitError::Syntax(text)));
        }
        for text in ["fs-ops", "vsock-buffer=", "vsock-buffer=4g", "vsock-connections=9:9"] {
            assert_eq!(one(text), Err(LimitError::Syntax(text.to_owned())));
        }
    }
}
