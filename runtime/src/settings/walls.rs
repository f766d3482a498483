//! [`Walls`]: what a profile holds a VM to besides its isolation.

use bulkhead_vmm::spec::{Confinement, Limits, VCPUS_MAX, VmSpec};
use serde::Deserialize;

use super::Profile;
use crate::request::limits::{self, LimitError};
use crate::request::memory::{self, MemoryError};

/// The built-in profile hostile, and what it is held to: more than an honest container on its own
/// gets through on most hosts, and less than what keeps one from others.
pub const HOSTILE_LIMITS: [&str; 13] = [
    "fs-bytes=512m",
    "fs-ops=20k",
    "vsock-bytes=128m",
    "vsock-ops=20k",
    "rng-bytes=1m",
    "rng-ops=1k",
    "net-rx-bytes=256m",
    "net-rx-ops=100k",
    "net-tx-bytes=256m",
    "net-tx-ops=100k",
    "fs-files=256k",
    "vsock-connections=64",
    "vsock-buffer=128k",
];
/// Its memory and CPUs.
pub const HOSTILE_MEMORY: &str = "8g";
pub const HOSTILE_CPUS: u8 = 8;

/// How much a profile has a VMM give up. That a VMM gives up nothing is no profile's to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Jail {
    /// [`Confinement::Strict`]
    #[default]
    Strict,
    /// [`Confinement::Sealed`]
    Sealed,
}

/// Why a profile makes no walls, or does not let a container have what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WallError {
    #[error("limits of profile {profile}: {source}")]
    Limit {
        /// The profile.
        profile: String,
        /// Which one.
        source: LimitError,
    },
    #[error("memory of profile {profile}: {source}")]
    Memory {
        /// The profile.
        profile: String,
        /// What is wrong with it.
        source: MemoryError,
    },
    #[error("cpus of profile {profile}: {cpus}; give a number from 1 to {VCPUS_MAX}")]
    Cpus {
        /// The profile.
        profile: String,
        /// As given.
        cpus: u8,
    },
    #[error("{asked} MiB of memory asked for; profile {profile} allows {most}")]
    TooMuchMemory {
        /// MiB.
        asked: u64,
        /// MiB.
        most: u32,
        /// Whose limit it is.
        profile: String,
    },
    #[error("{asked} CPUs asked for; profile {profile} allows {most}")]
    TooManyCpus {
        /// As many.
        asked: u64,
        /// As many.
        most: u8,
        /// Whose limit it is.
        profile: String,
    },
    #[error("--jail: profile {profile} has its VMs sealed, and allows no weaker jail")]
    Jail {
        /// The profile.
        profile: String,
    },
}

/// What a VM is held to. Whatever the bundle says, no more than its profile gives; of two profiles,
/// what is stricter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walls {
    /// On what the guest asks of its devices.
    pub limits: Limits,
    /// What the VMM gives up.
    pub jail: Confinement,
    /// The most memory of the VM, MiB.
    pub memory_mib: Option<u32>,
    /// The most CPUs, also of the host's time that VMM and file worker use together.
    pub cpus: Option<u8>,
    /// Length of the window to which the guest maps files (`VmSpec::window_mib`): 0 keeps containers from
    /// seeing by its timing what others have read of a file that they share.
    pub window_mib: Option<u16>,
    /// Names of profiles, for messages.
    profile: String,
}

impl Walls {
    /// Those of `profile`, which has this name.
    pub(super) fn of(name: &str, profile: &Profile) -> Result<Self, WallError> {
        let named = || name.to_owned();
        let limits = limits::of(&profile.limits)
            .map_err(|source| WallError::Limit { profile: named(), source })?;
        let memory_mib = profile.memory.as_deref().map(memory::mib).transpose();
        let memory_mib =
            memory_mib.map_err(|source| WallError::Memory { profile: named(), source })?;
        if let Some(cpus) = profile.cpus.filter(|cpus| !(1..=VCPUS_MAX).contains(cpus)) {
            return Err(WallError::Cpus { profile: named(), cpus });
        }
        let jail = match profile.jail {
            Jail::Strict => Confinement::Strict,
            Jail::Sealed => Confinement::Sealed,
        };
        let window_mib = (!profile.dax).then_some(0);
        Ok(Self { limits, jail, memory_mib, cpus: profile.cpus, window_mib, profile: named() })
    }

    /// The stricter of both, in each respect.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            limits: limits::lower(self.limits, other.limits),
            jail: self.jail.max(other.jail),
            memory_mib: lower(self.memory_mib, other.memory_mib),
            cpus: lower(self.cpus, other.cpus),
            window_mib: lower(self.window_mib, other.window_mib),
            profile: format!("{} with {}", self.profile, other.profile),
        }
    }

    /// Lets a container have as many CPUs and as much memory as it asks for, or says why not.
    pub fn admit(&self, cpus: Option<u64>, memory_mib: Option<u64>) -> Result<(), WallError> {
        let profile = || self.profile.clone();
        match (memory_mib, self.memory_mib) {
            (Some(asked), Some(most)) if asked > most.into() => {
                return Err(WallError::TooMuchMemory { asked, most, profile: profile() });
            }
            _ => {}
        }
        match (cpus, self.cpus) {
            (Some(asked), Some(most)) if asked > most.into() => {
                Err(WallError::TooManyCpus { asked, most, profile: profile() })
            }
            _ => Ok(()),
        }
    }

    /// `vm`, held to them.
    pub fn hold(&self, vm: VmSpec) -> VmSpec {
        let Self { limits, jail, window_mib, .. } = *self;
        VmSpec { limits, jail, window_mib, ..vm }
    }

    /// The jail for whoever `asked` for one on the command line, which is the administrator's: any,
    /// unless the profile's are sealed.
    pub fn jail(&self, asked: Option<Confinement>) -> Result<Confinement, WallError> {
        match asked {
            Some(asked) if asked < self.jail && self.jail == Confinement::Sealed => {
                Err(WallError::Jail { profile: self.profile.clone() })
            }
            asked => Ok(asked.unwrap_or(self.jail)),
        }
    }
}

fn lower<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}
