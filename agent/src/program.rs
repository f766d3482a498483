//! The program a process executes: arguments, environment, and the search in PATH.

use std::ffi::{CString, c_char};

use bulkhead_protocol::rpc::agent::Process;
use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use crate::process::last_errno;

/// Searched when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program was not executed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// Nothing to execute.
    #[error("the process has no arguments, not even a program")]
    NoArguments,
    /// An argument that cannot be passed on.
    #[error("an argument or environment variable contains a NUL byte")]
    Nul,
    /// No such program in PATH.
    #[error("cannot execute {program:?}: executable file not found in $PATH ({path})")]
    NotInPath {
        /// The program's name.
        program: String,
        /// The PATH.
        path: String,
    },
    /// The file is there, what it needs to run is not.
    #[error("cannot execute {program:?}: the interpreter it names does not exist in the container")]
    Interpreter {
        /// The program.
        program: String,
    },
    /// execve(2) failed.
    #[error("cannot execute {program:?}: {}", said(*source))]
    Refused {
        /// The program.
        program: String,
        /// The kernel's answer.
        source: Errno,
    },
}

impl ExecError {
    /// The errno to report.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoArguments | Self::Nul => Errno::INVAL,
            Self::NotInPath { .. } | Self::Interpreter { .. } => Errno::NOENT,
            Self::Refused { source, .. } => *source,
        }
    }
}

/// An errno in runc's words, lower case and without its number: engines look for these.
fn said(errno: Errno) -> String {
    let said = std::io::Error::from(errno).to_string();
    said.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// A program, ready to be executed.
#[derive(Debug)]
pub struct Program {
    name: String,
    path: String,
    /// So many directories of `path` have nothing of that name, as the host has seen.
    path_without: usize,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Takes argv and environment; `home` becomes HOME.
    pub fn new(process: &Process, home: Option<&str>) -> Result<Self, ExecError> {
        let (args, env) = (&process.args, &process.env);
        let c_string = |s: String| CString::new(s).map_err(|_| ExecError::Nul);
        let name = args.first().filter(|name| !name.is_empty()).ok_or(ExecError::NoArguments)?;
        let path = env.iter().find_map(|var| var.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        let home = home.map(|home| format!("HOME={home}"));
        Ok(Self {
            name: name.clone(),
            path: path.to_owned(),
            path_without: process.foreseen.get_or_default().path_without as usize,
            args: args.iter().cloned().map(c_string).collect::<Result<_, _>>()?,
            env: env.iter().cloned().chain(home).map(c_string).collect::<Result<_, _>>()?,
        })
    }

    /// Replaces the calling process; returns only if that fails.
    pub fn exec(&self) -> ExecError {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        let error = self.search(|file| {
            // SAFETY: all three are NUL-terminated and live until the call returns, if it does.
            unsafe { libc::execve(file.as_ptr(), args.as_ptr(), env.as_ptr()) };
            Err(last_errno())
        });
        error.err().unwrap_or(ExecError::NoArguments)
    }

    /// Looks for the program without executing it, as far as that can be foretold.
    pub fn find(&self) -> Result<(), ExecError> {
        self.search(|file| {
            let stat = rustix::fs::stat(file)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Errno::ACCESS);
            }
            rustix::fs::accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS)
        })
    }

    /// Tries each file the name may mean until one does not fail, as execvp(3) does: a file that
    /// may not be executed does not end the search, but decides what is reported.
    fn search(
        &self,
        attempt: impl Fn(&CString) -> rustix::io::Result<()>,
    ) -> Result<(), ExecError> {
        let refused = |source| ExecError::Refused { program: self.name.clone(), source };
        if self.name.contains('/') {
            return attempt(&self.args[0]).map_err(|source| match source {
                Errno::NOENT if rustix::fs::stat(&self.args[0]).is_ok() => {
                    ExecError::Interpreter { program: self.name.clone() }
                }
                _ => refused(source),
            });
        }
        let mut denied = false;
        for file in self.candidates() {
            match attempt(&file?) {
                Ok(()) => return Ok(()),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(Errno::ACCESS) => denied = true,
                Err(source) => return Err(refused(source)),
            }
        }
        if denied {
            return Err(refused(Errno::ACCESS));
        }
        if self.candidates().flatten().any(|file| rustix::fs::stat(&file).is_ok()) {
            return Err(ExecError::Interpreter { program: self.name.clone() });
        }
        Err(ExecError::NotInPath { program: self.name.clone(), path: self.path.clone() })
    }

    /// The files a name without a slash may mean, in PATH's order; last, to say what is wrong, those that
    /// the host did not see.
    fn candidates(&self) -> impl Iterator<Item = Result<CString, ExecError>> {
        let (directories, without) = (self.path.split(':'), self.path_without);
        directories.clone().skip(without).chain(directories.take(without)).map(|directory| {
            let directory = if directory.is_empty() { "." } else { directory };
            CString::new(format!("{directory}/{}", self.name)).map_err(|_| ExecError::Nul)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn program(args: &[&str], env: &[&str], home: Option<&str>) -> Result<Program, ExecError> {
        let (args, env) = (strings(args), strings(env));
        Program::new(&Process { args, env, ..Default::default() }, home)
    }

    fn find(name: &str, path: &str) -> Result<(), ExecError> {
        program(&[name], &[&format!("PATH={path}")], None)?.find()
    }

    #[test]
    fn path_is_searched_as_shells_do() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for (name, mode) in [("denied/tool", 0o644), ("good/tool", 0o755), ("denied/lone", 0o644)] {
            std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), "").unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(at("good/subdir")).unwrap();
        let path = format!("/does/not/exist:{}:{}", at("denied"), at("good"));
        assert_eq!(find("tool", &path), Ok(()));
        assert_eq!(find("lone", &path).unwrap_err().errno(), Errno::ACCESS);
        assert_eq!(find("subdir", &path).unwrap_err().errno(), Errno::ACCESS);
        assert_eq!(
            find("none", &path).unwrap_err(),
            ExecError::NotInPath { program: "none".into(), path: path.clone() }
        );
        assert_eq!(find(&at("good/tool"), ""), Ok(()));
        assert_eq!(find(&at("good/none"), &path).unwrap_err().errno(), Errno::NOENT);
        assert_eq!(find(&at("good/tool/x"), &path).unwrap_err().errno(), Errno::NOTDIR);
    }

    #[test]
    fn what_the_host_did_not_see_is_tried_last() {
        let mut program = program(&["a"], &["PATH=/x:/y:/z"], None).unwrap();
        for (without, expected) in [
            (0, [c"/x/a", c"/y/a", c"/z/a"]),
            (2, [c"/z/a", c"/x/a", c"/y/a"]),
            (9, [c"/x/a", c"/y/a", c"/z/a"]),
        ] {
            program.path_without = without;
            let candidates: Vec<_> = program.candidates().map(Result::unwrap).collect();
            assert_eq!(candidates, expected.map(ToOwned::to_owned));
        }
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        let refusal = |args, env| program(args, env, None).unwrap_err();
        assert_eq!(refusal(&[], &[]), ExecError::NoArguments);
        assert_eq!(refusal(&[""], &[]), ExecError::NoArguments);
        assert_eq!(refusal(&["a\0b"], &[]), ExecError::Nul);
        assert_eq!(refusal(&["a"], &["A=\0"]), ExecError::Nul);
    }

    #[test]
    fn home_is_added_to_the_environment() {
        let program = program(&["a"], &["A=1"], Some("/root")).unwrap();
        assert_eq!(program.env, [c"A=1".to_owned(), c"HOME=/root".to_owned()]);
        assert_eq!(program.path, DEFAULT_PATH);
    }
}
