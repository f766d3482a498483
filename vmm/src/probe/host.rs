//! What the host says of its KVM, before any guest runs.

use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

use super::Check;

/// The only KVM API version there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What a VM cannot do without.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// What makes a VM start faster or keep better time.
const WANTED: [(Cap, &str); 5] = [
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::Clocksource, "KVM_CAP_CLOCKSOURCE"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
];

const NEWER_KERNEL: &str = "run a newer Linux on this host (5.10 or later)";

/// Checks device, API and capabilities; returns KVM if a guest is worth trying.
pub fn check(device: &Path, checks: &mut Vec<Check>) -> Option<Kvm> {
    let kvm = match open(device) {
        Ok(kvm) => kvm,
        Err(check) => {
            checks.push(check);
            return None;
        }
    };
    checks.push(Check::ok("KVM device", format!("{} can be opened", device.display())));
    let version = api_version(kvm.get_api_version(), device);
    let usable = super::can_host(std::slice::from_ref(&version));
    checks.push(version);
    if !usable {
        return None;
    }
    let has = |cap| kvm.check_extension(cap);
    let needed = needed(&missing(&NEEDED, has));
    let usable = super::can_host(std::slice::from_ref(&needed));
    checks.push(needed);
    checks.push(wanted(&missing(&WANTED, has)));
    usable.then_some(kvm)
}

fn open(device: &Path) -> Result<Kvm, Check> {
    let Ok(path) = std::ffi::CString::new(device.as_os_str().as_encoded_bytes()) else {
        return Err(Check::failed(
            "KVM device",
            "its path holds a NUL byte",
            "name another device",
        ));
    };
    Kvm::new_with_path(path).map_err(|error| unopened(device, error.errno()))
}

/// What to do depends on why the device cannot be opened.
fn unopened(device: &Path, errno: i32) -> Check {
    let path = device.display();
    let (detail, advice) = match errno {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => (
            format!("{path} is missing"),
            "load the module (modprobe kvm_intel or kvm_amd) and enable VT-x or AMD-V in the \
             firmware; inside a VM, enable nested virtualization for it on its host; inside a \
             container, pass the device in (--device /dev/kvm)"
                .to_owned(),
        ),
        libc::EACCES | libc::EPERM => (
            format!("this user may not open {path}"),
            "join the device's group (usermod -aG kvm $USER, then log in again)".to_owned(),
        ),
        errno => {
            let error = std::io::Error::from_raw_os_error(errno);
            (format!("{path} cannot be opened: {error}"), format!("check what {path} is"))
        }
    };
    Check::failed("KVM device", detail, &advice)
}

fn api_version(version: i32, device: &Path) -> Check {
    match version {
        API_VERSION => Check::ok("KVM API", format!("version {API_VERSION}")),
        version if version < 0 => {
            let detail = format!("{} does not answer as KVM does", device.display());
            Check::failed("KVM API", detail, "make /dev/kvm the KVM device (char 10:232) again")
        }
        version => {
            let detail = format!("version {version} instead of {API_VERSION}");
            Check::failed("KVM API", detail, NEWER_KERNEL)
        }
    }
}

fn missing(caps: &[(Cap, &'static str)], has: impl Fn(Cap) -> bool) -> Vec<&'static str> {
    caps.iter().filter(|(cap, _)| !has(*cap)).map(|(_, name)| *name).collect()
}

fn needed(missing: &[&str]) -> Check {
    let name = "KVM capabilities";
    match missing {
        [] => Check::ok(name, "all that VMs need are there"),
        missing => Check::failed(name, format!("{} missing", missing.join(", ")), NEWER_KERNEL),
    }
}

fn wanted(missing: &[&str]) -> Check {
    let name = "optional capabilities";
    match missing {
        [] => Check::ok(name, "all are there"),
        missing => {
            let detail = format!("{} missing", missing.join(", "));
            let advice = "guests start more slowly or keep time less well; a newer Linux on this \
                          host (5.10 or later) has them";
            Check::warning(name, detail, advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Outcome;

    fn failure(device: &Path) -> Check {
        let mut checks = Vec::new();
        assert!(check(device, &mut checks).is_none());
        let last = checks.pop().unwrap();
        assert_eq!(last.outcome, Outcome::Failed, "{last:?}");
        last
    }

    #[test]
    fn a_missing_device_says_which_module_to_load() {
        let check = failure(Path::new("/nonexistent/kvm"));
        assert!(check.detail.contains("/nonexistent/kvm is missing"));
        assert!(check.advice.unwrap().contains("modprobe"));
    }

    #[test]
    fn a_forbidden_device_says_which_group_to_join() {
        let check = unopened(Path::new("/dev/kvm"), libc::EACCES);
        assert!(check.advice.unwrap().contains("group"));
    }

    #[test]
    fn another_device_is_not_kvm() {
        assert_eq!(failure(Path::new("/dev/null")).name, "KVM API");
        assert_eq!(api_version(13, Path::new("/dev/kvm")).outcome, Outcome::Failed);
    }

    #[test]
    fn missing_capabilities_are_named() {
        let missing = missing(&NEEDED, |cap| !matches!(cap, Cap::Irqfd | Cap::MpState));
        assert_eq!(missing, ["KVM_CAP_IRQFD", "KVM_CAP_MP_STATE"]);
        let check = needed(&missing);
        assert_eq!(check.outcome, Outcome::Failed);
        assert!(check.detail.starts_with("KVM_CAP_IRQFD, KVM_CAP_MP_STATE"));
        assert_eq!(wanted(&["KVM_CAP_XSAVE"]).outcome, Outcome::Warning);
    }
}
