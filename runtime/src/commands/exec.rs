//! `bulkhead exec`: a further process in a running container.

use std::fs;
use std::path::Path;

use bulkhead_protocol::rpc::agent::{Capabilities, Process, Terminal};
use oci_spec::runtime::Process as Asked;
use serde_json::{Value, json};

use super::oci::{self, OciError, write_pid_file};
use crate::args::oci::ExecArgs;
use crate::oci::background::{self, Side};
use crate::oci::console::{self, Console};
use crate::oci::container::Container;
use crate::oci::exec;
use crate::oci::plan;
use crate::oci::record::Status;
use crate::state::Root;

/// What a process ends with that was to stand for one in the guest and could not.
const NEVER_RAN: u8 = 1;

/// Executes it. Returns its exit code, or 0 if it was left behind.
pub fn run(args: &ExecArgs, root: &Root) -> Result<u8, OciError> {
    let container = oci::open(root, &args.id)?;
    let status = container.status();
    let may_wait = args.ignore_paused && status == Status::Paused;
    if !status.can_exec() && !may_wait {
        return Err(OciError::NotRunning { id: container.id, status });
    }
    if args.preserve_fds > 0 {
        return Err(OciError::PreserveFds(args.preserve_fds));
    }
    let process = match &args.process {
        Some(file) => from_file(file, args.tty, &container)?,
        None => from_options(args, &container)?,
    };
    match (process.terminal.is_some(), args.detach, &args.console_socket) {
        (true, true, None) => return Err(OciError::NoConsoleSocket),
        (false, _, Some(_)) | (_, false, Some(_)) => return Err(OciError::NoTerminal),
        _ => {}
    }
    match args.detach {
        true => detached(args, &container, process),
        false => {
            let pid_file = args.pid_file.as_deref();
            pid_file.map_or(Ok(()), |file| write_pid_file(file, std::process::id() as i32))?;
            Ok(exec::exec(&container, process, true, || ())?)
        }
    }
}

/// Leaves a process behind that ends as the container's does.
fn detached(args: &ExecArgs, container: &Container, process: Process) -> Result<u8, OciError> {
    match background::fork().map_err(OciError::Fork)? {
        Side::Caller(caller) => {
            let pid = caller.pid.as_raw_nonzero().get();
            caller.wait().map_err(OciError::Background)?;
            args.pid_file.as_deref().map_or(Ok(0), |file| write_pid_file(file, pid).map(|()| 0))
        }
        Side::Background(background) => {
            let terminal = args.console_socket.as_deref().map(terminal).transpose();
            let mut background = Some(background);
            let started = || background.take().map_or((), background::Background::started);
            let ended = terminal
                .map_err(OciError::from)
                .and_then(|_| Ok(exec::exec(container, process, false, started)?));
            match (ended, background) {
                (Ok(code), _) => Ok(code),
                (Err(error), Some(background)) => {
                    // The caller tells; nobody waits for this one's code.
                    background.failed(&error.to_string());
                    Ok(NEVER_RAN)
                }
                (Err(error), None) => Err(error),
            }
        }
    }
}

/// Sends the engine its end of a new terminal, and takes the other.
fn terminal(socket: &Path) -> Result<(), console::ConsoleError> {
    console::take(Console::open(None)?.send(socket)?)
}

fn from_file(file: &Path, tty: bool, container: &Container) -> Result<Process, OciError> {
    let read = fs::read(file).and_then(|json| Ok(parse(&json)?));
    let asked = read.map_err(|source| OciError::Read { path: file.to_owned(), source })?;
    let config = container.config()?;
    let mut process = plan::process(&asked, config.linux().as_ref())?;
    if process.args.is_empty() {
        return Err(OciError::NoCommand);
    }
    if tty && process.terminal.is_none() {
        process.terminal = Some(Terminal::default()).into();
    }
    Ok(process)
}

/// A process, which is root's if it names no user, as runc has it.
fn parse(json: &[u8]) -> serde_json::Result<Asked> {
    let mut asked: Value = serde_json::from_slice(json)?;
    if let Some(fields) = asked.as_object_mut() {
        fields.entry("user").or_insert_with(|| json!({}));
    }
    serde_json::from_value(asked)
}

/// The container's own process with another command, as runc has it.
fn from_options(args: &ExecArgs, container: &Container) -> Result<Process, OciError> {
    if args.command.is_empty() {
        return Err(OciError::NoCommand);
    }
    let mut process = own_process(container)?;
    process.args = args.command.clone();
    process.terminal = args.tty.then(Terminal::default).into();
    process.no_new_privileges |= args.no_new_privs;
    if let Some(cwd) = &args.cwd {
        process.cwd = cwd.to_string_lossy().into_owned();
    }
    for variable in &args.env {
        let Some((name, _)) = variable.split_once('=') else {
            let (value, advice) = (variable.clone(), "give NAME=VALUE");
            return Err(OciError::Option { option: "env", value, advice });
        };
        process.env.retain(|other| other.split_once('=').is_none_or(|(known, _)| known != name));
        process.env.push(variable.clone());
    }
    if let Some(user) = &args.user {
        process.user_name = user.clone();
    }
    let groups = &mut process.user.mut_or_insert_default().additional_gids;
    groups.extend(&args.additional_gids);
    if !args.cap.is_empty() {
        add(process.capabilities.mut_or_insert_default(), &args.cap);
    }
    Ok(process)
}

fn own_process(container: &Container) -> Result<Process, OciError> {
    if let Some(mut process) = container.process()? {
        (process.stdin, process.stdout, process.stderr) = (true, true, true);
        return Ok(process);
    }
    let config = container.config()?;
    let process = config.process().as_ref();
    let process = process.map(|process| plan::process(process, config.linux().as_ref()));
    Ok(process.transpose()?.unwrap_or_default())
}

fn add(capabilities: &mut Capabilities, more: &[String]) {
    let more = more.iter().map(|name| name.to_ascii_uppercase());
    let more: Vec<String> = more
        .map(|name| if name.starts_with("CAP_") { name } else { format!("CAP_{name}") })
        .collect();
    let Capabilities { bounding, effective, permitted, .. } = capabilities;
    for set in [bounding, effective, permitted] {
        set.extend(more.iter().filter(|name| !set.contains(name)).cloned().collect::<Vec<_>>());
    }
}
