//! `bulkhead pause`: stops a container's virtual CPUs, or its processes if they are not its own.

use super::oci::{self, OciError, PATIENCE};
use crate::args::oci::IdArgs;
use crate::oci::member;
use crate::oci::record::Phase;
use crate::state::Root;

/// Stops them.
pub fn run(args: &IdArgs, root: &Root) -> Result<(), OciError> {
    let mut container = oci::open(root, &args.id)?;
    let status = container.status();
    if !status.can_pause() {
        return Err(OciError::Status { verb: "pause", id: container.id, status });
    }
    match container.is_member() {
        true => member::freeze(&container, true, PATIENCE)?,
        false => container.control()?.pause()?,
    }
    Ok(container.set_phase(Phase::Paused)?)
}
