//! `bulkhead features`: what this runtime can do (OCI runtime specification, features.md).

use serde_json::{Value, json};

use super::oci::{OciError, print};

/// The oldest and the newest version of the specification whose bundles are taken.
pub const VERSIONS: [&str; 2] = ["1.0.0", "1.2.0"];

/// Prints it.
pub fn run() -> Result<(), OciError> {
    // Strings, lists and booleans always serialise.
    print(&serde_json::to_string_pretty(&features()).unwrap_or_default());
    Ok(())
}

fn features() -> Value {
    json!({
        "ociVersionMin": VERSIONS[0],
        "ociVersionMax": VERSIONS[1],
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop"],
        "linux": {
            // Those the guest's kernel gives the container; a user namespace takes no mappings.
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
        },
        "annotations": {
            "dev.bulkhead.version": env!("CARGO_PKG_VERSION"),
        },
        "potentiallyUnsafeConfigAnnotations": ["dev.bulkhead."],
    })
}
