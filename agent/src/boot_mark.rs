//! Stamps points of the VM's timeline by a byte to the VMM's boot-mark port.

use bulkhead_protocol::{BOOT_MARK_PORT, BootMark};

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
        // SAFETY: ioperm changes nothing but this thread's I/O permission bitmap, by one port.
        let allowed = unsafe { libc::ioperm(libc::c_ulong::from(BOOT_MARK_PORT), 1, 1) } == 0;
        Self { allowed }
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
