//! The stopwatch: from the exec of a command to the first byte it writes, sides in turn.

use std::io::{self, IsTerminal, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::BenchError;
use super::side::Side;
use super::stats::Row;
use crate::args::BenchArgs;

/// Longer than any start takes, even on an emulated processor.
const START_MAX: Duration = Duration::from_secs(60);
/// KVM's count of exits of all VMs that live (debugfs).
const EXITS: &str = "/sys/kernel/debug/kvm/exits";

/// Starts of every side, `--warmups` and then `--runs` of each.
pub fn starts(sides: Vec<Side>, args: &BenchArgs) -> Result<Vec<Row>, BenchError> {
    let sides = those_that_work(sides)?;
    let mut samples = vec![Vec::new(); sides.len()];
    for turn in 0..args.warmups + args.runs {
        if io::stderr().is_terminal() {
            eprintln!("round {} of {}", turn + 1, args.warmups + args.runs);
        }
        for (side, samples) in sides.iter().zip(&mut samples) {
            let sample = start(side)?;
            if turn >= args.warmups {
                samples.push(sample);
            }
        }
    }
    let rows = sides.iter().zip(samples).map(|(side, samples)| {
        let mut row = Row::new(&side.name, "ms", samples);
        row.instructions = args.exact.then_some((row.median_ms * 1e6) as u64);
        row.command = side.shell();
        if side.has_timeline {
            row.phases = phases(side)?;
        }
        Ok(row)
    });
    rows.collect()
}

/// Tries every side once. The first, bulkhead's own, has to work; another that does not is told and
/// left out, so that the rest can be measured.
fn those_that_work(sides: Vec<Side>) -> Result<Vec<Side>, BenchError> {
    let mut working = Vec::with_capacity(sides.len());
    for side in sides {
        match start(&side) {
            Ok(_) => working.push(side),
            Err(error) if working.is_empty() => return Err(error),
            Err(error) => eprintln!("bulkhead: left out: {error}"),
        }
    }
    Ok(working)
}

/// One start: ms to the first byte, and the VM exits by then.
fn start(side: &Side) -> Result<(f64, Option<u64>), BenchError> {
    let mut command = side.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let exits_before = exits();
    let begun = Instant::now();
    let mut child = command.spawn().map_err(|error| side.failed(error.to_string()))?;
    let watch = Watch::on(&child);
    let first = first_byte(&mut child);
    let taken = begun.elapsed();
    let exits = exits().zip(exits_before).map(|(now, before)| now.saturating_sub(before));
    finish(side, child, first)?;
    drop(watch);
    Ok((taken.as_secs_f64() * 1e3, exits))
}

/// Kills a command that does not end: a peer that does not work here must not stop the others.
struct Watch(Option<mpsc::Sender<()>>);

impl Watch {
    fn on(child: &Child) -> Self {
        let pid = Pid::from_child(child);
        let (done, waiting) = mpsc::channel();
        thread::spawn(move || {
            if waiting.recv_timeout(START_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                // It has not been waited for: `start` holds this watch until then.
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Self(Some(done))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0 = None;
    }
}

fn first_byte(child: &mut Child) -> bool {
    let Some(stdout) = &mut child.stdout else { return false };
    matches!(stdout.read(&mut [0]), Ok(1))
}

/// Lets the command end; whatever it says is its failure if it wrote nothing.
fn finish(side: &Side, child: Child, wrote: bool) -> Result<(), BenchError> {
    let output = child.wait_with_output().map_err(|error| side.failed(error.to_string()))?;
    if wrote {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or("nothing").to_owned();
    Err(side.failed(format!("it ended ({}) and wrote no output, and said: {last}", output.status)))
}

fn exits() -> Option<u64> {
    std::fs::read_to_string(EXITS).ok()?.trim().parse().ok()
}

/// The phases of one more start, from bulkhead's own timeline.
fn phases(side: &Side) -> Result<Vec<(String, f64)>, BenchError> {
    let output = side.with_timeline().stdin(Stdio::null()).output();
    let output = output.map_err(|error| side.failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    Ok(said.lines().skip(1).filter_map(phase).collect())
}

/// A line of the timeline: name, ms, ms since the last, exits.
fn phase(line: &str) -> Option<(String, f64)> {
    let mut words = line.split_whitespace();
    let (name, ms) = (words.next()?, words.next()?.parse().ok()?);
    Some((name.to_owned(), ms))
}

/// How long something took, in ms.
pub fn ms(taken: Duration) -> f64 {
    taken.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(words: &[&str]) -> Side {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Side { name: "x".to_owned(), words, has_timeline: false }
    }

    #[test]
    fn the_clock_stops_at_the_first_byte() {
        let (taken, _) = start(&side(&["sh", "-c", "echo a; sleep 0.5"])).unwrap();
        assert!(taken < 400.0, "{taken}");
    }

    #[test]
    fn a_peer_that_does_not_work_is_left_out_and_our_own_must() {
        let (works, fails) = (side(&["echo", "a"]), side(&["false"]));
        let both = those_that_work(vec![works.clone(), fails.clone()]).unwrap();
        assert_eq!(both.len(), 1);
        assert!(those_that_work(vec![fails, works]).is_err());
    }

    #[test]
    fn silence_is_a_failure_with_its_last_words() {
        let error = start(&side(&["sh", "-c", "echo no >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("said: no") && error.contains("sh -c"), "{error}");
    }

    #[test]
    fn lines_of_a_timeline_are_phases() {
        assert_eq!(phase("vmm_main     1.087   1.087    -"), Some(("vmm_main".to_owned(), 1.087)));
        assert_eq!(phase("phase  ms"), None);
    }
}
