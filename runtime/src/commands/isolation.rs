//! Which wall a container gets, before anything else is done: where that is another runtime's, this
//! process becomes that runtime.

use std::path::Path;

use super::oci::OciError;
use crate::args::Command;
use crate::args::oci::{BundleArgs, Global};
use crate::delegate::{self, Delegate};
use crate::oci::bundle::Bundle;
use crate::oci::create::{CreateError, Ours};
use crate::settings::{Isolation, Settings};
use crate::state::Root;

/// Reads what a verb is to make a container of; returns if the container is ours.
pub fn ours(args: &BundleArgs, global: &Global, root: &Root) -> Result<Ours, OciError> {
    let asked = global.isolation.as_deref().map(str::parse).transpose()?;
    let bundle = match Bundle::load(args.bundle.as_deref().unwrap_or(Path::new("."))) {
        Ok(bundle) => Some(bundle),
        // It is for whoever is to run it to refuse.
        Err(_) if asked == Some(Isolation::Process) => None,
        Err(error) => return Err(CreateError::from(error).into()),
    };
    let settings = Settings::load()?;
    let annotations = bundle.as_ref().map(Bundle::annotations).unwrap_or_default();
    match (settings.isolation(asked, &annotations)?, bundle) {
        (Isolation::Vm, Some(bundle)) => Ok(Ours { bundle, settings }),
        _ => Err(theirs(&settings, global, root)),
    }
}

/// Returns if the container that a verb names, if any, is ours.
pub fn choose(command: &Command, global: &Global, root: &Root) -> Result<(), OciError> {
    match id(command).is_some_and(|id| delegate::owns(root, id)) {
        false => Ok(()),
        true => Err(theirs(&Settings::load()?, global, root)),
    }
}

/// Becomes the other runtime; returns only why not.
fn theirs(settings: &Settings, global: &Global, root: &Root) -> OciError {
    match Delegate::find(settings, root) {
        Ok(delegate) => delegate.exec(global).into(),
        Err(error) => error.into(),
    }
}

/// The container a verb is about.
fn id(command: &Command) -> Option<&str> {
    Some(match command {
        Command::Start(args) | Command::State(args) => &args.id,
        Command::Pause(args) | Command::Resume(args) => &args.id,
        Command::Checkpoint(args) => &args.id,
        Command::Clone(args) => &args.id,
        Command::Kill(args) => &args.id,
        Command::Delete(args) => &args.id,
        Command::Exec(args) => &args.id,
        Command::Ps(args) => &args.id,
        Command::Events(args) => &args.id,
        Command::Update(args) => &args.id,
        _ => return None,
    })
}
