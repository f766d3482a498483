//! `bulkhead`: containers in kernels of their own.
//!
//! ```text
//! args (typed text) → request (checked) → plan (what VM, what container) → session (live) → exit code
//! ```
//!
//! Only this file makes an exit code: the process's own, or what [`EXIT_FAILED`] and its
//! neighbours say.

mod agent;
mod args;
mod assets;
mod commands;
mod facts;
mod images;
mod net;
#[allow(dead_code, unused_imports, reason = "the verbs that call it land next")]
mod oci;
mod plan;
mod request;
mod session;
mod state;
mod terminal;
mod timeline;
mod verdict;
mod vmm;

use std::process::ExitCode;

use bulkhead_vmm::timeline::now_ns;
use clap::Parser;

use crate::args::{Args, Command};
use crate::commands::run::RunError;
use crate::images::ImageError;
use crate::state::Root;

/// Exit code of a failure of bulkhead's own, as container tools use it.
const EXIT_FAILED: u8 = 125;

fn main() -> ExitCode {
    let started_ns = now_ns();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            // --help and --version
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&args::sentence(&error.to_string()), &[]),
    };
    let result = match args.command {
        Command::Run(run) => Root::choose(args.root)
            .map_err(RunError::from)
            .and_then(|root| commands::run::run(&run, &root, started_ns)),
        Command::Pull(pull) => images(commands::pull::run(&pull)),
        Command::Images(list) => images(commands::images::run(&list)),
        Command::Rmi(rmi) => images(commands::rmi::run(&rmi)),
        Command::Doctor(doctor) => {
            // A host without a place for state can be examined all the same.
            let root = Root::choose(args.root).ok();
            return commands::doctor::run(&doctor, root.as_ref());
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = error.exit_code();
            fail(&error.to_string(), error.kernel_log());
            ExitCode::from(code)
        }
    }
}

/// The verbs of images have no exit codes of their own.
fn images(done: Result<(), ImageError>) -> Result<u8, RunError> {
    Ok(done.map(|()| 0)?)
}

fn fail(sentence: &str, kernel_log: &[String]) -> ExitCode {
    eprintln!("bulkhead: {sentence}");
    for line in kernel_log {
        eprintln!("  {line}");
    }
    ExitCode::from(EXIT_FAILED)
}
