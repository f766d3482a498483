//! `bulkhead clone`: a second container that goes on from where a running one is now.

use std::fs::File;

use bulkhead_image::store::{Container as ImageRoot, Store};
use bulkhead_vmm::control::Then;
use bulkhead_vmm::spec::VmSpec;

use super::oci::{self, OciError};
use super::run_bundle;
use crate::args::oci::{CloneArgs, Global};
use crate::oci::bundle::Bundle;
use crate::oci::checkpoint;
use crate::oci::container::Container;
use crate::oci::create::{CreateError, Origin, Ours, Wanted};
use crate::oci::fork::Fork;
use crate::oci::id::ContainerId;
use crate::oci::log::Log;
use crate::oci::plan::Network;
use crate::plan::ROOT_SHARE;
use crate::request;
use crate::settings::Settings;
use crate::state::Root;
use crate::templates::{Snapshot, Templates};

/// Saves the one, which goes on, and restores the other with an identity of its own.
pub fn run(args: &CloneArgs, root: &Root, global: &Global, log: &Log) -> Result<u8, OciError> {
    let container = oci::open(root, &args.id)?;
    let id = ContainerId::try_from(args.new.as_str())?;
    let network = args.network.as_deref().map(request::namespace).transpose()?;
    // Nobody else's, and gone with the last VM that uses it.
    let mut files = Templates::of_this_user()?.nameless()?;
    files.base = container.record.memory.as_ref().and_then(|memory| File::open(memory).ok());
    if let (Some(vm), Some(process)) = (&container.record.vm, container.process()?) {
        let image = save(&container, vm, &mut files)?;
        name(&mut files, &container);
        let network = network.flatten();
        let (record, network) = (&container.record, network.as_deref());
        let fork = Fork { record, process: &process, files: &files, image, network };
        let vmm = fork.start(&id, root)?;
        oci::leave_behind(vmm, args.bundle.pid_file.as_deref(), &id, root)?;
        return Ok(0);
    }
    checkpoint::save(&container, &mut files, Then::GoOn)?;
    name(&mut files, &container);
    let bundle = args.bundle.bundle.as_ref().unwrap_or(&container.record.bundle);
    let bundle = Bundle::load(bundle).map_err(CreateError::from)?;
    let ours = Ours { bundle, settings: Settings::load()? };
    let network = network.map(|path| path.map_or(Network::Own, Network::Joined));
    let origin = Origin::Clone { files: &files, network: network.as_ref() };
    let systemd_cgroup = global.systemd_cgroup;
    let args = &args.bundle;
    let wanted = Wanted { id: &id, ours: &ours, args, detach: true, systemd_cgroup, origin };
    run_bundle::attend(wanted, false, root, log)
}

/// A clone that is the difference from the same base has its memory mapped from that, too.
fn name(files: &mut Snapshot, original: &Container) {
    files.mapped = original.record.memory.clone().filter(|_| files.base.is_some());
}

/// Saves a container of `bulkhead run`. It stands until the writable layer of its image is copied.
fn save(
    container: &Container,
    vm: &VmSpec,
    files: &mut Snapshot,
) -> Result<Option<ImageRoot>, OciError> {
    let Some(written) = &container.record.image else {
        checkpoint::save(container, files, Then::GoOn)?;
        return Ok(None);
    };
    let _stands = checkpoint::save(container, files, Then::Stand)?;
    let read_only = vm.shares.iter().any(|share| share.name == ROOT_SHARE && share.readonly);
    Ok(Some(Store::choose()?.copy(written, read_only)?))
}
