//! Limits as they are typed and as profiles hold them: NAME=RATE[:BURST], each a number, or one of k,
//! m or g; a second's worth is the burst if none is given.

use std::num::NonZeroU64;

use bulkhead_vmm::spec::{Limits, Rate};

/// Why a text is no limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("{0}: give NAME=RATE or NAME=RATE:BURST, e.g. fs-bytes=100m")]
    Syntax(String),
    #[error("{0:?}: there are {names}", names = NAMES.join(", "))]
    Name(String),
}

/// Bytes, and requests, packets or frames.
const NAMES: [&str; 11] = [
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
];

/// The limits that `texts` name, the last of a name.
pub fn of(texts: &[String]) -> Result<Limits, LimitError> {
    let mut limits = Limits::default();
    for text in texts {
        let syntax = || LimitError::Syntax(text.clone());
        let (name, given) = text.split_once('=').ok_or_else(syntax)?;
        let place = place(&mut limits, name).ok_or_else(|| LimitError::Name(name.to_owned()))?;
        *place = Some(rate(given).ok_or_else(syntax)?);
    }
    Ok(limits)
}

/// `asked`, and `usual` where nothing was asked for.
pub fn or(asked: Limits, usual: Limits) -> Limits {
    each(asked, usual, Option::or)
}

/// The lower of both.
pub fn lower(one: Limits, other: Limits) -> Limits {
    each(one, other, |one, other| one.into_iter().chain(other).min_by_key(|rate| rate.per_second))
}

fn each(
    mut one: Limits,
    mut other: Limits,
    choose: fn(Option<Rate>, Option<Rate>) -> Option<Rate>,
) -> Limits {
    for name in NAMES {
        if let (Some(one), Some(other)) = (place(&mut one, name), place(&mut other, name)) {
            *one = choose(*one, *other);
        }
    }
    one
}

fn place<'l>(limits: &'l mut Limits, name: &str) -> Option<&'l mut Option<Rate>> {
    let (device, what) = name.rsplit_once('-')?;
    let device = match device {
        "fs" => &mut limits.fs,
        "vsock" => &mut limits.vsock,
        "rng" => &mut limits.rng,
        "net-rx" => &mut limits.net_rx,
        "net-tx" => &mut limits.net_tx,
        "console" => return (what == "bytes").then_some(&mut limits.console),
        _ => return None,
    };
    match what {
        "bytes" => Some(&mut device.bytes),
        "ops" => Some(&mut device.operations),
        _ => None,
    }
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
        for n in 1..=NAMES.len() {
            let rate = format!("{{\"per_second\":{n},\"burst\":{n}}}");
            assert_eq!(json.matches(&rate).count(), 1, "{rate} in {json}");
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
        assert_eq!(one("fs-ops"), Err(LimitError::Syntax("fs-ops".to_owned())));
    }
}
