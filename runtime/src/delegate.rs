//! Containers with isolation "process": the same command line, handed to runc or crun.
//!
//! They are kept in a root directory of their own below ours, so that every verb knows whose a
//! container is by where it is.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::args::oci::Global;
use crate::settings::Settings;
use crate::state::Root;

/// The directory of their state, below the root directory.
const DIR: &str = ".process";
/// What is looked for on PATH, best first.
const RUNTIMES: [&str; 2] = ["crun", "runc"];
/// Our global options that take a value.
const WITH_VALUE: [&str; 6] =
    ["--root", "--log", "--log-format", "--rootless", "--criu", "--isolation"];

/// Why no other runtime takes the container.
#[derive(Debug, thiserror::Error)]
pub enum DelegateError {
    #[error("isolation \"process\" needs crun or runc on PATH, or process_runtime in the settings")]
    Missing,
    #[error("cannot run {}: {source}", .path.display())]
    Run {
        /// The runtime.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Another runtime, and where it keeps its containers.
#[derive(Debug)]
pub struct Delegate {
    runtime: PathBuf,
    root: PathBuf,
}

impl Delegate {
    /// The runtime that the settings name, or that is found on PATH.
    pub fn find(settings: &Settings, root: &Root) -> Result<Self, DelegateError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates = RUNTIMES.iter().flat_map(|name| {
            std::env::split_paths(&path).map(|dir| dir.join(name)).collect::<Vec<_>>()
        });
        let found = || candidates.into_iter().find(|path| path.is_file());
        let runtime = settings.process_runtime.clone().or_else(found);
        Ok(Self { runtime: runtime.ok_or(DelegateError::Missing)?, root: root.file(DIR) })
    }

    /// Becomes the other runtime with the verb and its arguments as they were typed.
    pub fn exec(&self, global: &Global) -> DelegateError {
        let source = self.command(global, std::env::args_os().skip(1).collect()).exec();
        DelegateError::Run { path: self.runtime.clone(), source }
    }

    /// Its containers, as its `list --format json` prints them; none if it cannot say.
    pub fn list(&self) -> Vec<serde_json::Value> {
        let mut list = Command::new(&self.runtime);
        list.arg("--root").arg(&self.root).args(["list", "--format", "json"]);
        let said = list.output().map(|output| output.stdout).unwrap_or_default();
        serde_json::from_slice::<Option<Vec<_>>>(&said).ok().flatten().unwrap_or_default()
    }

    fn command(&self, global: &Global, typed: Vec<OsString>) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(&self.root).arg("--log-format").arg(&global.log_format);
        if let Some(log) = &global.log {
            command.arg("--log").arg(log);
        }
        for (given, option) in
            [(global.debug, "--debug"), (global.systemd_cgroup, "--systemd-cgroup")]
        {
            if given {
                command.arg(option);
            }
        }
        command.args(verb_and_arguments(typed));
        command
    }
}

/// Whether a container of `root` is another runtime's.
pub fn owns(root: &Root, id: &str) -> bool {
    !id.is_empty() && !id.contains('/') && !id.starts_with('.') && root.file(DIR).join(id).exists()
}

/// Whether another runtime has kept anything here.
pub fn is_used(root: &Root) -> bool {
    root.file(DIR).is_dir()
}

/// What was typed from the verb on: the options before it are ours.
fn verb_and_arguments(typed: Vec<OsString>) -> impl Iterator<Item = OsString> {
    let mut rest = typed.into_iter().peekable();
    while let Some(option) = rest.next_if(|word| word.as_encoded_bytes().starts_with(b"-")) {
        if WITH_VALUE.iter().any(|name| OsStr::new(name) == option) {
            rest.next();
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_runtime_gets_the_verb_as_typed_and_our_options_as_its_own() {
        let root = Root::choose(Some("/r".into())).unwrap();
        let settings = toml::from_str("process_runtime = '/bin/crun'").unwrap();
        let delegate = Delegate::find(&settings, &root).unwrap();
        let global = Global {
            log: Some("/l".into()),
            log_format: "json".to_owned(),
            systemd_cgroup: true,
            ..Default::default()
        };
        let typed = "--isolation process --log=/l --log-format json --systemd-cgroup --root /r \
            create --bundle --root web --isolation vm";
        let typed = typed.split_whitespace().map(OsString::from).collect();
        let command = delegate.command(&global, typed);
        let args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        let expected = "--root /r/.process --log-format json --log /l --systemd-cgroup \
            create --bundle --root web --isolation vm";
        assert_eq!(args, expected.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn whose_a_container_is_says_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::choose(Some(dir.path().to_owned())).unwrap();
        assert!(!is_used(&root) && !owns(&root, "web"));
        std::fs::create_dir_all(root.file(DIR).join("web")).unwrap();
        assert!(is_used(&root) && owns(&root, "web"));
        for other in ["db", "", "..", "../x", "/etc"] {
            assert!(!owns(&root, other), "{other}");
        }
    }
}
