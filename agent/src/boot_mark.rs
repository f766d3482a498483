//! Stamps points of the VM's timeline by a byte to the VMM's boot-mark port.

use bulkhead_protocol::{BOOT_MARK_PORT, BootMark, GuestInfo};

/// Ports that a doubleword read touches.
const PORTS: libc::c_ulong = 4;

/// Writes the marks; outside of a VM of ours it does nothing.
#[derive(Clone, Copy, Debug)]
pub struct BootMarks {
    allowed: bool,
}

impl BootMarks {
    /// Marks nothing: for an agent that runs outside of a VM.
    pub fn disabled() -> Self {
        Self { allowed: false }
    }

    /// Asks the kernel for the port (ioperm(2)); without it (no CAP_SYS_RAWIO, a kernel without
    /// X86_IOPL_IOPERM) nothing is marked.
    pub fn enable() -> Self {
        // SAFETY: ioperm changes nothing but this thread's I/O permission bitmap, by these ports.
        let allowed = unsafe { libc::ioperm(libc::c_ulong::from(BOOT_MARK_PORT), PORTS, 1) } == 0;
        Self { allowed }
    }

    /// Whether there is a port to write to.
    pub fn are_enabled(self) -> bool {
        self.allowed
    }

    /// Asks the VMM who this VM is; `None` where none of ours answers.
    pub fn read_info(self) -> Option<GuestInfo> {
        if !self.allowed {
            return None;
        }
        GuestInfo::from_words(std::array::from_fn(|_| {
            let word;
            // SAFETY: ioperm granted these ports; reading them touches no memory.
            unsafe {
                std::arch::asm!(
                    "in eax, dx",
                    in("dx") BOOT_MARK_PORT,
                    out("eax") word,
                    options(nomem, nostack, preserves_flags),
                );
            }
            word
        }))
    }

    /// Stamps `mark`.
    pub fn stamp(self, mark: BootMark) {
        if self.allowed {
            // SAFETY: ioperm granted this port; the VMM's device behind it (or nothing at all, on
            // other machines) takes a byte and touches no memory.
            unsafe {
                std::arch::asm!(
                    "out dx, al",
                    in("dx") BOOT_MARK_PORT,
                    in("al") mark as u8,
                    options(nomem, nostack, preserves_flags),
                );
            }
        }
    }
}
