//! `bulkhead state`: what a container is doing, as JSON.

use super::oci::{self, OciError, print};
use crate::args::oci::IdArgs;
use crate::oci::status::State;
use crate::state::Root;

/// Prints it.
pub fn run(args: &IdArgs, root: &Root) -> Result<(), OciError> {
    print(&State::of(&oci::open(root, &args.id)?).json());
    Ok(())
}
