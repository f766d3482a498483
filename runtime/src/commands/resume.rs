//! `bulkhead resume`: lets a paused container's virtual CPUs go on.

use super::oci::{self, OciError, PATIENCE};
use crate::args::oci::IdArgs;
use crate::oci::member;
use crate::oci::record::Phase;
use crate::state::Root;

/// Lets them go on.
pub fn run(args: &IdArgs, root: &Root) -> Result<(), OciError> {
    let mut container = oci::open(root, &args.id)?;
    let status = container.status();
    if !status.can_resume() {
        return Err(OciError::Status { verb: "resume", id: container.id, status });
    }
    match container.is_member() {
        true => member::freeze(&container, false, PATIENCE)?,
        false => container.control()?.resume()?,
    }
    Ok(container.set_phase(Phase::Running)?)
}
