//! A side: a command to be measured.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::BenchError;
use crate::args::BenchArgs;

/// Who starts what.
#[derive(Clone, Debug)]
pub struct Side {
    /// The row it becomes.
    pub name: String,
    /// Program and arguments.
    pub words: Vec<String>,
    /// It can say how far it got: `--timeline`.
    pub has_timeline: bool,
}

impl Side {
    /// `bulkhead run`, whose container runs `echo`.
    pub fn bulkhead(name: &str, args: &BenchArgs, cold: bool) -> Result<Self, BenchError> {
        Self::bulkhead_running(name, args, cold, &[], &["echo", "hello"])
    }

    /// `bulkhead run` of a command.
    pub fn bulkhead_running(
        name: &str,
        args: &BenchArgs,
        cold: bool,
        options: &[&str],
        command: &[&str],
    ) -> Result<Self, BenchError> {
        let own = std::env::current_exe().map_err(|source| BenchError::File {
            action: "find",
            path: "/proc/self/exe".into(),
            source,
        })?;
        let (own, rootfs) = (own.display().to_string(), args.rootfs.display().to_string());
        let mut words = vec![own, "run".to_owned(), "--rootfs".to_owned(), rootfs];
        words.extend(["--cpus".to_owned(), args.cpus.clone()]);
        words.extend(["--memory".to_owned(), args.memory.clone()]);
        if cold {
            words.push("--cold".to_owned());
        }
        words.extend(options.iter().map(|word| (*word).to_owned()));
        words.push("--".to_owned());
        words.extend(command.iter().map(|word| (*word).to_owned()));
        Ok(Self { name: name.to_owned(), words, has_timeline: true })
    }

    /// The command, ready to be started.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
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
        let side = Side { name: "x".to_owned(), words, has_timeline: false };
        assert_eq!(side.shell(), r"sh -c 'echo '\''a b'\''' ''");
    }
}
