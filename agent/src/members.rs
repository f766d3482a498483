//! Further containers in the VM of one, which joined its network namespace: those of a pod, mostly.
//!
//! ```text
//!  CreateContainer (id) ──▶ created ── StartContainer ──▶ started ── its process ends ──▶ Wait answered
//! ```
//!
//! They have the guest's network, as the VM's own container has, and everything else of their own: root,
//! PIDs, cgroup. The VM ends with its own container, and they with it.

use std::os::fd::AsFd as _;

use bulkhead_protocol::rpc::agent::{
    ContainerSpec, CreateContainerRequest, CreateContainerResponse, StartFailure,
};

use crate::agent::{Agent, SourceId};
use crate::container::{Container, Member};
use crate::guest::{self, Guest};
use crate::limits;
use crate::log::log;
use crate::process::{Course, step};
use crate::service::{Ports, failure, raw};
use crate::stdio::Ends;

/// How many there may be at a time.
const MEMBERS_MAX: usize = 64;

impl Agent {
    /// Creates a container beside the VM's own; it waits to be started.
    pub(crate) fn add_member(
        &mut self,
        client: SourceId,
        request: &CreateContainerRequest,
    ) -> Result<CreateContainerResponse, StartFailure> {
        let spec = request.container.get_or_default();
        let (own, guest) =
            self.container("").map_err(|status| failure(libc::ESRCH, status.message()))?;
        if self.execs.contains_key(&request.id) {
            return Err(failure(libc::EEXIST, "there is a container of this name in this VM"));
        }
        if self.members.len() >= MEMBERS_MAX {
            return Err(failure(libc::EAGAIN, "there are as many containers in this VM as may be"));
        }
        let listeners = self.listeners(spec.process.get_or_default())?;
        let name = format!("member-{}", self.members_made);
        let cgroup =
            guest.make_cgroup(name.clone()).map_err(step("make the container's cgroup"))?;
        let member = Member { cgroup, ipc: spec.joins_ipc.then_some(own) };
        let spawned = self.spawn_member(spec, guest, member);
        if spawned.is_err() {
            // What is left is empty, and in nobody's way.
            let _ = guest::remove_cgroup(&name);
        }
        self.members_made += 1;
        let (container, ends) = spawned?;
        let pid = container.launch.pid;
        let terminal = container.terminal.as_ref().and_then(|terminal| terminal.try_clone().ok());
        self.members.insert(request.id.clone(), container);
        self.remember(&request.id, pid, terminal, Some(client));
        let Ports { stdin, stdout, stderr } = self.offer_all(&request.id, ends, listeners);
        Ok(CreateContainerResponse {
            pid: raw(pid),
            stdin_port: stdin,
            stdout_port: stdout,
            stderr_port: stderr,
            ..Default::default()
        })
    }

    fn spawn_member(
        &self,
        spec: &ContainerSpec,
        guest: &Guest,
        member: Member<'_>,
    ) -> Result<(Container, Ends), StartFailure> {
        limits::set(member.cgroup.as_ref(), &spec.cgroup, &spec.device_rules)?;
        let null = self.null.as_fd();
        let (container, ends) = Container::spawn(spec, Course::Gated, guest, null, Some(member))?;
        container.launch.created()?;
        Ok((container, ends))
    }

    /// Takes leave of a container whose process has ended, if `id` is one; whether the kernel has killed
    /// one of its processes for lack of memory.
    pub(crate) fn forget_member(&mut self, id: &str) -> bool {
        let Some(member) = self.members.remove(id) else { return false };
        let Ok(guest) = &self.guest else { return false };
        // What it wrote is on the host before anybody hears that it has ended.
        guest.sync();
        let oom_killed = member.oom_kills(guest) > 0;
        if let Some(Err(errno)) = member.cgroup(guest).map(guest::Cgroup::remove) {
            log!("cannot remove the cgroup of container {id:?}: {errno}");
        }
        oom_killed
    }
}
