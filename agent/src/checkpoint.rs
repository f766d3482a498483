//! Stopping the container for a snapshot, and letting it go on: here, and in every VM that goes on from
//! the snapshot.
//!
//! ```text
//!  running ──▶ frozen ──▶ [BootMark::Waiting: saved here] ──▶ reseeded ──▶ running
//!                                           restored VM: └──▶ reseeded ──▶ frozen ──Restore──▶ running
//! ```
//!
//! No process of the container runs between the snapshot and the new randomness, so that no two VMs
//! draw the same.

use std::time::{Duration, Instant};

use bulkhead_protocol::rpc::agent::{
    CheckpointRequest, CheckpointResponse, RestoreRequest, RestoreResponse,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use ttrpc::{Code, Status};

use crate::agent::Agent;
use crate::guest::{Cgroup, Guest};
use crate::identity;
use crate::log::log;
use crate::mounts::machine_id;
use crate::rpc::refuse;
use crate::service::no_container;

/// How long the kernel may take to stop all processes: some may wait for files of the host.
const FREEZE_MAX: Duration = Duration::from_secs(10);
const FREEZE_STEP: Duration = Duration::from_millis(1);

impl Agent {
    pub(crate) fn checkpoint(
        &mut self,
        _: CheckpointRequest,
    ) -> Result<CheckpointResponse, Status> {
        if !self.members.is_empty() {
            let message = "further containers share its VM: it cannot be saved by itself";
            return Err(refuse(Code::FAILED_PRECONDITION, message));
        }
        let container = self.container.as_ref().ok_or_else(no_container)?;
        if !container.started {
            return Err(refuse(Code::FAILED_PRECONDITION, "the container was not started yet"));
        }
        let Ok(guest) = &self.guest else { return Err(no_container()) };
        if let Err(errno) = freeze(guest) {
            // What is half frozen goes on.
            let _ = set_frozen(guest, false);
            let message = format!("cannot freeze the container's processes: {errno}");
            return Err(refuse(Code::INTERNAL, message));
        }
        guest.sync();
        let identity = identity::assume(self.marks);
        self.clock_is_set = identity.clock_is_set;
        self.awaits_restore = identity.restored;
        if !identity.restored {
            thaw(guest)?;
        }
        Ok(CheckpointResponse::default())
    }

    pub(crate) fn restore(&mut self, request: RestoreRequest) -> Result<RestoreResponse, Status> {
        let (Some(container), Ok(guest)) = (&self.container, &self.guest) else {
            return Err(no_container());
        };
        if !self.awaits_restore {
            let message = "this VM does not go on from a snapshot of a container";
            return Err(refuse(Code::FAILED_PRECONDITION, message));
        }
        if !request.hostname.is_empty()
            && let Err(error) = container.set_hostname(request.hostname.as_bytes())
        {
            // The container is itself without it.
            log!("{error}");
        }
        if !request.machine_id.is_empty()
            && machine_id::is_given()
            && let Err(errno) = machine_id::write(&request.machine_id)
        {
            let message = format!("cannot write the machine ID: {errno}");
            return Err(refuse(Code::INTERNAL, message));
        }
        let network = request.network.unwrap_or_default();
        guest
            .readdress(&self.network, &network)
            .map_err(|error| refuse(Code::INTERNAL, error.to_string()))?;
        self.network = network;
        thaw(guest)?;
        self.awaits_restore = false;
        Ok(RestoreResponse::default())
    }
}

fn thaw(guest: &Guest) -> Result<(), Status> {
    set_frozen(guest, false).map_err(|errno| {
        refuse(Code::INTERNAL, format!("cannot thaw the container's processes: {errno}"))
    })
}

/// Stops every process of the container, and waits until they stand.
fn freeze(guest: &Guest) -> rustix::io::Result<()> {
    let begun = Instant::now();
    set_frozen(guest, true)?;
    loop {
        let events = cgroup(guest)?.file("cgroup.events").ok_or(Errno::NOENT)?;
        if events.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        if begun.elapsed() > FREEZE_MAX {
            return Err(Errno::TIMEDOUT);
        }
        std::thread::sleep(FREEZE_STEP);
    }
}

fn cgroup(guest: &Guest) -> rustix::io::Result<&Cgroup> {
    guest.cgroup.as_ref().ok_or(Errno::NOTSUP)
}

/// Writes cgroup.freeze (admin-guide/cgroup-v2.rst).
fn set_frozen(guest: &Guest, frozen: bool) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&cgroup(guest)?.dir, "cgroup.freeze", flags, Mode::empty())?;
    rustix::io::write(&file, if frozen { b"1" } else { b"0" }).map(drop)
}
