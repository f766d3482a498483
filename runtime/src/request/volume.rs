//! Volumes: `HOST:GUEST`, `HOST:GUEST:ro`.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// Why a text is no volume.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    #[error("--volume {0}: give HOST:GUEST or HOST:GUEST:ro")]
    Syntax(String),
    #[error("--volume {text}: {option:?} is not an option; there are ro and rw")]
    Option {
        /// All of it.
        text: String,
        /// The unknown part.
        option: String,
    },
    #[error("--volume {0}: the path in the container must be absolute, without `..`, and not `/`")]
    Guest(String),
    #[error("--volume: two volumes for {0}")]
    Twice(String),
}

/// A host path to be seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// As typed; may be relative to the caller's directory.
    pub host: PathBuf,
    /// Absolute path in the container.
    pub guest: String,
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let mut parts = text.splitn(3, ':');
        let (host, guest, options) = (parts.next(), parts.next(), parts.next());
        let (Some(host), Some(guest)) = (host, guest) else {
            return Err(VolumeError::Syntax(text.to_owned()));
        };
        if host.is_empty() || guest.is_empty() {
            return Err(VolumeError::Syntax(text.to_owned()));
        }
        let mut read_only = false;
        for option in options.into_iter().flat_map(|options| options.split(',')) {
            read_only = match option {
                "ro" => true,
                "rw" => false,
                option => {
                    let (text, option) = (text.to_owned(), option.to_owned());
                    return Err(VolumeError::Option { text, option });
                }
            };
        }
        let guest = normal(guest).ok_or_else(|| VolumeError::Guest(text.to_owned()))?;
        Ok(Self { host: host.into(), guest, read_only })
    }
}

/// Refuses two volumes at one place.
pub fn check_unique(volumes: &[Volume]) -> Result<(), VolumeError> {
    for (index, volume) in volumes.iter().enumerate() {
        if volumes[..index].iter().any(|other| other.guest == volume.guest) {
            return Err(VolumeError::Twice(volume.guest.clone()));
        }
    }
    Ok(())
}

/// An absolute path below `/` without `.`, `..` or doubled slashes.
fn normal(path: &str) -> Option<String> {
    let mut normal = String::new();
    let mut components = Path::new(path).components();
    if components.next() != Some(Component::RootDir) {
        return None;
    }
    for component in components {
        let Component::Normal(name) = component else { return None };
        normal.push('/');
        normal.push_str(name.to_str()?);
    }
    (!normal.is_empty()).then_some(normal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn volume(text: &str) -> Result<(String, String, bool), VolumeError> {
        let volume: Volume = text.parse()?;
        Ok((volume.host.display().to_string(), volume.guest, volume.read_only))
    }

    #[test]
    fn volumes() {
        let ok = |host: &str, guest: &str, read_only| Ok((host.into(), guest.into(), read_only));
        assert_eq!(volume("/a:/b"), ok("/a", "/b", false));
        assert_eq!(volume("a:/b/:ro"), ok("a", "/b", true));
        assert_eq!(volume("/a://b/./c:rw"), ok("/a", "/b/c", false));
        assert!(matches!(volume("/a:/b:no"), Err(VolumeError::Option { .. })));
        assert!(matches!(volume("/a:/b:ro:x"), Err(VolumeError::Option { .. })));
        for bad in ["", "/a", "/a:", ":/b", ":"] {
            assert_eq!(volume(bad), Err(VolumeError::Syntax(bad.to_owned())));
        }
        for bad in ["/a:b", "/a:/", "/a:/..", "/a:/b/../c", "/a:."] {
            assert_eq!(volume(bad), Err(VolumeError::Guest(bad.to_owned())));
        }
    }

    #[test]
    fn one_place_takes_one_volume() {
        let volumes = ["/a:/b".parse().unwrap(), "/c:/b/".parse().unwrap()];
        assert_eq!(check_unique(&volumes), Err(VolumeError::Twice("/b".to_owned())));
    }

    proptest! {
        #[test]
        fn guest_paths_stay_inside(text in "[/.:ab]{0,16}") {
            if let Ok(volume) = text.parse::<Volume>() {
                prop_assert!(volume.guest.starts_with('/') && volume.guest.len() > 1);
                prop_assert!(volume.guest.split('/').all(|name| name != ".." && name != "."));
            }
        }
    }
}
