//! Mounts: shares for the host, mounts for the guest.

use bulkhead_protocol::rpc::agent::{IdMapping, Mount};
use bulkhead_vmm::spec::{IdMap, IdRange, Share};
use oci_spec::runtime::{LinuxIdMapping, Mount as Asked};

use super::PlanError;
use super::ids::Ids;
use crate::oci::bundle::{Bundle, Kind, Source, options};

pub const SHARE: &str = "share";
/// The group of terminals, everywhere.
const TTY: u32 = 5;
/// Options of overlayfs without a value.
const OVERLAY_FLAGS: [&str; 2] = ["volatile", "userxattr"];

/// The shares that the bundle's mounts need, besides the root.
pub fn shares(bundle: &Bundle) -> impl Iterator<Item = Share> {
    // What is wrong with them, `mounts` says.
    let ids = Ids::of(bundle.spec.linux().as_ref()).unwrap_or_default();
    bundle.sources.iter().enumerate().zip(asked(bundle)).filter_map(
        move |((index, source), mount)| {
            let common =
                Share { name: share(index), readonly: is_readonly(mount), ..Share::default() };
            match source {
                Source::Host { path, kind, recursive } => Some(Share {
                    source: path.clone(),
                    flat: !recursive && *kind == Kind::Directory,
                    idmap: is_mapped(mount).then(|| idmap(mount, &ids)),
                    ..common
                }),
                // Its descriptor is filled in when it is made (`overlays`).
                Source::Overlay { upper, .. } => Some(Share {
                    source: mount.destination().clone(),
                    readonly: common.readonly || upper.is_none(),
                    ..common
                }),
                Source::SharedMemory { .. } | Source::Guest => None,
            }
        },
    )
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

/// The name of the share for the mount at this place in the bundle.
pub fn share(index: usize) -> String {
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
    let of_host = matches!(source, Source::Host { kind: Kind::Directory | Kind::File, .. });
    if is_mapped(asked) && !(of_host && idmap(asked, ids).is_possible()) {
        return Err(PlanError::IdMappedMount { destination });
    }
    let words = || options(asked).filter(|word| !is_idmap(word)).map(str::to_owned);
    let (type_, source, options) = match source {
        Source::Host { .. } => (SHARE.to_owned(), share(index), words().collect()),
        Source::Overlay { .. } => {
            // Those of overlayfs are for the host's.
            let of_mount = |word: &String| !word.contains('=') && !OVERLAY_FLAGS.contains(&&**word);
            (SHARE.to_owned(), share(index), words().filter(of_mount).collect())
        }
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

fn is_idmap(option: &str) -> bool {
    matches!(option, "idmap" | "ridmap")
}

fn has_mappings(mount: &Asked) -> bool {
    mount.uid_mappings().is_some() || mount.gid_mappings().is_some()
}

fn is_mapped(mount: &Asked) -> bool {
    has_mappings(mount) || options(mount).any(is_idmap)
}

/// Who owns a mount's files: by its own mappings, else by the container's. IDs "of the container" are
/// the files' here, those "of the host" the guest's kernel's.
fn idmap(mount: &Asked, container: &Ids) -> IdMap {
    let own = |given: &Option<Vec<LinuxIdMapping>>| {
        let range = |asked: &LinuxIdMapping| IdRange {
            file: asked.container_id(),
            guest: asked.host_id(),
            count: asked.size(),
        };
        given.iter().flatten().map(range).collect()
    };
    let of_container = |ids: &[IdMapping]| {
        let range = |ids: &IdMapping| IdRange {
            file: ids.container_id,
            guest: ids.kernel_id,
            count: ids.size,
        };
        ids.iter().map(range).collect()
    };
    match has_mappings(mount) {
        true => IdMap { uids: own(mount.uid_mappings()), gids: own(mount.gid_mappings()) },
        false => IdMap { uids: of_container(&container.uids), gids: of_container(&container.gids) },
    }
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
