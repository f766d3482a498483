//! Images that tests make themselves: OCI image layouts, layer by layer, from directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::registry::Registry;

/// An OCI image layout directory.
pub struct Layout {
    /// Where it is.
    pub dir: PathBuf,
    manifests: Vec<Value>,
}

/// A layer in a layout.
#[derive(Clone)]
pub struct Layer {
    descriptor: Value,
    diff_id: String,
}

impl Layer {
    /// Digest of its file, in hexadecimal digits.
    pub fn file_hex(&self) -> &str {
        self.descriptor["digest"]
            .as_str()
            .and_then(|text| text.strip_prefix("sha256:"))
            .unwrap_or_default()
    }
}

impl Layout {
    /// A layout of no images in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).expect("a directory");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
        Self { dir, manifests: Vec::new() }
    }

    /// A layer of the files in `tree`.
    pub fn layer(&self, tree: &Path) -> Layer {
        self.tar(&["-C".as_ref(), tree.as_os_str(), ".".as_ref()])
    }

    /// A layer of what tar(1) packs with these arguments.
    pub fn tar(&self, args: &[&std::ffi::OsStr]) -> Layer {
        let packed = Command::new("tar").args(["--numeric-owner", "-cPf", "-"]).args(args).output();
        let packed = packed.expect("tar runs");
        assert!(packed.status.success(), "tar packs: {}", String::from_utf8_lossy(&packed.stderr));
        self.archive(&packed.stdout)
    }

    /// A layer of an archive, compressed.
    pub fn archive(&self, archive: &[u8]) -> Layer {
        let plain = self.dir.join("plain");
        fs::write(&plain, archive).expect("a file");
        let packed = Command::new("gzip").arg("-1nc").arg(&plain).output().expect("gzip runs");
        fs::remove_file(&plain).expect("the file goes");
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        Layer { descriptor: self.blob(kind, &packed.stdout), diff_id: digest(archive) }
    }

    /// Adds an image of `layers` with the `config` section given, under a tag.
    pub fn image(&mut self, tag: &str, layers: &[Layer], config: &Value) {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let kind = "application/vnd.oci.image.config.v1+json";
        let config = self.blob(kind, config.to_string().as_bytes());
        let layers: Vec<_> = layers.iter().map(|layer| &layer.descriptor).collect();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers,
        });
        let mut manifest = self.blob(kind, manifest.to_string().as_bytes());
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.manifests.push(manifest);
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        fs::write(self.dir.join("index.json"), index.to_string()).expect("a file");
    }

    /// What `bulkhead run` takes for the image of a tag.
    pub fn name(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// Puts everything into a registry, each image under its tag.
    pub fn serve(&self, registry: &Registry) {
        for blob in fs::read_dir(self.dir.join("blobs/sha256")).expect("blobs").flatten() {
            let bytes = fs::read(blob.path()).expect("a blob");
            registry.put(&format!("blobs/{}", digest(&bytes)), &bytes);
        }
        for manifest in &self.manifests {
            let digest = manifest["digest"].as_str().unwrap_or_default();
            let tag = &manifest["annotations"]["org.opencontainers.image.ref.name"];
            let path = self.dir.join("blobs").join(digest.replace(':', "/"));
            let bytes = fs::read(path).expect("a manifest");
            for name in [digest, tag.as_str().unwrap_or_default()] {
                registry.put(&format!("manifests/{name}"), &bytes);
            }
        }
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        let path = self.dir.join("blobs").join(digest.replace(':', "/"));
        fs::write(path, bytes).expect("a blob");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
