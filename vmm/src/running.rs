//! A running VM: its threads, and what the control socket asks of it.
//!
//! ```text
//!            pause                 all vCPUs parked
//!  running ─────────▶ pausing ──────────────────────▶ paused
//!     ▲                                                 │ resume
//!     └─────────────────────────────────────────────────┘
//! ```
//!
//! The event loop goes on while the VM is paused: what the host's side of a device sends waits in
//! the device or on its way there.

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Instant;

use bulkhead_devices::GuestMemory;

use crate::control::{Request, Response, Stats};
use crate::ending::{Ended, Unexpected};
use crate::jail::Policy;
use crate::machine::{Machine, MachineError};
use crate::vcpu;

impl Machine {
    /// Runs the VM until it ends.
    pub fn run(mut self) -> Result<(Ended, Arc<GuestMemory>), MachineError> {
        self.timeline.mark("first_run");
        self.start_vcpus()?;
        let started = Instant::now();
        loop {
            self.events.run()?;
            if let Some(ended) = self.exits.ending.take() {
                self.timeline.mark("ended");
                drop(self.vm);
                return Ok((ended, self.memory));
            }
            if self.exits.gate.is_closed()
                && let Some(template) = self.template.take()
            {
                let state = self.save(template.memory())?;
                template.write(&state)?;
                self.exits.ending.saved();
            }
            self.serve_control(started);
        }
    }

    fn start_vcpus(&self) -> Result<(), MachineError> {
        let threshold = Arc::new(self.jail.threshold(self.vcpus.len() + 1));
        for vcpu in &self.vcpus {
            let (id, exits, running) = (vcpu.id, self.exits.clone(), vcpu.clone());
            let threshold = threshold.clone();
            let behind_its_filter = move || match threshold.pass(Policy::Vcpu) {
                Ok(true) => vcpu::run(&running, &exits),
                Ok(false) => {}
                Err(error) => exits.ending.unexpected(Unexpected::Jail(error)),
            };
            let thread = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(behind_its_filter)
                .map_err(|source| MachineError::Thread { id, source })?;
            self.exits.gate.add(thread, vcpu.clone());
        }
        threshold.pass(Policy::EventLoop)?;
        Ok(())
    }

    fn serve_control(&mut self, started: Instant) {
        let Some(control) = self.control.clone() else { return };
        let mut control = control.lock().unwrap_or_else(PoisonError::into_inner);
        for mut command in control.take_commands() {
            let response = match command.request {
                Request::Pause => self.pause(),
                Request::Resume => self.resume(),
                Request::Stats => self.stats(started),
                Request::Plug { mac, mtu } => self.plug(mac, mtu, command.descriptor.take()),
            };
            control.answer(&command, &response);
        }
    }

    fn plug(&mut self, mac: [u8; 6], mtu: Option<u16>, tap: Option<OwnedFd>) -> Response {
        match self.places.plug(&mut self.events, mac, mtu, tap) {
            Ok(()) => Response::Done,
            Err(error) => Response::Refused { message: error.to_string() },
        }
    }

    fn pause(&self) -> Response {
        let gate = &self.exits.gate;
        gate.close();
        if gate.wait_parked() {
            return Response::Done;
        }
        gate.open();
        Response::Refused { message: "a vCPU does not stop".to_owned() }
    }

    fn resume(&self) -> Response {
        let gate = &self.exits.gate;
        if gate.is_closed() {
            for vcpu in &self.vcpus {
                // Tells the guest's watchdogs that time has passed without it; a guest that has no
                // kvm-clock has nothing to be told (EINVAL).
                let _ = vcpu.lock().kvmclock_ctrl();
            }
            gate.open();
        }
        Response::Done
    }

    fn stats(&self, started: Instant) -> Response {
        Response::Stats(Stats {
            paused: self.exits.gate.is_closed(),
            vcpus: self.vcpus.len() as u8,
            memory_mib: self.memory_mib,
            uptime_ms: started.elapsed().as_millis() as u64,
            exits: self.timeline.exits(),
        })
    }
}
