//! The container's limits: files of its cgroup (kernel, admin-guide/cgroup-v2.rst), and its devices.

use std::os::fd::AsFd as _;

use bulkhead_protocol::rpc::agent::{
    DeviceRule, Setting, StartFailure, UpdateResourcesRequest, UpdateResourcesResponse,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use ttrpc::{Code, Status};

use crate::agent::Agent;
use crate::guest::Cgroup;
use crate::rpc::refuse;

/// Why a limit was not set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// A file of the cgroup.
    #[error("cannot write {value:?} to {name} of the container's cgroup: {source}")]
    File {
        /// Its name.
        name: String,
        /// What was to be written.
        value: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// Its devices.
    #[error("cannot filter the container's devices: {0}")]
    Devices(#[source] Errno),
}

impl From<LimitError> for StartFailure {
    fn from(error: LimitError) -> Self {
        let (LimitError::File { source, .. } | LimitError::Devices(source)) = &error;
        let errno = source.raw_os_error().unsigned_abs();
        Self { message: error.to_string(), errno, ..Default::default() }
    }
}

/// Sets limits, and `rules` for devices. Outside of a VM there is no cgroup to have them.
pub fn set(
    cgroup: Option<&Cgroup>,
    limits: &[Setting],
    rules: &[DeviceRule],
) -> Result<(), LimitError> {
    let Some(cgroup) = cgroup else { return Ok(()) };
    for Setting { name, value, .. } in limits {
        let failed = |source| LimitError::File { name: name.clone(), value: value.clone(), source };
        // The files of this cgroup, not of those below it.
        if name.contains('/') {
            return Err(failed(Errno::INVAL));
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&cgroup.dir, name.as_str(), flags, Mode::empty())
            .and_then(|file| rustix::io::write(file, value.as_bytes()))
            .map_err(failed)?;
    }
    cgroup.devices.borrow_mut().set(cgroup.dir.as_fd(), rules).map_err(LimitError::Devices)
}

impl Agent {
    /// Sets new limits for the running container.
    pub(crate) fn update_resources(
        &mut self,
        request: UpdateResourcesRequest,
    ) -> Result<UpdateResourcesResponse, Status> {
        let (container, guest) = self.container(&request.container)?;
        set(container.cgroup(guest), &request.cgroup, &request.device_rules)
            .map(|()| UpdateResourcesResponse::default())
            .map_err(|error| refuse(Code::INVALID_ARGUMENT, error.to_string()))
    }
}
