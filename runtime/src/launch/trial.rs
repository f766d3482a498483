//! A trial of a new template: one container, whose VM shows which pages its clones use.
//!
//! The container's process is the agent's own program, which says a line and waits (`--trial`): no
//! tenant has a part in what all clones of a template do before they run.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use bulkhead_protocol::rpc::agent::{
    ContainerSpec, CreateContainerRequest, CreateContainerResponse, Foreseen, Process,
};
use bulkhead_vmm::snapshot::WorkingSet;
use bulkhead_vmm::snapshot::pagemap::{OF_FILE, PRESENT};
use bulkhead_vmm::spec::{Share, VmSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::agent::AgentError;
use crate::client::Client;
use crate::oci::clock;
use crate::state::VmDir;
use crate::templates::Template;
use crate::vmm::{Course, VmmError, spawn};

/// How long each step may take, even on an emulated processor.
const STEP_MAX: Duration = Duration::from_secs(60);
/// Name of the share that is the container's root.
const ROOT_SHARE: &str = "rootfs";
/// The agent's program in the container.
const PROGRAM: &str = "trial";
const PAGE: u64 = 4096;

/// Why nothing is known of a template's clones.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("its process does not start: {0}")]
    Start(String),
    #[error("its process said nothing")]
    Silent,
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What failed.
        source: io::Error,
    },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> TrialError {
    move |source| TrialError::Io { action, source }
}

/// Runs a container in a clone of `template` in `dir`, in a VM like `vm`, and returns what pages that
/// had used when the container's output came.
pub fn working_set(
    vm: VmSpec,
    program: &Path,
    dir: &VmDir,
    template: &Template,
) -> Result<WorkingSet, TrialError> {
    let root = dir.path().join(ROOT_SHARE);
    fs::create_dir(&root)
        .and_then(|()| fs::copy(&vm.init, root.join(PROGRAM)))
        .map_err(failed("make the trial's root directory"))?;
    let share = Share { name: ROOT_SHARE.to_owned(), source: root, ..Share::default() };
    let vm = VmSpec {
        name: PROGRAM.to_owned(),
        shares: vec![share],
        vsock: dir.socket(),
        dies_with: Some(std::process::id()),
        ..vm
    };
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(failed("open /dev/null"))?;
    let course = Course::Clone(template);
    let mut vmm = spawn(program, vm, dir, course, null.as_fd(), |command| {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    })?;
    let set = say_hello(&mut vmm, dir).and_then(|()| {
        pages_of(vmm.id(), &template.snapshot.memory).map_err(failed("read its memory map"))
    });
    // An error says that it has ended already.
    let _ = vmm.kill().and_then(|()| vmm.wait());
    set
}

/// Starts the container and waits for its line.
fn say_hello(vmm: &mut Child, dir: &VmDir) -> Result<(), TrialError> {
    let process = Process {
        args: vec![format!("/{PROGRAM}"), "--trial".to_owned()],
        cwd: "/".to_owned(),
        stdout: true,
        stderr: true,
        // As most containers of `bulkhead run` have it.
        foreseen: Some(Foreseen { passwd: Some(Vec::new()), ..Default::default() }).into(),
        ..Default::default()
    };
    let container = ContainerSpec {
        hostname: PROGRAM.to_owned(),
        root_share: ROOT_SHARE.to_owned(),
        process: Some(process).into(),
        clock_ns: clock::now_ns(),
        ..Default::default()
    };
    let container = Some(container).into();
    let request = CreateContainerRequest { container, start: true, ..Default::default() };
    let mut agent = Client::connect(&dir.socket(), STEP_MAX)?;
    let response: CreateContainerResponse = agent.call("CreateContainer", &request, STEP_MAX)?;
    if let Some(failure) = response.failure.into_option() {
        return Err(TrialError::Start(failure.message));
    }
    let Some(stdout) = vmm.stdout.take() else { return Err(TrialError::Silent) };
    let timeout = Timespec { tv_sec: STEP_MAX.as_secs() as i64, tv_nsec: 0 };
    let readable = poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&timeout));
    let mut line = String::new();
    match readable {
        Ok(1..) if BufReader::new(stdout).read_line(&mut line).is_ok_and(|len| len > 0) => Ok(()),
        _ => Err(TrialError::Silent),
    }
}

/// The pages of the private mappings of `memory` in a process that are there, and those that are no
/// longer the file's.
fn pages_of(process: u32, memory: &File) -> io::Result<WorkingSet> {
    // The number alone may be another file's, of another file system.
    let (inode, path) = (memory.metadata()?.ino(), proc_path(memory)?);
    let pagemap = File::open(format!("/proc/{process}/pagemap"))?;
    let (mut used, mut written) = (Vec::new(), Vec::new());
    for line in fs::read_to_string(format!("/proc/{process}/maps"))?.lines() {
        let Some((start, end, offset)) = mapping_of(line, inode, name_of(&path)) else { continue };
        let mut entries = vec![0; ((end - start) / PAGE) as usize * size_of::<u64>()];
        pagemap.read_exact_at(&mut entries, start / PAGE * size_of::<u64>() as u64)?;
        let (entries, _) = entries.as_chunks::<8>();
        for (page, entry) in (offset / PAGE..).zip(entries) {
            let entry = u64::from_ne_bytes(*entry);
            if entry & PRESENT != 0 {
                used.push(page as u32);
            }
            if entry & (PRESENT | OF_FILE) == PRESENT {
                written.push(page as u32);
            }
        }
    }
    // Mappings come in the order of their addresses, and may overlap.
    for pages in [&mut used, &mut written] {
        pages.sort_unstable();
        pages.dedup();
    }
    Ok(WorkingSet::of_pages(used, written))
}

/// An open file's path, as the kernel writes it.
fn proc_path(file: &File) -> io::Result<String> {
    let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok(link.to_string_lossy().into_owned())
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Start, end and offset of the mapping that a line of maps (proc_pid_maps(5)) describes, if it is one
/// of the file with this inode number and name. (Its directories are other words in another mount namespace.)
fn mapping_of(line: &str, inode: u64, name: &str) -> Option<(u64, u64, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let offset = hex(fields.nth(1)?)?;
    // Behind the device.
    let found = fields.nth(1)?.parse() == Ok(inode) && name_of(line) == name;
    found.then_some((hex(start)?, hex(end)?, offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mm::{MapFlags, ProtFlags, mmap};

    #[test]
    fn used_pages_are_found_and_those_written_to_among_them() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * PAGE).unwrap();
        let map = |first: u64, pages: usize| {
            let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            let (len, offset) = (pages * PAGE as usize, first * PAGE);
            // SAFETY: a fresh mapping at an address of the kernel's choice, which stays.
            let start =
                unsafe { mmap(std::ptr::null_mut(), len, protection, flags, &file, offset) };
            start.unwrap().cast::<u8>()
        };
        let start = map(0, 8);
        for page in [2, 3, 6] {
            // SAFETY: within the mapping.
            unsafe { start.add(page * PAGE as usize).write_volatile(1) };
        }
        // SAFETY: within a mapping of its own, to which no neighbours can come.
        assert_eq!(unsafe { map(5, 1).read_volatile() }, 0);
        // SAFETY: the same; that page is there twice now.
        assert_eq!(unsafe { map(2, 1).read_volatile() }, 0);
        let set = pages_of(std::process::id(), &file).unwrap();
        assert_eq!(set, WorkingSet::of_pages([2, 3, 5, 6], [2, 3, 6]));
    }

    #[test]
    fn lines_of_other_files_are_passed_over() {
        let line = "7f00000000-7f00002000 rw-p 00003000 00:14 26    /t/memory";
        let found = Some((0x7f_0000_0000, 0x7f_0000_2000, 0x3000));
        assert_eq!(mapping_of(line, 26, "memory"), found);
        assert_eq!(mapping_of(line, 27, "memory"), None);
        assert_eq!(mapping_of(line, 26, "bulkhead-vmm"), None);
        assert_eq!(mapping_of("ffffff-ff rw", 26, "memory"), None);
        assert_eq!(mapping_of("", 26, ""), None);
    }
}
