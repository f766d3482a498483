//! Archives for tests, hostile ones above all: nothing about an item is checked.

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::digest::Digest;
use crate::reference::Location;

/// A member of an archive.
#[derive(Clone, Debug)]
pub struct Item {
    pub kind: EntryType,
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub data: Vec<u8>,
    pub mode: u32,
    pub owner: (u64, u64),
    pub mtime: u64,
    pub pax: Vec<u8>,
}

impl Item {
    pub fn new(kind: EntryType, path: &str) -> Self {
        let path = path.as_bytes().to_vec();
        let (link, data, pax) = (Vec::new(), Vec::new(), Vec::new());
        let (mode, owner, mtime) = (0o755, (0, 0), 1_000_000_000);
        Self { kind, path, link, data, mode, owner, mtime, pax }
    }

    pub fn file(path: &str, data: &[u8]) -> Self {
        Self { data: data.to_vec(), mode: 0o644, ..Self::new(EntryType::Regular, path) }
    }

    pub fn dir(path: &str) -> Self {
        Self::new(EntryType::Directory, path)
    }

    pub fn symlink(path: &str, target: &str) -> Self {
        Self { link: target.as_bytes().to_vec(), ..Self::new(EntryType::Symlink, path) }
    }

    pub fn hardlink(path: &str, target: &str) -> Self {
        Self { link: target.as_bytes().to_vec(), ..Self::new(EntryType::Link, path) }
    }

    fn write(&self, out: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            write_member(out, &header(EntryType::XHeader, b"pax", self.pax.len()), &self.pax);
        }
        for (kind, name) in
            [(EntryType::GNULongName, &self.path), (EntryType::GNULongLink, &self.link)]
        {
            if name.len() > 100 {
                let text = [&name[..], b"\0"].concat();
                write_member(out, &header(kind, b"././@LongLink", text.len()), &text);
            }
        }
        let mut header = header(self.kind, &self.path, self.data.len());
        let link = &mut header.as_old_mut().linkname;
        let length = self.link.len().min(100);
        link[..length].copy_from_slice(&self.link[..length]);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(self.mtime);
        header.set_cksum();
        write_member(out, &header, &self.data);
    }
}

fn header(kind: EntryType, path: &[u8], size: usize) -> Header {
    let mut header = Header::new_gnu();
    let length = path.len().min(100);
    header.as_old_mut().name[..length].copy_from_slice(&path[..length]);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header.set_cksum();
    header
}

pub fn write_member(out: &mut Vec<u8>, header: &Header, data: &[u8]) {
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// An archive of `items`.
pub fn tar(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    items.iter().for_each(|item| item.write(&mut out));
    out.extend([0; 1024]);
    out
}

pub fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len() + 1;
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    [length.to_string().into_bytes(), rest].concat()
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// An OCI image layout in the making.
pub struct Layout {
    pub dir: tempfile::TempDir,
    manifests: Vec<serde_json::Value>,
}

impl Layout {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir, manifests: Vec::new() }
    }

    /// A layout of one image, with these layers, plain.
    pub fn of(layers: &[&[Item]]) -> Self {
        let mut layout = Self::new();
        let layers: Vec<_> = layers.iter().map(|items| (tar(items), tar(items))).collect();
        let manifest = layout.image(&layers, json!({}));
        layout.index(manifest, None, None);
        layout
    }

    pub fn location(&self, tag: Option<&str>) -> Location {
        Location { format: None, path: self.dir.path().into(), tag: tag.map(str::to_owned) }
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    pub fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        std::fs::write(self.blob_path(&digest), bytes).unwrap();
        digest
    }

    /// A manifest with layers given as file and archive; returns its descriptor.
    pub fn image(&self, layers: &[(Vec<u8>, Vec<u8>)], config: Value) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|(_, archive)| Digest::of(archive)).collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let layers: Vec<_> = layers
            .iter()
            .map(|(file, _)| {
                let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
                json!({ "mediaType": kind, "digest": self.blob(file), "size": file.len() })
            })
            .collect();
        self.manifest(&config, &layers)
    }

    pub fn manifest(&self, config: &Value, layers: &[Value]) -> Value {
        let config = self.document("application/vnd.oci.image.config.v1+json", config);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers,
        });
        self.document(kind, &manifest)
    }

    pub fn document(&self, media_type: &str, value: &Value) -> Value {
        let bytes = value.to_string();
        let digest = self.blob(bytes.as_bytes());
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Names a manifest, or an index, in index.json.
    pub fn index(&mut self, mut descriptor: Value, tag: Option<&str>, platform: Option<Value>) {
        if let Some(tag) = tag {
            descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        }
        if let Some(platform) = platform {
            descriptor["platform"] = platform;
        }
        self.manifests.push(descriptor);
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        std::fs::write(self.dir.path().join("index.json"), index.to_string()).unwrap();
    }

    /// The same as an archive.
    pub fn archive(&self) -> tempfile::NamedTempFile {
        let mut items = Vec::new();
        for name in ["oci-layout", "index.json"] {
            items.push(Item::file(name, &std::fs::read(self.dir.path().join(name)).unwrap()));
        }
        for blob in std::fs::read_dir(self.dir.path().join("blobs/sha256")).unwrap().flatten() {
            let name = format!("blobs/sha256/{}", blob.file_name().to_str().unwrap());
            items.push(Item::file(&name, &std::fs::read(blob.path()).unwrap()));
        }
        file_of(&tar(&items))
    }
}

pub fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}
