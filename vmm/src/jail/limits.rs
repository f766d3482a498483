//! What a jailed process may take of the host, whatever it is made to do.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Builder;
use crate::spec::VmSpec;

/// One for each vCPU and its statistics, a dozen for each device, the shares that are on their way to the file
/// worker; the rest is room. vsock connections have two each beside these.
const VMM_FILES_BASE: u64 = 1024;
/// Heap and thread stacks beyond guest memory and the buffers of vsock connections.
const VMM_DATA_BASE: u64 = 256 << 20;
const VMM_DATA_PER_THREAD: u64 = 8 << 20;
/// Threads besides vCPUs.
const VMM_THREADS: u64 = 8;
/// Two buffers of 1 MiB and a stack of 2 MiB for each of at most eight threads, and 2^20 inodes.
const WORKER_DATA_MAX: u64 = 1 << 30;

/// Limits the VMM of `spec`.
pub fn of_vmm(spec: &VmSpec, builder: Builder) -> io::Result<()> {
    let threads = u64::from(spec.vcpus) + VMM_THREADS;
    let guest = u64::from(spec.memory_mib) << 20;
    let vsock = spec.limits.vsock_caps();
    let own = VMM_DATA_BASE + threads * VMM_DATA_PER_THREAD;
    lower(Resource::Data, guest + vsock.memory_max() + own)?;
    lower(Resource::Nofile, VMM_FILES_BASE + 2 * u64::from(vsock.connections))?;
    if builder.has_own_user() {
        // The threads of a user are counted, and this one will be no one else's.
        lower(Resource::Nproc, threads)?;
    }
    of_any()
}

/// Limits the file worker, whose open files have a budget of their own.
pub fn of_worker() -> io::Result<()> {
    lower(Resource::Data, WORKER_DATA_MAX)?;
    of_any()
}

/// Nothing jailed dumps core (with guest memory in it), locks memory or makes message queues.
fn of_any() -> io::Result<()> {
    [Resource::Core, Resource::Memlock, Resource::Msgqueue]
        .into_iter()
        .try_for_each(|resource| lower(resource, 0))
}

/// Lowers a limit for good; one that is lower already stays.
fn lower(resource: Resource, max: u64) -> io::Result<()> {
    let max = getrlimit(resource).maximum.map_or(max, |now| now.min(max));
    Ok(setrlimit(resource, Rlimit { current: Some(max), maximum: Some(max) })?)
}
