//! The boot-mark port: what each mark sets off, and what the guest reads there.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_devices::boot_mark::BootMark as Port;
use bulkhead_protocol::{BootMark, GuestInfo};
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_sys_util::eventfd::EventFd;

use crate::save_point::SavePoint;
use crate::timeline::Timeline;

/// What the marks of a VM are connected to.
pub struct Marks {
    /// Signalled when the agent listens.
    pub ready: EventFd,
    /// Stamped.
    pub timeline: Timeline,
    /// Reached when the agent waits.
    pub save_point: Arc<SavePoint>,
    /// The guest goes on from a snapshot, and is told so once.
    pub restored: bool,
}

impl Marks {
    /// The port.
    pub fn port(self) -> Port {
        let mut info = Info { restored: self.restored, ..Info::default() };
        let answer = Box::new(move |data: &mut [u8]| info.read(data));
        Port::new(Box::new(move |mark| self.reached(mark)), answer)
    }

    /// Runs on the vCPU's thread.
    fn reached(&self, mark: u8) {
        match BootMark::try_from(mark) {
            Ok(BootMark::Kernel) => self.timeline.mark("kernel"),
            Ok(BootMark::Init) => self.timeline.mark("init"),
            Ok(BootMark::AgentReady) => {
                self.timeline.mark("agent_ready");
                // A counter that is full is as good a signal.
                let _ = self.ready.write(1);
            }
            Ok(BootMark::Waiting) => {
                self.timeline.mark("waiting");
                self.save_point.reach();
            }
            Ok(BootMark::Started) => self.timeline.mark("started"),
            Err(_) => {}
        }
    }
}

/// Answers the guest's questions who it is.
#[derive(Default)]
struct Info {
    /// What is left of a [`GuestInfo`] that the guest is reading, last word first.
    left: Vec<u32>,
    /// The next one says that the guest was restored.
    restored: bool,
}

impl Info {
    /// Answers a read of a doubleword; others read as all ones.
    fn read(&mut self, data: &mut [u8]) {
        let Ok(to) = <&mut [u8; 4]>::try_from(data) else { return };
        if self.left.is_empty() {
            let info = guest_info(std::mem::take(&mut self.restored));
            self.left.extend(info.to_words().iter().rev());
        }
        *to = self.left.pop().unwrap_or(u32::MAX).to_le_bytes();
    }
}

fn guest_info(restored: bool) -> GuestInfo {
    let mut seed = [0; GuestInfo::SEED_LEN];
    // Below 256 bytes it is all or nothing; without, the guest is told that it has no seed.
    let seeded = getrandom(&mut seed, GetRandomFlags::empty()).is_ok_and(|len| len == seed.len());
    // Not rustix's clock, which looks for the vDSO when first asked, by a call that the jail forbids.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let realtime_ns = now.as_nanos() as u64;
    GuestInfo { realtime_ns, seed: seeded.then_some(seed), restored }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_reads_what_makes_it_itself_anew_each_time() {
        let mut info = Info { restored: true, ..Info::default() };
        let mut read = || {
            let words = std::array::from_fn(|_| {
                let mut data = [0; 4];
                info.read(&mut data);
                u32::from_le_bytes(data)
            });
            GuestInfo::from_words(words).unwrap()
        };
        let (one, two) = (read(), read());
        assert_ne!(one.seed.unwrap(), two.seed.unwrap());
        assert!(one.realtime_ns < two.realtime_ns);
        assert_eq!((one.restored, two.restored), (true, false));
    }
}
