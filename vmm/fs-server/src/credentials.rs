//! Whose a new file is, and which of root's privileges a write may use.
//!
//! A new object must belong to the caller from its first moment. Creating it as root and changing
//! its owner after that leaves a moment in which it is root's, loses set-id bits, and charges the
//! wrong quota; so the thread takes on the caller's file system user and group IDs (setfsuid(2),
//! which concern one thread only) for the length of the system call that creates.
//!
//! The kernel takes a thread's file privileges (CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD...)
//! away when its fsuid leaves 0. That is wanted: without CAP_FSETID the host's kernel applies its
//! own rule on set-group-ID files in set-group-ID directories (this server's supplementary groups,
//! the cause of CVE-2022-0358 elsewhere, are dropped at start). Only CAP_DAC_OVERRIDE is raised
//! again: the guest's kernel has checked the caller's access with all of the caller's groups, of
//! which the host's kernel here knows one.

use rustix::process::{getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
};

/// Capabilities that the kernel clears when a thread's fsuid leaves 0 (`CAP_FS_SET` of
/// include/linux/capability.h).
const FILE_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::MAC_OVERRIDE);

/// Permission bits that lend the owner's or the group's identity to whoever runs the file.
pub const SET_ID_BITS: u32 = 0o6000;

/// What the server's threads are when they are nobody else; the same for each.
#[derive(Debug)]
pub struct Credentials {
    uid: u32,
    gid: u32,
    /// `None` if the kernel does not tell: then nothing is ever lowered or raised.
    capabilities: Option<CapabilitySets>,
    /// Whether this process can take on other identities at all.
    can_assume: bool,
}

/// An identity taken on until dropped.
#[derive(Debug)]
pub struct Assumed<'a> {
    credentials: &'a Credentials,
    switched: bool,
    complete: bool,
}

/// CAP_FSETID given up until dropped.
#[derive(Debug)]
pub struct WithoutFsetid<'a>(Option<&'a CapabilitySets>);

impl Credentials {
    /// Finds out what this thread may do and drops its supplementary groups.
    pub fn new() -> Self {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let capabilities = capabilities(None).ok();
        let can_assume = capabilities.as_ref().is_some_and(|sets| {
            sets.effective.contains(CapabilitySet::SETUID | CapabilitySet::SETGID)
        });
        if can_assume {
            // Refused in a user namespace without setgroups, whose groups are harmless then:
            // they are not the guest's to choose.
            let _ = set_thread_groups(&[]);
        }
        Self { uid, gid, capabilities, can_assume }
    }

    /// Makes this thread create files as `uid` and `gid` until the guard is dropped.
    ///
    /// Where that cannot be (the server is not root, or its user namespace does not know the ID),
    /// files belong to the server's own user, and [`Assumed::mode`] takes set-id bits off them.
    pub fn assume(&self, uid: u32, gid: u32) -> Assumed<'_> {
        if (uid, gid) == (self.uid, self.gid) {
            return Assumed { credentials: self, switched: false, complete: true };
        }
        if !self.can_assume {
            return Assumed { credentials: self, switched: false, complete: false };
        }
        let complete = set_fsgid(gid) && set_fsuid(uid);
        if uid != self.uid
            && let Some(own) = &self.capabilities
        {
            let kept = own.effective.difference(FILE_CAPABILITIES)
                | (own.effective & CapabilitySet::DAC_OVERRIDE);
            // Without it some creations fail with EACCES that the guest's kernel would allow.
            let _ = set_capabilities(None, with_effective(own, kept));
        }
        Assumed { credentials: self, switched: true, complete }
    }

    /// Gives up CAP_FSETID, so that the kernel clears set-id bits of files this thread writes to
    /// or truncates, as it would for the caller.
    pub fn without_fsetid(&self) -> WithoutFsetid<'_> {
        let own = self
            .capabilities
            .as_ref()
            .filter(|sets| sets.effective.contains(CapabilitySet::FSETID));
        if let Some(own) = own {
            let lowered = own.effective.difference(CapabilitySet::FSETID);
            // Lowering an own capability is always allowed.
            let _ = set_capabilities(None, with_effective(own, lowered));
        }
        WithoutFsetid(own)
    }
}

impl Assumed<'_> {
    /// The permission bits a file may be created with: all of `mode` if its owner will be the
    /// caller, none that lend the server's identity otherwise.
    pub fn mode(&self, mode: u32) -> u32 {
        if self.complete { mode } else { mode & !SET_ID_BITS }
    }
}

impl Drop for Assumed<'_> {
    fn drop(&mut self) {
        if self.switched {
            set_fsuid(self.credentials.uid);
            set_fsgid(self.credentials.gid);
            if let Some(own) = &self.credentials.capabilities {
                // Raising what is permitted is always allowed.
                let _ = set_capabilities(None, with_effective(own, own.effective));
            }
        }
    }
}

impl Drop for WithoutFsetid<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.0 {
            // As above.
            let _ = set_capabilities(None, with_effective(own, own.effective));
        }
    }
}

fn with_effective(own: &CapabilitySets, effective: CapabilitySet) -> CapabilitySets {
    CapabilitySets { effective, permitted: own.permitted, inheritable: own.inheritable }
}

/// Sets this thread's fsuid and says whether it is `uid` now; the call itself reports no errors.
fn set_fsuid(uid: u32) -> bool {
    // SAFETY: the system call takes a number and touches no memory of ours.
    unsafe {
        libc::syscall(libc::SYS_setfsuid, uid);
        // An ID that is none changes nothing and returns the one in force.
        libc::syscall(libc::SYS_setfsuid, u32::MAX) == i64::from(uid)
    }
}

/// Sets this thread's fsgid and says whether it is `gid` now.
fn set_fsgid(gid: u32) -> bool {
    // SAFETY: as in `set_fsuid`.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsgid, u32::MAX) == i64::from(gid)
    }
}
