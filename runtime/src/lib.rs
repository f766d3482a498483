//! `bulkhead`: containers in kernels of their own.
//!
//! ```text
//! args (typed text) → request (checked) → plan (what VM, what container) → session (live) → exit code
//! ```
//!
//! Only this file makes an exit code: the process's own, or what [`EXIT_FAILED`] and its
//! neighbours say. It is a library of one function, [`main`], so that tests/fuzz can link what
//! reads the guest's and the bundle's words.

mod agent;
mod args;
mod assets;
mod bench;
mod client;
mod commands;
mod delegate;
mod facts;
mod foresight;
mod images;
mod launch;
mod machine_id;
mod net;
mod oci;
#[cfg(feature = "testing")]
pub mod parsers;
mod plan;
mod request;
mod security;
mod session;
mod settings;
mod short_path;
mod state;
mod templates;
mod terminal;
mod timeline;
mod user;
mod verdict;
mod vmm;

use bulkhead_vmm::timeline::now_ns;

use crate::args::oci::Global;
use crate::args::{Args, Command};
use crate::commands::oci::OciError;
use crate::commands::run::RunError;
use crate::images::ImageError;
use crate::oci::log::Log;
use crate::state::{Root, StateError};

/// Exit code of a failure of bulkhead's own, as container tools use it.
const EXIT_FAILED: u8 = 125;
/// Exit codes of failures of the OCI verbs, as runc has them.
const EXIT_OCI_FAILED: u8 = 1;
const EXIT_EXEC_FAILED: u8 = 255;
/// The most characters of a failure's sentence.
const SENTENCE_MAX: usize = 1000;
/// The most lines of a guest's kernel that are printed: bulkhead-vmm reports no more.
const KERNEL_LINES_MAX: usize = 40;

/// What a failure prints and exits with.
struct Failure {
    code: u8,
    sentence: String,
    kernel_log: Vec<String>,
}

/// What the process does, and its exit code.
pub fn main() -> u8 {
    let started_ns = now_ns();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            // --help and --version
            let _ = error.print();
            return 0;
        }
        Err(error) => return report(Failure::own(args::sentence(&error.to_string()))),
    };
    let log = match Log::new(args.global.log.clone(), &args.global.log_format) {
        Ok(log) => log,
        Err(error) => return report(Failure::own(error.to_string())),
    };
    if has_images(&args.command)
        && let Err(error) = user::become_root()
    {
        return report(Failure::own(error.to_string()));
    }
    let root = Root::choose(args.global.root.clone());
    if let Command::Doctor(doctor) = args.command {
        // A host without a place for state can be examined all the same.
        return commands::doctor::run(&doctor, root.ok().as_ref());
    }
    if let Command::Bench(bench) = &args.command {
        return match bench::run(bench) {
            Ok(()) => 0,
            Err(error) => report(Failure::own(error.to_string())),
        };
    }
    let result = root.map_err(Failure::from).and_then(|root| match &args.command {
        Command::Pull(pull) => Ok(images(commands::pull::run(pull))?),
        Command::Images(list) => Ok(images(commands::images::run(list))?),
        Command::Rmi(rmi) => Ok(images(commands::rmi::run(rmi))?),
        Command::Run(run) if !commands::run_bundle::is_meant(run) => {
            Ok(commands::run::run(run, &root, args.global.cold, started_ns)?)
        }
        command => {
            commands::isolation::choose(command, &args.global, &root)
                .map_err(|error| Failure::oci(error, EXIT_OCI_FAILED))?;
            oci(command, &root, &log, &args.global)
        }
    });
    match result {
        Ok(code) => code,
        Err(failure) => {
            log.error(&failure.sentence);
            report(failure)
        }
    }
}

/// Whether a verb unpacks images, or stacks or removes what was unpacked.
fn has_images(command: &Command) -> bool {
    match command {
        Command::Pull(_) | Command::Images(_) | Command::Rmi(_) => true,
        Command::Run(run) => run.rootfs.is_none() && !commands::run_bundle::is_meant(run),
        _ => false,
    }
}

/// The verbs of images have no exit codes of their own.
fn images(done: Result<(), ImageError>) -> Result<u8, RunError> {
    Ok(done.map(|()| 0)?)
}

/// The verbs of the OCI command line.
fn oci(command: &Command, root: &Root, log: &Log, global: &Global) -> Result<u8, Failure> {
    use commands::*;
    let done = match command {
        Command::Exec(exec) => {
            return exec::run(exec, root).map_err(|error| Failure::oci(error, EXIT_EXEC_FAILED));
        }
        Command::Run(run) => run_bundle::run(run, root, global, log),
        Command::Create(create) => create::run(create, root, global).map(|()| 0),
        Command::Checkpoint(checkpoint) => checkpoint::run(checkpoint, root, log).map(|()| 0),
        Command::Restore(restore) => restore::run(restore, root, global, log),
        Command::Clone(clone) => clone::run(clone, root, global, log),
        Command::Start(start) => start::run(start, root, log).map(|()| 0),
        Command::State(state) => state::run(state, root).map(|()| 0),
        Command::Kill(kill) => kill::run(kill, root).map(|()| 0),
        Command::Delete(delete) => delete::run(delete, root, log).map(|()| 0),
        Command::Ps(ps) => ps::run(ps, root).map(|()| 0),
        Command::List(list) => list::run(list, root).map(|()| 0),
        Command::Update(update) => update::run(update, root).map(|()| 0),
        Command::Pause(pause) => pause::run(pause, root).map(|()| 0),
        Command::Resume(resume) => resume::run(resume, root).map(|()| 0),
        Command::Events(events) => events::run(events, root).map(|()| 0),
        Command::Spec(spec) => spec::run(spec).map(|()| 0),
        Command::Features(_) => features::run().map(|()| 0),
        // Done in `main`.
        Command::Bench(_)
        | Command::Doctor(_)
        | Command::Pull(_)
        | Command::Images(_)
        | Command::Rmi(_) => Ok(0),
    };
    done.map_err(|error| Failure::oci(error, EXIT_OCI_FAILED))
}

impl Failure {
    fn new(code: u8, error: &str, kernel_log: &[String]) -> Self {
        let kernel_log = kernel_log.iter().take(KERNEL_LINES_MAX).map(|line| plain(line)).collect();
        Self { code, sentence: plain(error), kernel_log }
    }

    fn own(sentence: String) -> Self {
        Self::new(EXIT_FAILED, &sentence, &[])
    }

    fn oci(error: OciError, code: u8) -> Self {
        Self::new(code, &error.to_string(), error.kernel_log())
    }
}

/// A sentence as it may be printed and logged: a guest, a monitor that one took over, a registry or a file
/// may have had its say in it, and is not to move a cursor or to fill a log.
fn plain(sentence: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    sentence.chars().take(SENTENCE_MAX).map(plain).collect()
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::own(error.to_string())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::new(error.exit_code(), &error.to_string(), error.kernel_log())
    }
}

fn report(failure: Failure) -> u8 {
    eprintln!("bulkhead: {}", failure.sentence);
    for line in &failure.kernel_log {
        eprintln!("  {line}");
    }
    failure.code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_s_words_move_the_cursor_or_fill_a_log() {
        let failure = Failure::own("no \x1b[2J\n\"ä\"".to_owned());
        assert_eq!(failure.sentence, "no  [2J \"ä\"");
        assert_eq!(Failure::own("x".repeat(4 << 20)).sentence.len(), SENTENCE_MAX);
        let failure = Failure::new(125, "", &vec!["panic\x1b[2J".to_owned(); 1000]);
        assert_eq!(failure.kernel_log, vec!["panic [2J"; KERNEL_LINES_MAX]);
    }
}
