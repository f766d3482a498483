//! Throughput and latency of a running container: its files (virtio-fs) and its pipes (vsock).
//!
//! A container says when it is done with each part by a line of output; the time between two lines is
//! the part's. So a container of the host's kernel is measured in the same way.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::Instant;

use super::BenchError;
use super::measure::ms;
use super::peers::{container, named};
use super::side::{Scratch, Side};
use super::stats::Row;
use crate::args::BenchArgs;

/// Bytes written, read, and piped.
const MIB: usize = 64;
/// Files made, looked at, and removed.
const FILES: usize = 500;
/// Bytes sent to and fro, one at a time.
const ROUNDS: usize = 200;

/// What the file workload does between lines; the row's name, its unit, and how much of it.
const PARTS: [(&str, &str, usize); 4] = [
    ("write", "MiB/s", MIB),
    ("read", "MiB/s", MIB),
    ("files made", "files/s", FILES),
    ("files stat'ed and removed", "files/s", FILES),
];

fn script() -> String {
    format!(
        "rm -rf /bench; mkdir /bench; cd /bench; echo begin
         dd if=/dev/zero of=big bs=1M count={MIB} conv=fsync 2>/dev/null; echo write
         dd if=big of=/dev/null bs=1M 2>/dev/null; echo read
         i=0; while [ $i -lt {FILES} ]; do : >f$i; i=$((i+1)); done; echo made
         i=0; while [ $i -lt {FILES} ]; do [ -f f$i ]; i=$((i+1)); done; rm -f f*; echo gone
         cd /; rm -rf /bench"
    )
}

/// The container's own files, here and in a container of each of `--vs runc,crun`.
pub fn files(args: &BenchArgs, scratch: &Scratch) -> Result<Vec<Row>, BenchError> {
    let script = script();
    let command = ["sh", "-c", &script];
    let mut rows = Vec::new();
    for (name, side) in sides("fs", args, scratch, &[], &command)? {
        let mut samples = vec![Vec::new(); PARTS.len()];
        for turn in 0..args.warmups + args.runs {
            let taken = parts(&side)?;
            for ((samples, (_, _, amount)), ms) in samples.iter_mut().zip(PARTS).zip(taken) {
                if turn >= args.warmups {
                    samples.push((amount as f64 * 1e3 / ms, None));
                }
            }
        }
        for ((part, unit, _), samples) in PARTS.into_iter().zip(samples) {
            let row = Row::new(&format!("fs/{name} {part}"), unit, samples);
            rows.push(Row { command: side.shell(), ..row });
        }
    }
    Ok(rows)
}

/// bulkhead's side and those of the container runtimes among `--vs`.
fn sides(
    kind: &str,
    args: &BenchArgs,
    scratch: &Scratch,
    options: &[&str],
    command: &[&str],
) -> Result<Vec<(String, Side)>, BenchError> {
    let own = Side::bulkhead_running(kind, args, false, options, command)?;
    let mut sides = vec![("bulkhead".to_owned(), own)];
    for peer in &args.vs {
        let (name, program) = named(peer);
        if matches!(name, "runc" | "crun") {
            let side = container(&format!("{kind}/{name}"), program, args, scratch, command)?;
            sides.push((name.to_owned(), side));
        }
    }
    Ok(sides)
}

/// ms between the lines of a command.
fn parts(side: &Side) -> Result<Vec<f64>, BenchError> {
    let mut command = side.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = side.spawn(&mut command)?;
    let mut lines = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|len| len > 0) {
            lines.push(Instant::now());
            line.clear();
        }
    }
    let status = child.wait().map_err(|error| side.failed(error.to_string()))?;
    if lines.len() != PARTS.len() + 1 || !status.success() {
        return Err(side.failed(format!("it ended ({status}) half way")));
    }
    Ok(lines.windows(2).map(|pair| ms(pair[1] - pair[0])).collect())
}

/// Bytes through a container's `cat` and back.
pub fn pipes(args: &BenchArgs, scratch: &Scratch) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    for (name, side) in sides("vsock", args, scratch, &["-i"], &["cat"])? {
        let (mut rates, mut rounds) = (Vec::new(), Vec::new());
        for turn in 0..args.warmups + args.runs {
            let (rate, round) = echo(&side)?;
            if turn >= args.warmups {
                rates.push((rate, None));
                rounds.push((round, None));
            }
        }
        let rate = Row::new(&format!("vsock/{name} both ways"), "MiB/s", rates);
        let round = Row::new(&format!("vsock/{name} round trip"), "ms", rounds);
        rows.extend([rate, round].map(|row| Row { command: side.shell(), ..row }));
    }
    Ok(rows)
}

/// MiB/s through `cat`, and ms for one byte there and back.
fn echo(side: &Side) -> Result<(f64, f64), BenchError> {
    let mut command = side.command();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = side.spawn(&mut command)?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(side.failed("it has no pipes"));
    };
    let measured = through(stdin, stdout);
    let status = child.wait().map_err(|error| side.failed(error.to_string()))?;
    measured.map_err(|error| side.failed(format!("{error}; it ended with {status}")))
}

fn through(mut stdin: ChildStdin, mut stdout: ChildStdout) -> io::Result<(f64, f64)> {
    let mut round = || {
        let mut byte = [0];
        stdin.write_all(b"x").and_then(|()| stdin.flush())?;
        stdout.read_exact(&mut byte)
    };
    round()?; // It is up.
    let begun = Instant::now();
    (0..ROUNDS).try_for_each(|_| round())?;
    let a_round = ms(begun.elapsed()) / ROUNDS as f64;

    let begun = Instant::now();
    let writer = std::thread::spawn(move || {
        let chunk = vec![7; 1 << 20];
        (0..MIB).try_for_each(|_| stdin.write_all(&chunk))
    });
    let mut got = 0;
    let mut chunk = vec![0; 1 << 18];
    loop {
        match stdout.read(&mut chunk)? {
            0 => break,
            len => got += len,
        }
    }
    writer.join().unwrap_or(Err(io::ErrorKind::Other.into()))?;
    if got != MIB << 20 {
        return Err(io::Error::other(format!("{got} bytes came back of {MIB} MiB")));
    }
    Ok((MIB as f64 * 1e3 / ms(begun.elapsed()), a_round))
}
