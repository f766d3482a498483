use super::*;
use crate::testing::{Item, Layout, file_of, gzip, tar};
use serde_json::{Value, json};
use std::path::Path;

fn at(path: &Path, tag: Option<&str>) -> Location {
    Location { format: None, path: path.into(), tag: tag.map(str::to_owned) }
}

#[track_caller]
fn error(location: &Location) -> String {
    let error = Source::open(location).err().expect("an error").to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn a_layout_and_an_archive_of_it_are_the_same_image() {
    let layout = Layout::of(&[&[Item::file("a", b"1")], &[Item::file("b", b"2")]]);
    let archive = layout.archive();
    let (one, other) = (
        Source::open(&layout.location(None)).unwrap(),
        Source::open(&at(archive.path(), None)).unwrap(),
    );
    assert_eq!(one.layers.len(), 2);
    assert_eq!((one.layers.clone(), &one.config), (other.layers.clone(), &other.config));
    assert_eq!(one.manifest, other.manifest);
    let (mut file, size) = other.open_layer(&other.layers[1]).unwrap();
    let mut data = Vec::new();
    file.read_to_end(&mut data).unwrap();
    assert_eq!((data.len() as u64, Digest::of(&data)), (size, other.layers[1].diff_id));
}

#[test]
fn the_tag_says_which_image() {
    let mut layout = Layout::new();
    for (tag, text) in [("v1", "one"), ("docker.io/me/app:v2", "two")] {
        let archive = tar(&[Item::file("x", text.as_bytes())]);
        let manifest = layout.image(&[(gzip(&archive), archive)], json!({}));
        layout.index(manifest, Some(tag), None);
    }
    let diff_id = |tag| Source::open(&layout.location(Some(tag))).unwrap().layers[0].diff_id;
    let archive = |text: &str| Digest::of(&tar(&[Item::file("x", text.as_bytes())]));
    assert_eq!(diff_id("v1"), archive("one"));
    assert_eq!(diff_id("v2"), archive("two"));
    assert_eq!(diff_id("docker.io/me/app:v2"), archive("two"));
    assert!(error(&layout.location(Some("v3"))).contains("docker.io/me/app:v2, v1"));
    assert!(error(&layout.location(None)).contains("several images"));
}

fn platform(architecture: &str, variant: &str) -> Option<Value> {
    Some(json!({ "os": "linux", "architecture": architecture, "variant": variant }))
}

#[test]
fn an_index_is_resolved_for_this_machine() {
    let mut layout = Layout::new();
    let image = |text: &str| {
        let archive = tar(&[Item::file("x", text.as_bytes())]);
        layout.image(&[(archive.clone(), archive)], json!({}))
    };
    let (arm, amd, v9) = (image("arm"), image("amd"), image("v9"));
    let mut entries = vec![arm, amd, v9];
    for (entry, platform) in entries.iter_mut().zip([
        platform("arm64", "v8"),
        platform("amd64", "v1"),
        platform("amd64", "v9"),
    ]) {
        entry["platform"] = platform.unwrap();
    }
    let mut attestation = entries[1].clone();
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    entries.insert(0, attestation);
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    let kind = "application/vnd.oci.image.index.v1+json";
    let descriptor = layout.document(kind, &index);
    layout.index(descriptor, None, None);
    let source = Source::open(&layout.location(None)).unwrap();
    assert_eq!(source.layers[0].diff_id, Digest::of(&tar(&[Item::file("x", b"amd")])));

    let mut foreign = Layout::new();
    let archive = tar(&[]);
    let manifest = foreign.image(&[(archive.clone(), archive)], json!({}));
    foreign.index(manifest, None, platform("arm64", "v8"));
    assert!(error(&foreign.location(None)).contains("linux/arm64/v8"));
}

#[test]
fn an_index_that_names_itself_again_and_again_ends() {
    let mut layout = Layout::of(&[]);
    let kind = "application/vnd.oci.image.index.v1+json";
    let mut descriptor = layout.document(kind, &json!({ "schemaVersion": 2, "manifests": [] }));
    for _ in 0..10 {
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        descriptor = layout.document(kind, &index);
    }
    layout.index(descriptor, Some("deep"), None);
    assert!(error(&layout.location(Some("deep"))).contains("nested"));
}

#[test]
fn wrong_documents_are_named_in_one_sentence() {
    // A manifest that is another than its digest says.
    let layout = Layout::of(&[&[]]);
    let source = Source::open(&layout.location(None)).unwrap();
    let (digest, bytes) = source.manifest.unwrap();
    std::fs::write(layout.blob_path(&digest), [&bytes[..], b" "].concat()).unwrap();
    assert!(error(&layout.location(None)).contains("not what its digest says"));
    std::fs::remove_file(layout.blob_path(&digest)).unwrap();
    assert!(error(&layout.location(None)).contains("cannot read blobs/sha256/"));
    // A blob that is a link out of the layout.
    std::os::unix::fs::symlink("/etc/passwd", layout.blob_path(&digest)).unwrap();
    assert!(error(&layout.location(None)).contains("cannot read blobs/sha256/"));
    for (index, words) in
        [("{", "malformed"), (r#"{"schemaVersion":2,"manifests":[]}"#, "no platform")]
    {
        std::fs::write(layout.dir.path().join("index.json"), index).unwrap();
        assert!(error(&layout.location(None)).contains(words));
    }
    std::fs::write(layout.dir.path().join("index.json"), vec![b' '; 5 << 20]).unwrap();
    assert!(error(&layout.location(None)).contains("are the most"));
    std::fs::write(layout.dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"2"}"#).unwrap();
    assert!(error(&layout.location(None)).contains("version"));
}

#[test]
fn manifests_and_configurations_must_fit() {
    let layer = |kind: &str| json!({ "mediaType": kind, "digest": Digest::of(b""), "size": 0 });
    let tar_layer = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let config = |os: &str, layers: usize| {
        let diff_ids = vec![Digest::of(b""); layers];
        json!({ "os": os, "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": diff_ids } })
    };
    let cases = [
        (config("linux", 1), vec![layer(tar_layer)], None),
        (config("windows", 1), vec![layer(tar_layer)], Some("windows/amd64")),
        (config("linux", 2), vec![layer(tar_layer)], Some("names 2")),
        (config("linux", 1), vec![layer("application/wasm")], Some("application/wasm")),
        (config("linux", 500), vec![layer(tar_layer); 500], Some("500 layers")),
    ];
    for (config, layers, words) in cases {
        let mut layout = Layout::new();
        let manifest = layout.manifest(&config, &layers);
        layout.index(manifest, None, None);
        match words {
            None => assert!(Source::open(&layout.location(None)).is_ok()),
            Some(words) => assert!(error(&layout.location(None)).contains(words)),
        }
    }
}

#[test]
fn docker_archives_are_read_with_their_links() {
    let archive = tar(&[Item::file("x", b"1")]);
    let diff_ids = vec![Digest::of(&archive); 2];
    let config = json!({
        "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = config.to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = |config: &str| {
        let layers = ["1/layer.tar", "2/layer.tar"];
        json!([{ "Config": config, "RepoTags": ["app:v1"], "Layers": layers }]).to_string()
    };
    let items = |config_name: &str| {
        [
            Item::file("1/layer.tar", &archive),
            Item::symlink("2/layer.tar", "../1/layer.tar"),
            Item::file(config_name, config.as_bytes()),
            Item::file("manifest.json", manifest(config_name).as_bytes()),
        ]
    };
    let file = file_of(&tar(&items(&name)));
    for tag in [None, Some("v1"), Some("app:v1"), Some("docker.io/library/app:v1")] {
        let source = Source::open(&at(file.path(), tag)).unwrap();
        let (mut layer, _) = source.open_layer(&source.layers[1]).unwrap();
        let mut data = Vec::new();
        layer.read_to_end(&mut data).unwrap();
        assert_eq!(data, archive);
    }
    assert!(error(&at(file.path(), Some("v2"))).contains("app:v1"));
    let forged = format!("{}.json", Digest::of(b"other").hex());
    let file = file_of(&tar(&items(&forged)));
    assert!(error(&at(file.path(), None)).contains("not what its digest says"));
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(&at(dir.path(), None)).contains("is no image"));
    assert!(error(&at(&dir.path().join("none"), None)).contains("cannot open"));
    assert!(error(&at(file_of(b"").path(), None)).contains("is no image"));
    assert!(error(&at(file_of(&[7; 2000]).path(), None)).contains("broken archive"));
    assert!(error(&at(file_of(&gzip(b"x")).path(), None)).contains("compressed"));
    assert!(error(&at(Path::new("/dev/null"), None)).contains("is no image"));
    let layout = Layout::of(&[&[]]);
    let cut = std::fs::read(layout.archive().path()).unwrap();
    assert!(error(&at(file_of(&cut[..700]).path(), None)).contains("broken archive"));
    let wrong = Location { format: Some(Format::OciArchive), ..layout.location(None) };
    assert!(error(&wrong).contains("prefix"));
}
