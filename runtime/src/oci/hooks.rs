//! Lifecycle hooks (OCI runtime specification, config.md, "POSIX-platform Hooks").
//!
//! | hook | when | where |
//! |---|---|---|
//! | prestart, createRuntime | the VMM is there, the guest is not asked yet | on the host; what they put into the network namespace of the state's pid is the guest's from `start` on |
//! | createContainer | the guest has made the container | on the host: its files are there, its namespaces are another kernel's |
//! | startContainer | before the container's process | in the container, by the agent: a program of the container's |
//! | poststart | the process was executed | on the host |
//! | poststop | the container was deleted | on the host |

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;

/// How often a hook with a time limit is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("cannot run the {stage} hook {}: {source}", .path.display())]
    Run {
        /// Which list it is in.
        stage: &'static str,
        /// Its program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    #[error("the {stage} hook {} failed: {status}", .path.display())]
    Failed {
        /// Which list it is in.
        stage: &'static str,
        /// Its program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
    #[error("the {stage} hook {} took longer than its {seconds} seconds and was killed", .path.display())]
    Late {
        /// Which list it is in.
        stage: &'static str,
        /// Its program.
        path: PathBuf,
        /// Its limit.
        seconds: i64,
    },
}

/// Runs the hooks of a list in order, each with the container's `state` on its standard input, until
/// one fails.
pub fn run(stage: &'static str, hooks: Option<&Vec<Hook>>, state: &str) -> Result<(), HookError> {
    hooks.into_iter().flatten().try_for_each(|hook| run_one(stage, hook, state))
}

fn run_one(stage: &'static str, hook: &Hook, state: &str) -> Result<(), HookError> {
    let path = hook.path().clone();
    let failed = |source| HookError::Run { stage, path: path.clone(), source };
    let mut command = Command::new(&path);
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        std::os::unix::process::CommandExt::arg0(&mut command, name).args(args);
    }
    let env = hook.env().iter().flatten().filter_map(|variable| variable.split_once('='));
    command.env_clear().envs(env);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read it; a state fits the pipe.
        let _ = stdin.write_all(state.as_bytes());
    }
    let Some(seconds) = hook.timeout().filter(|seconds| *seconds > 0) else {
        return judge(stage, path.clone(), child.wait().map_err(failed)?);
    };
    let until = Instant::now() + Duration::from_secs(seconds.unsigned_abs());
    loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => return judge(stage, path, status),
            None if Instant::now() < until => std::thread::sleep(LOOK),
            None => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(HookError::Late { stage, path, seconds });
            }
        }
    }
}

fn judge(stage: &'static str, path: PathBuf, status: ExitStatus) -> Result<(), HookError> {
    match status.success() {
        true => Ok(()),
        false => Err(HookError::Failed { stage, path, status }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(json: &str) -> Vec<Hook> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_hook_gets_the_state_its_arguments_and_its_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("cat > {0}; echo $A $0 $1 >> {0}", out.display());
        let hook = serde_json::json!([
            {"path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"], "env": ["A=b"]}
        ]);
        run("poststart", Some(&hooks(&hook.to_string())), "{state}").unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "{state}b zero one\n");
    }

    #[test]
    fn the_first_failure_ends_the_list_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let hook = serde_json::json!([
            {"path": "/bin/false"},
            {"path": "/bin/sh", "args": ["sh", "-c", format!("touch {}", out.display())]}
        ]);
        let error = run("prestart", Some(&hooks(&hook.to_string())), "").unwrap_err().to_string();
        assert!(error.contains("prestart hook /bin/false failed"), "{error}");
        assert!(!out.exists());
        let missing = run("prestart", Some(&hooks(r#"[{"path": "/nonexistent"}]"#)), "");
        assert!(matches!(missing, Err(HookError::Run { .. })));
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let hook = r#"[{"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}]"#;
        let error = run("poststop", Some(&hooks(hook)), "").unwrap_err();
        assert!(matches!(error, HookError::Late { seconds: 1, .. }), "{error}");
    }
}
