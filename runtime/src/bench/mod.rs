//! `bulkhead bench`: how long starts take, how much memory they keep, how fast bytes move, beside
//! whatever else can do the same here.
//!
//! ```text
//! args → plan: rows, each a side and what it is to do → measured in turn → table, JSON, HTML
//! ```
//!
//! Every side is measured from outside, as a user sees it: from the exec of its command to its first
//! line of output. Sides take turns, so that what disturbs the host disturbs all. bulkhead's side is
//! `bulkhead run`, as a user types it: a container's output. Beside other monitors there is also
//! bulkhead-vmm alone, with what they boot.

mod density;
mod firecracker;
mod guest;
mod many;
mod measure;
mod peers;
mod report;
mod side;
mod stats;
mod stream;
mod verbs;

use std::io;
use std::path::PathBuf;

use crate::args::{BenchArgs, BenchKind};

use self::side::Side;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(
        "--vs {0}: not known; give firecracker=PATH, qemu=PATH, cloud-hypervisor=PATH, runc or crun"
    )]
    Peer(String),
    #[error("{side}: {what}; its command was: {command}")]
    Side {
        /// The side's name.
        side: String,
        /// What went wrong, and what it said.
        what: String,
        /// What a shell would run.
        command: String,
    },
    #[error("cannot {action} {}: {source}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

/// Measures what was asked for and prints it.
pub fn run(args: &BenchArgs) -> Result<(), BenchError> {
    let scratch = side::Scratch::new()?;
    let mut rows = Vec::new();
    for kind in kinds(args) {
        match kind {
            BenchKind::Boot => {
                let mut sides = vec![Side::bulkhead("boot/bulkhead", args, true)?];
                sides.push(guest::monitor(args, &scratch)?);
                sides.extend(peers::sides(args, &scratch)?);
                rows.extend(measure::starts(sides, args)?);
            }
            BenchKind::Clone => {
                let mut sides = vec![Side::bulkhead("clone/bulkhead", args, false)?];
                sides.extend(peers::clones(args, &scratch));
                rows.extend(measure::starts(sides, args)?);
            }
            BenchKind::Exec => rows.extend(verbs::verbs(args, &scratch)?),
            BenchKind::Fs => rows.extend(stream::files(args, &scratch)?),
            BenchKind::Vsock => rows.extend(stream::pipes(args, &scratch)?),
            BenchKind::Density => {
                rows.extend(density::clones(args)?);
                rows.extend(many::starts_to_ends(args)?);
            }
        }
    }
    if args.json {
        println!("{}", report::json(&rows));
    } else {
        print!("{}", report::table(&rows));
    }
    if let Some(path) = &args.report {
        let written = std::fs::write(path, report::html(&rows));
        let failed = |source| BenchError::File { action: "write", path: path.clone(), source };
        written.map_err(failed)?;
    }
    Ok(())
}

fn kinds(args: &BenchArgs) -> Vec<BenchKind> {
    match args.kinds[..] {
        [] => vec![BenchKind::Boot, BenchKind::Clone],
        _ => args.kinds.clone(),
    }
}
