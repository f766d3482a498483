//! "Can this host run micro-VMs?", answered by doing.
//!
//! The host's side is asked first ([`host`]): the device, the API version, the capabilities. Then a
//! guest of a few instructions does what every Linux kernel does ([`steps`]), because a KVM may
//! offer every capability and still be unable to run a kernel: system calls must arrive in kernel
//! mode, interrupts must be delivered, device accesses must come out with the right data.
//!
//! The guest runs on a thread of its own that reports each finding as it is made. A KVM on which it
//! never comes back costs [`STEP_MAX`]: the thread is then left behind, still in KVM_RUN, and dies
//! with the process.

mod guest;
mod host;
mod machine;
mod steps;

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{io, thread};

use serde::Serialize;

/// The KVM device.
pub const DEVICE: &str = "/dev/kvm";
/// The longest any one check may take; on a KVM that works all of them take a few milliseconds.
const STEP_MAX: Duration = Duration::from_secs(2);

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// VMs run, but something is slower or missing.
    Warning,
    /// VMs cannot run.
    Failed,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked, in a few words.
    pub name: &'static str,
    /// What was found.
    pub outcome: Outcome,
    /// One clause that says so in detail.
    pub detail: String,
    /// One sentence that says what to do about it; `None` if nothing needs doing.
    pub advice: Option<String>,
}

impl Check {
    /// All is well.
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, detail: detail.into(), advice: None }
    }

    /// Something to know that does not keep VMs from running.
    pub fn warning(name: &'static str, detail: impl Into<String>, advice: &str) -> Self {
        let advice = Some(advice.to_owned());
        Self { name, outcome: Outcome::Warning, detail: detail.into(), advice }
    }

    /// Something that keeps VMs from running.
    pub fn failed(name: &'static str, detail: impl Into<String>, advice: &str) -> Self {
        let advice = Some(advice.to_owned());
        Self { name, outcome: Outcome::Failed, detail: detail.into(), advice }
    }
}

/// Whether these checks say that the host can run micro-VMs.
pub fn can_host(checks: &[Check]) -> bool {
    !checks.is_empty() && checks.iter().all(|check| check.outcome != Outcome::Failed)
}

/// Checks this host's [`DEVICE`]. Stops at the first failure that leaves the rest without sense, and
/// always ends: a check that hangs is a failed one.
pub fn probe() -> Vec<Check> {
    probe_device(Path::new(DEVICE))
}

/// [`probe`] with another device file.
pub fn probe_device(device: &Path) -> Vec<Check> {
    let mut checks = Vec::new();
    let Some(kvm) = host::check(device, &mut checks) else { return checks };
    let (found, findings) = mpsc::channel();
    let thread = thread::Builder::new().name("kvm-probe".to_owned());
    if let Err(error) = thread.spawn(move || steps::run(&kvm, &found)) {
        checks.push(no_thread(&error));
        return checks;
    }
    collect(&findings, STEP_MAX, &mut checks);
    checks
}

/// Takes findings until the guest's thread is through, or silent for `step_max`.
fn collect(findings: &mpsc::Receiver<Check>, step_max: Duration, checks: &mut Vec<Check>) {
    let before = checks.len();
    loop {
        match findings.recv_timeout(step_max) {
            Ok(check) => checks.push(check),
            Err(RecvTimeoutError::Disconnected) if checks.len() - before == steps::COUNT => return,
            Err(RecvTimeoutError::Disconnected) if !can_host(checks) => return,
            Err(error) => {
                let name = steps::name(checks.len() - before);
                checks.push(Check::failed(name, silence(error, step_max), steps::ADVICE));
                return;
            }
        }
    }
}

fn silence(error: RecvTimeoutError, step_max: Duration) -> String {
    match error {
        RecvTimeoutError::Timeout => {
            format!("the probe guest did not come back within {} s", step_max.as_secs_f32())
        }
        RecvTimeoutError::Disconnected => "the probe guest ended early".to_owned(),
    }
}

fn no_thread(error: &io::Error) -> Check {
    let detail = format!("cannot start a thread for the probe guest: {error}");
    Check::failed(steps::name(0), detail, "raise the limit on processes (ulimit -u)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hanging_guest_is_a_failure_of_the_step_it_hangs_in() {
        let (found, findings) = mpsc::channel();
        let mut checks = vec![Check::ok("before", "")];
        found.send(Check::ok(steps::name(0), "")).unwrap();
        collect(&findings, Duration::from_millis(20), &mut checks);
        drop(found);
        assert_eq!(checks.len(), 3);
        assert_eq!(checks[2].name, steps::name(1));
        assert_eq!(checks[2].outcome, Outcome::Failed);
        assert!(!can_host(&checks));
    }

    #[test]
    fn a_guest_thread_that_dies_is_a_failure() {
        let (found, findings) = mpsc::channel();
        drop(found);
        let mut checks = Vec::new();
        collect(&findings, STEP_MAX, &mut checks);
        assert!(!can_host(&checks), "{checks:?}");
    }

    #[test]
    fn nothing_checked_is_no_promise() {
        assert!(!can_host(&[]));
        assert!(can_host(&[Check::ok("a", ""), Check::warning("b", "", "c")]));
    }

    #[test]
    fn this_host_gets_a_verdict() {
        let checks = probe();
        assert!(!checks.is_empty());
        let failed = checks.iter().filter(|check| check.outcome == Outcome::Failed);
        assert_eq!(can_host(&checks), failed.clone().count() == 0);
        assert!(failed.clone().all(|check| check.advice.is_some()), "{checks:?}");
    }
}
