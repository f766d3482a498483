//! `bulkhead clone`: a second container that goes on from where a running one is now.

use super::oci::{self, OciError};
use super::run_bundle;
use crate::args::oci::{BundleArgs, CloneArgs, Global};
use crate::oci::checkpoint;
use crate::oci::create::{Origin, Wanted};
use crate::oci::id::ContainerId;
use crate::oci::log::Log;
use crate::oci::plan::Network;
use crate::request;
use crate::state::Root;
use crate::templates::Templates;

/// Saves the one, which goes on, and restores the other with an identity of its own.
pub fn run(args: &CloneArgs, root: &Root, global: &Global, log: &Log) -> Result<u8, OciError> {
    let container = oci::open(root, &args.id)?;
    let id = ContainerId::try_from(args.new.as_str())?;
    let network = args.network.as_deref().map(request::network).transpose()?;
    let network = network.map(|path| path.map_or(Network::Own, Network::Joined));
    // Nobody else's, and gone with the last VM that uses it.
    let files = Templates::of_this_user()?.nameless()?;
    checkpoint::save(&container, &files, false)?;
    let bundle = args.bundle.bundle.clone().or_else(|| Some(container.record.bundle.clone()));
    let bundle = BundleArgs { bundle, ..args.bundle.clone() };
    let origin = Origin::Clone { files: &files, network: network.as_ref() };
    let systemd_cgroup = global.systemd_cgroup;
    let wanted = Wanted { id: &id, args: &bundle, detach: true, systemd_cgroup, origin };
    run_bundle::attend(wanted, false, root, log)
}
