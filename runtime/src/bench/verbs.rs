//! An engine's verbs on one container: from `create` to the end of `start`, `exec` to its greeting, `delete`.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::BenchError;
use super::measure::{exits, exits_since, greeting, ms};
use super::peers::{bundle, named};
use super::side::{GREETING, Scratch, Side, own_program};
use super::stats::Row;
use crate::args::BenchArgs;

/// What is measured, in this order.
const VERBS: [&str; 4] = ["create", "create and start", "exec", "delete"];
/// How long a killed container may take to be stopped, on an emulated processor too.
const STOPPED_MAX: Duration = Duration::from_secs(30);

/// bulkhead's verbs, and those of the container runtimes among `--vs`.
pub fn verbs(args: &BenchArgs, scratch: &Scratch) -> Result<Vec<Row>, BenchError> {
    let mut engines = vec![Engine::new("bulkhead", &own_program()?, args, scratch)?];
    for (name, program) in args.vs.iter().map(|peer| named(peer)) {
        if matches!(name, "runc" | "crun") {
            engines.push(Engine::new(name, program, args, scratch)?);
        }
    }
    let mut samples = vec![VERBS.map(|_| Vec::new()); engines.len()];
    for turn in 0..args.warmups + args.runs {
        for (engine, samples) in engines.iter().zip(&mut samples) {
            let taken = engine.life()?;
            if turn >= args.warmups {
                samples.iter_mut().zip(taken).for_each(|(samples, taken)| samples.push(taken));
            }
        }
    }
    let mut rows = Vec::new();
    for (verb, of) in VERBS.iter().enumerate() {
        for (engine, samples) in engines.iter().zip(&samples) {
            let name = format!("{of}/{}", engine.name);
            let row = Row::of_times(&name, samples[verb].clone(), args.exact);
            let command = engine.side(&["create", "--bundle", &engine.bundle()], &[]).shell();
            rows.push(Row { command, ..row });
        }
    }
    Ok(rows)
}

/// A container runtime and the container it makes again and again.
struct Engine {
    name: String,
    program: String,
    bundle: PathBuf,
    /// What its commands, and the container, write to stderr: a pipe would stay open.
    said: PathBuf,
    id: String,
}

/// ms, and VM exits.
type Taken = (f64, Option<u64>);

impl Engine {
    fn new(
        name: &str,
        program: &str,
        args: &BenchArgs,
        scratch: &Scratch,
    ) -> Result<Self, BenchError> {
        let command = ["sleep", "100000"];
        let bundle = bundle(&format!("exec/{name}"), program, args, scratch, &command)?;
        Ok(Self {
            name: name.to_owned(),
            program: program.to_owned(),
            said: bundle.join("stderr"),
            bundle,
            id: format!("bulkhead-bench-{}", std::process::id()),
        })
    }

    fn bundle(&self) -> String {
        self.bundle.display().to_string()
    }

    /// A verb with its options, on the container, and what comes behind its ID.
    fn side(&self, verb: &[&str], rest: &[&str]) -> Side {
        let words = [&[self.program.as_str()], verb, &[self.id.as_str()], rest].concat();
        let words = words.into_iter().map(str::to_owned).collect();
        Side::new(&format!("exec/{}", self.name), words)
    }

    /// The life of one container; of every one of [`VERBS`] what it took.
    fn life(&self) -> Result<[Taken; VERBS.len()], BenchError> {
        let lived = self.lived();
        if lived.is_err() {
            // What is left behind of it must not be.
            let _ = self.side(&["delete", "--force"], &[]).command().stderr(Stdio::null()).status();
        }
        lived
    }

    fn lived(&self) -> Result<[Taken; VERBS.len()], BenchError> {
        let (begun, before) = (Instant::now(), exits());
        let create = self.timed(&["create", "--bundle", &self.bundle()], &[])?;
        self.timed(&["start"], &[])?;
        let started = (ms(begun.elapsed()), exits_since(before));
        let exec = self.exec()?;
        self.timed(&["kill", "--all"], &["KILL"])?;
        self.wait_stopped()?;
        Ok([create, started, exec, self.timed(&["delete"], &[])?])
    }

    /// A verb, until it ends.
    fn timed(&self, verb: &[&str], rest: &[&str]) -> Result<Taken, BenchError> {
        let side = self.side(verb, rest);
        let mut command = self.quiet(&side, Stdio::null())?;
        let (begun, before) = (Instant::now(), exits());
        let status = command.status().map_err(|error| side.failed(error.to_string()))?;
        let taken = (ms(begun.elapsed()), exits_since(before));
        match status.success() {
            true => Ok(taken),
            false => Err(self.failed(&side, &status.to_string())),
        }
    }

    /// A process more, until it greets.
    fn exec(&self) -> Result<Taken, BenchError> {
        let side = self.side(&["exec"], &["echo", GREETING]);
        let mut command = self.quiet(&side, Stdio::piped())?;
        let (begun, before) = (Instant::now(), exits());
        let mut child = side.spawn(&mut command)?;
        let greeted = greeting(child.stdout.as_mut(), begun);
        let exits = exits_since(before);
        let status = child.wait().map_err(|error| side.failed(error.to_string()))?;
        let taken = greeted.filter(|_| status.success());
        taken.map(|taken| (ms(taken), exits)).ok_or_else(|| self.failed(&side, &status.to_string()))
    }

    fn wait_stopped(&self) -> Result<(), BenchError> {
        let side = self.side(&["state"], &[]);
        let until = Instant::now() + STOPPED_MAX;
        loop {
            let output = side.command().output().map_err(|error| side.failed(error.to_string()))?;
            let state: serde_json::Value =
                serde_json::from_slice(&output.stdout).unwrap_or_default();
            if state["status"] == "stopped" {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(side.failed("the killed container does not stop"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn quiet(&self, side: &Side, stdout: Stdio) -> Result<Command, BenchError> {
        let said = File::create(&self.said).map_err(|source| BenchError::File {
            action: "make",
            path: self.said.clone(),
            source,
        })?;
        let mut command = side.command();
        command.stdin(Stdio::null()).stdout(stdout).stderr(said);
        Ok(command)
    }

    fn failed(&self, side: &Side, status: &str) -> BenchError {
        let said = std::fs::read_to_string(&self.said).unwrap_or_default();
        let last = said.lines().last().unwrap_or("nothing").to_owned();
        side.failed(format!("it ended ({status}), and said: {last}"))
    }
}
