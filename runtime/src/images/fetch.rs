//! Runs `bulkhead-pull`, the program that talks to registries: what comes over a network is parsed
//! in a process of its own, and its libraries are kept out of the way of a start.
//!
//! It gets the layers that are here already on its standard input, writes an OCI image layout
//! without them, and reports on its standard output, an [`Event`] a line.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use bulkhead_image::digest::Digest;
use bulkhead_image::reference::Name;
use serde::Deserialize;

use super::progress::Bars;

/// The longest line of a report.
const LINE_MAX: u64 = 64 << 10;

/// Why an image did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot run bulkhead-pull: {0}")]
    Spawn(#[source] std::io::Error),
    #[error("cannot pull {name}: {message}")]
    Refused {
        /// What was asked for.
        name: String,
        /// One clause.
        message: String,
    },
    #[error("bulkhead-pull ended without a word about {0}")]
    Silent(String),
}

/// How a registry is to be talked to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Certificates need not be good, and plain HTTP will do. Always so on the loopback.
    pub insecure: bool,
}

/// What bulkhead-pull reports.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Event {
    Begin {
        layer: Digest,
        bytes: u64,
    },
    Advance {
        layer: Digest,
        bytes: u64,
    },
    End {
        layer: Digest,
    },
    /// The last line: all is there.
    Done {},
    /// The last line: it is not.
    Failed {
        message: String,
    },
}

/// Fetches the image `name` into the empty directory `layout`, but for the layers `present`.
pub fn fetch(
    program: &Path,
    name: &Name,
    access: &Access,
    layout: &Path,
    present: &[Digest],
) -> Result<(), FetchError> {
    let mut command = Command::new(program);
    command.arg(name.to_string()).arg(layout);
    if access.insecure {
        command.arg("--insecure");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(FetchError::Spawn)?;
    let listed = present.iter().map(|layer| format!("{layer}\n")).collect::<String>();
    if let Some(mut stdin) = child.stdin.take() {
        // It may have ended already; then it says why below.
        let _ = stdin.write_all(listed.as_bytes());
    }
    let ended = child.stdout.take().map(|stdout| watch(BufReader::new(stdout)));
    if !matches!(ended, Some(Some(_))) {
        let _ = child.kill();
    }
    child.wait().map_err(FetchError::Spawn)?;
    match ended.flatten() {
        Some(Ok(())) => Ok(()),
        Some(Err(message)) => Err(FetchError::Refused { name: name.to_string(), message }),
        None => Err(FetchError::Silent(name.to_string())),
    }
}

/// Shows what is reported; returns how it ended, `None` if it ended without saying.
fn watch(mut reports: impl BufRead) -> Option<Result<(), String>> {
    let bars = Bars::new("downloading");
    loop {
        let mut line = Vec::new();
        (&mut reports).take(LINE_MAX).read_until(b'\n', &mut line).ok()?;
        match serde_json::from_slice(&line).ok()? {
            Event::Begin { layer, bytes } => bars.begin(layer, bytes),
            Event::Advance { layer, bytes } => bars.advance(layer, bytes),
            Event::End { layer } => bars.end(layer),
            Event::Done {} => return Some(Ok(())),
            Event::Failed { message } => return Some(Err(one_line(&message))),
        }
    }
}

/// A registry's own words may be in it.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_end_well_or_badly_or_not_at_all() {
        let layer = Digest::of(b"");
        let begin = format!("{{\"begin\":{{\"layer\":\"{layer}\",\"bytes\":1}}}}\n");
        let done = "{\"done\":{}}\n";
        let failed = "{\"failed\":{\"message\":\"no\\nsuch  image\"}}\n";
        let watched = |text: String| watch(text.as_bytes());
        assert_eq!(watched(format!("{begin}{done}")), Some(Ok(())));
        assert_eq!(watched(format!("{begin}{failed}")), Some(Err("no such image".to_owned())));
        assert_eq!(watched(begin), None);
        assert_eq!(watched("nonsense\n".to_owned()), None);
        assert_eq!(watched("x".repeat(1 << 20)), None);
    }
}
