//! What the OCI runtime specification demands of a configuration, and what a kernel can take.

use std::collections::HashSet;
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};

/// The longest single argument or variable, bytes: MAX_ARG_STRLEN (linux/binfmts.h).
const STRING_BYTES_MAX: usize = 128 << 10;
/// The most of arguments and environment together, bytes: a quarter of the usual stack limit
/// (execve(2)).
const STRINGS_BYTES_MAX: usize = 2 << 20;
/// The longest host or domain name, bytes: __NEW_UTS_LEN (linux/utsname.h).
const HOSTNAME_BYTES_MAX: usize = 64;
/// The longest path, bytes: PATH_MAX without its NUL (linux/limits.h).
const PATH_BYTES_MAX: usize = 4095;
/// The most mounts, devices or paths of a list: far more than any engine asks for.
const LIST_MAX: usize = 4096;

/// A field that says what cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Another major version has other rules.
    #[error("ociVersion {0:?} is not supported; this is a runtime for 1.x")]
    Version(String),
    /// No such field.
    #[error("there is no {0}; a container on Linux needs one")]
    Missing(&'static str),
    /// Nothing to run.
    #[error("process.args is empty; name a program")]
    NoArgs,
    /// A relative path.
    #[error("{field} {path:?} is not an absolute path")]
    Relative {
        /// The field.
        field: &'static str,
        /// Its value.
        path: String,
    },
    /// A string the kernel ends early.
    #[error("{0} contains a NUL byte")]
    Nul(&'static str),
    /// A string or list beyond the kernel's limits.
    #[error("{field} is longer than {max} {unit}")]
    Long {
        /// The field.
        field: &'static str,
        /// The limit.
        max: usize,
        /// Of what.
        unit: &'static str,
    },
    /// A list that names something twice.
    #[error("{field} has {name} twice")]
    Twice {
        /// The field.
        field: &'static str,
        /// What is there twice.
        name: String,
    },
    /// A limit that contradicts itself.
    #[error("process.rlimits: the soft limit of {0} is above the hard one")]
    Rlimit(String),
    /// An annotation without a name.
    #[error("an annotation has no name")]
    Annotation,
}

/// Checks a configuration.
pub fn spec(spec: &Spec) -> Result<(), CheckError> {
    let (major, _) = spec.version().split_once('.').unwrap_or((spec.version(), ""));
    if major != "1" {
        return Err(CheckError::Version(spec.version().clone()));
    }
    if spec.root().as_ref().is_none_or(|root| root.path().as_os_str().is_empty()) {
        return Err(CheckError::Missing("root.path"));
    }
    process(spec.process().as_ref().ok_or(CheckError::Missing("process"))?)?;
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        let name = name.as_deref().unwrap_or("");
        limited(field, name, HOSTNAME_BYTES_MAX)?;
    }
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    at_most("mounts", mounts.len())?;
    for mount in mounts {
        path("mounts.destination", mount.destination())?;
        path("mounts.source", mount.source().as_deref().unwrap_or(Path::new("")))?;
        let options = mount.options().as_deref().unwrap_or_default();
        at_most("mounts.options", options.len())?;
        options.iter().try_for_each(|option| limited("mounts.options", option, PATH_BYTES_MAX))?;
    }
    let annotations = spec.annotations().iter().flatten();
    if annotations.into_iter().any(|(name, _)| name.is_empty()) {
        return Err(CheckError::Annotation);
    }
    linux(spec.linux().as_ref().ok_or(CheckError::Missing("linux"))?)
}

/// Checks a process: the container's, or one to be executed in it.
pub fn process(process: &Process) -> Result<(), CheckError> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(CheckError::NoArgs);
    }
    let env = process.env().as_deref().unwrap_or_default();
    for (field, strings) in [("process.args", args), ("process.env", env)] {
        strings.iter().try_for_each(|string| limited(field, string, STRING_BYTES_MAX))?;
    }
    let bytes: usize = args.iter().chain(env).map(|string| string.len() + 1).sum();
    if bytes > STRINGS_BYTES_MAX {
        let field = "process.args and process.env together";
        return Err(CheckError::Long { field, max: STRINGS_BYTES_MAX, unit: "bytes" });
    }
    absolute("process.cwd", process.cwd())?;
    let mut seen = HashSet::new();
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        if limit.soft() > limit.hard() {
            return Err(CheckError::Rlimit(name));
        }
        if !seen.insert(name.clone()) {
            return Err(CheckError::Twice { field: "process.rlimits", name });
        }
    }
    at_most(
        "process.user.additionalGids",
        process.user().additional_gids().as_ref().map_or(0, Vec::len),
    )
}

fn linux(linux: &Linux) -> Result<(), CheckError> {
    let mut seen: Vec<LinuxNamespaceType> = Vec::new();
    for namespace in linux.namespaces().iter().flatten() {
        if seen.contains(&namespace.typ()) {
            let name = namespace.typ().to_string();
            return Err(CheckError::Twice { field: "linux.namespaces", name });
        }
        seen.push(namespace.typ());
        path("linux.namespaces.path", namespace.path().as_deref().unwrap_or(Path::new("")))?;
    }
    for (field, paths) in [
        ("linux.maskedPaths", linux.masked_paths()),
        ("linux.readonlyPaths", linux.readonly_paths()),
    ] {
        let paths = paths.as_deref().unwrap_or_default();
        at_most(field, paths.len())?;
        paths.iter().try_for_each(|path| absolute(field, Path::new(path)))?;
    }
    let devices = linux.devices().as_deref().unwrap_or_default();
    at_most("linux.devices", devices.len())?;
    devices.iter().try_for_each(|device| absolute("linux.devices.path", device.path()))?;
    for (name, value) in linux.sysctl().iter().flatten() {
        limited("linux.sysctl", name, PATH_BYTES_MAX)?;
        limited("linux.sysctl", value, PATH_BYTES_MAX)?;
    }
    path("linux.cgroupsPath", linux.cgroups_path().as_deref().unwrap_or(Path::new("")))
}

fn absolute(field: &'static str, value: &Path) -> Result<(), CheckError> {
    if !value.is_absolute() {
        return Err(CheckError::Relative { field, path: value.display().to_string() });
    }
    path(field, value)
}

fn path(field: &'static str, value: &Path) -> Result<(), CheckError> {
    limited(field, &value.to_string_lossy(), PATH_BYTES_MAX)
}

fn limited(field: &'static str, value: &str, max: usize) -> Result<(), CheckError> {
    if value.contains('\0') {
        return Err(CheckError::Nul(field));
    }
    if value.len() > max {
        return Err(CheckError::Long { field, max, unit: "bytes" });
    }
    Ok(())
}

fn at_most(field: &'static str, entries: usize) -> Result<(), CheckError> {
    if entries > LIST_MAX {
        return Err(CheckError::Long { field, max: LIST_MAX, unit: "entries" });
    }
    Ok(())
}
