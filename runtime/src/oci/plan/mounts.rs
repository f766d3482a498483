//! Mounts: shares for the host, mounts for the guest.

use bulkhead_protocol::rpc::agent::Mount;
use bulkhead_vmm::spec::Share;
use oci_spec::runtime::Mount as Asked;

use super::PlanError;
use super::ids::Ids;
use crate::oci::bundle::{Bundle, Kind, Source, options};

const SHARE: &str = "share";
/// The group of terminals, everywhere.
const TTY: u32 = 5;

/// The shares that the bundle's mounts need, besides the root.
pub fn shares(bundle: &Bundle) -> impl Iterator<Item = Share> {
    bundle.sources.iter().enumerate().zip(asked(bundle)).filter_map(|((index, source), mount)| {
        let Source::Host { path, kind, recursive } = source else { return None };
        Some(Share {
            name: share(index),
            source: path.clone(),
            readonly: is_readonly(mount),
            flat: !recursive && *kind == Kind::Directory,
            ..Share::default()
        })
    })
}

/// The mounts as the agent makes them, in the bundle's order.
pub fn mounts(bundle: &Bundle, ids: &Ids) -> Result<Vec<Mount>, PlanError> {
    let sources = bundle.sources.iter().enumerate();
    sources
        .zip(asked(bundle))
        .map(|((index, source), asked)| mount(index, source, asked, ids))
        .collect()
}

fn asked(bundle: &Bundle) -> impl Iterator<Item = &Asked> {
    bundle.spec.mounts().iter().flatten()
}

fn share(index: usize) -> String {
    format!("v{index}")
}

/// "ro" is recursive here, whatever is mounted below: a share is read-only as a whole.
fn is_readonly(mount: &Asked) -> bool {
    let last =
        options(mount).filter(|option| matches!(*option, "ro" | "rro" | "rw" | "rrw")).last();
    matches!(last, Some("ro" | "rro"))
}

fn mount(index: usize, source: &Source, asked: &Asked, ids: &Ids) -> Result<Mount, PlanError> {
    let destination = destination(asked);
    let mapped = asked.uid_mappings().is_some() || asked.gid_mappings().is_some();
    if mapped || options(asked).any(|option| matches!(option, "idmap" | "ridmap")) {
        return Err(PlanError::IdMappedMount { destination });
    }
    let words = || options(asked).map(str::to_owned);
    let (type_, source, options) = match source {
        Source::Host { .. } => (SHARE.to_owned(), share(index), words().collect()),
        Source::SharedMemory { bytes } => {
            let own = ["mode=1777".to_owned(), format!("size={bytes}")];
            let words = owned("tmpfs", words().chain(own).collect(), ids);
            ("tmpfs".to_owned(), "shm".to_owned(), words)
        }
        Source::Guest => {
            let (fstype, source, words) = guest(asked, &destination)?;
            let words = owned(&fstype, words, ids);
            (fstype, source, words)
        }
    };
    Ok(Mount { destination, type_, source, options, ..Default::default() })
}

/// A file system of the guest's kernel.
fn guest(asked: &Asked, destination: &str) -> Result<(String, String, Vec<String>), PlanError> {
    let no_type = || PlanError::NoType { destination: destination.to_owned() };
    let fstype = asked.typ().clone().filter(|fstype| !fstype.is_empty()).ok_or_else(no_type)?;
    let source = asked.source().as_ref().map(|source| source.to_string_lossy().into_owned());
    let words = options(asked).map(str::to_owned);
    Ok(match fstype.as_str() {
        // The guest has version 2 alone, whatever the host has; its options are the kernel's.
        "cgroup" | "cgroup2" => {
            let words = words.filter(|word| !word.contains('='));
            ("cgroup2".to_owned(), "cgroup".to_owned(), words.collect())
        }
        // Labels are for SELinux, which the guest has not.
        _ => {
            let words = words.filter(|word| !word.starts_with("context="));
            let words = words.collect();
            (fstype.clone(), source.unwrap_or(fstype), words)
        }
    })
}

/// The options of a file system that belongs to somebody: with a user namespace, to those that the
/// container's IDs are outside, root if none is named, the group of terminals "tty".
fn owned(fstype: &str, words: Vec<String>, ids: &Ids) -> Vec<String> {
    let group = match fstype {
        "tmpfs" => 0,
        "devpts" => TTY,
        _ => return words,
    };
    if !ids.are_mapped() {
        return words;
    }
    let id = |word: &str, key: &str| word.strip_prefix(key)?.parse::<u32>().ok();
    let named = |key| words.iter().rev().find_map(|word| id(word, key));
    let uid = ids.user(named("uid=").unwrap_or(0));
    let gid = ids.group(named("gid=").unwrap_or(group));
    let is_owner = |word: &String| ["uid=", "gid="].iter().any(|key| word.starts_with(key));
    let others = words.iter().filter(|word| !is_owner(word)).cloned();
    others.chain([format!("uid={uid}"), format!("gid={gid}")]).collect()
}

/// Relative ones are relative to the root (config.md, "Mounts").
fn destination(mount: &Asked) -> String {
    let path = mount.destination().to_string_lossy();
    if path.starts_with('/') { path.into_owned() } else { format!("/{path}") }
}
