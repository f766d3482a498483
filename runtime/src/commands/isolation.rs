//! Which wall a container gets, before anything else is done: where that is another runtime's, this
//! process becomes that runtime.

use std::collections::BTreeMap;
use std::path::Path;

use super::oci::OciError;
use crate::args::Command;
use crate::args::oci::{BundleArgs, Global};
use crate::delegate::{self, Delegate};
use crate::oci::bundle::{Bundle, BundleError};
use crate::oci::create::CreateError;
use crate::settings::{Isolation, Settings};
use crate::state::Root;

/// Returns if the container is ours.
pub fn choose(command: &Command, global: &Global, root: &Root) -> Result<(), OciError> {
    let theirs = match (command, id(command)) {
        (Command::Create(create), _) => wall(&create.bundle, global)? == Isolation::Process,
        (Command::Restore(restore), _) => wall(&restore.bundle, global)? == Isolation::Process,
        (Command::Run(run), _) => wall(&run.bundle, global)? == Isolation::Process,
        (_, Some(id)) => delegate::owns(root, id),
        (_, None) => false,
    };
    match theirs {
        false => Ok(()),
        true => Err(Delegate::find(&Settings::load()?, root)?.exec(global).into()),
    }
}

fn wall(args: &BundleArgs, global: &Global) -> Result<Isolation, OciError> {
    let asked = global.isolation.as_deref().map(str::parse).transpose()?;
    let annotations = match asked {
        // A bundle that cannot be read is for whoever is to run it to refuse.
        Some(Isolation::Process) => annotations(args).unwrap_or_default(),
        _ => annotations(args).map_err(CreateError::from)?,
    };
    Ok(Settings::load()?.isolation(asked, &annotations)?)
}

fn annotations(args: &BundleArgs) -> Result<BTreeMap<String, String>, BundleError> {
    Ok(Bundle::load(args.bundle.as_deref().unwrap_or(Path::new(".")))?.annotations())
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
