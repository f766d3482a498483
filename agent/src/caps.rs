//! A process's five capability sets (capabilities(7)).

use bulkhead_protocol::rpc::agent::Capabilities;
use rustix::io::Errno;
use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// Why the capability sets could not be set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapsError {
    /// A name this agent does not know.
    #[error("unknown capability {0:?}; names are like \"CAP_CHOWN\"")]
    Unknown(String),
    /// The kernel refused.
    #[error("cannot set the {set} capabilities: {source}")]
    Refused {
        /// Which of the five sets.
        set: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
}

impl CapsError {
    /// The errno to report.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Unknown(_) => Errno::INVAL,
            Self::Refused { source, .. } => *source,
        }
    }
}

/// The five sets, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    bounding: CapabilitySet,
    ambient: CapabilitySet,
    sets: CapabilitySets,
}

impl TryFrom<&Capabilities> for Sets {
    type Error = CapsError;

    fn try_from(caps: &Capabilities) -> Result<Self, CapsError> {
        Ok(Self {
            bounding: parse(&caps.bounding)?,
            ambient: parse(&caps.ambient)?,
            sets: CapabilitySets {
                effective: parse(&caps.effective)?,
                permitted: parse(&caps.permitted)?,
                inheritable: parse(&caps.inheritable)?,
            },
        })
    }
}

fn parse(names: &[String]) -> Result<CapabilitySet, CapsError> {
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        name.strip_prefix("CAP_")
            .and_then(CapabilitySet::from_name)
            .map(|cap| set | cap)
            .ok_or_else(|| CapsError::Unknown(name.clone()))
    })
}

impl Sets {
    /// Shrinks the bounding set and keeps permitted capabilities over a change of user. Call
    /// while CAP_SETPCAP is still there.
    pub fn before_user_change(&self) -> Result<(), CapsError> {
        for cap in self.bounding.complement().iter() {
            match thread::remove_capability_from_bounding_set(cap) {
                // A capability younger than the kernel.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(source) => return Err(CapsError::Refused { set: "bounding", source }),
            }
        }
        thread::set_keep_capabilities(true)
            .map_err(|source| CapsError::Refused { set: "permitted", source })
    }

    /// Sets effective and permitted capabilities, and CAP_SYS_ADMIN besides. Call as the final user,
    /// some time before [`Self::after_user_change`].
    pub fn keep_sys_admin(&self) -> Result<(), CapsError> {
        let mut sets = self.sets;
        sets.effective |= CapabilitySet::SYS_ADMIN;
        sets.permitted |= CapabilitySet::SYS_ADMIN;
        thread::set_capabilities(None, sets)
            .map_err(|source| CapsError::Refused { set: "effective", source })
    }

    /// Sets the other four sets. Call as the final user.
    pub fn after_user_change(&self) -> Result<(), CapsError> {
        thread::set_capabilities(None, self.sets)
            .map_err(|source| CapsError::Refused { set: "effective", source })?;
        let ambient = |source| CapsError::Refused { set: "ambient", source };
        thread::clear_ambient_capability_set().map_err(ambient)?;
        // The others cannot be had, which is no error (config.md, "process", capabilities).
        for cap in (self.ambient & self.sets.permitted & self.sets.inheritable).iter() {
            thread::configure_capability_in_ambient_set(cap, true).map_err(ambient)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_sets() {
        let caps = Capabilities {
            bounding: vec!["CAP_CHOWN".into(), "CAP_CHECKPOINT_RESTORE".into()],
            effective: vec!["CAP_NET_BIND_SERVICE".into()],
            ..Default::default()
        };
        let sets = Sets::try_from(&caps).unwrap();
        assert_eq!(sets.bounding.bits(), 1 | 1 << 40);
        assert_eq!(sets.sets.effective.bits(), 1 << 10);
        assert_eq!(sets.ambient.bits(), 0);
    }

    #[test]
    fn unknown_names_are_refused() {
        for name in ["CHOWN", "CAP_", "CAP_chown", "CAP_NO_SUCH", "", "CAP_CHOWN|SETUID"] {
            let caps = Capabilities { ambient: vec![name.into()], ..Default::default() };
            assert_eq!(Sets::try_from(&caps), Err(CapsError::Unknown(name.into())));
        }
    }
}
