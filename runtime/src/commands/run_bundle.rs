//! `bulkhead run` without --rootfs: `create`, `start`, and `delete` when it has ended.

use std::path::Path;

use bulkhead_vmm::signals::Signals;
use rustix::event::{PollFd, PollFlags, poll};

use super::isolation;
use super::oci::{OciError, write_pid_file};
use super::{delete, start};
use crate::args::RunArgs;
use crate::args::oci::Global;
use crate::oci::bundle;
use crate::oci::container::{Container, exit_code};
use crate::oci::create::{self, Origin, Wanted};
use crate::oci::detached::Detached;
use crate::oci::id::ContainerId;
use crate::oci::log::Log;
use crate::oci::record::Phase;
use crate::state::Root;
use crate::terminal::Raw;

/// Whether that is what was typed: no --rootfs, but a bundle, here if nowhere else.
pub fn is_meant(args: &RunArgs) -> bool {
    let here = || args.command.len() == 1 && Path::new(bundle::CONFIG).exists();
    args.rootfs.is_none() && (args.bundle.bundle.is_some() || here())
}

/// Runs the container of a bundle; returns its exit code, or 0 if it is left behind.
pub fn run(args: &RunArgs, root: &Root, global: &Global, log: &Log) -> Result<u8, OciError> {
    let ours = isolation::ours(&args.bundle, global, root)?;
    let [id] = &args.command[..] else { return Err(OciError::OneId) };
    let id = ContainerId::try_from(id.as_str())?;
    let (detach, systemd_cgroup) = (args.detach, global.systemd_cgroup);
    let origin = Origin::by(global.cold || ours.settings.cold);
    let wanted =
        Wanted { id: &id, ours: &ours, args: &args.bundle, detach, systemd_cgroup, origin };
    attend(wanted, args.keep, root, log)
}

/// Creates a container and starts it, unless it runs already; stays with it to its end, unless it is
/// to be left behind.
pub fn attend(wanted: Wanted<'_>, keep: bool, root: &Root, log: &Log) -> Result<u8, OciError> {
    // Before the VMM is there: none may be lost.
    let signals = (!wanted.detach).then(Signals::block).transpose().map_err(OciError::Signals)?;
    let (mut container, mut vmm) = create::create(wanted, root)?;
    let pid = container.record.process.pid;
    let pid_file = wanted.args.pid_file.as_deref();
    let started = pid_file.map_or(Ok(()), |file| write_pid_file(file, pid)).and_then(|()| {
        match container.record.phase {
            Phase::Created => start::start(&mut container, log),
            Phase::Running | Phase::Paused => Ok(()),
        }
    });
    if let Err(error) = started {
        vmm.kill();
        delete::delete(&container, root, true, log)?;
        return Err(error);
    }
    let Some(signals) = signals else {
        vmm.let_go();
        return Ok(0);
    };
    let code = watch(&container, vmm, &signals);
    if !keep {
        delete::delete(&container, root, true, log)?;
    }
    code
}

/// Passes signals on until the container ends. The VMM stays on its leash: it ends with us.
fn watch(container: &Container, mut vmm: Detached, signals: &Signals) -> Result<u8, OciError> {
    let terminal = container.config()?.process().as_ref().and_then(|p| p.terminal());
    let raw = match terminal {
        Some(true) => Raw::enter().unwrap_or(None),
        _ => None,
    };
    let pidfd = vmm.pidfd().map_err(OciError::Signals)?;
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))
            .map_err(|errno| OciError::Signals(errno.into()))?;
        if !fds[1].revents().is_empty() {
            break;
        }
        for signal in signals.read().map_err(OciError::Signals)? {
            if let Some(signal) = rustix::process::Signal::from_named_raw(signal) {
                // The VMM tells the guest.
                container.signal_vmm(signal)?;
            }
        }
    }
    drop(raw);
    let status = vmm.wait().map_err(OciError::Signals)?;
    match container.failure() {
        Some((message, kernel_log)) => Err(OciError::Vm { message, kernel_log }),
        None => Ok(exit_code(status)),
    }
}
