//! `bulkhead create`: makes the container of a bundle, ready to be started.

use super::oci::{OciError, write_pid_file};
use crate::args::oci::{CreateArgs, Global};
use crate::oci::container::ContainerError;
use crate::oci::create::{self, Origin, Wanted};
use crate::oci::id::ContainerId;
use crate::settings::Settings;
use crate::state::Root;

/// Creates it and leaves it behind.
pub fn run(args: &CreateArgs, root: &Root, global: &Global) -> Result<(), OciError> {
    let id = ContainerId::try_from(args.id.as_str())?;
    let origin = Origin::by(global.cold || Settings::load()?.cold);
    let systemd_cgroup = global.systemd_cgroup;
    let wanted = Wanted { id: &id, args: &args.bundle, detach: true, systemd_cgroup, origin };
    let (container, mut vmm) = create::create(wanted, root)?;
    if let Some(file) = &args.bundle.pid_file
        && let Err(error) = write_pid_file(file, container.record.process.pid)
    {
        vmm.kill();
        root.remove(id.as_str()).map_err(ContainerError::from)?;
        return Err(error);
    }
    vmm.let_go();
    Ok(())
}
