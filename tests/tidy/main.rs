//! What the tree must not become: rules of ARCHITECTURE.md that no compiler checks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file longer than this has more than one subject.
const FILE_LINES_MAX: usize = 600;
/// A function longer than this does more than one thing.
const FUNCTION_LINES_MAX: usize = 70;

/// Everything the top level may hold, besides dotfiles.
const TOP_LEVEL: [&str; 12] = [
    "ARCHITECTURE.md",
    "Cargo.lock",
    "Cargo.toml",
    "Makefile",
    "README.md",
    "agent",
    "devices",
    "guest-kernel-config",
    "resources",
    "runtime",
    "tests",
    "vmm",
];

/// What a crate must not know of, by the names of crates it would need for it.
const STRANGERS: [(&str, &[&str]); 8] = [
    ("bulkhead-devices", &["kvm-", "oci-", "ttrpc", "protobuf", "bulkhead-", "clap"]),
    ("bulkhead-vmm", &["oci-", "clap", "tokio"]),
    ("bulkhead-fs-server", &["kvm-", "vm-memory", "virtio-queue", "oci-", "bulkhead-", "clap"]),
    ("bulkhead-image", &["kvm-", "vm-memory", "virtio-", "bulkhead-", "clap", "tokio"]),
    (
        "bulkhead-pull",
        &["kvm-", "vm-memory", "virtio-", "bulkhead-vmm", "bulkhead-devices", "ttrpc"],
    ),
    ("bulkhead-protocol", &["kvm-", "vm-memory", "virtio-", "oci-", "bulkhead-", "clap"]),
    ("bulkhead-agent", &["kvm-", "vm-memory", "virtio-", "oci-", "clap", "tokio"]),
    ("bulkhead", &["kvm-", "vm-memory", "virtio-queue"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the checkout")
}

/// Files that git tracks, relative to the checkout.
fn tracked() -> Vec<PathBuf> {
    let output = Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output();
    let output = output.expect("git runs");
    assert!(output.status.success(), "git lists the files of {}", root().display());
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    // A file may be deleted and not committed yet.
    let files = names.split_terminator('\0').map(PathBuf::from);
    files.filter(|file| root().join(file).exists()).collect()
}

/// Rust sources with their text.
fn sources() -> Vec<(PathBuf, String)> {
    let rust = tracked().into_iter().filter(|file| file.extension().is_some_and(|e| e == "rs"));
    let sources: Vec<_> = rust
        .map(|file| {
            let text = fs::read_to_string(root().join(&file)).expect("sources are UTF-8");
            (file, text)
        })
        .collect();
    assert!(sources.len() > 100, "only {} sources found", sources.len());
    sources
}

#[track_caller]
fn none(broken: Vec<String>, rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn the_top_level_holds_what_it_may_and_nothing_else() {
    let tracked = tracked();
    let found: BTreeSet<_> =
        tracked.iter().filter_map(|file| file.iter().next()?.to_str()).collect();
    let strange =
        found.into_iter().filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(name));
    none(strange.map(str::to_owned).collect(), "these do not belong to the top level");
}

#[test]
fn a_file_has_one_subject() {
    let long = sources().into_iter().filter_map(|(file, text)| {
        let lines = text.lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines", file.display()))
    });
    none(long.collect(), "these files are too long; split them by reason to change");
}

#[test]
fn a_function_does_one_thing() {
    let long = sources().into_iter().flat_map(|(file, text)| {
        let long = functions(&text).into_iter().filter(|(.., lines)| *lines > FUNCTION_LINES_MAX);
        let say = |(name, lines)| format!("{}: {name} has {lines} lines", file.display());
        long.map(say).collect::<Vec<_>>()
    });
    none(long.collect(), "these functions are too long");
}

/// Names and lengths of the functions of a file that rustfmt has formatted: a function's last line
/// is a brace below the beginning of its first.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let Some((before, after)) = code.split_once("fn ") else { continue };
        let words = ["pub", "const", "unsafe", "extern", "async", "\"C\""];
        let is_head = before.split_whitespace().all(|word| {
            words.contains(&word) || word.starts_with("pub(") || word.starts_with("unsafe(")
        });
        if !is_head || line.ends_with('}') || line.ends_with(';') {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        if let Some(length) = lines[at..].iter().position(|line| *line == end) {
            let name = after.split(['(', '<']).next().unwrap_or(after);
            found.push((name.to_owned(), length + 1));
        }
    }
    found
}

#[test]
fn functions_are_measured() {
    let text = "fn one() {}\npub(crate) fn two(\n    a: u8,\n) {\n    a;\n}\nimpl X {\n    fn three() {\n    }\n}\n";
    assert_eq!(functions(text), [("two".to_owned(), 5), ("three".to_owned(), 2)]);
}

#[test]
fn no_library_ends_the_process() {
    let allowed = ["main.rs", "clone.rs"];
    let ends = sources().into_iter().filter(|(file, text)| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let product = file.iter().any(|part| part == "src") && !file.starts_with("tests");
        product && !allowed.contains(&name) && text.contains("process::exit(")
    });
    none(ends.map(|(file, _)| file.display().to_string()).collect(), "these files call exit");
}

#[test]
fn every_module_is_part_of_its_crate() {
    let sources = sources();
    let dead = sources.iter().filter(|(file, _)| {
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let target = ["main", "lib", "build"].contains(&stem)
            || in_dir(file, "examples")
            || in_dir(file, "bin");
        // What cargo finds by itself: files in the tests folder of a crate.
        let top_level_test = in_dir(file, "tests")
            && file
                .ancestors()
                .nth(2)
                .is_some_and(|dir| root().join(dir).join("Cargo.toml").exists());
        if target || top_level_test {
            return false;
        }
        let name =
            if stem == "mod" { file.parent().and_then(Path::file_stem) } else { file.file_stem() };
        let name = name.and_then(|name| name.to_str()).unwrap_or_default();
        let file_name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let crate_dir = file.iter().next().unwrap_or_default();
        let declares = |text: &str| {
            text.contains(&format!("mod {name};")) || text.contains(&format!("{file_name}\"]"))
        };
        !sources.iter().any(|(other, text)| other.starts_with(crate_dir) && declares(text))
    });
    let dead = dead.map(|(file, _)| file.display().to_string());
    none(dead.collect(), "no module declares these files");
}

fn in_dir(file: &Path, dir: &str) -> bool {
    file.parent().is_some_and(|parent| parent.ends_with(dir))
}

#[test]
fn crates_do_not_know_what_they_must_not() {
    let manifests = tracked().into_iter().filter(|file| file.ends_with("Cargo.toml"));
    let mut checked = 0;
    let mut broken = Vec::new();
    for manifest in manifests {
        let text = fs::read_to_string(root().join(&manifest)).expect("manifests are UTF-8");
        let name = text.lines().find_map(|line| line.strip_prefix("name = ")).unwrap_or_default();
        let name = name.trim_matches('"');
        let Some((_, strangers)) = STRANGERS.iter().find(|(of, _)| *of == name) else { continue };
        checked += 1;
        for known in dependencies(&text) {
            if strangers.iter().any(|stranger| known.starts_with(stranger)) {
                broken.push(format!("{name} depends on {known}"));
            }
        }
    }
    assert_eq!(checked, STRANGERS.len(), "every crate named here exists");
    none(broken, "dependencies in the wrong direction");
}

/// What a manifest names in `[dependencies]`; what only tests or build scripts use may know more.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut lines = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let section = lines.by_ref().take_while(|line| !line.starts_with('['));
    section
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|n| !n.is_empty())
        .collect()
}
