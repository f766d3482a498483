//! Many idle clones at once: what each keeps to itself, and whether the last starts as quickly as the
//! first.

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::time::Instant;

use super::BenchError;
use super::measure::ms;
use super::side::{Ended, Side};
use super::stats::Row;
use crate::args::BenchArgs;

/// KiB of a process that nobody shares, and its proportional share of the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Memory {
    /// Private pages of the guest's memory.
    guest: f64,
    /// Other private pages.
    own: f64,
    /// PSS of all of it.
    pss: f64,
}

/// Starts `--clones` containers that sleep, and looks at them.
pub fn clones(args: &BenchArgs) -> Result<Vec<Row>, BenchError> {
    let command = ["sh", "-c", "echo up; exec sleep 100000"];
    let side = Side::bulkhead_running("density/bulkhead", args, false, &[], &command)?;
    // The template is there, and files are in the page cache.
    drop(start(&side)?);
    let mut clones = Vec::new();
    let mut starts = Vec::new();
    for _ in 0..args.clones {
        let (clone, taken) = start(&side)?;
        clones.push(clone);
        starts.push((taken, None));
    }
    let tenth = (starts.len() / 10).max(1);
    let (first, last) = (starts[..tenth].to_vec(), starts[starts.len() - tenth..].to_vec());
    let memory: Vec<Memory> = clones.iter().map(|clone: &Ended| of_tree(clone.0.id())).collect();
    let column =
        |get: fn(&Memory) -> f64| memory.iter().map(|memory| (get(memory), None)).collect();
    let n = args.clones;
    let rows = [
        Row::new(&format!("density/first tenth of {n} starts"), "ms", first),
        Row::new(&format!("density/last tenth of {n} starts"), "ms", last),
        Row::new("density/private, VMM and worker", "KiB", column(|memory| memory.own)),
        Row::new("density/private, guest memory", "KiB", column(|memory| memory.guest)),
        Row::new("density/PSS of all", "KiB", column(|memory| memory.pss)),
    ];
    Ok(rows.map(|row| Row { command: side.shell(), ..row }).into())
}

fn start(side: &Side) -> Result<(Ended, f64), BenchError> {
    let mut command = side.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let begun = Instant::now();
    let mut clone = Ended(side.spawn(&mut command)?);
    let up = clone.0.stdout.as_mut().is_some_and(|out| matches!(out.read(&mut [0]), Ok(1)));
    let taken = ms(begun.elapsed());
    if !up {
        let status = clone.0.wait().map_err(|error| side.failed(error.to_string()))?;
        return Err(side.failed(format!("it ended ({status}) and wrote no output")));
    }
    Ok((clone, taken))
}

/// The memory of the VMM below `bulkhead run`, and of the worker below that.
fn of_tree(run: u32) -> Memory {
    let mut sum = Memory::default();
    let mut left = children(run);
    while let Some(pid) = left.pop() {
        left.extend(children(pid));
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        let memory = of_smaps(&smaps);
        sum.guest += memory.guest;
        sum.own += memory.own;
        sum.pss += memory.pss;
    }
    sum
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Adds /proc/PID/smaps up: the guest's memory is a map of a template's file of that name.
fn of_smaps(smaps: &str) -> Memory {
    let mut sum = Memory::default();
    let mut guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default();
        let value = || line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok());
        match key {
            "Pss:" => sum.pss += value().unwrap_or(0.0),
            "Private_Clean:" if guest => {}
            "Private_Dirty:" if guest => sum.guest += value().unwrap_or(0.0),
            "Private_Clean:" | "Private_Dirty:" => sum.own += value().unwrap_or(0.0),
            key if !key.ends_with(':') => guest = line.ends_with("/memory"),
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_pages_are_the_guest_s_or_the_monitor_s() {
        let smaps = "7f00-7f10 rw-p 00000000 00:1a 7 /var/lib/bulkhead/templates/k/memory\n\
            Pss:                 100 kB\nPrivate_Clean:        40 kB\nPrivate_Dirty:        30 kB\n\
            7f20-7f30 rw-p 00000000 00:00 0 \n\
            Pss:                  10 kB\nPrivate_Clean:         1 kB\nPrivate_Dirty:         9 kB\n";
        assert_eq!(of_smaps(smaps), Memory { guest: 30.0, own: 10.0, pss: 110.0 });
    }
}
