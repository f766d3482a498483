//! Between a [`Machine`] and its snapshot: saving a VM that stands still, and building one from files.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_devices::GuestMemory;
use bulkhead_devices::virtio::mmio::Transport;

use crate::control::{ClientId, Then};
use crate::machine::{Machine, MachineError};
use crate::snapshot::{self, Cpu, InterruptState, SnapshotError, VcpuState, VmState, WorkingSet};
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
        Self { state, memory, then: Then::End, client: None, stands: false }
    }

    /// What a client of the control socket asks for; `None` if it did not send two files.
    pub fn of_client(client: ClientId, files: Vec<OwnedFd>, then: Then) -> Option<Self> {
        let [state, memory] = <[OwnedFd; 2]>::try_from(files).ok()?.map(File::from);
        Some(Self { state, memory, then, client: Some(client), stands: false })
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
        let vcpus = self.vcpus.iter().map(|vcpu| VcpuState::save(&vcpu.lock(), &msrs));
        let state = VmState {
            cpu: Cpu::of_this_host(),
            memory_mib: self.memory_mib,
            files: self.fs_worker.save().map_err(SnapshotError::Files)?,
            vcpus: vcpus.collect::<Result<_, _>>()?,
            interrupts: InterruptState::save(&self.vm.fd, self.vm.has_pit)?,
            devices: self.exits.bus.mmio.iter().map(|device| lock(device).save()).collect(),
        };
        snapshot::save_memory(&self.memory, &order.memory)?;
        // Last: a state file says that the memory file is whole.
        Ok(snapshot::write(&order.state, &state)?)
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

fn lock(device: &Mutex<Transport>) -> std::sync::MutexGuard<'_, Transport> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A snapshot to build a VM from.
pub struct Saved {
    /// Checked against the VM's spec.
    pub state: VmState,
    memory: File,
    /// `None` if this is the trial of a template that shall have one.
    working_set: Option<WorkingSet>,
}

impl Saved {
    /// Reads the state file.
    pub fn open(files: &SnapshotFiles, spec: &VmSpec) -> Result<Self, SnapshotError> {
        let [state, memory] = open(files);
        let state = snapshot::read(&state)?;
        state.check(spec)?;
        // SAFETY: the spec says that this descriptor was inherited for this use alone.
        let working_set = spec.working_set_fd.map(|fd| unsafe { File::from_raw_fd(fd) });
        let working_set = match working_set {
            Some(file) => WorkingSet::read(&file, spec.memory_mib)?,
            None => Some(WorkingSet::default()),
        };
        Ok(Self { state, memory, working_set })
    }

    /// Maps the memory file, and copies what will be written to.
    pub fn map_memory(&self, spec: &VmSpec) -> Result<Arc<GuestMemory>, SnapshotError> {
        let memory = snapshot::map(&self.memory, spec.memory_mib)?;
        match &self.working_set {
            Some(set) => set.copy(&memory),
            None => snapshot::map_used_pages_alone(&memory, &self.memory),
        }
        Ok(memory)
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
