//! The stopwatch: from the exec of a command to its greeting, sides in turn.

use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::BenchError;
use super::side::{GREETING, Side};
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
        let mut row = Row::of_times(&side.name, samples, args.exact);
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

/// One start: ms to the greeting, and the VM exits by then.
fn start(side: &Side) -> Result<(f64, Option<u64>), BenchError> {
    let mut command = side.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(socket) = &side.socket {
        let _ = std::fs::remove_file(socket);
    }
    let exits_before = exits();
    let begun = Instant::now();
    let mut child = side.spawn(&mut command)?;
    let _watch = Watch::on(&child);
    let answer = side.request.as_ref().map(|request| request.send()).transpose();
    let greeted = match side.on_stderr {
        true => greeting(child.stderr.as_mut(), begun),
        false => greeting(child.stdout.as_mut(), begun),
    };
    let exits = exits_since(exits_before);
    if side.endless {
        let _ = child.kill();
    }
    match finish(side, child, answer)? {
        said if greeted.is_none() => Err(side.failed(said)),
        _ => Ok((greeted.map_or(f64::NAN, ms), exits)),
    }
}

/// The VM exits since they were so many.
pub fn exits_since(before: Option<u64>) -> Option<u64> {
    exits().zip(before).map(|(now, before)| now.saturating_sub(before))
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

/// How long after `begun` the greeting's line began. What comes before it is a boot message or a
/// complaint, and not waited for.
pub fn greeting(out: Option<impl Read>, begun: Instant) -> Option<Duration> {
    /// Far longer than any message.
    const LINE_MAX: u64 = 4096;
    let mut reader = BufReader::new(out?);
    let mut line = Vec::new();
    loop {
        if reader.fill_buf().ok()?.is_empty() {
            return None;
        }
        let at = begun.elapsed();
        line.clear();
        reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).ok()?;
        if line.trim_ascii() == GREETING.as_bytes() {
            return Some(at);
        }
    }
}

/// Lets the command end, and says how it did, for the case that it did not greet.
fn finish(
    side: &Side,
    child: Child,
    answer: io::Result<Option<UnixStream>>,
) -> Result<String, BenchError> {
    let output = child.wait_with_output().map_err(|error| side.failed(error.to_string()))?;
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    match answer {
        Ok(Some(mut stream)) => {
            // An answer it did not live to give is no answer.
            let _ = stream.read_to_string(&mut said);
        }
        Ok(None) => {}
        Err(error) => said.push_str(&error.to_string()),
    }
    let last = said.lines().last().unwrap_or("nothing");
    Ok(format!("it ended ({}) without its greeting, and said: {last}", output.status))
}

/// KVM's count, where it can be read.
pub fn exits() -> Option<u64> {
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
        Side::new("x", words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn the_clock_stops_at_the_greeting() {
        let (taken, _) = start(&side(&["sh", "-c", "echo hello; sleep 0.5"])).unwrap();
        assert!(taken < 400.0, "{taken}");
    }

    #[test]
    fn a_peer_that_does_not_work_is_left_out_and_our_own_must() {
        let (works, fails) = (side(&["echo", "hello"]), side(&["echo", "no"]));
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
    fn a_side_that_greets_for_ever_is_killed() {
        let command = ["sh", "-c", "exec yes hello"];
        assert!(start(&Side { endless: true, ..side(&command) }).unwrap().0 > 0.0);
    }

    #[test]
    fn what_comes_before_the_greeting_does_not_count() {
        let (taken, _) =
            start(&side(&["sh", "-c", "echo booting; sleep 0.3; echo hello"])).unwrap();
        assert!(taken >= 300.0, "{taken}");
    }

    #[test]
    fn lines_of_a_timeline_are_phases() {
        assert_eq!(phase("vmm_main     1.087   1.087    -"), Some(("vmm_main".to_owned(), 1.087)));
        assert_eq!(phase("phase  ms"), None);
    }
}
