//! [`VmSpec`]: everything a VM is, as plain data.
//!
//! Built in one place (the runtime's plan) and only read after that. It travels to `bulkhead-vmm`
//! as JSON on an inherited file descriptor (`--spec-fd N`).

use std::num::NonZeroU64;
use std::path::PathBuf;

pub use bulkhead_devices::rate_limiter::{Rate, RateLimits};
pub use bulkhead_devices::vsock::caps::{self, Caps};
pub use bulkhead_fs_server::limits::OPEN_FILES;
use serde::{Deserialize, Serialize};

pub use crate::idmap::{IdMap, IdRange};

/// Everything a VM is. The default is no VM, only a start for one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Name for messages, unique on the host.
    pub name: String,
    /// Number of vCPUs, 1..=[`VCPUS_MAX`].
    pub vcpus: u8,
    /// Guest memory in MiB, [`MEMORY_MIB_MIN`]..=[`MEMORY_MIB_MAX`].
    pub memory_mib: u32,
    /// The guest kernel: an ELF vmlinux with a PVH note, or a bzImage.
    pub kernel: PathBuf,
    /// The program that becomes /init of the initramfs (the agent).
    pub init: PathBuf,
    /// Words added to the kernel command line.
    #[serde(default)]
    pub cmdline: Vec<String>,
    /// The guest's vsock context ID, 3 or more.
    pub cid: u32,
    /// The VM's vsock Unix socket (Firecracker's hybrid convention). Guest connections to host port
    /// `P` go to `<vsock>_P`.
    pub vsock: PathBuf,
    /// An inherited fd that listens on [`VmSpec::vsock`] already; without it the VMM binds the path.
    #[serde(default)]
    pub vsock_fd: Option<i32>,
    /// An inherited Unix stream socket that listens for [`crate::control`] clients.
    #[serde(default)]
    pub control_fd: Option<i32>,
    /// Host directories and files the guest sees under the one virtio-fs mount, by name.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// Length of the window to which the guest maps files, MiB, a multiple of 2: none if 0, and
    /// [`WINDOW_MIB`] if not given.
    #[serde(default)]
    pub window_mib: Option<u16>,
    /// Network interfaces; the guest calls them eth0, eth1, ... in this order.
    #[serde(default)]
    pub nets: Vec<NetSpec>,
    /// Places for further interfaces, which the guest finds empty until one is plugged in
    /// ([`crate::control::Request::Plug`]).
    #[serde(default)]
    pub net_places: u8,
    /// Limits on what the guest asks of its devices.
    #[serde(default)]
    pub limits: Limits,
    /// The container has a terminal: stdin and stdout are its two directions, stderr is unused.
    #[serde(default)]
    pub terminal: bool,
    /// Joins the guest's serial console to stderr.
    #[serde(default)]
    pub console: bool,
    /// The VM is not run for a container: it is saved to these files when its agent waits for one.
    #[serde(default)]
    pub template: Option<SnapshotFiles>,
    /// The VM does not boot: it goes on where the snapshot in these files stands.
    #[serde(default)]
    pub restore: Option<SnapshotFiles>,
    /// An inherited fd: which of the restored memory is got ready before the guest runs (see
    /// [`crate::snapshot::WorkingSet`]).
    #[serde(default)]
    pub working_set_fd: Option<i32>,
    /// An inherited fd that gets a [`Report`] as one line of JSON when the VM has ended.
    #[serde(default)]
    pub report_fd: Option<i32>,
    /// Signals that reach the VMM, and changes of its terminal's size, are passed on to the guest.
    #[serde(default)]
    pub host_events: bool,
    /// An inherited pipe: a byte from it lets the VMM live on by itself, its end without one ends
    /// the VM. Without it nobody holds the VMM on a leash.
    #[serde(default)]
    pub leash_fd: Option<i32>,
    /// The ID of the process that starts the VMM, if it is to die with that one and to leave to it the
    /// signals that a terminal or a process group sends to both.
    #[serde(default)]
    pub dies_with: Option<u32>,
    /// What the VMM and its file worker give up before the guest runs.
    #[serde(default)]
    pub jail: Confinement,
    /// Inherited descriptors of which only being open matters: the lock of the VM's directory.
    #[serde(default)]
    pub keep_fds: Vec<i32>,
    /// CLOCK_MONOTONIC in ns at which the timeline begins; collects a timeline if set.
    #[serde(default)]
    pub timeline_from_ns: Option<u64>,
}

/// A snapshot's two files, as inherited fds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotFiles {
    /// The state file (see [`crate::snapshot`]).
    pub state_fd: i32,
    /// The memory file.
    pub memory_fd: i32,
    /// The memory file that this one may be the difference from.
    #[serde(default)]
    pub base_fd: Option<i32>,
}

/// A host directory or single file that the guest may see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Its name in the root directory of the virtio-fs mount: "rootfs", "v0".
    pub name: String,
    /// The host path; a name for messages alone if there is an `fd`.
    pub source: PathBuf,
    /// An inherited descriptor (`O_PATH` will do) that is shared instead of the path: a mount of its
    /// own, from whose top `..` leads nowhere.
    #[serde(default)]
    pub fd: Option<i32>,
    /// Refuses every write on the host's side.
    #[serde(default)]
    pub readonly: bool,
    /// Leaves out what is mounted below it: its own file system alone.
    #[serde(default)]
    pub flat: bool,
    /// Who owns its files; the same IDs as in the guest if not given.
    #[serde(default)]
    pub idmap: Option<IdMap>,
    /// Of a VM that is restored: a copy that was made when it was saved.
    #[serde(default)]
    pub copied: bool,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// An inherited fd of this kind. Without it the interface has no carrier, until a tap is plugged in
    /// ([`VmSpec::net_places`]).
    #[serde(default)]
    pub link_fd: Option<i32>,
    /// What the interface is joined to; a template's, what its clones will be joined to.
    #[serde(default)]
    pub kind: LinkKind,
    /// Its address: not zero, not a group's.
    pub mac: [u8; 6],
    /// The most bytes of a frame's payload, [`MTU_MIN`] or more; the driver's default if not given.
    #[serde(default)]
    pub mtu: Option<u16>,
}

/// What a network interface is joined to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// /dev/net/tun, attached to a tap with IFF_NO_PI and IFF_VNET_HDR.
    #[default]
    Tap,
    /// A Unix stream socket to another process, with frames as QEMU's `-netdev stream` has them.
    Stream,
}

/// How much a guest may ask of its devices in a second, of which nothing is limited by default but the
/// console; and how much it may have them hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests to the file server; the bytes of them and of the room for their replies.
    pub fs: RateLimits,
    /// The most files the file server has open, nearly all of them for the guest: one of
    /// [`OPEN_FILES`], of which the last is the default.
    pub fs_files: Option<u32>,
    /// vsock packets from the guest: its output, and answers of its agent.
    pub vsock: RateLimits,
    /// [`Caps::connections`], if not the default.
    pub vsock_connections: Option<u32>,
    /// [`Caps::buffer_bytes`], if not the default.
    pub vsock_buffer: Option<u32>,
    /// Requests for random bytes.
    pub rng: RateLimits,
    /// Frames to the guest, of each interface.
    pub net_rx: RateLimits,
    /// Frames from the guest, of each interface.
    pub net_tx: RateLimits,
    /// Bytes of the serial console; [`CONSOLE_RATE`] by default. What comes faster is lost.
    pub console: Option<Rate>,
}

impl Limits {
    /// What the guest's vsock connections may come to.
    pub fn vsock_caps(&self) -> Caps {
        let usual = Caps::default();
        Caps {
            connections: self.vsock_connections.unwrap_or(usual.connections),
            buffer_bytes: self.vsock_buffer.unwrap_or(usual.buffer_bytes),
        }
    }
}

/// 64 KiB a second, and a MiB at once: many times what a kernel says in its life.
pub const CONSOLE_RATE: Rate = Rate {
    per_second: NonZeroU64::new(64 << 10).unwrap(),
    burst: NonZeroU64::new(1 << 20).unwrap(),
};

/// The most network interfaces of a VM: they share [`crate::layout::GSI_LAST`]'s interrupt lines
/// with the other devices.
pub const NETS_MAX: usize = 8;
/// The least MTU that IPv4 allows (RFC 791); with IPv6 it is 1280.
pub const MTU_MIN: u16 = 68;
/// What a VMM gives up before its guest runs, weakest first; see [`crate::jail`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confinement {
    /// Nothing: to find out what is wrong with a jail, never for strangers' code.
    Off,
    /// All it does not need; if that fails, the guest does not run. Landlock, core scheduling and a
    /// user of the VM's own where the host has them.
    #[default]
    Strict,
    /// The same, and the guest does not run where the host lacks one of these. Its memory is shared
    /// with no other VM, so the runtime makes no clone of a template of it.
    Sealed,
}

/// The most vCPUs a VM may have: what the guest kernel is built for (NR_CPUS).
pub const VCPUS_MAX: u8 = 32;
/// The least memory, MiB, in which the guest kernel boots.
pub const MEMORY_MIB_MIN: u32 = 48;
/// The most memory, MiB: 1 TiB, far above any host this was tried on.
pub const MEMORY_MIB_MAX: u32 = 1 << 20;

/// Length of the DAX window, MiB: room for the programs and libraries of a container. The guest's kernel
/// keeps 1 MiB of its memory for it. On the lab's exact clock a cold boot comes to /init 1.2 ms later for
/// it, and to a container's output 1.6 ms sooner.
pub const WINDOW_MIB: u16 = 64;

/// How a VM ended, as written to [`VmSpec::report_fd`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What ended it.
    pub outcome: Outcome,
    /// Points of the timeline in the order they were reached, if it was asked for.
    #[serde(default)]
    pub timeline: Vec<Mark>,
}

/// What ended a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The container's process ended; the agent reported it.
    Exited {
        /// 0..=255; 128 + n for a signal.
        code: u8,
        /// The guest kernel ran out of memory.
        oom_killed: bool,
    },
    /// The VM was saved ([`VmSpec::template`]).
    Saved,
    /// The VM could not start or ended without the agent's report. One sentence, then, if the
    /// guest kernel panicked, its last lines.
    Failed {
        /// The sentence.
        message: String,
        /// The guest kernel's last log lines, oldest first.
        #[serde(default)]
        kernel_log: Vec<String>,
    },
}

/// A point of the timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What was reached: "vmm_main", "first_run", "init", "agent_ready", "first_output".
    pub phase: String,
    /// ns since [`VmSpec::timeline_from_ns`].
    pub ns: u64,
    /// VM exits of all vCPUs so far, as KVM counts them; `None` where KVM does not say.
    pub exits: Option<u64>,
}

/// A field of a [`VmSpec`] that no VM can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs asked for; a VM has 1 to {VCPUS_MAX}")]
    Vcpus(u8),
    /// Too little or too much memory.
    #[error("{0} MiB of memory asked for; a VM has {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX} MiB")]
    Memory(u32),
    /// No whole number of mappings.
    #[error("a DAX window of {0} MiB was asked for; it takes a multiple of 2")]
    Window(u16),
    /// A reserved context ID.
    #[error("vsock context ID {0} is reserved; use 3 or more")]
    Cid(u32),
    /// Too few or too many vsock connections, or buffers too small or too large.
    #[error(
        "{} vsock connections with buffers of {} bytes asked for; a VM has {} to {} of {} to {} bytes",
        .0.connections, .0.buffer_bytes, caps::CONNECTIONS.start(), caps::CONNECTIONS.end(),
        caps::BUFFER_BYTES.start(), caps::BUFFER_BYTES.end()
    )]
    VsockCaps(Caps),
    /// Too few or too many open files.
    #[error("{files} files asked for; a file server has {} to {} open", OPEN_FILES.start(), OPEN_FILES.end(), files = .0)]
    FsFiles(u32),
    /// A share name that is no file name, or is there twice.
    #[error("share name {0:?} is not a plain, unique file name")]
    ShareName(String),
    /// IDs that do not exist, or a share whose owners cannot be translated.
    #[error(
        "idmap: there are no such IDs, or a share comes as a descriptor, whose owners stay as they are"
    )]
    IdMap,
    /// More network interfaces than fit.
    #[error("{0} network interfaces asked for; a VM has at most {NETS_MAX}")]
    Nets(usize),
    /// An address no interface can have.
    #[error("network interface {0} has no address of its own: its MAC is zero or a group's")]
    Mac(usize),
    /// Too small an MTU.
    #[error("network interface {index} has an MTU of {mtu}; it takes at least {MTU_MIN}")]
    Mtu {
        /// The interface's place in the list.
        index: usize,
        /// What was asked for.
        mtu: u16,
    },
}

/// Whether a share may be called `name`: as an entry of a directory.
pub fn is_share_name(name: &str) -> bool {
    let component = !name.is_empty() && name != "." && name != "..";
    component && name.len() <= 255 && !name.contains(['/', '\0'])
}

impl VmSpec {
    /// The inherited descriptors it names. Strict VMMs close all others above stderr first of all.
    pub fn inherited_fds(&self) -> impl Iterator<Item = i32> {
        let own =
            [self.vsock_fd, self.control_fd, self.report_fd, self.leash_fd, self.working_set_fd];
        let own = own.into_iter();
        let links = self.nets.iter().map(|net| net.link_fd);
        let shares = self.shares.iter().map(|share| share.fd);
        let snapshots = [&self.template, &self.restore].into_iter().flatten();
        let snapshots = snapshots
            .flat_map(|files| [Some(files.state_fd), Some(files.memory_fd), files.base_fd]);
        let all = own.chain(links).chain(shares).chain(snapshots).flatten();
        all.chain(self.keep_fds.iter().copied())
    }

    /// Length of the DAX window, MiB; 0 if there is none.
    pub fn window_mib(&self) -> u16 {
        self.window_mib.unwrap_or(WINDOW_MIB)
    }

    /// Checks what the type cannot say.
    pub fn check(&self) -> Result<(), SpecError> {
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return Err(SpecError::Vcpus(self.vcpus));
        }
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(SpecError::Memory(self.memory_mib));
        }
        if !self.window_mib().is_multiple_of(2) {
            return Err(SpecError::Window(self.window_mib()));
        }
        if self.cid < 3 || self.cid == u32::MAX {
            return Err(SpecError::Cid(self.cid));
        }
        let caps = self.limits.vsock_caps();
        if !caps.are_possible() {
            return Err(SpecError::VsockCaps(caps));
        }
        if let Some(files) = self.limits.fs_files.filter(|files| !OPEN_FILES.contains(files)) {
            return Err(SpecError::FsFiles(files));
        }
        for (i, share) in self.shares.iter().enumerate() {
            let name = share.name.as_str();
            if !is_share_name(name) || self.shares[..i].iter().any(|other| other.name == name) {
                return Err(SpecError::ShareName(name.to_owned()));
            }
        }
        let mapped = self.shares.iter().filter_map(|share| Some((share.fd, share.idmap.as_ref()?)));
        if mapped.into_iter().any(|(fd, ids)| fd.is_some() || !ids.is_possible()) {
            return Err(SpecError::IdMap);
        }
        self.check_nets()
    }

    fn check_nets(&self) -> Result<(), SpecError> {
        let nets = self.nets.len() + usize::from(self.net_places);
        if nets > NETS_MAX {
            return Err(SpecError::Nets(nets));
        }
        for (index, net) in self.nets.iter().enumerate() {
            // The lowest bit of the first byte is that of groups (IEEE 802).
            if net.mac == [0; 6] || net.mac[0] & 1 != 0 {
                return Err(SpecError::Mac(index));
            }
            if let Some(mtu) = net.mtu.filter(|mtu| *mtu < MTU_MIN) {
                return Err(SpecError::Mtu { index, mtu });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> VmSpec {
        let json = format!(
            r#"{{"name":"n","vcpus":1,"memory_mib":128,"kernel":"/k","init":"/i","cid":3,"vsock":"/v",{json}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn caps_are_the_usual_ones_or_in_their_ranges() {
        let limits = |json: &str| spec(&format!(r#""limits":{{{json}}}"#));
        assert_eq!(limits("").limits.vsock_caps(), Caps::default());
        let small = limits(r#""vsock_connections":8,"vsock_buffer":4096"#);
        assert_eq!(small.limits.vsock_caps(), Caps { connections: 8, buffer_bytes: 4096 });
        assert_eq!(small.check(), Ok(()));
        assert_eq!(limits(r#""fs_files":1023"#).check(), Err(SpecError::FsFiles(1023)));
        for bad in [
            r#""vsock_connections":7"#,
            r#""vsock_connections":1025"#,
            r#""vsock_buffer":4095"#,
            r#""vsock_buffer":1048577"#,
        ] {
            assert!(matches!(limits(bad).check(), Err(SpecError::VsockCaps(_))), "{bad}");
        }
    }

    #[test]
    fn interfaces_are_checked() {
        let net = |mac: &str, rest: &str| spec(&format!(r#""nets":[{{"mac":{mac}{rest}}}]"#));
        assert_eq!(net("[2,0,0,0,0,1]", r#","mtu":68,"link_fd":5"#).check(), Ok(()));
        assert_eq!(net("[0,0,0,0,0,0]", "").check(), Err(SpecError::Mac(0)));
        assert_eq!(net("[1,0,0,0,0,1]", "").check(), Err(SpecError::Mac(0)));
        let small = net("[2,0,0,0,0,1]", r#","mtu":67"#).check();
        assert_eq!(small, Err(SpecError::Mtu { index: 0, mtu: 67 }));
        let nine = [r#"{"mac":[2,0,0,0,0,1]}"#; 9].join(",");
        assert_eq!(spec(&format!(r#""nets":[{nine}]"#)).check(), Err(SpecError::Nets(9)));
        assert_eq!(spec(r#""net_places":8"#).check(), Ok(()));
        assert_eq!(spec(r#""net_places":9"#).check(), Err(SpecError::Nets(9)));
    }
}
