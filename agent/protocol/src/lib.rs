//! What the host and the guest of a bulkhead VM say to each other.
//!
//! Four channels, all over vsock but the boot marks:
//! - the agent's ttrpc service on guest port [`AGENT_PORT`] (feature `rpc`; the contract is
//!   resources/proto/agent.proto);
//! - the container's standard streams, which the agent opens to the host ports of [`HostPort`] and
//!   the VMM joins to its own inherited stdin, stdout and stderr;
//! - [`HostEvent`]s: signals and window sizes that reach the VMM's process, on [`HostPort::Events`];
//! - the [`ExitReport`], which the agent writes to [`HostPort::Exit`] as its last word.
//!
//! The guest owns every byte it sends: whatever arrives is checked where it arrives.

/// Guest port the agent's ttrpc service listens on.
pub const AGENT_PORT: u32 = 1024;

/// The host's context ID (virtio 1.3, 5.10.4).
pub const HOST_CID: u64 = 2;

/// Host ports that the VMM answers itself; any other host port `P` is forwarded to the Unix socket
/// `<vsock path>_P`, as Firecracker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HostPort {
    /// The VMM sends its stdin here; end of file is a half close.
    Stdin = 10,
    /// What the guest sends goes to the VMM's stdout.
    Stdout = 11,
    /// What the guest sends goes to the VMM's stderr.
    Stderr = 12,
    /// Both directions of the container's terminal: the VMM's stdin and stdout.
    Terminal = 13,
    /// Takes one [`ExitReport`]; the VMM ends the VM once it has the report and has written out all
    /// that arrived on the stream ports. It answers nothing.
    Exit = 14,
    /// The VMM sends [`HostEvent`]s here for as long as it runs.
    Events = 15,
}

impl TryFrom<u32> for HostPort {
    type Error = u32;

    fn try_from(port: u32) -> Result<Self, u32> {
        use HostPort::{Events, Exit, Stderr, Stdin, Stdout, Terminal};
        [Stdin, Stdout, Stderr, Terminal, Exit, Events]
            .into_iter()
            .find(|known| *known as u32 == port)
            .ok_or(port)
    }
}

/// The I/O port of the boot-mark device: a byte written to it stamps a point of the timeline.
pub const BOOT_MARK_PORT: u16 = 0xb48;

/// Points of the timeline that the guest marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BootMark {
    /// The kernel's first instructions (only kernels that know of the port).
    Kernel = 1,
    /// The agent's first instructions.
    Init = 2,
    /// The agent listens on [`AGENT_PORT`]: the VMM accepts host connections from here on.
    AgentReady = 3,
    /// The container's process has been executed.
    Started = 4,
    /// The VM may be saved here: what the agent does next is ask for the [`GuestInfo`]. It is about to
    /// wait for its first call, and everything before that is the same for any container; or it was
    /// asked to stop the container for a snapshot.
    Waiting = 5,
}

impl TryFrom<u8> for BootMark {
    type Error = u8;

    fn try_from(mark: u8) -> Result<Self, u8> {
        [Self::Kernel, Self::Init, Self::AgentReady, Self::Started, Self::Waiting]
            .into_iter()
            .find(|known| *known as u8 == mark)
            .ok_or(mark)
    }
}

/// What makes a VM itself: read from [`BOOT_MARK_PORT`] as [`GuestInfo::WORDS`] doublewords one after
/// another, of which the first is that after [`BootMark::Waiting`]. (One string instruction would
/// take one exit instead, but KVM's emulator refuses those to a process with ioperm(2).)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestInfo {
    /// The host's wall clock, ns since the Unix epoch.
    pub realtime_ns: u64,
    /// Random bytes that nobody else was given; `None` if the host has none.
    pub seed: Option<[u8; Self::SEED_LEN]>,
    /// This is the first answer to a guest that goes on from a snapshot.
    pub restored: bool,
}

impl GuestInfo {
    /// Bytes of the seed: 256 bits, as much as the kernel's pool takes to be ready.
    pub const SEED_LEN: usize = 32;
    /// A magic number with two flags, the clock, the seed; little-endian.
    pub const WORDS: usize = 3 + Self::SEED_LEN / 4;
    const MAGIC: u32 = 0x4f46_4e48;
    const SEEDED: u32 = 1;
    const RESTORED: u32 = 2;

    /// The information as it is read.
    pub fn to_words(self) -> [u32; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        words[0] = Self::MAGIC
            | flag(self.seed.is_some(), Self::SEEDED)
            | flag(self.restored, Self::RESTORED);
        (words[1], words[2]) = (self.realtime_ns as u32, (self.realtime_ns >> 32) as u32);
        let seed = self.seed.unwrap_or_default();
        for (word, bytes) in words[3..].iter_mut().zip(seed.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        words
    }

    /// Takes what was read apart; `None` where no VMM of ours answers the port.
    pub fn from_words(words: [u32; Self::WORDS]) -> Option<Self> {
        let mut seed = [0; Self::SEED_LEN];
        for (bytes, word) in seed.chunks_exact_mut(4).zip(&words[3..]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let flags = words[0] ^ Self::MAGIC;
        (flags & !(Self::SEEDED | Self::RESTORED) == 0).then(|| Self {
            realtime_ns: u64::from(words[1]) | u64::from(words[2]) << 32,
            seed: (flags & Self::SEEDED != 0).then_some(seed),
            restored: flags & Self::RESTORED != 0,
        })
    }
}

/// A variable of the agent's environment, by the kernel's command line: its VM is to be saved for others to
/// go on from, so what all of them need is worth some time.
pub const TEMPLATE: &str = "bulkhead_template";

/// The tag of the one virtio-fs device; its root directory lists the VM's shares by name.
pub const FS_TAG: &str = "bulkhead";

/// How the container ended: the agent's last word to the VMM, [`ExitReport::LEN`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitReport {
    /// 0..=255; 128 + n for a process ended by signal n.
    pub code: u8,
    /// The guest's kernel killed a process of the container for lack of memory.
    pub oom_killed: bool,
}

impl ExitReport {
    /// Length on the wire: a magic number, a code, flags, each a little-endian u32.
    pub const LEN: usize = 12;
    const MAGIC: u32 = 0x4b48_4c42;
    const OOM_KILLED: u32 = 1;

    /// The report as it goes over the wire.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let flags = if self.oom_killed { Self::OOM_KILLED } else { 0 };
        let mut bytes = [0; Self::LEN];
        for (field, value) in [Self::MAGIC, u32::from(self.code), flags].into_iter().enumerate() {
            bytes[field * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Reads a report; `None` if it is not one (the sender is the guest: anything may arrive).
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let field = |i: usize| u32::from_le_bytes([0, 1, 2, 3].map(|b| bytes[i * 4 + b]));
        let code = u8::try_from(field(1)).ok()?;
        let known = field(0) == Self::MAGIC && field(2) & !Self::OOM_KILLED == 0;
        known.then(|| Self { code, oom_killed: field(2) & Self::OOM_KILLED != 0 })
    }
}

/// What happens to the VMM's process that concerns the container, [`HostEvent::LEN`] bytes each on
/// [`HostPort::Events`]: to the outside that process *is* the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// The container's terminal has this size now, in characters.
    Window {
        /// Height.
        rows: u16,
        /// Width.
        columns: u16,
    },
    /// The VMM was sent this signal (signal(7)).
    Signal(u8),
}

impl HostEvent {
    /// Length on the wire: a kind and a value, each a little-endian u32.
    pub const LEN: usize = 8;
    const WINDOW: u32 = 1;
    const SIGNAL: u32 = 2;

    /// The event as it goes over the wire.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let (kind, value) = match self {
            Self::Window { rows, columns } => {
                (Self::WINDOW, u32::from(rows) << 16 | u32::from(columns))
            }
            Self::Signal(signal) => (Self::SIGNAL, u32::from(signal)),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    /// Reads an event; `None` if it is none this side knows.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Option<Self> {
        let field = |i: usize| u32::from_le_bytes([0, 1, 2, 3].map(|b| bytes[i * 4 + b]));
        match (field(0), field(1)) {
            (Self::WINDOW, size) => {
                Some(Self::Window { rows: (size >> 16) as u16, columns: size as u16 })
            }
            (Self::SIGNAL, signal) => u8::try_from(signal).ok().map(Self::Signal),
            _ => None,
        }
    }
}

/// The generated ttrpc service and messages of resources/proto/agent.proto.
pub mod device;

#[cfg(feature = "rpc")]
pub mod rpc {
    #![allow(missing_docs, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_report_survives_the_wire() {
        for code in [0, 1, 127, 137, 255] {
            for oom_killed in [false, true] {
                let report = ExitReport { code, oom_killed };
                assert_eq!(ExitReport::from_bytes(&report.to_bytes()), Some(report));
            }
        }
    }

    #[test]
    fn host_events_survive_the_wire_and_others_are_none() {
        for event in [
            HostEvent::Window { rows: 24, columns: 80 },
            HostEvent::Window { rows: u16::MAX, columns: 0 },
            HostEvent::Signal(15),
        ] {
            assert_eq!(HostEvent::from_bytes(event.to_bytes()), Some(event));
        }
        assert_eq!(HostEvent::from_bytes([0; HostEvent::LEN]), None);
        assert_eq!(HostEvent::from_bytes([2, 0, 0, 0, 0, 1, 0, 0]), None);
    }

    #[test]
    fn guest_info_survives_the_port() {
        for seed in [None, Some([7; GuestInfo::SEED_LEN])] {
            for restored in [false, true] {
                let info = GuestInfo { realtime_ns: 0x0102_0304_0506_0708, seed, restored };
                assert_eq!(GuestInfo::from_words(info.to_words()), Some(info));
            }
        }
        assert_eq!(GuestInfo::from_words([u32::MAX; GuestInfo::WORDS]), None);
    }

    #[test]
    fn exit_report_refuses_what_is_not_one() {
        let good = ExitReport { code: 3, oom_killed: false }.to_bytes();
        assert_eq!(ExitReport::from_bytes(&good[..11]), None);
        for (byte, value) in [(0, 0), (5, 1), (8, 2), (11, 1)] {
            let mut bad = good;
            bad[byte] = value;
            assert_eq!(ExitReport::from_bytes(&bad), None, "byte {byte} = {value}");
        }
    }
}
