//! The container's limits: files of its cgroup (kernel, admin-guide/cgroup-v2.rst).

use bulkhead_protocol::rpc::agent::{
    Setting, StartFailure, UpdateResourcesRequest, UpdateResourcesResponse,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use ttrpc::{Code, Status};

use crate::agent::Agent;
use crate::guest::Cgroup;
use crate::rpc::refuse;

/// Why a limit was not set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot write {value:?} to {name} of the container's cgroup: {source}")]
pub struct LimitError {
    name: String,
    value: String,
    source: Errno,
}

impl From<LimitError> for StartFailure {
    fn from(error: LimitError) -> Self {
        let errno = error.source.raw_os_error().unsigned_abs();
        Self { message: error.to_string(), errno, ..Default::default() }
    }
}

/// Sets limits. Outside of a VM there is no cgroup to have them.
pub fn set(cgroup: Option<&Cgroup>, limits: &[Setting]) -> Result<(), LimitError> {
    let Some(cgroup) = cgroup else { return Ok(()) };
    for Setting { name, value, .. } in limits {
        let failed = |source| LimitError { name: name.clone(), value: value.clone(), source };
        // The files of this cgroup, not of those below it.
        if name.contains('/') {
            return Err(failed(Errno::INVAL));
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&cgroup.dir, name.as_str(), flags, Mode::empty())
            .and_then(|file| rustix::io::write(file, value.as_bytes()))
            .map_err(failed)?;
    }
    Ok(())
}

impl Agent {
    /// Sets new limits for the running container.
    pub(crate) fn update_resources(
        &mut self,
        request: UpdateResourcesRequest,
    ) -> Result<UpdateResourcesResponse, Status> {
        let (container, guest) = self.container(&request.container)?;
        set(container.cgroup(guest), &request.cgroup)
            .map(|()| UpdateResourcesResponse::default())
            .map_err(|error| refuse(Code::INVALID_ARGUMENT, error.to_string()))
    }
}
