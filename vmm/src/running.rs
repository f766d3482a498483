//! A running VM: its threads, and what the control socket asks of it.
//!
//! ```text
//!            pause                 all vCPUs parked
//!  running ─────────▶ pausing ──────────────────────▶ paused
//!     ▲                                                 │ resume
//!     └─────────────────────────────────────────────────┘
//! ```
//!
//! To save a VM takes the same way, but that the guest says where (save_point.rs).
//!
//! The event loop goes on while the VM is paused: what the host's side of a device sends waits in
//! the device or on its way there.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use bulkhead_devices::GuestMemory;

use crate::control::{Command, Control, Request, Response, Stats, Then};
use crate::ending::{Ended, Unexpected};
use crate::jail::Policy;
use crate::machine::{Machine, MachineError};
use crate::saved::Order;
use crate::shares::{self, Change, SharesError};
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
            if self.save_point.is_reached() {
                self.carry_out_order()?;
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
        let mut control = lock(&control);
        for Command { client, request, mut descriptors } in control.take_commands() {
            let response = match request {
                Request::Pause => self.pause(),
                Request::Resume => self.resume(),
                Request::Stats => self.stats(started),
                Request::Plug { mac, mtu } => self.plug(mac, mtu, descriptors.pop()),
                Request::Share { shares } => {
                    self.shares.want(client, Change::Add(shares, descriptors));
                    continue;
                }
                Request::Unshare { names } => {
                    self.shares.want(client, Change::Remove(names));
                    continue;
                }
                Request::Snapshot { .. } if self.shares.any() => {
                    refuse(&format!("the VM cannot be saved: {}", shares::NOT_SAVED))
                }
                Request::Snapshot { then } => {
                    let ordered = self.order.as_ref().and_then(|order| order.client);
                    match Order::of_client(client, descriptors, then) {
                        _ if ordered.is_some_and(|client| control.knows(client)) => {
                            refuse("the VM is being saved already")
                        }
                        None => refuse("a snapshot takes two files"),
                        Some(order) => {
                            self.order = Some(order);
                            self.save_point.want();
                            Response::Ready
                        }
                    }
                }
            };
            control.answer(client, &response);
        }
        for (client, result) in self.shares.go_on(&mut self.events) {
            let refused = |error: SharesError| refuse(&error.to_string());
            control.answer(client, &result.map_or_else(refused, |()| Response::Done));
        }
    }

    /// Saves the VM, which stands at its save point, for whoever still wants that. Only a template
    /// that cannot be saved is an error.
    fn carry_out_order(&mut self) -> Result<(), MachineError> {
        let Some(mut order) = self.order.take() else {
            self.go_on();
            return Ok(());
        };
        let Some(client) = order.client else {
            self.save(&order)?;
            self.exits.ending.saved();
            return Ok(());
        };
        let Some(control) = self.control.clone() else { return Ok(()) };
        let wanted = lock(&control).knows(client);
        if order.stands && wanted {
            self.order = Some(order);
            return Ok(());
        }
        let wanted = wanted && !order.stands;
        let saved = if wanted { self.save(&order) } else { Ok(()) };
        let response = match &saved {
            Ok(()) => Response::Done,
            Err(error) => refuse(&error.to_string()),
        };
        lock(&control).answer(client, &response);
        match order.then {
            Then::End if wanted && saved.is_ok() => self.exits.ending.saved(),
            Then::Stand if wanted && saved.is_ok() => {
                order.stands = true;
                self.order = Some(order);
            }
            _ => self.go_on(),
        }
        Ok(())
    }

    fn go_on(&self) {
        self.save_point.done();
        self.resume();
    }

    fn plug(&mut self, mac: [u8; 6], mtu: Option<u16>, tap: Option<OwnedFd>) -> Response {
        match self.places.plug(&mut self.events, mac, mtu, tap) {
            Ok(()) => Response::Done,
            Err(error) => refuse(&error.to_string()),
        }
    }

    fn pause(&self) -> Response {
        let gate = &self.exits.gate;
        gate.close();
        if gate.wait_parked() {
            return Response::Done;
        }
        self.save_point.open_gate();
        refuse("a vCPU does not stop")
    }

    fn resume(&self) -> Response {
        let gate = &self.exits.gate;
        if gate.is_closed() {
            for vcpu in &self.vcpus {
                // Tells the guest's watchdogs that time has passed without it; a guest that has no
                // kvm-clock has nothing to be told (EINVAL).
                let _ = vcpu.lock().kvmclock_ctrl();
            }
            self.save_point.open_gate();
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

fn lock(control: &Mutex<Control>) -> MutexGuard<'_, Control> {
    control.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse(message: &str) -> Response {
    Response::Refused { message: message.to_owned() }
}
