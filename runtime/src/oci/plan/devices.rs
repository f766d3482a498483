//! Device rules (config-linux.md, "Allowed Device list") for the agent, which makes a program of them.

use bulkhead_protocol::device::{ALL, BLOCK, CHAR, MKNOD, READ, WRITE};
use bulkhead_protocol::rpc::agent::DeviceRule;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Most rules of a list: far more than any engine asks for, and what one program of the kernel's holds.
const RULES_MAX: usize = 256;

/// Why rules cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A type that is none of a device's.
    #[error("linux.resources.devices: rule {0} has a type that is not a, b, c or u")]
    Type(usize),
    /// A number that no device has.
    #[error("linux.resources.devices: rule {0} has a number that is not -1 or a device's")]
    Number(usize),
    /// An unknown kind of access.
    #[error("linux.resources.devices: rule {0} has an access that is not made of r, w and m")]
    Access(usize),
    /// Too many.
    #[error("linux.resources.devices: there are {0} rules; at most {RULES_MAX} can be kept")]
    Many(usize),
}

/// The rules in the agent's words.
pub fn rules(asked: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, RuleError> {
    match asked.len() {
        0..=RULES_MAX => asked.iter().enumerate().map(rule).collect(),
        many => Err(RuleError::Many(many)),
    }
}

/// Whether every device is allowed, and none denied behind that: so it is with privileged containers.
pub fn deny_nothing(rules: &[DeviceRule]) -> bool {
    let every_device = DeviceRule { allow: true, access: ALL, ..Default::default() };
    let mut decisive = rules.iter().rev().filter(|rule| !rule.allow || **rule == every_device);
    decisive.next().is_some_and(|rule| rule.allow)
}

fn rule((index, asked): (usize, &LinuxDeviceCgroup)) -> Result<DeviceRule, RuleError> {
    let type_ = match asked.typ() {
        None | Some(LinuxDeviceType::A) => 0,
        Some(LinuxDeviceType::B) => BLOCK,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => CHAR,
        Some(LinuxDeviceType::P) => return Err(RuleError::Type(index)),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| RuleError::Number(index)),
    };
    let bit = |kind| match kind {
        'r' => Ok(READ),
        'w' => Ok(WRITE),
        'm' => Ok(MKNOD),
        // Not in the specification, but in configurations, and to runc it means nothing.
        'a' => Ok(0),
        _ => Err(RuleError::Access(index)),
    };
    let letters = asked.access().as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
    let access = letters.chars().try_fold(0, |access, letter| Ok(access | bit(letter)?))?;
    let (major, minor) = (number(asked.major())?, number(asked.minor())?);
    Ok(DeviceRule { allow: asked.allow(), type_, major, minor, access, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(list: Value) -> Result<Vec<DeviceRule>, RuleError> {
        rules(&serde_json::from_value::<Vec<_>>(list).unwrap())
    }

    #[test]
    fn rules_are_taken_as_they_stand() {
        let list = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwa"},
            {"allow": true, "type": "b", "major": 259, "minor": -1, "access": ""},
        ]);
        let kept = parsed(list).unwrap();
        let all = DeviceRule { access: ALL, ..Default::default() };
        assert_eq!(kept[0], all);
        let (major, minor, access) = (Some(1), Some(11), READ | WRITE);
        assert_eq!(
            kept[1],
            DeviceRule { allow: true, type_: CHAR, major, minor, access, ..Default::default() }
        );
        assert_eq!(kept[2], DeviceRule { allow: true, type_: BLOCK, major: Some(259), ..all });
    }

    #[test]
    fn rules_that_deny_nothing_are_known() {
        for (list, nothing) in [
            (json!([{"allow": true, "access": "rwm"}]), true),
            (
                json!([{"allow": false}, {"allow": true, "type": "a"}, {"allow": true, "major": 1}]),
                true,
            ),
            (json!([{"allow": true}, {"allow": false, "type": "c", "major": 1}]), false),
            (json!([{"allow": false}]), false),
            // Nothing is allowed that no rule allows.
            (json!([{"allow": true, "type": "c", "major": 1}]), false),
        ] {
            assert_eq!(deny_nothing(&parsed(list.clone()).unwrap()), nothing, "{list}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        let refused = |rule: Value| parsed(json!([{"allow": false}, rule])).unwrap_err();
        assert_eq!(refused(json!({"allow": true, "type": "p"})), RuleError::Type(1));
        assert_eq!(refused(json!({"allow": true, "major": -2})), RuleError::Number(1));
        assert_eq!(refused(json!({"allow": true, "minor": 1_i64 << 32})), RuleError::Number(1));
        assert_eq!(refused(json!({"allow": true, "access": "rx"})), RuleError::Access(1));
        assert_eq!(parsed(vec![json!({"allow": true}); 257].into()), Err(RuleError::Many(257)));
    }
}
