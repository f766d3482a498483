//! `bulkhead pause`: stops a container's virtual CPUs.

use super::oci::{self, OciError};
use crate::args::oci::IdArgs;
use crate::oci::record::Phase;
use crate::state::Root;

/// Stops them.
pub fn run(args: &IdArgs, root: &Root) -> Result<(), OciError> {
    let mut container = oci::open(root, &args.id)?;
    let status = container.status();
    if !status.can_pause() {
        return Err(OciError::Status { verb: "pause", id: container.id, status });
    }
    container.control()?.pause()?;
    Ok(container.set_phase(Phase::Paused)?)
}
