//! `bulkhead list`: all containers.

use std::fmt::Write as _;
use std::str::FromStr as _;

use serde_json::Value;

use super::oci::{OciError, print};
use crate::args::oci::ListArgs;
use crate::delegate::{self, Delegate};
use crate::oci::container::Container;
use crate::oci::id::ContainerId;
use crate::oci::status::State;
use crate::settings::Settings;
use crate::state::Root;

/// A line of the list.
struct Row {
    id: String,
    pid: i64,
    status: String,
    bundle: String,
    created: String,
}

/// Prints them.
pub fn run(args: &ListArgs, root: &Root) -> Result<(), OciError> {
    let mut states = own(root);
    if delegate::is_used(root)
        && let Ok(delegate) = Delegate::find(&Settings::load()?, root)
    {
        states.extend(delegate.list().iter().map(Value::to_string));
    }
    let rows = || states.iter().map(|json| Row::from(&Value::from_str(json).unwrap_or_default()));
    let text = match (args.quiet, args.format.as_str()) {
        (true, _) => rows().map(|row| format!("{}\n", row.id)).collect(),
        (false, "table") => table(&rows().collect::<Vec<_>>()),
        (false, "json") => format!("[{}]", states.join(",")),
        (false, other) => return Err(OciError::Format(other.to_owned())),
    };
    if !text.is_empty() {
        print(&text);
    }
    Ok(())
}

/// As JSON, with the fields in runc's order, which some look for by pattern.
fn own(root: &Root) -> Vec<String> {
    let ids = root.containers();
    let ids = ids.iter().filter_map(|id| ContainerId::try_from(id.as_str()).ok());
    // One that is deleted at this moment is not there.
    let containers = ids.filter_map(|id| Container::open(root, &id).ok());
    containers.filter_map(|container| serde_json::to_string(&State::of(&container)).ok()).collect()
}

impl From<&Value> for Row {
    fn from(state: &Value) -> Self {
        let text = |field: &str| state[field].as_str().unwrap_or_default().to_owned();
        Self {
            id: text("id"),
            pid: state["pid"].as_i64().unwrap_or(0),
            status: text("status"),
            bundle: text("bundle"),
            created: text("created"),
        }
    }
}

fn table(rows: &[Row]) -> String {
    let id_width = rows.iter().map(|row| row.id.len()).max().unwrap_or(0).max(2);
    let bundle_width = rows.iter().map(|row| row.bundle.len()).max().unwrap_or(0).max(6);
    let mut table = format!(
        "{:id_width$}  {:>9}  {:8}  {:bundle_width$}  CREATED\n",
        "ID", "PID", "STATUS", "BUNDLE"
    );
    for Row { id, pid, status, bundle, created } in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "{id:id_width$}  {pid:>9}  {status:8}  {bundle:bundle_width$}  {created}"
        );
    }
    table
}
