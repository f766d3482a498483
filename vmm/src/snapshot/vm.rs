//! What KVM keeps for a whole VM: interrupt controllers, timer, clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::{SnapshotError, kvm};

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// Saved interrupt controllers, timer and clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InterruptState {
    chips: [kvm_irqchip; 3],
    /// `None` on a host whose KVM has TSC deadline timers: there is no PIT then.
    pit: Option<kvm_pit_state2>,
    clock: kvm_clock_data,
}

impl InterruptState {
    /// Reads the state of a VM whose vCPUs stand still.
    pub fn save(vm: &VmFd, has_pit: bool) -> Result<Self, SnapshotError> {
        let mut chips = CHIPS.map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            vm.get_irqchip(chip).map_err(kvm("KVM_GET_IRQCHIP"))?;
        }
        let pit = has_pit.then(|| vm.get_pit2().map_err(kvm("KVM_GET_PIT2"))).transpose()?;
        let clock = vm.get_clock().map_err(kvm("KVM_GET_CLOCK"))?;
        // Without flags the guest's clock goes on from where it stood, not from what time it is now.
        let clock = kvm_clock_data { flags: 0, ..clock };
        Ok(Self { chips, pit, clock })
    }

    /// Makes a fresh VM, whose vCPUs are restored, what the saved one was.
    pub fn restore(&self, vm: &VmFd, has_pit: bool) -> Result<(), SnapshotError> {
        for (chip, chip_id) in self.chips.iter().zip(CHIPS) {
            if chip.chip_id != chip_id {
                return Err(SnapshotError::Damaged("its interrupt controllers are out of order"));
            }
            vm.set_irqchip(chip).map_err(kvm("KVM_SET_IRQCHIP"))?;
        }
        match &self.pit {
            Some(pit) if has_pit => vm.set_pit2(pit).map_err(kvm("KVM_SET_PIT2"))?,
            None if !has_pit => {}
            _ => return Err(SnapshotError::Shape("timers")),
        }
        let clock = kvm_clock_data { clock: self.clock.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(kvm("KVM_SET_CLOCK"))
    }
}
