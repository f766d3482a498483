//! The Status register: how far the driver has got (virtio 1.3, 2.1 and 3.1.1).
//!
//! ```text
//!  0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK ─▶ device works
//!                                     │              │
//!                              refused: bit      refused: DEVICE_NEEDS_RESET
//!                              stays clear
//!  any state ─▶ FAILED: nothing goes forward any more; only a write of 0 leads out of it
//! ```

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// The steps of initialisation in the order the driver must take them.
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// The Status register's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status(u32);

/// A step the driver asks for; the transport decides, then calls [`Status::set`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Acknowledge,
    Driver,
    FeaturesOk,
    DriverOk,
}

impl Step {
    fn bit(self) -> u32 {
        STEPS[self as usize]
    }
}

impl Status {
    /// A saved register; `None` if no driver can have got there: an unknown bit, or a step without
    /// one before it.
    pub(super) fn restored(bits: u32) -> Option<Self> {
        let steps: u32 = STEPS.iter().sum();
        let known = steps | VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET;
        let taken = STEPS.map(|bit| bits & bit != 0);
        let in_order = taken.windows(2).all(|pair| pair[0] || !pair[1]);
        (bits & !known == 0 && in_order).then_some(Self(bits))
    }

    /// The driver is done and the device has not given up.
    pub(super) fn is_working(self) -> bool {
        self.driver_ok() && !self.has(VIRTIO_CONFIG_S_NEEDS_RESET)
    }

    /// The register's bits.
    pub(super) fn bits(self) -> u32 {
        self.0
    }

    /// The driver may write its feature bits.
    pub(super) fn takes_features(self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER) && !self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.failed()
    }

    /// Both sides agreed on features.
    pub(super) fn features_ok(self) -> bool {
        self.has(VIRTIO_CONFIG_S_FEATURES_OK)
    }

    /// The driver may configure queues.
    pub(super) fn takes_queues(self) -> bool {
        self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.driver_ok() && !self.failed()
    }

    /// The driver knows how to drive the device and may write its configuration space.
    pub(super) fn has_driver(self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER)
    }

    /// The driver is done with initialisation.
    pub(super) fn driver_ok(self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER_OK)
    }

    /// The next step that a driver's write of `value` asks for: `None` if there is none, if the
    /// write takes back a step, or if a step before it is missing.
    pub(super) fn next_step(self, value: u32) -> Option<Step> {
        let driver_bits = self.0 & !VIRTIO_CONFIG_S_NEEDS_RESET;
        if self.failed() || value & driver_bits != driver_bits {
            return None;
        }
        [Step::Acknowledge, Step::Driver, Step::FeaturesOk, Step::DriverOk]
            .into_iter()
            .find(|step| !self.has(step.bit()))
            .filter(|step| value & step.bit() != 0)
    }

    /// Records that a step was taken.
    pub(super) fn set(&mut self, step: Step) {
        self.0 |= step.bit();
    }

    /// The driver gave up.
    pub(super) fn set_failed(&mut self, value: u32) {
        self.0 |= value & VIRTIO_CONFIG_S_FAILED;
    }

    /// The device gave up.
    pub(super) fn set_needs_reset(&mut self) {
        self.0 |= VIRTIO_CONFIG_S_NEEDS_RESET;
    }

    fn failed(self) -> bool {
        self.has(VIRTIO_CONFIG_S_FAILED)
    }

    fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the driver writes, a step is only there when all before it are.
        #[test]
        fn steps_are_taken_in_order(writes in proptest::collection::vec(0u32..256, 0..12)) {
            let mut status = Status::default();
            for value in writes {
                while let Some(step) = status.next_step(value) {
                    status.set(step);
                }
                status.set_failed(value);
                let taken = STEPS.map(|bit| status.has(bit));
                prop_assert!(taken.windows(2).all(|pair| pair[0] || !pair[1]), "{taken:?}");
            }
        }
    }

    #[test]
    fn a_write_cannot_take_a_step_back() {
        let mut status = Status::default();
        status.set(Step::Acknowledge);
        status.set(Step::Driver);
        assert_eq!(status.next_step(VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK), None);
        assert_eq!(status.next_step(3 | VIRTIO_CONFIG_S_FEATURES_OK), Some(Step::FeaturesOk));
    }

    #[test]
    fn a_failed_driver_gets_no_further() {
        let mut status = Status::default();
        status.set_failed(VIRTIO_CONFIG_S_FAILED);
        assert_eq!(status.next_step(VIRTIO_CONFIG_S_FAILED | 1), None);
        assert!(!status.takes_features() && !status.takes_queues());
    }
}
