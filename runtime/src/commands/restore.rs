//! `bulkhead restore`: a container goes on from where `checkpoint` saved it.

use super::isolation;
use super::oci::OciError;
use super::run_bundle;
use crate::args::oci::{Global, RestoreArgs};
use crate::oci::base;
use crate::oci::create::{Origin, Wanted};
use crate::oci::id::ContainerId;
use crate::oci::log::Log;
use crate::state::Root;
use crate::templates::Snapshot;

/// Restores it; returns its exit code, or 0 if it is left behind.
pub fn run(args: &RestoreArgs, root: &Root, global: &Global, log: &Log) -> Result<u8, OciError> {
    let ours = isolation::ours(&args.bundle, global, root)?;
    let id = ContainerId::try_from(args.id.as_str())?;
    let dir = args.image_path.as_path();
    let mut files = Snapshot::open(dir)?;
    files.base = base::open(dir)?;
    if files.base.is_some() {
        files.mapped = Some(base::path(dir));
    }
    let (origin, systemd_cgroup) = (Origin::Checkpoint(&files), global.systemd_cgroup);
    let (bundle, detach) = (&args.bundle, args.detach);
    let wanted = Wanted { id: &id, ours: &ours, args: bundle, detach, systemd_cgroup, origin };
    run_bundle::attend(wanted, false, root, log)
}
