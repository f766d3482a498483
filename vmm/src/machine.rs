//! From a [`VmSpec`] to a running VM to how it ended.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bulkhead_devices::GuestMemory;
use bulkhead_devices::balloon::Balloon;
use bulkhead_devices::fs::{FsDevice, Window};
use bulkhead_devices::rate_limiter::Lossy;
use bulkhead_devices::rng::Rng;
use bulkhead_devices::serial::Serial;
use bulkhead_devices::virtio::VirtioDevice;
use bulkhead_devices::virtio::mmio::Transport;
use bulkhead_devices::vsock::{HostEnd, Vsock, VsockConfig};
use bulkhead_protocol::{ExitReport, FS_TAG, HostPort};
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::{self, BootError};
use crate::bus::Bus;
use crate::cmdline;
use crate::control::Control;
use crate::ending::Ending;
use crate::fs_worker::{FsWorker, FsWorkerError};
use crate::host_events::HostEvents;
use crate::jail::{Jail, JailError};
use crate::layout;
use crate::leash::Leash;
use crate::marks::Marks;
use crate::memory::{self, MemoryError};
use crate::net::{self, Place, Places};
use crate::save_point::SavePoint;
use crate::saved::{Order, Saved, Source};
use crate::shares::Shares;
use crate::snapshot::SnapshotError;
use crate::spec::{CONSOLE_RATE, SpecError, VmSpec};
use crate::timeline::Timeline;
use crate::vcpu::{self, ExitCounter, Exits, Gate, Vcpu, VcpuError};
use crate::vm::{Vm, VmError};
use crate::window;

/// Why a VM could not be built or run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MachineError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    FsWorker(#[from] FsWorkerError),
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("cannot serve the control socket: {0}")]
    Control(#[source] io::Error),
    #[error("cannot claim the signal that stops vCPUs: {0}")]
    Gate(#[source] io::Error),
    #[error("cannot listen on the vsock socket {path}: {source}")]
    Vsock { path: PathBuf, source: io::Error },
    #[error("cannot set up the {device} device: {source}")]
    Device { device: &'static str, source: io::Error },
    #[error("cannot reserve addresses for files that the guest maps: {0}")]
    Window(#[source] io::Error),
    #[error("cannot run the event loop: {0}")]
    EventLoop(#[from] event_manager::Error),
    #[error("cannot start the thread of vCPU {id}: {source}")]
    Thread { id: u8, source: io::Error },
}

/// The event loop.
pub type Loop = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;

/// A VM that is ready to run.
pub struct Machine {
    pub(crate) vm: Vm,
    pub(crate) vcpus: Vec<Arc<Vcpu>>,
    pub(crate) exits: Arc<Exits>,
    pub(crate) events: Loop,
    pub(crate) control: Option<Arc<Mutex<Control>>>,
    pub(crate) places: Places,
    pub(crate) shares: Shares,
    /// Where the guest stands to be saved, and what is to be done then.
    pub(crate) save_point: Arc<SavePoint>,
    pub(crate) order: Option<Order>,
    pub(crate) timeline: Timeline,
    pub(crate) memory: Arc<GuestMemory>,
    /// `None` if the VM booted.
    pub(crate) source: Option<Source>,
    pub(crate) memory_mib: u32,
    pub(crate) window_mib: u16,
    pub(crate) jail: Jail,
    pub(crate) fs_worker: FsWorker,
}

impl Machine {
    /// Builds the VM of `spec` and enters `jail`. Call it while the process has one thread.
    pub fn build(spec: &VmSpec, mut jail: Jail, timeline: &Timeline) -> Result<Self, MachineError> {
        spec.check()?;
        let saved = spec.restore.as_ref().map(|files| Saved::open(files, spec)).transpose()?;
        let files = saved.as_ref().map_or(&[][..], |saved| &saved.state.files);
        // First, so that the worker starts while the VM is being built.
        let (fs_worker, fs_socket) = FsWorker::spawn(spec, files, jail.worker())?;
        let memory = guest_memory(spec, saved.as_ref())?;
        let vm = vm_with_window(spec, &memory)?;
        timeline.mark("vm_created");

        let device_error = |device| move |source| MachineError::Device { device, source };
        let ending = Ending::new(Arc::new(event_fd().map_err(device_error("ending"))?));
        let gate = Gate::new().map_err(MachineError::Gate)?;
        let (save_point, order) = save_point(spec, &gate, &ending);
        let ready = ready(saved.is_some()).map_err(device_error("vsock"))?;
        let mut wiring = Wiring::new(&vm, &memory)?;
        let marks = Marks {
            ready: ready.try_clone().map_err(device_error("vsock"))?,
            timeline: timeline.clone(),
            save_point: save_point.clone(),
            restored: saved.is_some(),
        };
        let (host_events, guest_end) =
            HostEvents::of(spec).map_err(device_error("host events"))?.unzip();
        let path = jail.socket(&spec.vsock);
        let vsock = vsock(spec, path, ready, guest_end, &ending, timeline)?;
        let files = wiring.add_all(spec, fs_device(fs_socket, vm.window()), vsock)?;
        let Wiring { mut events, mmio, places, .. } = wiring;
        events.add_subscriber(Arc::new(Mutex::new(ending.wake())));
        host_events.map(|host| events.add_subscriber(Arc::new(Mutex::new(host))));
        let watch = fs_worker.watch(&ending).map_err(device_error("fs"))?;
        events.add_subscriber(Arc::new(Mutex::new(watch)));
        Leash::of(spec, &ending).map(|leash| events.add_subscriber(Arc::new(Mutex::new(leash))));

        let bus = Bus {
            mmio,
            serial: spec.console.then(|| serial(spec, &vm)).transpose()?,
            boot_mark: Some(Mutex::new(marks.port())),
        };
        let vcpus = match &saved {
            Some(saved) => saved.restore_vcpus(&vm)?,
            None => boot_vcpus(spec, &vm, &memory, bus.mmio.len() as u32, timeline)?,
        };
        // Ahead of the replies to what devices ask for, on the same socket.
        let mounts = jail.worker().is_on().then(|| fs_worker.mounts()).transpose()?;
        // Behind the interrupt controllers, which would forget what devices have to say.
        saved.as_ref().map(|saved| saved.restore_devices(&bus.mmio)).transpose()?;
        count_exits(&vcpus, timeline);
        let control = spec.control_fd.map(|fd| control(fd, &mut events)).transpose()?;
        jail.enter(spec, mounts)?;
        timeline.mark("jailed");
        Ok(Self {
            exits: Arc::new(Exits { bus, ending, gate, window: vm.window().cloned() }),
            vm,
            vcpus,
            events,
            control,
            places: places.into(),
            shares: Shares::new(files, &spec.shares),
            save_point,
            order,
            timeline: timeline.clone(),
            memory,
            source: saved.as_ref().map(Saved::source).transpose()?,
            memory_mib: spec.memory_mib,
            window_mib: spec.window_mib(),
            jail,
            fs_worker,
        })
    }
}

fn guest_memory(spec: &VmSpec, saved: Option<&Saved>) -> Result<Arc<GuestMemory>, MachineError> {
    Ok(match saved {
        Some(saved) => saved.map_memory(spec)?,
        None => memory::create(spec.memory_mib)?,
    })
}

/// Where the guest is saved, and why it is to be from the beginning.
fn save_point(spec: &VmSpec, gate: &Arc<Gate>, ending: &Ending) -> (Arc<SavePoint>, Option<Order>) {
    let save_point = Arc::new(SavePoint::new(gate.clone(), ending.clone()));
    let order = spec.template.as_ref().map(Order::template);
    if order.is_some() {
        save_point.want();
    }
    (save_point, order)
}

/// Says that the agent listens; that of a VM which was saved has done so since before that.
fn ready(restored: bool) -> io::Result<EventFd> {
    let ready = event_fd()?;
    if restored {
        // A fresh counter has room.
        let _ = ready.write(1);
    }
    Ok(ready)
}

fn count_exits(vcpus: &[Arc<Vcpu>], timeline: &Timeline) {
    if timeline.is_on() {
        let counters = vcpus.iter().filter_map(|vcpu| ExitCounter::new(&vcpu.lock()));
        counters.for_each(|counter| timeline.count_exits(counter));
    }
}

/// The vCPUs of a VM that boots, and what it boots from.
fn boot_vcpus(
    spec: &VmSpec,
    vm: &Vm,
    memory: &Arc<GuestMemory>,
    devices: u32,
    timeline: &Timeline,
) -> Result<Vec<Arc<Vcpu>>, MachineError> {
    let cmdline = cmdline::build(spec, devices).map_err(BootError::from)?;
    let entry = boot::load(memory, &spec.kernel, &spec.init, &cmdline, spec.vcpus)?;
    timeline.mark("kernel_loaded");
    let supported = vcpu::supported_cpuid(&vm.kvm)?;
    let create = |id| vcpu::create(&vm.fd, id, spec.vcpus, &supported, entry);
    (0..spec.vcpus).map(|id| Ok(Arc::new(create(id)?))).collect()
}

/// Puts virtio devices at their windows, interrupt lines and event loop.
struct Wiring<'a> {
    vm: &'a Vm,
    memory: &'a Arc<GuestMemory>,
    events: Loop,
    mmio: Vec<Arc<Mutex<Transport>>>,
    places: Vec<Place>,
}

impl<'a> Wiring<'a> {
    fn new(vm: &'a Vm, memory: &'a Arc<GuestMemory>) -> Result<Self, MachineError> {
        let events = EventManager::new()?;
        Ok(Self { vm, memory, events, mmio: Vec::new(), places: Vec::new() })
    }

    /// All of them, held to the spec's limits, in the order in which the guest finds them. Returns where
    /// the file device is.
    fn add_all(
        &mut self,
        spec: &VmSpec,
        fs: FsDevice,
        vsock: Vsock,
    ) -> Result<Place, MachineError> {
        let failed = |device| move |source| MachineError::Device { device, source };
        let limits = &spec.limits;
        let files = self.add(Box::new(fs.limited(&limits.fs).map_err(failed("fs"))?))?;
        self.add(Box::new(vsock.limited(&limits.vsock).map_err(failed("vsock"))?))?;
        self.add(Box::new(Rng::limited(&limits.rng).map_err(failed("rng"))?))?;
        self.add_nets(spec)?;
        self.add(Box::new(Balloon::default()))?;
        Ok(files)
    }

    fn add_nets(&mut self, spec: &VmSpec) -> Result<(), MachineError> {
        let failed = |source| MachineError::Device { device: "net", source };
        for net in &spec.nets {
            let interface = self.add(net::device(net, &spec.limits).map_err(failed)?)?;
            if net.link_fd.is_none() {
                self.places.push(interface);
            }
        }
        for _ in 0..spec.net_places {
            let place = self.add(net::place(&spec.limits).map_err(failed)?)?;
            self.places.push(place);
        }
        Ok(())
    }

    fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<Place, MachineError> {
        let index = self.mmio.len() as u32;
        let name = device.name();
        let interrupt = self.vm.interrupt(layout::MMIO_GSI_BASE + index);
        let transport = Transport::new(device, self.memory.clone(), interrupt)
            .map_err(|source| MachineError::Device { device: name, source })?;
        self.vm.notify_by(index, transport.queue_notifiers())?;
        let transport = Arc::new(Mutex::new(transport));
        let subscriber = self.events.add_subscriber(transport.clone());
        self.mmio.push(transport.clone());
        Ok(Place { subscriber, transport })
    }
}

fn vm_with_window(spec: &VmSpec, memory: &Arc<GuestMemory>) -> Result<Vm, MachineError> {
    let mut vm = Vm::new(memory.clone())?;
    let window = window::create(memory, spec.window_mib()).map_err(MachineError::Window)?;
    window.map(|window| vm.add_window(window)).transpose()?;
    Ok(vm)
}

fn fs_device(socket: OwnedFd, window: Option<&Window>) -> FsDevice {
    let device = FsDevice::new(FS_TAG, socket);
    match window {
        Some(window) => device.with_window(window.clone()),
        None => device,
    }
}

fn control(fd: RawFd, events: &mut Loop) -> Result<Arc<Mutex<Control>>, MachineError> {
    // SAFETY: the spec says that this descriptor was inherited for this use alone.
    let listener = unsafe { UnixListener::from_raw_fd(fd) };
    let control = Arc::new(Mutex::new(Control::new(listener).map_err(MachineError::Control)?));
    events.add_subscriber(control.clone());
    Ok(control)
}

fn event_fd() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

fn serial(spec: &VmSpec, vm: &Vm) -> Result<Mutex<Serial>, MachineError> {
    let line = vm.interrupt(layout::SERIAL_GSI);
    let out = Lossy::new(io::stderr(), spec.limits.console.unwrap_or(CONSOLE_RATE));
    Ok(Mutex::new(Serial::new(Box::new(out), line)))
}

fn vsock(
    spec: &VmSpec,
    path: PathBuf,
    ready: EventFd,
    host_events: Option<OwnedFd>,
    ending: &Ending,
    timeline: &Timeline,
) -> Result<Vsock, MachineError> {
    let error = |source| MachineError::Vsock { path: spec.vsock.clone(), source };
    let listener = match spec.vsock_fd {
        // SAFETY: the spec says that this descriptor was inherited for this use alone.
        Some(fd) => unsafe { UnixListener::from_raw_fd(fd) },
        None => UnixListener::bind(&spec.vsock).map_err(error)?,
    };
    listener.set_nonblocking(true).map_err(error)?;
    let ending = ending.clone();
    let report = HostEnd::Message {
        len: ExitReport::LEN,
        deliver: Box::new(move |bytes| {
            if let Some(report) = ExitReport::from_bytes(bytes) {
                ending.reported(report);
            }
        }),
    };
    let mut host_ports = stdio_ports(spec.terminal).map_err(error)?;
    host_ports.push((HostPort::Exit as u32, report));
    if let Some(events) = host_events {
        let end = HostEnd::Streams { read: Some(events), write: None };
        host_ports.push((HostPort::Events as u32, end));
    }
    let timeline = timeline.clone();
    let config = VsockConfig {
        guest_cid: spec.cid,
        caps: spec.limits.vsock_caps(),
        listener,
        path,
        ready,
        host_ports,
        on_first_output: Some(Box::new(move || timeline.mark("first_output"))),
    };
    Vsock::new(config).map_err(error)
}

/// The host ports of the container's standard streams, joined to ours. Stdin and stdout they take
/// over, so that nobody else holds them open when the container closes them; stderr stays ours too.
fn stdio_ports(terminal: bool) -> io::Result<Vec<(u32, HostEnd)>> {
    let streams = |read: Option<OwnedFd>, write: Option<OwnedFd>| HostEnd::Streams { read, write };
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    if terminal {
        return Ok(vec![(HostPort::Terminal as u32, streams(Some(stdin), Some(stdout)))]);
    }
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    Ok(vec![
        (HostPort::Stdin as u32, streams(Some(stdin), None)),
        (HostPort::Stdout as u32, streams(None, Some(stdout))),
        (HostPort::Stderr as u32, streams(None, Some(stderr))),
    ])
}
