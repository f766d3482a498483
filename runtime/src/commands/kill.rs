//! `bulkhead kill`: a signal to a container's process, or to all of its processes.
//!
//! The agent delivers it. SIGKILL needs no consent: a guest that does not end by itself loses its
//! VM, and its exit code is 137 all the same. Any other signal that the guest does not take is an
//! error, for it could be meant to do no harm.

use std::time::Duration;

use bulkhead_protocol::rpc::agent::{SignalRequest, SignalResponse};

use super::oci::{self, OciError, PATIENCE};
use crate::agent::AgentError;
use crate::args::oci::KillArgs;
use crate::oci::container::Container;
use crate::oci::record::Status;
use crate::oci::signal;
use crate::state::Root;

const SIGKILL: u8 = libc::SIGKILL as u8;
/// How long a guest may take to accept SIGKILL.
const CONSENT_MAX: Duration = Duration::from_secs(3);
/// How long it may take to end after that: its output and its files are written out meanwhile.
const END_MAX: Duration = Duration::from_secs(10);

/// Sends it.
pub fn run(args: &KillArgs, root: &Root) -> Result<(), OciError> {
    let signal = signal::parse(&args.signal)?;
    let container = oci::open(root, &args.id)?;
    let status = container.status();
    if !status.can_kill() {
        // All of the processes of one that has stopped are none, as runc sees it.
        if args.all {
            return Ok(());
        }
        return Err(OciError::NotRunning { id: container.id, status });
    }
    if signal == SIGKILL {
        return kill(&container, status, args.all);
    }
    if status == Status::Paused && !container.is_member() {
        // Its agent hears nothing; what the VMM is sent arrives when it is resumed.
        if !bulkhead_vmm::signals::PASSED_ON.contains(&signal.into()) {
            return Err(OciError::Status { verb: "signal", id: container.id, status });
        }
        let signal = rustix::process::Signal::from_named_raw(signal.into());
        return signal.map_or(Ok(()), |signal| Ok(container.signal_vmm(signal)?));
    }
    match send(&container, signal, args.all, PATIENCE) {
        // It ended while it was asked, or is about to: of this, perhaps.
        Err(AgentError::Closed) if container.wait(END_MAX) => Ok(()),
        Err(_) if !container.status().can_kill() => Ok(()),
        sent => Ok(sent?),
    }
}

/// Ends the container, whatever its guest does.
fn kill(container: &Container, status: Status, all: bool) -> Result<(), OciError> {
    let hears = status != Status::Paused || container.is_member();
    let asked = hears && send(container, SIGKILL, all, CONSENT_MAX).is_ok();
    if !asked || !container.wait(END_MAX) {
        container.kill_vmm()?;
    }
    Ok(())
}

fn send(
    container: &Container,
    signal: u8,
    all: bool,
    patience: Duration,
) -> Result<(), AgentError> {
    let name = container.name_in_vm();
    let request = SignalRequest {
        id: name.clone(),
        signal: signal.into(),
        all,
        container: name,
        ..Default::default()
    };
    let answer: Result<SignalResponse, _> =
        container.agent(patience)?.call("Signal", &request, patience);
    answer.map(drop)
}
