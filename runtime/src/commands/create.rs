//! `bulkhead create`: makes the container of a bundle, ready to be started.

use super::isolation;
use super::oci::{self, OciError};
use crate::args::oci::{CreateArgs, Global};
use crate::oci::create::{self, Origin, Wanted};
use crate::oci::id::ContainerId;
use crate::state::Root;

/// Creates it and leaves it behind.
pub fn run(args: &CreateArgs, root: &Root, global: &Global) -> Result<(), OciError> {
    let id = ContainerId::try_from(args.id.as_str())?;
    let ours = isolation::ours(&args.bundle, global, root)?;
    let origin = Origin::by(global.cold || ours.settings.cold);
    let systemd_cgroup = global.systemd_cgroup;
    let wanted =
        Wanted { id: &id, ours: &ours, args: &args.bundle, detach: true, systemd_cgroup, origin };
    let (_, vmm) = create::create(wanted, root)?;
    oci::leave_behind(vmm, args.bundle.pid_file.as_deref(), &id, root)
}
