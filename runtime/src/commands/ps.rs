//! `bulkhead ps`: the processes of a container, as its own kernel counts them; for engines, which look
//! at the numbers of `--format json` in the host's /proc, the one that stands for them there.

use std::fmt::Write as _;

use bulkhead_protocol::rpc::agent::{ProcessInfo, ProcessesRequest, ProcessesResponse};

use super::oci::{self, OciError, PATIENCE, print};
use crate::args::oci::PsArgs;
use crate::oci::record::Status;
use crate::state::Root;

/// Prints them.
pub fn run(args: &PsArgs, root: &Root) -> Result<(), OciError> {
    let container = oci::open(root, &args.id)?;
    let status = container.status();
    if status == Status::Paused {
        return Err(OciError::NotRunning { id: container.id, status });
    }
    // One that has stopped has no processes, which is nothing to complain of.
    let has_stopped = status == Status::Stopped;
    match args.format.as_str() {
        "table" if has_stopped => {
            print(&table(&[]));
            return Ok(());
        }
        "json" if has_stopped => {
            print("[]");
            return Ok(());
        }
        "table" => {}
        "json" => {
            print(&format!("[{}]", container.record.process.pid));
            return Ok(());
        }
        other => return Err(OciError::Format(other.to_owned())),
    }
    let mut agent = container.agent(PATIENCE)?;
    let request = ProcessesRequest { container: container.name_in_vm(), ..Default::default() };
    let response: ProcessesResponse = agent.call("Processes", &request, PATIENCE)?;
    print(&table(&response.processes));
    Ok(())
}

fn table(processes: &[ProcessInfo]) -> String {
    let mut table = String::from("    UID     PID    PPID S       RSS      TIME COMMAND\n");
    for process in processes {
        let ProcessInfo { pid, parent_pid, uid, cpu_ms, .. } = process;
        let (minutes, seconds, hundredths) =
            (cpu_ms / 60_000, cpu_ms / 1000 % 60, cpu_ms / 10 % 100);
        let kib = process.resident_bytes >> 10;
        let state = plain(&process.state);
        let command = plain(&process.command);
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "{uid:>7} {pid:>7} {parent_pid:>7} {state:1} {kib:>8}K {minutes:>3}:{seconds:02}.{hundredths:02} {command}",
        );
    }
    table
}

/// The guest's text for our terminal: nothing in it may move the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_s_words_cannot_break_the_table() {
        let process = ProcessInfo {
            pid: 7,
            parent_pid: 1,
            state: "S".to_owned(),
            command: "sh -c \x1b[2J\nroot".to_owned(),
            cpu_ms: 61_230,
            resident_bytes: 4096,
            ..Default::default()
        };
        let table = table(&[process]);
        assert_eq!(table.lines().count(), 2);
        assert!(table.ends_with("4K   1:01.23 sh -c ?[2J?root\n"), "{table}");
    }
}
