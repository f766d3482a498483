//! The table that `--timeline` prints.

use std::fmt::Write;

use bulkhead_vmm::spec::Mark;

/// The marks of host and guest as a table, in the order of their time: when each phase was reached,
/// how long after the one before, and how many VM exits it had taken until then.
pub fn table(mut marks: Vec<Mark>) -> String {
    marks.sort_by_key(|mark| mark.ns);
    let phase = marks.iter().map(|mark| mark.phase.len()).max().unwrap_or(0).max("phase".len());
    let mut table =
        format!("{:phase$}  {:>10}  {:>10}  {:>10}\n", "phase", "ms", "+ms", "KVM exits");
    let mut before = 0;
    for mark in &marks {
        let exits = mark.exits.map_or_else(|| "-".to_owned(), |exits| exits.to_string());
        let (at, after) = (ms(mark.ns), ms(mark.ns - before));
        before = mark.ns;
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{:phase$}  {at:>10}  {after:>10}  {exits:>10}", mark.phase);
    }
    table
}

fn ms(ns: u64) -> String {
    let us = ns.saturating_add(500) / 1000;
    format!("{}.{:03}", us / 1000, us % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(phase: &str, ns: u64, exits: Option<u64>) -> Mark {
        Mark { phase: phase.to_owned(), ns, exits }
    }

    #[test]
    fn marks_are_sorted_and_the_gaps_add_up() {
        let marks = vec![
            mark("agent_ready", 61_000_499, Some(1200)),
            mark("spawned", 1_234_500, None),
            mark("init", 1_060_000_500, Some(900)),
        ];
        let table = table(marks);
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["spawned", "1.235", "1.235", "-"]);
        assert_eq!(lines[2], ["agent_ready", "61.000", "59.766", "1200"]);
        assert_eq!(lines[3], ["init", "1060.001", "999.000", "900"]);
        let width = table.lines().next().unwrap().len();
        assert!(table.lines().all(|line| line.len() == width), "{table}");
    }

    #[test]
    fn no_marks_make_a_header() {
        assert_eq!(table(Vec::new()).lines().count(), 1);
    }
}
