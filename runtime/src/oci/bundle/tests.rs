use std::os::unix::fs::symlink;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::oci::testing::{TestBundle, config};

fn sentence(bundle: &TestBundle) -> String {
    let sentence = Bundle::load(bundle.dir()).expect_err("refused").to_string();
    assert!(!sentence.contains('\n') && !sentence.is_empty(), "one sentence: {sentence:?}");
    sentence
}

/// The sentence about a configuration that differs from a good one at `pointer`.
fn refused(pointer: &str, value: Value) -> String {
    let bundle = TestBundle::new(|config| crate::oci::testing::set(config, pointer, value));
    sentence(&bundle)
}

#[test]
fn a_good_bundle_is_loaded() {
    let bundle = TestBundle::new(|_| ());
    let loaded = Bundle::load(bundle.dir()).expect("a bundle");
    assert_eq!(loaded.rootfs, bundle.path("rootfs").canonicalize().expect("there"));
    assert!(loaded.sources.is_empty() && !loaded.readonly());
}

#[test]
fn what_is_no_bundle_is_said_in_one_sentence() {
    let empty = tempfile::tempdir().expect("a directory");
    let error = Bundle::load(empty.path()).expect_err("no file").to_string();
    assert!(error.contains("config.json"), "{error}");
    let error = Bundle::load(&empty.path().join("none")).expect_err("no directory").to_string();
    assert!(error.contains("as a bundle"), "{error}");
    for text in ["", "{", "null", "{\"ociVersion\":", "\u{feff}{}", "{\"process\": 7}"] {
        std::fs::write(empty.path().join(CONFIG), text).expect("a file");
        let error = Bundle::load(empty.path()).expect_err(text).to_string();
        assert!(error.contains("is not a container configuration"), "{text:?}: {error}");
    }
    let large = "{".repeat(CONFIG_BYTES_MAX as usize + 1);
    std::fs::write(empty.path().join(CONFIG), large).expect("a file");
    let error = Bundle::load(empty.path()).expect_err("large").to_string();
    assert!(error.contains("larger than 8 MiB"), "{error}");
    // Deep nesting must not exhaust the stack.
    std::fs::write(empty.path().join(CONFIG), "[".repeat(100_000)).expect("a file");
    assert!(Bundle::load(empty.path()).is_err());
}

#[test]
fn versions_of_other_majors_are_refused() {
    for version in ["", "0.9.0", "2.0.0", "10.0.0", "one", ".1"] {
        assert!(refused("/ociVersion", json!(version)).contains("ociVersion"), "{version}");
    }
    for version in ["1.0.0", "1.0.2-dev", "1.2.0", "1.99.0"] {
        let bundle = TestBundle::new(|config| config["ociVersion"] = json!(version));
        Bundle::load(bundle.dir()).expect(version);
    }
}

#[test]
fn each_bad_field_is_named() {
    let long = "x".repeat(200_000);
    for (pointer, value, words) in [
        ("/process", Value::Null, "process"),
        ("/root", Value::Null, "root.path"),
        ("/root/path", json!(""), "root.path"),
        ("/linux", Value::Null, "linux"),
        ("/process/args", Value::Null, "process.args"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!([""]), "process.args"),
        ("/process/args", json!(["a", "\u{0}"]), "process.args contains a NUL"),
        ("/process/args", json!([long]), "process.args is longer than 131072 bytes"),
        ("/process/env", json!(vec!["y".repeat(100_000); 30]), "together is longer"),
        ("/process/cwd", json!("relative"), "process.cwd \"relative\" is not an absolute path"),
        ("/process/cwd", json!(""), "process.cwd"),
        ("/process/user/uid", json!(-1), "invalid value"),
        ("/process/user/uid", json!(1e30), "invalid type"),
        ("/process/rlimits", json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), "RLIMIT_X"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]),
            "above the hard",
        ),
        (
            "/process/rlimits",
            json!(vec![json!({"type": "RLIMIT_CPU", "soft": 1, "hard": 1}); 2]),
            "RLIMIT_CPU twice",
        ),
        ("/process/capabilities", json!({"bounding": ["CAP_FLY"]}), "CAP_FLY"),
        ("/hostname", json!("h".repeat(65)), "hostname is longer than 64 bytes"),
        ("/annotations", json!({"": "x"}), "annotation"),
        ("/linux/namespaces", json!([{"type": "pid"}, {"type": "pid"}]), "pid twice"),
        ("/linux/namespaces", json!([{"type": "space"}]), "space"),
        ("/linux/maskedPaths", json!(["proc"]), "linux.maskedPaths \"proc\" is not an absolute"),
        ("/linux/readonlyPaths", json!(vec!["/x"; 5000]), "longer than 4096 entries"),
        ("/linux/devices", json!([{"path": "x", "type": "c", "major": 1, "minor": 1}]), "devices"),
        ("/linux/cgroupsPath", json!("/a\u{0}b"), "cgroupsPath contains a NUL"),
        ("/mounts", json!([{"destination": "/x".repeat(3000)}]), "mounts.destination"),
    ] {
        let sentence = refused(pointer, value);
        assert!(sentence.contains(words), "{pointer}: {sentence}");
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let bundle = TestBundle::new(|config| {
        config["future"] = json!({"a": [1, 2]});
        config["linux"]["future"] = json!(true);
    });
    Bundle::load(bundle.dir()).expect("a bundle");
}

#[test]
fn the_root_stays_what_it_was_said_to_be() {
    let bundle = TestBundle::new(|config| config["root"]["path"] = json!("link"));
    symlink("/", bundle.path("link")).expect("a link");
    assert!(sentence(&bundle).contains("is a symlink"));
    for (path, words) in [
        ("link/", "is a symlink"),
        ("link/etc", "leads out of the bundle"),
        ("rootfs/../..", "leads out of the bundle"),
        ("none", "as the container's root"),
        ("config.json", "as the container's root"),
    ] {
        bundle.change(|config| config["root"]["path"] = json!(path));
        let sentence = sentence(&bundle);
        assert!(sentence.contains(words), "{path}: {sentence}");
    }
}

#[test]
fn sources_of_binds_are_found_and_told_apart() {
    let bundle = TestBundle::new(|config| {
        config["mounts"] = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/a", "type": "bind", "source": "dir", "options": ["rbind", "ro"]},
            {"destination": "/b", "source": "link", "options": ["bind"]},
            {"destination": "/dev/null", "type": "none", "source": "/dev/null", "options": ["bind"]},
            {"destination": "/o", "type": "overlay", "source": "overlay", "options":
                ["lowerdir=/a\\:b:/c", "upperdir=/u", "workdir=/w", "private"]},
            {"destination": "/i", "type": "overlay", "options": ["ro", "lowerdir=/a:/c"]},
        ]);
    });
    std::fs::create_dir(bundle.path("dir")).expect("a directory");
    std::fs::write(bundle.path("file"), "").expect("a file");
    symlink("file", bundle.path("link")).expect("a link");
    let loaded = Bundle::load(bundle.dir()).expect("a bundle");
    let host = |path: PathBuf, kind, recursive| Source::Host { path, kind, recursive };
    let real = |name: &str| bundle.path(name).canonicalize().expect("there");
    assert_eq!(
        loaded.sources,
        [
            Source::Guest,
            host(real("dir"), Kind::Directory, true),
            host(real("file"), Kind::File, false),
            host("/dev/null".into(), Kind::Special, false),
            Source::Overlay {
                lower: vec!["/a:b".into(), "/c".into()],
                upper: Some(("/u".into(), "/w".into())),
            },
            Source::Overlay { lower: vec!["/a".into(), "/c".into()], upper: None },
        ]
    );
    for (source, words) in [("none", "for the mount at /x"), ("", "no source is given")] {
        bundle.change(|config| {
            config["mounts"] = json!([{"destination": "/x", "type": "bind", "source": source}]);
        });
        assert!(sentence(&bundle).contains(words));
    }
    bundle.change(|config| config["mounts"] = json!([{"destination": "/x", "type": "overlay"}]));
    assert!(sentence(&bundle).contains("the overlay at /x has no lowerdir"));
}

/// Any JSON, small.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("/")),
        Just(json!("../../..")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-zA-Z]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// The places of a configuration, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| places(value, &format!("{at}/{key}"), found));
        }
        Value::Array(list) => {
            let entries = list.iter().enumerate();
            entries.for_each(|(index, value)| places(value, &format!("{at}/{index}"), found));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn any_change_is_survived_and_planned_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
    ) {
        let bundle = TestBundle::new(|config| {
            let mut found = Vec::new();
            places(config, "", &mut found);
            for (index, value) in changes {
                if let Some(place) = config.pointer_mut(&found[index.index(found.len())]) {
                    *place = value;
                }
            }
        });
        if let Ok(loaded) = Bundle::load(bundle.dir()) {
            let host = crate::oci::testing::host();
            let vm = crate::oci::plan::vm(&loaded, &host, "id", "/v".into());
            prop_assert_eq!(vm.check(), Ok(()));
            let _ = crate::oci::plan::container(&loaded, "id", 0);
        }
    }
}

#[test]
fn the_tests_own_configuration_has_every_part() {
    let mut found = Vec::new();
    places(&config(), "", &mut found);
    for part in ["/process/rlimits/0/soft", "/linux/resources/memory/limit", "/mounts/0/options/0"]
    {
        assert!(found.iter().any(|place| place == part), "{part}");
    }
}
