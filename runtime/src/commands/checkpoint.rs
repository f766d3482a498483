//! `bulkhead checkpoint`: saves a running container to files, from which it goes on by `restore`.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use bulkhead_vmm::control::Then;

use super::delete;
use super::oci::{self, OciError};
use crate::args::oci::CheckpointArgs;
use crate::oci::log::Log;
use crate::oci::{base, checkpoint};
use crate::state::Root;
use crate::templates::Snapshot;

/// Written last: by a file of this name engines know a checkpoint that is complete, and with others'
/// runtimes it is criu's.
const COMPLETE: &str = "inventory.img";
/// How long a VM that was saved may take to be gone.
const END_MAX: Duration = Duration::from_secs(30);

/// Saves it; without --leave-running it is removed then, as runc does.
pub fn run(args: &CheckpointArgs, root: &Root, log: &Log) -> Result<(), OciError> {
    let container = oci::open(root, &args.id)?;
    if container.record.bundle.as_os_str().is_empty() {
        return Err(OciError::NoBundle(container.id));
    }
    let dir = args.image_path.as_path();
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(|source| OciError::Write { path: dir.to_owned(), source })?;
    let mut files = Snapshot::create(dir)?;
    files.base = container.record.memory.as_deref().and_then(|memory| base::link(memory, dir));
    let then = if args.leave_running { Then::GoOn } else { Then::End };
    let saved = checkpoint::save(&container, &mut files, then).and_then(|_| match &files.base {
        Some(base) => Ok(base::seal(dir, base)?),
        None => {
            base::forget(dir);
            Ok(())
        }
    });
    if let Err(error) = saved {
        forget(dir);
        return Err(error);
    }
    let path = dir.join(COMPLETE);
    fs::write(&path, "").map_err(|source| OciError::Write { path, source })?;
    if !args.leave_running {
        container.wait(END_MAX);
        delete::delete(&container, root, true, log)?;
    }
    Ok(())
}

/// Removes what is no checkpoint.
fn forget(dir: &Path) {
    for file in Snapshot::files(dir) {
        let _ = fs::remove_file(file);
    }
    base::forget(dir);
}
