//! `bulkhead delete`: removes a container and all that is kept of it.

use bulkhead_image::store::Store;

use super::oci::OciError;
use crate::args::oci::DeleteArgs;
use crate::oci::container::{Container, ContainerError};
use crate::oci::id::ContainerId;
use crate::oci::member;
use crate::oci::record::Status;
use crate::oci::{hooks, log::Log, status::State};
use crate::state::Root;

/// Removes it. With `force`, one that runs is killed first and one that is not there is removed.
pub fn run(args: &DeleteArgs, root: &Root, log: &Log) -> Result<(), OciError> {
    let id = ContainerId::try_from(args.id.as_str())?;
    root.sweep();
    match Container::open(root, &id) {
        Ok(container) => delete(&container, root, args.force, log),
        Err(ContainerError::Missing(_)) if args.force => Ok(()),
        // One whose record cannot be read has to go too.
        Err(ContainerError::Read { .. }) if args.force => Ok(root.remove(id.as_str())?),
        Err(error) => Err(error.into()),
    }
}

/// Removes a container.
pub fn delete(container: &Container, root: &Root, force: bool, log: &Log) -> Result<(), OciError> {
    match container.status() {
        Status::Stopped => {}
        // As runc: nothing of the user's runs yet.
        Status::Created => container.destroy_vm()?,
        _ if force => container.destroy_vm()?,
        status => return Err(OciError::NotStopped { id: container.id.clone(), status }),
    }
    member::clean_up(container);
    let hooks = container.hooks();
    let state = State::of(container).json();
    if let Err(error) = container.cgroup().and_then(|cgroup| cgroup.remove()) {
        log.error(&error.to_string());
    }
    root.remove(container.id.as_str())?;
    if container.record.image.is_some() {
        // What is not swept now is by the next one.
        let _ = Store::choose().and_then(|store| store.collect());
    }
    if let Err(error) = hooks::run("poststop", hooks.poststop().as_ref(), &state) {
        log.error(&error.to_string());
    }
    Ok(())
}
