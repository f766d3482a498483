//! What an image may be called on a command line.
//!
//! | text | means |
//! |---|---|
//! | `oci:PATH[:TAG]` | an OCI image layout directory |
//! | `oci-archive:PATH[:TAG]` | the same in a tar file |
//! | `docker-archive:PATH[:NAME]` | what `docker save` writes |
//! | `/PATH[:TAG]`, `./PATH[:TAG]`, `../PATH[:TAG]` | any of these three, found out by looking |
//! | `docker://NAME`, `NAME` | a name in the store, or else in a registry |
//!
//! As in podman and skopeo, the path ends at the first colon. A name without a registry is docker.io's, one
//! without a directory there is in `library/`, one without a tag is `:latest`. What is neither
//! begun with a prefix nor with `/` or `.` is never taken for a file, whatever lies about in the
//! working directory.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::digest::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_DIRECTORY: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// The longest repository name that registries take, bytes.
const REPOSITORY_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// Why a text names no image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// A prefix and nothing behind it.
    #[error("image {0:?}: there is no path behind the prefix")]
    NoPath(String),
    /// A part of a name has letters it cannot have.
    #[error(
        "image {text:?}: {part:?} cannot be a {what}; a file is named by ./FILE or its full path"
    )]
    Part {
        /// All of it.
        text: String,
        /// The wrong part.
        part: String,
        /// What it would be.
        what: &'static str,
    },
}

/// An image, as it may be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Files.
    Local(Location),
    /// A name of the store and of registries.
    Name(Name),
}

/// What kind of files hold an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An OCI image layout directory (image-layout.md).
    Layout,
    /// The same in a tar file.
    OciArchive,
    /// `docker save`.
    DockerArchive,
}

/// Files that hold images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// As asked for; found out by looking if `None`.
    pub format: Option<Format>,
    /// The directory or archive.
    pub path: PathBuf,
    /// Which of its images.
    pub tag: Option<String>,
}

/// A full name: `docker.io/library/busybox:latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Host, with its port if it has one.
    pub registry: String,
    /// Path on it.
    pub repository: String,
    /// Absent only beside a digest.
    pub tag: Option<String>,
    /// The manifest's; wins over the tag.
    pub digest: Option<Digest>,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let prefixes = [
            ("oci:", Format::Layout),
            ("oci-archive:", Format::OciArchive),
            ("docker-archive:", Format::DockerArchive),
        ];
        for (prefix, format) in prefixes {
            if let Some(rest) = text.strip_prefix(prefix) {
                return location(Some(format), rest, text).map(Self::Local);
            }
        }
        match text.strip_prefix("docker://") {
            Some(name) => name.parse().map(Self::Name),
            None if text.starts_with(['/', '.']) => location(None, text, text).map(Self::Local),
            None => text.parse().map(Self::Name),
        }
    }
}

fn location(format: Option<Format>, rest: &str, text: &str) -> Result<Location, ReferenceError> {
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag.to_owned())),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(ReferenceError::NoPath(text.to_owned()));
    }
    Ok(Location { format, path: path.into(), tag: tag.filter(|tag| !tag.is_empty()) })
}

impl FromStr for Name {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |part: &str, what| ReferenceError::Part {
            text: text.to_owned(),
            part: part.to_owned(),
            what,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| wrong(digest, "digest"))?))
            }
            None => (text, None),
        };
        // A colon in the last part is a tag's, one before it a port's.
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match rest[slash..].rfind(':') {
            Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(wrong(tag, "tag"));
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, rest.to_owned())
            }
            Some(_) => (DEFAULT_REGISTRY, path.to_owned()),
            None => (DEFAULT_REGISTRY, format!("{DEFAULT_DIRECTORY}/{path}")),
        };
        if !is_registry(registry) {
            return Err(wrong(registry, "registry"));
        }
        let bad = repository.split('/').find(|part| !is_repository_part(part));
        if bad.is_some() || repository.len() > REPOSITORY_MAX {
            return Err(wrong(bad.unwrap_or(path), "repository"));
        }
        let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// A host name or address, perhaps with a port.
fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match address {
        Some(address) => address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':'),
        None => host.split('.').all(|label| {
            let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            plain && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
        }),
    };
    host && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Lower-case words joined by ".", "_", "__" or dashes (distribution specification, "Pulling
/// manifests").
fn is_repository_part(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let joints = part.split(|c: char| c.is_ascii() && word(c as u8));
    let joined = joints
        .filter(|joint| !joint.is_empty())
        .all(|joint| matches!(joint, "." | "_" | "__") || joint.bytes().all(|byte| byte == b'-'));
    let ends = part.bytes().next().is_some_and(word) && part.bytes().last().is_some_and(word);
    ends && joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Result<String, ReferenceError> {
        match text.parse()? {
            Reference::Name(name) => Ok(name.to_string()),
            Reference::Local(location) => panic!("{location:?}"),
        }
    }

    #[test]
    fn names_get_what_they_leave_out() {
        let digest = Digest::of(b"x").to_string();
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("me/app", "docker.io/me/app:latest"),
            ("docker://me/app:v1", "docker.io/me/app:v1"),
            ("localhost/app", "localhost/app:latest"),
            ("127.0.0.1:5000/a/b__c--d.e", "127.0.0.1:5000/a/b__c--d.e:latest"),
            ("[::1]:5000/app:x", "[::1]:5000/app:x"),
            ("registry.example.org/app", "registry.example.org/app:latest"),
        ] {
            assert_eq!(name(text).as_deref(), Ok(full));
            assert_eq!(name(full).as_deref(), Ok(full), "a full name is itself");
        }
        assert_eq!(name(&format!("a@{digest}")), Ok(format!("docker.io/library/a@{digest}")));
        assert_eq!(name(&format!("a:b@{digest}")), Ok(format!("docker.io/library/a:b@{digest}")));
    }

    #[test]
    fn what_is_no_name_is_refused_in_one_sentence() {
        for bad in [
            "",
            "UPPER",
            "a b",
            "a//b",
            "a/",
            "a:",
            "a:b c",
            "a@sha256:12",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "é",
            "a\nb",
            "h.x:99999/a",
            "h..x/a",
            "-h.x/a",
            "a/../b",
        ] {
            let error = name(bad).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(name(&"a".repeat(300)).is_err());
        assert!(name(&format!("a:{}", "t".repeat(129))).is_err());
    }

    #[test]
    fn files_are_named_by_prefix_or_path() {
        let local = |text: &str| match text.parse() {
            Ok(Reference::Local(location)) => location,
            other => panic!("{other:?}"),
        };
        let location = |format, path: &str, tag: Option<&str>| Location {
            format,
            path: path.into(),
            tag: tag.map(str::to_owned),
        };
        assert_eq!(local("./x.tar"), location(None, "./x.tar", None));
        assert_eq!(local("/a/b:v1"), location(None, "/a/b", Some("v1")));
        assert_eq!(local("oci:dir:v1"), location(Some(Format::Layout), "dir", Some("v1")));
        let archive = Some(Format::DockerArchive);
        assert_eq!(local("docker-archive:x:a/b:c"), location(archive, "x", Some("a/b:c")));
        assert!(matches!("oci-archive:".parse::<Reference>(), Err(ReferenceError::NoPath(_))));
    }
}
