//! Many containers from start to end: one after another, and eight at a time.

use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::BenchError;
use super::measure::ms;
use super::side::Side;
use super::stats::Row;
use crate::args::BenchArgs;

/// How many run at a time in the second half.
const LANES: usize = 8;

/// `--clones` containers that end at once, in turn and [`LANES`] at a time: how long each takes, and all.
pub fn starts_to_ends(args: &BenchArgs) -> Result<Vec<Row>, BenchError> {
    let side = Side::bulkhead_running("many/bulkhead", args, false, &[], &["true"])?;
    // The template is there, and files are in the page cache.
    start_to_end(&side)?;
    let mut rows = Vec::new();
    for (how, lanes) in [("in turn".to_owned(), 1), (format!("{LANES} at a time"), LANES)] {
        let begun = Instant::now();
        let each = in_lanes(&side, args.clones, lanes)?;
        let all = ms(begun.elapsed());
        let n = args.clones;
        rows.push(Row::new(&format!("density/each of {n} to its end, {how}"), "ms", each));
        rows.push(Row::new(
            &format!("density/all {n} to their end, {how}"),
            "ms",
            vec![(all, None)],
        ));
    }
    Ok(rows.into_iter().map(|row| Row { command: side.shell(), ..row }).collect())
}

/// Every lane starts the next as soon as its last has ended.
fn in_lanes(
    side: &Side,
    count: usize,
    lanes: usize,
) -> Result<Vec<(f64, Option<u64>)>, BenchError> {
    let (next, taken) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    let lane = || -> Result<(), BenchError> {
        while next.fetch_add(1, Ordering::Relaxed) < count {
            let one = start_to_end(side)?;
            taken.lock().unwrap_or_else(|held| held.into_inner()).push((one, None));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().try_for_each(|lane| lane.join().unwrap_or(Ok(())))
    })?;
    Ok(taken.into_inner().unwrap_or_else(|held| held.into_inner()))
}

/// How long one took, ms; it has to succeed.
fn start_to_end(side: &Side) -> Result<f64, BenchError> {
    let mut command = side.command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let begun = Instant::now();
    let output = side.spawn(&mut command)?.wait_with_output();
    let taken = ms(begun.elapsed());
    let output = output.map_err(|error| side.failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(taken),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(side.failed(format!("it ended ({}), and said: {}", output.status, said.trim())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(script: &str) -> Side {
        Side::new("x", ["sh", "-c", script].map(str::to_owned).into())
    }

    #[test]
    fn lanes_run_side_by_side() {
        let begun = Instant::now();
        let each = in_lanes(&side("sleep 0.2"), 8, 8).unwrap();
        assert_eq!(each.len(), 8);
        assert!(each.iter().all(|(taken, _)| *taken >= 200.0), "{each:?}");
        assert!(begun.elapsed().as_millis() < 1600, "as long as one after another");
    }

    #[test]
    fn one_that_fails_is_told() {
        let error = in_lanes(&side("echo no >&2; exit 3"), 2, 1).unwrap_err().to_string();
        assert!(error.contains("said: no"), "{error}");
    }
}
