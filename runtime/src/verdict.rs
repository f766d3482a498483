//! Whether this host's KVM can run Linux, asked once a boot.
//!
//! The probe takes a few milliseconds. A good verdict is kept in the root directory, together with
//! what it depends on: the boot, the device, and this version of the probe. A bad one is not kept:
//! whoever got it is about to change something.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bulkhead_vmm::probe::{self, Check, Outcome};

use crate::state::Root;

const FILE: &str = ".kvm";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Stands for a device that is not there.
const MISSING: &str = "missing";

/// Why micro-VMs cannot run here.
#[derive(Debug, thiserror::Error)]
#[error("this host cannot run micro-VMs: {detail}; {advice}; `bulkhead doctor` says more")]
pub struct VerdictError {
    detail: String,
    advice: String,
}

/// Probes the host unless it was found good since it booted.
pub fn ensure(root: &Root) -> Result<(), VerdictError> {
    ensure_by(root, Path::new(probe::DEVICE), probe::probe)
}

fn ensure_by(
    root: &Root,
    device: &Path,
    probe: impl FnOnce() -> Vec<Check>,
) -> Result<(), VerdictError> {
    let file = root.file(FILE);
    let key = key(device);
    if key.is_some() && fs::read_to_string(&file).ok() == key {
        return Ok(());
    }
    let checks = probe();
    if !probe::can_host(&checks) {
        return Err(verdict(checks));
    }
    if let Some(key) = key {
        // Nothing is lost but time if it cannot be kept.
        let _ = fs::write(file, key);
    }
    Ok(())
}

/// What a good verdict depends on; `None` if that cannot be told. The probe writes none for a device
/// that is missing; a test of the command line may, to go on to a VMM that needs no device.
fn key(device: &Path) -> Option<String> {
    let boot = fs::read_to_string(BOOT_ID).ok()?;
    let (version, boot) = (env!("CARGO_PKG_VERSION"), boot.trim());
    let node = match fs::metadata(device) {
        Ok(node) => format!("{} {} {}", node.rdev(), node.ino(), node.ctime()),
        Err(_) => MISSING.to_owned(),
    };
    Some(format!("{version} {boot} {node}\n"))
}

fn verdict(checks: Vec<Check>) -> VerdictError {
    let failed = checks.into_iter().find(|check| check.outcome == Outcome::Failed);
    let (detail, advice) = failed
        .map_or_else(Default::default, |check| (check.detail, check.advice.unwrap_or_default()));
    VerdictError { detail, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Vec<Check> {
        vec![Check::ok("all", "well")]
    }

    fn bad() -> Vec<Check> {
        vec![Check::ok("all", "well"), Check::failed("one", "it burns", "put it out")]
    }

    #[test]
    fn a_good_verdict_is_kept_and_a_bad_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::choose(Some(dir.path().to_owned())).unwrap();
        let device = Path::new("/dev/null");
        let error = ensure_by(&root, device, bad).unwrap_err().to_string();
        assert!(error.contains("it burns; put it out"), "{error}");
        assert!(!root.file(FILE).exists());
        assert!(ensure_by(&root, device, good).is_ok());
        assert!(ensure_by(&root, device, bad).is_ok(), "asked again");
    }

    #[test]
    fn a_verdict_on_another_boot_or_device_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::choose(Some(dir.path().to_owned())).unwrap();
        assert!(ensure_by(&root, Path::new("/dev/null"), good).is_ok());
        assert!(ensure_by(&root, Path::new("/dev/zero"), bad).is_err());
        fs::write(root.file(FILE), "0.1.0 another-boot 1 2 3\n").unwrap();
        assert!(ensure_by(&root, Path::new("/dev/null"), bad).is_err());
        assert!(ensure_by(&root, Path::new("/nonexistent"), bad).is_err());
    }
}
