//! Hooks of the kind startContainer (OCI runtime specification, config.md): programs of the container,
//! run in its namespaces just before its process is executed.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use bulkhead_protocol::rpc::agent::{Hook, Process, StartFailure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions};

use crate::container::{Container, signal_one};
use crate::guest::Guest;
use crate::process::step;

/// A hook without a limit of its own may not hold everything up for ever: the runtime waits for a
/// minute.
const PATIENCE: Duration = Duration::from_secs(50);

/// Runs `hooks` in order, each with `state` on its standard input, until one fails.
pub fn run(
    hooks: &[Hook],
    state: &str,
    container: &Container,
    guest: &Guest,
    null: BorrowedFd<'_>,
) -> Result<(), StartFailure> {
    for hook in hooks {
        let process = Process {
            // The program is looked up by what is its name to itself.
            args: std::iter::once(&hook.path).chain(hook.args.iter().skip(1)).cloned().collect(),
            env: hook.env.clone(),
            cwd: "/".to_owned(),
            stdin: true,
            ..Default::default()
        };
        let (exec, ends) = container.exec(&process, guest, null)?;
        exec.launch.started()?;
        for (_, stdin) in ends {
            // It need not read it; a state fits the pipe.
            let _ = rustix::io::write(stdin, state.as_bytes());
        }
        let limit =
            if hook.timeout_s == 0 { PATIENCE } else { Duration::from_secs(hook.timeout_s) };
        let ended = wait(exec.launch.pid, limit.min(PATIENCE)).map_err(step("wait for a hook"))?;
        if ended != Some(0) {
            return Err(failure(&hook.path, ended));
        }
    }
    Ok(())
}

/// Waits for a child to end and returns its exit code, -1 for a signal's; `None` if it took too long
/// and was killed.
fn wait(pid: Pid, limit: Duration) -> rustix::io::Result<Option<i32>> {
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let timeout = Timespec::try_from(limit).ok();
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let ended = rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()))? > 0;
    if !ended {
        signal_one(pid, libc::SIGKILL)?;
    }
    let status =
        rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::empty()))?;
    let code = status.and_then(|(_, status)| status.exit_status()).unwrap_or(-1);
    Ok(ended.then_some(code))
}

fn failure(path: &str, ended: Option<i32>) -> StartFailure {
    let how = match ended {
        None => "took too long and was killed".to_owned(),
        Some(-1) => "was killed by a signal".to_owned(),
        Some(code) => format!("ended with code {code}"),
    };
    StartFailure {
        message: format!("the startContainer hook {path} {how}"),
        errno: Errno::CANCELED.raw_os_error().unsigned_abs(),
        ..Default::default()
    }
}
