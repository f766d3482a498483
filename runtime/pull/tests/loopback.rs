//! `bulkhead-pull` against a registry on the loopback that the test itself serves.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use bulkhead_image::digest::Digest;
use bulkhead_tests::registry::{BASIC, Registry};
use serde_json::{Value, json};

fn blob(registry: &Registry, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    registry.put(&format!("blobs/{digest}"), bytes);
    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
}

/// An image `v1` of these layers behind an index that names another platform first; returns
/// the digest of its manifest.
fn image(registry: &Registry, layers: &[&[u8]]) -> Digest {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config_type = "application/vnd.oci.image.config.v1+json";
    let config = blob(registry, config_type, config.to_string().as_bytes());
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let layers: Vec<_> = layers.iter().map(|layer| blob(registry, layer_type, layer)).collect();
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers,
    });
    let manifest = manifest.to_string();
    let digest = Digest::of(manifest.as_bytes());
    registry.put(&format!("manifests/{digest}"), manifest.as_bytes());
    let entry = |architecture: &str, digest: Digest, size: usize| {
        json!({
            "mediaType": manifest_type, "digest": digest, "size": size,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let entries = [entry("arm64", Digest::of(b"arm"), 3), entry("amd64", digest, manifest.len())];
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": entries });
    registry.put("manifests/v1", index.to_string().as_bytes());
    digest
}

struct Pull {
    dir: tempfile::TempDir,
}

impl Pull {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn layout(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    fn run(&self, name: &str, present: &str) -> Output {
        let _ = fs::remove_dir_all(self.layout());
        fs::create_dir(self.layout()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead-pull"))
            .arg(name)
            .arg(self.layout())
            .env_clear()
            .env("REGISTRY_AUTH_FILE", self.dir.path().join("auth.json"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(present.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn ok(&self, name: &str, present: &str) -> String {
        let output = self.run(name, present);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && said.ends_with("{\"done\":{}}\n"), "{said}");
        said
    }

    #[track_caller]
    fn fails(&self, name: &str, words: &str) {
        let output = self.run(name, "");
        let said = String::from_utf8(output.stdout).unwrap();
        let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let message = last["failed"]["message"].as_str().unwrap();
        assert!(!output.status.success() && message.contains(words), "{words}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.layout().join("blobs/sha256")).unwrap().count()
    }
}

#[test]
fn an_image_comes_without_the_layers_that_are_there() {
    let registry = Registry::new();
    let digest = image(&registry, &[b"lower", b"upper"]);
    let (pull, name) = (Pull::new(), format!("127.0.0.1:{}/app:v1", registry.port));
    let said = pull.ok(&name, "");
    assert!(said.contains("\"advance\""), "{said}");
    // Index, manifest, configuration, two layers.
    assert_eq!(pull.blobs(), 5);
    let layer = pull.layout().join("blobs/sha256").join(Digest::of(b"upper").hex());
    assert_eq!(fs::read(layer).unwrap(), b"upper");
    let asked = registry.asked(&Digest::of(b"lower").hex());
    pull.ok(&name, &format!("{}\n", Digest::of(b"lower")));
    assert_eq!((pull.blobs(), registry.asked(&Digest::of(b"lower").hex())), (4, asked));
    pull.ok(&format!("127.0.0.1:{}/app@{digest}", registry.port), "");
    assert_eq!(pull.blobs(), 4);
}

#[test]
fn what_a_registry_gets_wrong_is_said_in_one_sentence() {
    let registry = Registry::new();
    image(&registry, &[b"layer"]);
    let (pull, at) = (Pull::new(), format!("127.0.0.1:{}", registry.port));
    pull.fails(&format!("{at}/app:v2"), "/v2/app/manifests/v2");
    pull.fails(&format!("{at}/other:v1"), "/v2/other/manifests/v1");
    let pinned = Digest::of(b"pinned");
    registry.put(&format!("manifests/{pinned}"), b"{\"schemaVersion\":2}");
    pull.fails(&format!("{at}/app@{pinned}"), "igest");
    registry.put(&format!("blobs/{}", Digest::of(b"layer")), b"a longer layer");
    pull.fails(&format!("{at}/app:v1"), "has more than the 5 bytes");
    registry.put("manifests/v1", b"no json");
    pull.fails(&format!("{at}/app:v1"), "malformed");
    pull.fails("127.0.0.1:1/app:v1", "Connection refused");
    pull.fails("no image at all", "cannot be a");
}

#[test]
fn credentials_open_what_is_closed() {
    let registry = Registry::new();
    image(&registry, &[b"layer"]);
    let (pull, name) = (Pull::new(), format!("127.0.0.1:{}/app:v1", registry.port));
    let realm = format!("http://127.0.0.1:{}/token", registry.port);
    for (wanted, challenge) in [
        (format!("Basic {BASIC}"), "Basic realm=\"x\"".to_owned()),
        ("Bearer a-token".to_owned(), format!("Bearer realm=\"{realm}\",service=\"x\"")),
    ] {
        {
            let mut content = registry.content.lock().unwrap();
            (content.wanted, content.challenge) = (Some(wanted), challenge);
        }
        let _ = fs::remove_file(pull.dir.path().join("auth.json"));
        pull.fails(&name, "wants a login");
        let key = format!("127.0.0.1:{}", registry.port);
        let auths = json!({ "auths": { key: { "auth": BASIC } } });
        fs::write(pull.dir.path().join("auth.json"), auths.to_string()).unwrap();
        pull.ok(&name, "");
    }
}
