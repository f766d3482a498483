//! The files of an image: a directory, or the members of a tar file. Nothing is unpacked to read
//! one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::SourceError;
use crate::limits::{DOCUMENT_MAX, MEMBERS_MAX};
use crate::reference::Format;
use crate::tarfile::{Kind, Members};

/// Links of an archive that lead to links: older `docker save` has one.
const HOPS_MAX: usize = 8;

pub enum Files {
    Directory(File),
    Archive { file: File, members: HashMap<String, Slot> },
}

/// Where a member is.
pub enum Slot {
    Data {
        at: u64,
        size: u64,
    },
    /// The same as another member.
    Link(String),
}

/// A part of a file.
pub struct Section {
    file: File,
    at: u64,
    left: u64,
}

impl Section {
    /// Bytes that are left.
    pub fn size(&self) -> u64 {
        self.left
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (buffer.len() as u64).min(self.left) as usize;
        let length = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

impl Files {
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Open { path: path.to_owned(), source };
        // Should it be a FIFO, wait for nobody.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty());
        let file = File::from(file.map_err(|errno| failed(errno.into()))?);
        let kind = file.metadata().map_err(failed)?.file_type();
        match () {
            () if kind.is_dir() => Ok(Self::Directory(file)),
            () if kind.is_file() => {
                let members = members(&file, path)?;
                Ok(Self::Archive { file, members })
            }
            () => Err(SourceError::NotAnImage(path.to_owned())),
        }
    }

    pub fn format(&self) -> Option<Format> {
        let layout = self.has("oci-layout") && self.has("index.json");
        match self {
            Self::Directory(_) => layout.then_some(Format::Layout),
            Self::Archive { .. } if layout => Some(Format::OciArchive),
            Self::Archive { .. } => self.has("manifest.json").then_some(Format::DockerArchive),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.open_file(name).is_ok()
    }

    /// A small file, whole.
    pub fn document(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let section = self.open_file(name)?;
        if section.left > DOCUMENT_MAX {
            return Err(SourceError::Large { name: name.to_owned(), size: section.left });
        }
        let mut data = Vec::new();
        let read = { section }.read_to_end(&mut data);
        read.map_err(|source| SourceError::File { name: name.to_owned(), source })?;
        Ok(data)
    }

    pub fn open_file(&self, name: &str) -> Result<Section, SourceError> {
        let opened = match self {
            Self::Directory(directory) => file_in(directory, name),
            Self::Archive { file, members } => slot(members, name)
                .and_then(|(at, size)| Ok(Section { file: file.try_clone()?, at, left: size })),
        };
        opened.map_err(|source| SourceError::File { name: name.to_owned(), source })
    }
}

fn file_in(directory: &File, name: &str) -> io::Result<Section> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(directory, name, flags, Mode::empty(), resolve)?);
    let stat = file.metadata()?;
    match stat.is_file() {
        true => Ok(Section { file, at: 0, left: stat.len() }),
        false => Err(io::Error::other("not a regular file")),
    }
}

fn slot(members: &HashMap<String, Slot>, name: &str) -> io::Result<(u64, u64)> {
    let mut name = name;
    for _ in 0..HOPS_MAX {
        match members.get(name) {
            Some(Slot::Data { at, size }) => return Ok((*at, *size)),
            Some(Slot::Link(target)) => name = target,
            None => break,
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The members of an archive. Their data is passed over, not read.
fn members(file: &File, path: &Path) -> Result<HashMap<String, Slot>, SourceError> {
    let broken = |source| SourceError::Archive { path: path.to_owned(), source };
    let opened = |source| SourceError::Open { path: path.to_owned(), source };
    let mut magic = [0; 4];
    let length = file.read_at(&mut magic, 0).map_err(opened)?;
    if magic[..length].starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd] {
        return Err(SourceError::Compressed(path.to_owned()));
    }
    let size = file.metadata().map_err(opened)?.len();
    let (mut found, mut at) = (HashMap::new(), 0);
    for _ in 0..MEMBERS_MAX {
        let mut file = file;
        file.seek(SeekFrom::Start(at)).map_err(opened)?;
        let mut members = Members::new(file);
        let Some(member) = members.next_member().map_err(broken)? else { return Ok(found) };
        let name = member_name(&member.path);
        let slot = match member.kind {
            Kind::Regular => Some(Slot::Data { at: at + member.position, size: member.stored() }),
            Kind::Hardlink => Some(Slot::Link(member_name(&member.link))),
            Kind::Symlink => Some(Slot::Link(beside(&name, &member_name(&member.link)))),
            _ => None,
        };
        at = at.saturating_add(members.end());
        if at > size {
            return Err(broken(crate::tarfile::TarError::Truncated));
        }
        found.extend(slot.map(|slot| (name, slot)));
    }
    Err(SourceError::Members(path.to_owned()))
}

fn member_name(path: &[u8]) -> String {
    let name = String::from_utf8_lossy(path);
    let name = name.trim_start_matches("./").trim_start_matches('/');
    name.to_owned()
}

/// What a symbolic link at `name` with `target` names; it can name no member outside the archive,
/// for there is none.
fn beside(name: &str, target: &str) -> String {
    let mut path: PathBuf = Path::new(name).parent().unwrap_or(Path::new("")).to_owned();
    for part in target.split('/') {
        match part {
            ".." => drop(path.pop()),
            part => path.push(part),
        }
    }
    path.to_string_lossy().into_owned()
}
