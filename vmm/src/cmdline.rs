//! The guest's kernel command line.

use bulkhead_protocol::TEMPLATE;
use linux_loader::cmdline::{Cmdline, Error};
use vm_memory::GuestAddress;

use crate::layout::{CMDLINE_LEN_MAX, MMIO_BASE, MMIO_GSI_BASE, MMIO_WINDOW};
use crate::spec::VmSpec;

/// - `reboot=t panic=-1`: a restart or panic is a triple fault, which ends the VM at once.
/// - `no_timer_check`: KVM's timer interrupts are not in doubt.
/// - `dummy.numdummies=0`: no interface but those of the container.
/// - `tsc=nowatchdog`: the TSC is not compared twice a second with kvm-clock, which is made of it.
/// - `noreplace-smp`: leaves lock prefixes alone: patching them out costs more than they do.
const BASE: &str =
    "reboot=t panic=-1 no_timer_check noreplace-smp dummy.numdummies=0 tsc=nowatchdog";
const WITH_CONSOLE: &str = "console=ttyS0 8250.nr_uarts=1";
const WITHOUT_CONSOLE: &str = "quiet 8250.nr_uarts=0";
/// Places of a MiB of memory in the tables of known names and files, a quarter and an eighth of Linux's own
/// measure: each name that a clone looks up lands on a page of the table, which is then a page of its own.
const NAMES_A_MIB: u32 = 32;
const FILES_A_MIB: u32 = 8;

/// The command line for `spec` with `devices` virtio-mmio devices.
pub fn build(spec: &VmSpec, devices: u32) -> Result<Cmdline, Error> {
    let mut cmdline = Cmdline::new(CMDLINE_LEN_MAX)?;
    cmdline.insert_str(BASE)?;
    cmdline.insert_str(if spec.console { WITH_CONSOLE } else { WITHOUT_CONSOLE })?;
    if spec.template.is_some() {
        cmdline.insert(TEMPLATE, "1")?;
    }
    cmdline.insert("dhash_entries", &(spec.memory_mib * NAMES_A_MIB).to_string())?;
    cmdline.insert("ihash_entries", &(spec.memory_mib * FILES_A_MIB).to_string())?;
    for device in 0..devices {
        let window = GuestAddress(MMIO_BASE + u64::from(device) * MMIO_WINDOW);
        cmdline.add_virtio_mmio_device(MMIO_WINDOW, window, MMIO_GSI_BASE + device, None)?;
    }
    for word in &spec.cmdline {
        cmdline.insert_str(word)?;
    }
    Ok(cmdline)
}
