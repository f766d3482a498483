//! What `docker save` writes: manifest.json names, for each image, a configuration and layers by
//! their files. There is no manifest with digests; the configuration's diff IDs vouch for the
//! layers, and its own file name for itself.

use serde::Deserialize;

use super::files::Files;
use super::{Layer, Source, SourceError, diff_ids};
use crate::digest::Digest;
use crate::reference::{Format, Name};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Entry {
    fn is_called(&self, tag: &str) -> bool {
        let full = |text: &str| text.parse::<Name>().ok();
        let names = self.repo_tags.iter().flatten();
        { names }.any(|name| {
            name == tag || name.ends_with(&format!(":{tag}")) || {
                let asked = full(tag);
                asked.is_some() && full(name) == asked
            }
        })
    }
}

pub fn image(files: Files, tag: Option<&str>) -> Result<Source, SourceError> {
    let json = |source| SourceError::Json { name: "manifest.json".to_owned(), source };
    let entries = files.document("manifest.json")?;
    let entries: Vec<Entry> = serde_json::from_slice(&entries).map_err(json)?;
    let names = entries.iter().flat_map(|entry| entry.repo_tags.iter().flatten());
    let names = { names }.cloned().collect::<Vec<_>>().join(", ");
    let entry = match (tag, &entries[..]) {
        (None, [entry]) => entry,
        (None, [_, ..]) => return Err(SourceError::Several(names)),
        (tag, entries) => {
            let tag = tag.unwrap_or_default();
            let found = entries.iter().find(|entry| entry.is_called(tag));
            found.ok_or_else(|| SourceError::Tag { tag: tag.to_owned(), has: names })?
        }
    };
    let bytes = files.document(&entry.config)?;
    let digest = Digest::of(&bytes);
    let said = entry.config.trim_end_matches(".json").rsplit('/').next().unwrap_or_default();
    if format!("sha256:{said}").parse::<Digest>().is_ok_and(|said| said != digest) {
        return Err(SourceError::Digest { name: entry.config.clone() });
    }
    let layers = entry.layers.as_deref().unwrap_or_default();
    let diff_ids = diff_ids(&entry.config, &bytes, layers.len())?;
    let layers = layers.iter().zip(diff_ids);
    let layers = layers.map(|(file, diff_id)| {
        let file = file.trim_start_matches("./").to_owned();
        Layer { file, blob: None, diff_id }
    });
    let layers = layers.collect();
    let format = Format::DockerArchive;
    Ok(Source { files, format, manifest: None, config: (digest, bytes), layers })
}
