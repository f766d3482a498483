//! A side: a command to be measured.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use super::BenchError;
use crate::args::BenchArgs;

/// The line every side writes; what it writes before does not count.
pub const GREETING: &str = "hello";

/// This program.
pub fn own_program() -> Result<String, BenchError> {
    let own = std::env::current_exe().map_err(|source| BenchError::File {
        action: "find",
        path: "/proc/self/exe".into(),
        source,
    })?;
    Ok(own.display().to_string())
}

/// Who starts what.
#[derive(Clone, Debug)]
pub struct Side {
    /// The row it becomes.
    pub name: String,
    /// Program and arguments.
    pub words: Vec<String>,
    /// It can say how far it got: `--timeline`.
    pub has_timeline: bool,
    /// It greets for ever, and is killed when it has done so.
    pub endless: bool,
    /// It greets on stderr, where bulkhead-vmm puts a guest's console.
    pub on_stderr: bool,
    /// A socket that it makes, and that its next start must not find.
    pub socket: Option<PathBuf>,
    /// What has to be asked of it before it does anything.
    pub request: Option<Request>,
}

/// A request on the Unix socket that a program makes when it has started.
#[derive(Clone, Debug)]
pub struct Request {
    /// The socket.
    pub socket: PathBuf,
    /// The request, complete.
    pub text: String,
}

impl Request {
    /// How often a socket that is not there yet is looked for again.
    const STEP: Duration = Duration::from_micros(50);
    /// How long it may take to be there, on an emulated processor too.
    const SOCKET_MAX: Duration = Duration::from_secs(10);

    /// Sends it as soon as the program listens; the answer comes on what is returned.
    pub fn send(&self) -> io::Result<UnixStream> {
        let until = Instant::now() + Self::SOCKET_MAX;
        let mut stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => thread::sleep(Self::STEP),
            }
        };
        stream.write_all(self.text.as_bytes())?;
        Ok(stream)
    }
}

impl Side {
    /// A command to be measured.
    pub fn new(name: &str, words: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            words,
            has_timeline: false,
            endless: false,
            on_stderr: false,
            socket: None,
            request: None,
        }
    }

    /// One that greets for ever.
    pub fn endless(name: &str, words: Vec<String>) -> Self {
        Self { endless: true, ..Self::new(name, words) }
    }

    /// `bulkhead run`, whose container greets.
    pub fn bulkhead(name: &str, args: &BenchArgs, cold: bool) -> Result<Self, BenchError> {
        Self::bulkhead_running(name, args, cold, &[], &["echo", GREETING])
    }

    /// `bulkhead run` of a command.
    pub fn bulkhead_running(
        name: &str,
        args: &BenchArgs,
        cold: bool,
        options: &[&str],
        command: &[&str],
    ) -> Result<Self, BenchError> {
        let (own, rootfs) = (own_program()?, args.rootfs.display().to_string());
        let mut words = vec![own, "run".to_owned(), "--rootfs".to_owned(), rootfs];
        words.extend(["--cpus".to_owned(), args.cpus.clone()]);
        words.extend(["--memory".to_owned(), args.memory.clone()]);
        if cold {
            words.push("--cold".to_owned());
        }
        words.extend(options.iter().map(|word| (*word).to_owned()));
        words.push("--".to_owned());
        words.extend(command.iter().map(|word| (*word).to_owned()));
        Ok(Self { has_timeline: true, ..Self::new(name, words) })
    }

    /// The command, ready to be started.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }

    /// Starts its command.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, BenchError> {
        command.spawn().map_err(|error| self.failed(error.to_string()))
    }

    /// The command with bulkhead's `--timeline`.
    pub fn with_timeline(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.arg(&self.words[1]).arg("--timeline").args(&self.words[2..]);
        command
    }

    /// As a shell takes it.
    pub fn shell(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:".contains(c);
        let quote = |word: &String| match word.chars().all(plain) && !word.is_empty() {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', "'\\''")),
        };
        self.words.iter().map(quote).collect::<Vec<_>>().join(" ")
    }

    /// Something went wrong with it.
    pub fn failed(&self, what: impl Into<String>) -> BenchError {
        BenchError::Side { side: self.name.clone(), what: what.into(), command: self.shell() }
    }
}

/// A program that ends with us.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// A directory for what peers need; removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A fresh one.
    pub fn new() -> Result<Self, BenchError> {
        let path = std::env::temp_dir().join(format!("bulkhead-bench-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|source| BenchError::File {
            action: "make directory",
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }

    /// A path in it.
    pub fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.0.join(Path::new(name.as_ref()))
    }

    /// Writes a file in it.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, BenchError> {
        let path = self.path(name);
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written: io::Result<()> = made.and_then(|()| std::fs::write(&path, bytes));
        let failed = |source| BenchError::File { action: "write", path: path.clone(), source };
        written.map_err(failed)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        let words = ["sh", "-c", "echo 'a b'", ""].map(str::to_owned).to_vec();
        let side = Side::new("x", words);
        assert_eq!(side.shell(), r"sh -c 'echo '\''a b'\''' ''");
    }
}
