//! Between a [`Machine`] and its snapshot: saving a VM that stands still, and building one from files.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_devices::GuestMemory;
use bulkhead_devices::virtio::mmio::Transport;

use crate::control::{ClientId, Then};
use crate::machine::{Machine, MachineError};
use crate::shares;
use crate::snapshot::{
    self, Cpu, InterruptState, OwnPages, SnapshotError, VcpuState, VmState, WorkingSet,
};
use crate::spec::{SnapshotFiles, VmSpec};
use crate::vcpu::{self, Vcpu};
use crate::vm::Vm;

/// How long devices may take to finish what the guest asked of them before it was stopped.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long one wait for that may be, ms.
const DRAIN_STEP_MS: i32 = 10;

/// That a VM is to be saved when it stands at its [`crate::save_point`].
pub struct Order {
    state: File,
    memory: File,
    /// A memory file to save the difference from, if the VM's memory is a mapping of that, and the
    /// pagemap of this process.
    base: Option<[File; 2]>,
    /// What becomes of the VM.
    pub then: Then,
    /// Who is told; nobody of a template's VM.
    pub client: Option<ClientId>,
    /// It is carried out, and the VM stands.
    pub stands: bool,
}

impl Order {
    /// To save a VM that is to become a template.
    pub fn template(files: &SnapshotFiles) -> Self {
        let [state, memory] = open(files);
        Self { state, memory, base: None, then: Then::End, client: None, stands: false }
    }

    /// What a client of the control socket asks for; `None` if it did not send two files, and
    /// perhaps a base and a pagemap.
    pub fn of_client(client: ClientId, files: Vec<OwnedFd>, then: Then) -> Option<Self> {
        let mut files = files.into_iter().map(File::from);
        let (state, memory) = (files.next()?, files.next()?);
        let base = files.next().zip(files.next()).map(<[File; 2]>::from);
        Some(Self { state, memory, base, then, client: Some(client), stands: false })
    }
}

fn open(files: &SnapshotFiles) -> [File; 2] {
    // SAFETY: the spec says that these descriptors were inherited for this use alone.
    [files.state_fd, files.memory_fd].map(|fd| unsafe { File::from_raw_fd(fd) })
}

impl Machine {
    /// Saves the VM, whose gate is closed.
    pub(crate) fn save(&mut self, order: &Order) -> Result<(), MachineError> {
        if !self.exits.gate.wait_parked() {
            return Err(SnapshotError::Busy("a vCPU does not stop").into());
        }
        self.drain()?;
        let msrs = snapshot::msr_indices(&self.vm.kvm)?;
        let own_pages = self.own_pages(order)?;
        let vcpus = self.vcpus.iter().map(|vcpu| VcpuState::save(&vcpu.lock(), &msrs));
        let state = VmState {
            cpu: Cpu::of_this_host(),
            memory_mib: self.memory_mib,
            own_pages,
            window_mib: self.window_mib,
            files: self.fs_worker.save().map_err(files_error)?,
            vcpus: vcpus.collect::<Result<_, _>>()?,
            interrupts: InterruptState::save(&self.vm.fd, self.vm.has_pit)?,
            devices: self.exits.bus.mmio.iter().map(|device| lock(device).save()).collect(),
        };
        match &state.own_pages {
            Some(own) => own.save(&self.memory, &order.memory)?,
            None => snapshot::save_memory(&self.memory, &order.memory)?,
        }
        // Last: a state file says that the memory file is whole.
        Ok(snapshot::write(&order.state, &state)?)
    }

    /// The pages to be saved, if not all of them are.
    fn own_pages(&self, order: &Order) -> Result<Option<OwnPages>, SnapshotError> {
        let (Some(source), Some([base, pagemap])) = (&self.source, &order.base) else {
            return Ok(None);
        };
        let failed = |source| SnapshotError::File { action: "find the own pages of", source };
        if !source.is(base).map_err(failed)? {
            return Ok(None);
        }
        OwnPages::of(&self.memory, pagemap, &source.own).map_err(failed)
    }

    /// Serves events until no device has anything of the guest's under way.
    fn drain(&mut self) -> Result<(), MachineError> {
        let begun = Instant::now();
        loop {
            let idle = self.exits.bus.mmio.iter().all(|device| lock(device).is_idle());
            // Idle and nobody notified: what the guest asked for last has been looked at.
            let served = self.events.run_with_timeout(if idle { 0 } else { DRAIN_STEP_MS })?;
            if idle && served == 0 {
                return Ok(());
            }
            if begun.elapsed() > DRAIN_MAX {
                return Err(SnapshotError::Busy("a device does not come to rest").into());
            }
        }
    }
}

fn files_error(error: io::Error) -> SnapshotError {
    match error.raw_os_error() {
        Some(libc::ESTALE) => {
            SnapshotError::Busy("a program or library that its guest has mapped was deleted")
        }
        Some(libc::EBUSY) => SnapshotError::Busy(shares::NOT_SAVED),
        _ => SnapshotError::Files(error),
    }
}

fn lock(device: &Mutex<Transport>) -> std::sync::MutexGuard<'_, Transport> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a VM's memory is a private mapping of.
pub struct Source {
    /// The file's device and inode numbers.
    file: (u64, u64),
    /// The pages that are another file's.
    own: OwnPages,
}

impl Source {
    fn is(&self, file: &File) -> io::Result<bool> {
        Ok(file.metadata().map(|found| (found.dev(), found.ino()))? == self.file)
    }
}

/// A snapshot to build a VM from.
pub struct Saved {
    /// Checked against the VM's spec.
    pub state: VmState,
    memory: File,
    /// What the memory file is the difference from.
    base: Option<File>,
    /// `None` if this is the trial of a template that shall have one.
    working_set: Option<WorkingSet>,
}

impl Saved {
    /// Reads the state file.
    pub fn open(files: &SnapshotFiles, spec: &VmSpec) -> Result<Self, SnapshotError> {
        let [state, memory] = open(files);
        // SAFETY: the spec says that this descriptor was inherited for this use alone.
        let base = files.base_fd.map(|fd| unsafe { File::from_raw_fd(fd) });
        let state = snapshot::read(&state)?;
        state.check(spec)?;
        let base = match &state.own_pages {
            Some(_) => Some(base.ok_or(SnapshotError::Base)?),
            None => None,
        };
        // SAFETY: the spec says that this descriptor was inherited for this use alone.
        let working_set = spec.working_set_fd.map(|fd| unsafe { File::from_raw_fd(fd) });
        let working_set = match working_set {
            Some(file) => WorkingSet::read(&file, spec.memory_mib)?,
            None => Some(WorkingSet::default()),
        };
        Ok(Self { state, memory, base, working_set })
    }

    /// Maps the memory file, and copies what will be written to.
    pub fn map_memory(&self, spec: &VmSpec) -> Result<Arc<GuestMemory>, SnapshotError> {
        let whole = self.base.as_ref().unwrap_or(&self.memory);
        let memory = snapshot::map(whole, spec.memory_mib)?;
        if let Some(own) = &self.state.own_pages {
            own.map_into(&memory, &self.memory)?;
        }
        match &self.working_set {
            Some(set) => set.copy(&memory),
            None => snapshot::map_used_pages_alone(&memory, &self.memory),
        }
        Ok(memory)
    }

    /// What that is a mapping of.
    pub fn source(&self) -> Result<Source, SnapshotError> {
        let whole = self.base.as_ref().unwrap_or(&self.memory).metadata();
        let whole = whole.map_err(|source| SnapshotError::File { action: "examine", source })?;
        let own = self.state.own_pages.clone().unwrap_or_default();
        Ok(Source { file: (whole.dev(), whole.ino()), own })
    }

    /// Gives fresh devices their state.
    pub fn restore_devices(&self, devices: &[Arc<Mutex<Transport>>]) -> Result<(), SnapshotError> {
        if devices.len() != self.state.devices.len() {
            return Err(SnapshotError::Shape("devices"));
        }
        for (device, state) in devices.iter().zip(&self.state.devices) {
            lock(device).restore(state)?;
        }
        Ok(())
    }

    /// Creates the vCPUs and gives them and the VM their state.
    pub fn restore_vcpus(&self, vm: &Vm) -> Result<Vec<Arc<Vcpu>>, MachineError> {
        let vcpus = vcpu::restore(&vm.fd, &self.state.vcpus)?;
        self.state.interrupts.restore(&vm.fd, vm.has_pit)?;
        if let (Some(vcpu), Some(set)) = (vcpus.first(), &self.working_set) {
            set.map_for(&vcpu.lock(), vm.memory());
        }
        Ok(vcpus.into_iter().map(Arc::new).collect())
    }
}
