//! What is told to whoever started this, one JSON object a line.

use std::io::{Write, stdout};

use bulkhead_image::digest::Digest;
use serde::Serialize;

/// A line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// A layer of so many bytes begins to come.
    Begin { layer: Digest, bytes: u64 },
    /// So many bytes more came.
    Advance { layer: Digest, bytes: u64 },
    /// It is there.
    End { layer: Digest },
    /// All is there.
    Done {},
    /// It is not; why, in one clause.
    Failed { message: String },
}

impl Report {
    /// Sends it. If nobody listens any more there is nobody to tell that either.
    pub fn send(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            let _ = writeln!(stdout(), "{line}");
        }
    }
}
