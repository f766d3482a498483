//! `bulkhead-pull NAME DIR`: fetches an image from a registry into the OCI image layout DIR.
//!
//! Run by `bulkhead pull` and `bulkhead run`, in a process of its own: what a registry sends is
//! hostile, and the libraries that speak to one are large. It has no part in the store: what it
//! writes is verified again when it is imported. Standard input lists the layers (diff IDs, one a
//! line) that need not be fetched; standard output reports, one JSON object a line (see
//! [`report`]), and ends with `done` or `failed`.
//!
//! A cargo workspace of its own, so that the rest builds without its hundred and fifty crates, and the
//! one program that is linked dynamically: glibc loads its name resolution at run time.

mod credentials;
mod fetch;
mod registry;
mod report;

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_image::digest::Digest;
use bulkhead_image::reference::Name;
use clap::Parser;
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};

use crate::report::Report;

/// Memory this process may take, bytes: a registry's answers are read into it.
const MEMORY_MAX: u64 = 1 << 30;
/// The list of layers that are there: 71 bytes a line.
const PRESENT_MAX: u64 = 64 << 20;

#[derive(Parser)]
#[command(name = "bulkhead-pull", version, about = "Fetches an image; started by bulkhead")]
struct Args {
    /// Full name of the image
    name: String,
    /// Empty directory for the layout
    layout: PathBuf,
    /// Take any certificate, and plain HTTP
    #[arg(long)]
    insecure: bool,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(2);
        }
    };
    // Whoever started this wants nothing any more when it is gone.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let limit = Rlimit { current: Some(MEMORY_MAX), maximum: Some(MEMORY_MAX) };
    // Without it a hostile registry could make this process large, and no more.
    let _ = setrlimit(Resource::As, limit);
    match run(&args) {
        Ok(()) => {
            Report::Done {}.send();
            ExitCode::SUCCESS
        }
        Err(error) => {
            Report::Failed { message: error.to_string() }.send();
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), fetch::FetchError> {
    let name: Name = args.name.parse()?;
    let mut listed = String::new();
    io::stdin().take(PRESENT_MAX).read_to_string(&mut listed).map_err(fetch::FetchError::Input)?;
    let present: HashSet<Digest> = listed.lines().filter_map(|line| line.parse().ok()).collect();
    let credentials = credentials::find(&name.registry, &name.repository)?;
    // Only one provider is built in; a second installation cannot happen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(fetch::FetchError::Runtime)?;
    let registry = registry::Registry::new(&name, credentials, args.insecure);
    runtime.block_on(fetch::fetch(registry, &name, &args.layout, &present))
}
