use super::*;
use crate::testing::{Item, pax_record, tar};
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;
use tar::EntryType;

/// A place to unpack to, beside things that must stay as they are.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["root", "trash", "outside"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Self { dir }
    }

    fn unpack(&self, items: &[Item]) -> Result<u64, String> {
        let open = |name: &str| fs::File::open(self.dir.path().join(name)).unwrap().into();
        let unpacked = super::unpack(&tar(items)[..], open("root"), open("trash"));
        unpacked.map_err(|error| error.to_string())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn outside(&self, name: &str) -> String {
        self.dir.path().join("outside").join(name).display().to_string()
    }

    fn attribute(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 100];
        let length = rustix::fs::lgetxattr(self.path(path), name, &mut value[..]).ok()?;
        value.truncate(length);
        Some(value)
    }

    /// Everything outside the layer's root.
    #[track_caller]
    fn is_intact(&self) {
        let outside: Vec<_> = fs::read_dir(self.dir.path().join("outside")).unwrap().collect();
        assert_eq!(outside.len(), 1, "nothing appeared outside");
        let secret = fs::symlink_metadata(self.dir.path().join("outside/secret")).unwrap();
        assert!(secret.is_file() && secret.nlink() == 1 && secret.mode() & 0o7777 == 0o644);
        assert_eq!(fs::read(self.dir.path().join("outside/secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 3);
    }
}

#[test]
fn files_are_as_they_were_packed() {
    let place = Place::new();
    let capability = [1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let pax = [
        pax_record("SCHILY.xattr.security.capability", &capability),
        pax_record("SCHILY.xattr.user.colour", b"blue"),
        pax_record("SCHILY.xattr.user.overlay.opaque", b"y"),
        pax_record("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        pax_record("SCHILY.xattr.security.selinux", b"x"),
        pax_record("mtime", b"1.5"),
    ];
    let long = format!("{}end", "long-name/".repeat(15));
    let items = [
        Item { mtime: 77, mode: 0o1777, ..Item::dir("tmp/") },
        Item { owner: (12, 34), mode: 0o6711, ..Item::file("usr/bin/su", b"x") },
        Item { pax: pax.concat(), ..Item::file("tmp/attributes", b"") },
        Item::hardlink("usr/bin/hard", "./usr/bin/su"),
        Item::symlink("usr/bin/soft", "/usr/bin/su"),
        Item::new(EntryType::Fifo, "run/fifo"),
        Item::new(EntryType::Char, "dev/null"),
        Item::file(&long, b"deep"),
        Item::file("/absolute", b"inside"),
    ];
    assert_eq!(place.unpack(&items).unwrap(), 11);
    let stat = |path: &str| fs::symlink_metadata(place.path(path)).unwrap();
    let su = stat("usr/bin/su");
    assert_eq!(
        (su.uid(), su.gid(), su.mode() & 0o7777, su.mtime()),
        (12, 34, 0o6711, 1_000_000_000)
    );
    assert_eq!(su.ino(), stat("usr/bin/hard").ino());
    assert_eq!(fs::read_link(place.path("usr/bin/soft")).unwrap().to_str(), Some("/usr/bin/su"));
    assert_eq!((stat("tmp").mode() & 0o7777, stat("tmp").mtime()), (0o1777, 77));
    assert_eq!(place.attribute("tmp/attributes", "user.colour").unwrap(), b"blue");
    assert_eq!(place.attribute("tmp/attributes", "security.capability").unwrap(), capability);
    for name in ["user.overlay.opaque", "trusted.overlay.redirect"] {
        assert_eq!(place.attribute("tmp/attributes", name), None, "{name}");
    }
    let attributes = stat("tmp/attributes");
    assert_eq!((attributes.mtime(), attributes.mtime_nsec()), (1, 500_000_000));
    assert!(stat("run/fifo").file_type().is_fifo());
    assert!(!place.path("dev/null").exists());
    assert_eq!(fs::read(place.path(&long)).unwrap(), b"deep");
    assert_eq!(fs::read(place.path("absolute")).unwrap(), b"inside");
}

#[test]
fn whiteouts_become_overlayfs_s() {
    let place = Place::new();
    let items = [
        Item::file("a/.wh.gone", b""),
        Item::file(".wh.top", b""),
        Item::file("b/.wh..wh..opq", b""),
        Item::file(".wh..wh.plnk", b""),
        // What the same layer brings is not hidden, whatever the order.
        Item::file("kept", b"1"),
        Item::file(".wh.kept", b""),
        Item::file(".wh.dir", b""),
        Item::dir("dir"),
        Item::file(".wh.implied", b""),
        Item::file("implied/file", b""),
        Item::dir("later"),
        Item::file(".wh.later", b""),
    ];
    place.unpack(&items).unwrap();
    for name in ["a/gone", "top"] {
        let stat = fs::symlink_metadata(place.path(name)).unwrap();
        assert!(stat.file_type().is_char_device() && stat.rdev() == 0, "{name}");
    }
    for name in ["b", "dir", "implied", "later"] {
        assert_eq!(place.attribute(name, "trusted.overlay.opaque").unwrap(), b"y", "{name}");
    }
    assert_eq!(place.attribute("a", "trusted.overlay.opaque"), None);
    assert_eq!(fs::read(place.path("kept")).unwrap(), b"1");
    assert!(!place.path(".wh..wh.plnk").exists());
}

#[test]
fn a_later_member_replaces_an_earlier_one() {
    let place = Place::new();
    let items = [
        Item::file("x", b"old"),
        Item::file("x", b"new"),
        Item::file("d/inner", b""),
        Item::symlink("d", "elsewhere"),
        Item::symlink("l", "nowhere"),
        Item::dir("l"),
        Item::file("l/in", b""),
        Item::hardlink("x", "x"),
    ];
    place.unpack(&items).unwrap();
    assert_eq!(fs::read(place.path("x")).unwrap(), b"new");
    assert!(fs::symlink_metadata(place.path("d")).unwrap().is_symlink());
    assert!(place.path("l/in").is_file());
}

#[test]
fn what_leads_outside_is_refused_in_one_sentence() {
    let place = Place::new();
    let outside = place.outside("");
    let secret = place.outside("secret");
    let up = "../outside/secret";
    let cases: [(&str, Vec<Item>); 11] = [
        ("leads out", vec![Item::file("../evil", b"")]),
        ("leads out", vec![Item::file("a/../../evil", b"")]),
        ("leads out", vec![Item::hardlink("evil", up)]),
        ("leads out", vec![Item::file("a/.wh...", b"")]),
        ("symbolic link", vec![Item::symlink("d", &outside), Item::file("d/evil", b"")]),
        ("symbolic link", vec![Item::symlink("e", "../outside"), Item::file("e/evil", b"")]),
        ("symbolic link", vec![Item::symlink("f", &outside), Item::hardlink("g", "f/secret")]),
        ("symbolic link", vec![Item::symlink("h", &outside), Item::file("h/.wh.secret", b"")]),
        ("not a file of the layer", vec![Item::hardlink("i", &secret)]),
        ("not a file of the layer", vec![Item::dir("j"), Item::hardlink("k", "j")]),
        ("other than a directory", vec![Item::symlink("/", &outside)]),
    ];
    for (words, items) in cases {
        let error = place.unpack(&items).unwrap_err();
        assert!(error.contains(words) && !error.contains('\n'), "{error}");
        place.is_intact();
    }
    // A hard link to a symbolic link, written "through": the link is replaced, not what it names.
    let link = [Item::symlink("s", &secret), Item::hardlink("t", "s"), Item::file("t", b"evil")];
    place.unpack(&link).unwrap();
    place.is_intact();
}

#[test]
fn deep_and_long_names_are_refused_and_can_be_removed() {
    let place = Place::new();
    for (path, words) in [("d/".repeat(300), "nested deeper"), ("n".repeat(300), "no path")] {
        assert!(place.unpack(&[Item::file(&path, b"")]).unwrap_err().contains(words));
    }
    place.unpack(&[Item::file(&"d/".repeat(DEPTH_MAX - 1), b""), Item::file("e", b"")]).unwrap();
    fs::remove_dir_all(place.path("d")).unwrap();
}

fn kinds() -> impl Strategy<Value = EntryType> {
    prop::sample::select(vec![
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Fifo,
        EntryType::Char,
    ])
}

/// Paths that meet each other often, climb, and go through links.
fn names() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c", "..", ".", ".wh.a", ".wh..wh..opq", ""]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn targets() -> impl Strategy<Value = String> {
    prop_oneof![
        names(),
        Just("OUTSIDE".to_owned()),
        Just("OUTSIDE/secret".to_owned()),
        Just("../outside".to_owned()),
        Just("../../outside/secret".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever an archive holds, nothing outside is made, changed, linked to or removed.
    #[test]
    fn nothing_ever_appears_outside(
        entries in prop::collection::vec((kinds(), names(), targets(), 0u32..0o10000), 1..12),
    ) {
        let place = Place::new();
        symlink(place.outside(""), place.path("planted")).unwrap();
        let items: Vec<Item> = entries
            .iter()
            .map(|(kind, path, target, mode)| {
                let target = target.replace("OUTSIDE", place.outside("").trim_end_matches('/'));
                let data = if *kind == EntryType::Regular { b"evil".to_vec() } else { Vec::new() };
                let link = target.into_bytes();
                Item { link, data, mode: *mode, owner: (7, 7), ..Item::new(*kind, path) }
            })
            .collect();
        // One by one, so that those after a refused one are tried as well.
        for item in &items {
            let _ = place.unpack(std::slice::from_ref(item));
        }
        let _ = place.unpack(&items);
        place.is_intact();
    }
}
