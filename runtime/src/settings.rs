//! What the administrator decided for all containers of a host: /etc/bulkhead/config.toml.
//!
//! ```toml
//! profile = "tenant"              # how far bundles are trusted: a built-in profile, or one below
//! process_runtime = "/usr/bin/crun" # what runs containers with isolation "process"
//! cold = true                     # engines' containers boot, rather than be cloned from templates
//!
//! [profiles.build]
//! isolation = "vm"                # the wall a container gets if nobody asks for another
//! weakest = "process"             # the weakest wall that can be asked for
//! annotations = ["isolation"]     # what a bundle may ask for by annotations dev.bulkhead.NAME
//! limits = ["fs-bytes=100m"]      # on what a guest asks of its devices, as `run --limit` has them
//! jail = "sealed"                 # what its monitor gives up (see bulkhead_vmm::spec::Confinement)
//! memory = "2g"                   # the most memory of a VM, as `run --memory` has it
//! cpus = 4                        # the most CPUs of a VM
//! dax = false                     # programs are copied into each VM, not mapped from the host's memory
//! ```
//!
//! | built-in profile | isolation | weakest | annotations | limits | jail | memory, CPUs | dax |
//! |---|---|---|---|---|---|---|---|
//! | trusted | vm | process | isolation, profile | none | strict | any | true |
//! | tenant (the default) | vm | process, from the command line only | none | none | strict | any | true |
//! | hostile | vm | vm | none | [`HOSTILE_LIMITS`] | sealed | 8g, 8 | false |
//!
//! Whatever the profile, a bundle may ask for a stronger wall than it would get, never for a weaker
//! one that is not allowed. Where an annotation names a second profile, what is stricter holds.

mod walls;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use walls::{HOSTILE_CPUS, HOSTILE_LIMITS, HOSTILE_MEMORY, Jail};
pub use walls::{WallError, Walls};

/// Where it is.
const FILE: &str = "/etc/bulkhead/config.toml";
/// Names another file.
const VARIABLE: &str = "BULKHEAD_CONFIG";
/// What annotations of ours begin with.
const PREFIX: &str = "dev.bulkhead.";
const ISOLATION: &str = "isolation";
const PROFILE: &str = "profile";

/// Why the settings cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    #[error("{}: {reason}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, in one line.
        reason: String,
    },
    #[error("there is no profile named {0:?}; the built-in ones are trusted, tenant and hostile")]
    Profile(String),
    #[error(transparent)]
    Wall(#[from] WallError),
    #[error("{0:?} is no isolation; give vm or process")]
    Isolation(String),
    #[error("profile {profile} allows no isolation weaker than vm; process was asked for")]
    Weakest {
        /// The profile.
        profile: String,
    },
    #[error(
        "annotation {PREFIX}{name}: profile {profile} does not let a bundle weaken its own walls"
    )]
    Annotation {
        /// Which one.
        name: &'static str,
        /// The profile.
        profile: String,
    },
}

/// The wall around a container, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Namespaces and cgroups of the host's kernel: runc's or crun's containers.
    Process,
    /// A kernel of its own.
    Vm,
}

impl std::str::FromStr for Isolation {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        match text {
            "vm" => Ok(Self::Vm),
            "process" => Ok(Self::Process),
            other => Err(SettingsError::Isolation(other.to_owned())),
        }
    }
}

/// How far bundles are trusted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    #[serde(default = "vm")]
    isolation: Isolation,
    #[serde(default = "vm")]
    weakest: Isolation,
    /// Names of annotations, without the prefix.
    #[serde(default)]
    annotations: Vec<String>,
    #[serde(default)]
    limits: Vec<String>,
    #[serde(default)]
    jail: Jail,
    memory: Option<String>,
    cpus: Option<u8>,
    /// The guest maps programs and libraries from the host's page cache.
    #[serde(default = "yes")]
    dax: bool,
}

fn yes() -> bool {
    true
}

fn vm() -> Isolation {
    Isolation::Vm
}

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    profile: Option<String>,
    /// What runs containers with [`Isolation::Process`]; found on PATH if not given.
    pub process_runtime: Option<PathBuf>,
    /// VMs that engines have made boot, rather than be cloned from templates.
    #[serde(default)]
    pub cold: bool,
    #[serde(default)]
    profiles: BTreeMap<String, Profile>,
}

impl Settings {
    /// Reads the file; without one, everything is as by default.
    pub fn load() -> Result<Self, SettingsError> {
        let named = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
        let path = named.as_ref().map_or(Path::new(FILE), Path::new);
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text)
                .map_err(|reason| SettingsError::Parse { path: path.to_owned(), reason }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
                Ok(Self::default())
            }
            Err(source) => Err(SettingsError::Read { path: path.to_owned(), source }),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.message().lines().collect::<Vec<_>>().join(" "))
    }

    fn profile(&self, name: &str) -> Result<Profile, SettingsError> {
        if let Some(profile) = self.profiles.get(name) {
            return Ok(profile.clone());
        }
        let (weakest, annotations): (_, &[&str]) = match name {
            "trusted" => (Isolation::Process, &[ISOLATION, PROFILE]),
            "tenant" => (Isolation::Process, &[]),
            "hostile" => (Isolation::Vm, &[]),
            other => return Err(SettingsError::Profile(other.to_owned())),
        };
        let hostile = name == "hostile";
        let limits = if hostile { &HOSTILE_LIMITS[..] } else { &[] };
        let [annotations, limits] =
            [annotations, limits].map(|texts| texts.iter().map(|&text| text.to_owned()).collect());
        Ok(Profile {
            isolation: Isolation::Vm,
            weakest,
            annotations,
            limits,
            jail: if hostile { Jail::Sealed } else { Jail::Strict },
            memory: hostile.then(|| HOSTILE_MEMORY.to_owned()),
            cpus: hostile.then_some(HOSTILE_CPUS),
            dax: !hostile,
        })
    }

    /// The profile of whoever asks for none.
    fn usual(&self) -> &str {
        self.profile.as_deref().unwrap_or("tenant")
    }

    /// What a container's VM is held to: the profile's, and that of one which an annotation names.
    pub fn walls(&self, annotations: &BTreeMap<String, String>) -> Result<Walls, SettingsError> {
        let of = |name: &str| Ok::<_, SettingsError>(Walls::of(name, &self.profile(name)?)?);
        let usual = of(self.usual())?;
        match annotations.get(&format!("{PREFIX}{PROFILE}")) {
            Some(other) if other != self.usual() => Ok(usual.and(of(other)?)),
            _ => Ok(usual),
        }
    }

    /// The wall for a container: as `asked` for on the command line, which is the administrator's,
    /// else by an annotation of its bundle, else by the profile.
    pub fn isolation(
        &self,
        asked: Option<Isolation>,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Isolation, SettingsError> {
        let annotation = |name: &str| annotations.get(&format!("{PREFIX}{name}"));
        let mut name = self.usual();
        let mut profile = self.profile(name)?;
        if let Some(other) = annotation(PROFILE) {
            let wanted = self.profile(other)?;
            let weaker = wanted.isolation < profile.isolation || wanted.weakest < profile.weakest;
            let more = wanted.annotations.iter().any(|name| !profile.annotations.contains(name));
            if (weaker || more) && !profile.allows(PROFILE) {
                return Err(SettingsError::Annotation { name: PROFILE, profile: name.to_owned() });
            }
            (name, profile) = (other, wanted);
        }
        let annotated = annotation(ISOLATION).map(|text| text.parse()).transpose()?;
        if annotated.is_some_and(|wall| wall < profile.isolation) && !profile.allows(ISOLATION) {
            return Err(SettingsError::Annotation { name: ISOLATION, profile: name.to_owned() });
        }
        let chosen = asked.or(annotated).unwrap_or(profile.isolation);
        match chosen < profile.weakest {
            true => Err(SettingsError::Weakest { profile: name.to_owned() }),
            false => Ok(chosen),
        }
    }
}

impl Profile {
    fn allows(&self, annotation: &str) -> bool {
        self.annotations.iter().any(|name| name == annotation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_vmm::spec::{Confinement, Limits};

    fn choose(
        settings: &str,
        asked: Option<Isolation>,
        annotations: &[(&str, &str)],
    ) -> Result<Isolation, String> {
        let annotations = annotations
            .iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned()));
        let settings = Settings::parse(settings).unwrap();
        settings.isolation(asked, &annotations.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn without_settings_it_is_a_vm_and_only_the_command_line_can_weaken_that() {
        let process = Some(Isolation::Process);
        assert_eq!(choose("", None, &[]), Ok(Isolation::Vm));
        assert_eq!(choose("", process, &[]), Ok(Isolation::Process));
        assert_eq!(choose("", None, &[("isolation", "vm")]), Ok(Isolation::Vm));
        for weaker in [("isolation", "process"), ("profile", "trusted")] {
            let error = choose("", None, &[weaker]).unwrap_err();
            assert!(error.contains(weaker.0) && error.contains("tenant"), "{error}");
        }
    }

    #[test]
    fn a_bundle_may_be_more_careful_than_it_must() {
        let hostile = [("profile", "hostile")];
        assert_eq!(choose("", None, &hostile), Ok(Isolation::Vm));
        assert!(choose("", Some(Isolation::Process), &hostile).unwrap_err().contains("hostile"));
        let careful = "profile = 'p'\n[profiles.p]\nisolation = 'process'\nweakest = 'process'";
        assert_eq!(choose(careful, None, &[]), Ok(Isolation::Process));
        assert_eq!(choose(careful, None, &[("isolation", "vm")]), Ok(Isolation::Vm));
    }

    #[test]
    fn trusted_bundles_may_choose() {
        let trusted = "profile = 'trusted'";
        assert_eq!(choose(trusted, None, &[]), Ok(Isolation::Vm));
        assert_eq!(choose(trusted, None, &[("isolation", "process")]), Ok(Isolation::Process));
        let asked = choose(trusted, Some(Isolation::Vm), &[("isolation", "process")]);
        assert_eq!(asked, Ok(Isolation::Vm), "the command line wins");
    }

    fn annotated(name: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(format!("{PREFIX}{PROFILE}"), name.to_owned())])
    }

    #[test]
    fn limits_are_the_profile_s_and_an_annotation_only_lowers_them() {
        let text = "profile = 'p'\n[profiles.p]\nlimits = ['rng-ops=10', 'fs-ops=30k']";
        let settings = Settings::parse(text).unwrap();
        let rate = |rate: Option<bulkhead_vmm::spec::Rate>| rate.map(|rate| rate.per_second.get());
        for (annotations, rng, fs, net) in [
            (BTreeMap::new(), 10, 30 << 10, None),
            (annotated("trusted"), 10, 30 << 10, None),
            (annotated("hostile"), 10, 20 << 10, Some(100 << 10)),
        ] {
            let limits = settings.walls(&annotations).unwrap().limits;
            assert_eq!(rate(limits.rng.operations), Some(rng));
            assert_eq!(rate(limits.fs.operations), Some(fs));
            assert_eq!(rate(limits.net_tx.operations), net);
            assert_eq!(limits.vsock_connections, net.map(|_| 64));
        }
        let usual = Settings::default().walls(&BTreeMap::new()).unwrap();
        assert_eq!(usual.limits, Limits::default());
    }

    #[test]
    fn jail_memory_and_cpus_are_the_profile_s_and_an_annotation_only_tightens_them() {
        let text = "profile = 'p'\n[profiles.p]\nmemory = '1g'\ncpus = 16";
        let settings = Settings::parse(text).unwrap();
        let usual = settings.walls(&annotated("trusted")).unwrap();
        assert_eq!((usual.memory_mib, usual.cpus), (Some(1024), Some(16)));
        assert_eq!(usual.jail(None), Ok(Confinement::Strict));
        assert_eq!(usual.jail(Some(Confinement::Off)), Ok(Confinement::Off));
        let hostile = settings.walls(&annotated("hostile")).unwrap();
        assert_eq!((usual.window_mib, hostile.window_mib), (None, Some(0)));
        assert_eq!((hostile.memory_mib, hostile.cpus), (Some(1024), Some(8)));
        assert_eq!(hostile.jail(None), Ok(Confinement::Sealed));
        for weaker in [Confinement::Off, Confinement::Strict] {
            let error = hostile.jail(Some(weaker)).unwrap_err().to_string();
            assert!(error.contains("p with hostile"), "{error}");
        }
        assert_eq!(hostile.admit(Some(8), Some(1024)), Ok(()));
        assert!(hostile.admit(Some(9), None).unwrap_err().to_string().starts_with("9 CPUs"));
        let error = hostile.admit(None, Some(1025)).unwrap_err().to_string();
        assert!(error.starts_with("1025 MiB") && error.ends_with("1024"), "{error}");
        let free = Settings::default().walls(&BTreeMap::new()).unwrap();
        assert_eq!(free.admit(Some(u64::MAX), Some(u64::MAX)), Ok(()));
    }

    #[test]
    fn a_profile_s_bad_values_are_named() {
        for (line, word) in [
            ("limits = ['fs=1']", "fs-bytes"),
            ("memory = '1m'", "48m"),
            ("memory = 'much'", "much"),
            ("cpus = 33", "33"),
            ("cpus = 0", "from 1"),
        ] {
            let bad = Settings::parse(&format!("profile = 'p'\n[profiles.p]\n{line}")).unwrap();
            let error = bad.walls(&BTreeMap::new()).unwrap_err().to_string();
            assert!(error.contains("profile p") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_in_a_line() {
        assert!(choose("profile = 'none'", None, &[]).unwrap_err().contains("none"));
        assert!(choose("", None, &[("isolation", "paper")]).unwrap_err().contains("paper"));
        for bad in [
            "profil = 'x'",
            "[profiles.p]\nisolation = 'paper'",
            "[profiles.p]\njail = 'off'",
            "=",
            "profile = 3",
        ] {
            let error = Settings::parse(bad).unwrap_err();
            assert!(!error.contains('\n') && !error.is_empty(), "{bad}: {error}");
        }
    }
}
