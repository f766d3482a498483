//! The index: what images are called.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Held, Store, StoreError, failed};
use crate::digest::Digest;
use crate::reference::{Name, Reference};

/// The fewest digits of an ID that are taken for one.
const ID_DIGITS_MIN: usize = 4;

/// A name and what it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// A full name, or `oci:/PATH` and the like for an image out of files.
    pub name: String,
    /// Digest of the configuration: the image's ID.
    pub id: Digest,
    /// Digest of the manifest, if there was one.
    pub manifest: Option<Digest>,
    /// Bytes that the files of its layers hold. Layers may be shared with other images.
    pub bytes: u64,
    /// When it came, seconds since the Unix epoch.
    pub imported: u64,
}

impl Record {
    pub(crate) fn new(name: &str, id: Digest, manifest: Option<Digest>, bytes: u64) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { name: name.to_owned(), id, manifest, bytes, imported: now.as_secs() }
    }
}

impl Store {
    /// All images, by name.
    pub fn images(&self) -> Vec<Record> {
        let read = |path: PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
        let mut images: Vec<Record> = self.names_in("names").filter_map(read).collect();
        images.sort_by(|one, other| one.name.cmp(&other.name));
        images
    }

    /// The image called `text`: by a name as it may be typed, or by its ID or the beginning of one.
    pub fn find(&self, text: &str) -> Result<Record, StoreError> {
        let full = match text.parse() {
            Ok(Reference::Name(name)) => name.to_string(),
            _ => text.to_owned(),
        };
        let images = self.images();
        if let Some(image) = images.iter().find(|image| image.name == full || image.name == text) {
            return Ok(image.clone());
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_id = digits.len() >= ID_DIGITS_MIN && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let mut found = images.into_iter().filter(|image| image.id.hex().starts_with(digits));
        match found.next().filter(|_| is_id) {
            Some(image) if found.any(|other| other.id != image.id) => {
                Err(StoreError::Ambiguous(text.to_owned()))
            }
            Some(image) => Ok(image),
            None => Err(StoreError::Unknown(text.to_owned())),
        }
    }

    /// The image of a full name, or of a name with a digest.
    pub fn find_name(&self, name: &Name) -> Option<Record> {
        let mut images = self.images().into_iter();
        let full = name.to_string();
        images.find(|image| image.name == full)
    }

    pub(crate) fn add_name(&self, record: &Record, tmp: &Held) -> Result<(), StoreError> {
        let path = self.name(&record.name);
        let json = serde_json::to_vec(record).map_err(failed("write", &path))?;
        self.write(&path, &json, tmp)
    }

    /// Forgets a name. What nothing else needs goes with it, unless somebody is adding something:
    /// then the next one does it.
    pub fn remove(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.name(&record.name);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        self.collect()
    }

    fn name(&self, name: &str) -> PathBuf {
        self.dir.join("names").join(Digest::of(name.as_bytes()).hex())
    }
}
