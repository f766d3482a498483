use super::*;
use crate::import::{Progress, import};
use crate::source::Source;
use crate::testing::{Item, Layout, gzip, tar};
use serde_json::json;
use std::os::unix::fs::FileTypeExt;
use std::sync::Mutex;
use std::thread;

struct Place {
    _dir: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("images"));
        Self { _dir: dir, store }
    }

    fn import(&self, layout: &Layout, name: &str) -> Result<Record, String> {
        let source = Source::open(&layout.location(None)).map_err(|error| error.to_string())?;
        let imported = import(&self.store, &source, name, &|_| {});
        imported.map_err(|error| error.to_string())
    }

    fn count(&self, dir: &str) -> usize {
        self.store.names_in(dir).count()
    }

    #[track_caller]
    fn is_empty(&self) {
        for dir in ["names", "blobs/sha256", "layers", "tmp", "containers"] {
            assert_eq!(self.count(dir), 0, "{dir}");
        }
    }
}

#[test]
fn an_image_comes_whole_and_goes_whole() {
    let place = Place::new();
    let layout = Layout::of(&[&[Item::file("a", b"12")], &[Item::file(".wh.a", b"")]]);
    let image = place.import(&layout, "docker.io/library/app:v1").unwrap();
    assert_eq!((image.bytes, place.count("layers"), place.count("blobs/sha256")), (2, 2, 2));
    assert_eq!(place.store.images(), std::slice::from_ref(&image));
    for text in ["app:v1", "docker.io/library/app:v1", &image.id.short(), &image.id.to_string()] {
        assert_eq!(place.store.find(text).unwrap(), image, "{text}");
    }
    assert!(matches!(place.store.find("app:v2"), Err(StoreError::Unknown(_))));
    assert!(matches!(place.store.find("abcd"), Err(StoreError::Unknown(_))));
    let diff_id = Source::open(&layout.location(None)).unwrap().layers[1].diff_id;
    let whiteout = place.store.layer(&diff_id).join("root/a");
    assert!(fs::symlink_metadata(whiteout).unwrap().file_type().is_char_device());
    place.store.remove(&image).unwrap();
    place.is_empty();
}

#[test]
fn images_share_layers_and_keep_them() {
    let place = Place::new();
    let base: &[Item] = &[Item::file("base", b"1")];
    let one = place.import(&Layout::of(&[base, &[Item::file("x", b"1")]]), "a.b/one:x").unwrap();
    let two = place.import(&Layout::of(&[base, &[Item::file("y", b"1")]]), "a.b/two:x").unwrap();
    assert_eq!(place.count("layers"), 3);
    place.store.remove(&one).unwrap();
    assert_eq!(place.count("layers"), 2);
    // A name that moves on lets go of what it meant.
    place.import(&Layout::of(&[&[Item::file("z", b"1")]]), "a.b/two:x").unwrap();
    assert_eq!((place.count("layers"), place.count("names")), (1, 1));
    assert_ne!(place.store.find("a.b/two:x").unwrap().id, two.id);
}

#[test]
fn damaged_layers_are_refused_and_leave_nothing() {
    let archive = tar(&[Item::file("a", &[1; 100_000])]);
    let file = gzip(&archive);
    type Damage<'a> = &'a dyn Fn(&Layout);
    let cases: [(&str, Damage); 3] = [
        ("is damaged", &|layout| {
            let path = layout.blob_path(&Digest::of(&file));
            fs::write(path, &file[..file.len() / 2]).unwrap();
        }),
        ("is damaged", &|layout| {
            let mut wrong = file.clone();
            *wrong.last_mut().unwrap() ^= 1;
            fs::write(layout.blob_path(&Digest::of(&file)), wrong).unwrap();
        }),
        ("more than", &|layout| {
            let longer = [&file[..], b"x"].concat();
            fs::write(layout.blob_path(&Digest::of(&file)), longer).unwrap();
        }),
    ];
    for (words, damage) in cases {
        let place = Place::new();
        let mut layout = Layout::new();
        let manifest = layout.image(&[(file.clone(), archive.clone())], json!({}));
        layout.index(manifest, None, None);
        damage(&layout);
        let error = place.import(&layout, "x").unwrap_err();
        assert!(error.contains(words) && !error.contains('\n'), "{error}");
        place.is_empty();
    }
    // The right file by its digest, and not what the configuration means.
    let place = Place::new();
    let mut layout = Layout::new();
    let manifest = layout.image(&[(file.clone(), tar(&[]))], json!({}));
    layout.index(manifest, None, None);
    let error = place.import(&layout, "x").unwrap_err();
    assert!(error.contains("not the one"), "{error}");
    place.is_empty();
    let hostile = Layout::of(&[&[Item::file("fine", b"")], &[Item::file("../../evil", b"")]]);
    let error = place.import(&hostile, "x").unwrap_err();
    assert!(error.contains("leads out of the layer") && !error.contains('\n'), "{error}");
    place.is_empty();
}

#[test]
fn racing_imports_unpack_each_layer_once() {
    let place = Place::new();
    let layers: Vec<Vec<Item>> = (0..6)
        .map(|layer| (0..50).map(|n| Item::file(&format!("{layer}/{n}"), &[7; 5000])).collect())
        .collect();
    let layers: Vec<&[Item]> = layers.iter().map(Vec::as_slice).collect();
    let layout = Layout::of(&layers);
    let begun = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for n in 0..4 {
            let (begun, store, layout) = (&begun, &place.store, &layout);
            scope.spawn(move || {
                let source = Source::open(&layout.location(None)).unwrap();
                let note = |progress| {
                    if let Progress::Begun(layer, _) = progress {
                        begun.lock().unwrap().push(layer);
                    }
                };
                import(store, &source, &format!("a.b/c:{n}"), &note).unwrap();
            });
        }
    });
    let begun = begun.into_inner().unwrap();
    assert_eq!(begun.len(), 6, "each once: {begun:?}");
    assert_eq!((place.count("names"), place.count("layers"), place.count("tmp")), (4, 6, 0));
}

#[test]
fn what_the_dead_left_is_swept_and_the_living_stay() {
    let place = Place::new();
    place.store.create().unwrap();
    let shared = place.store.share().unwrap();
    let living = place.store.hold("tmp", &shared).unwrap();
    for dead in ["tmp/dead", "containers/dead", "layers/unnamed"] {
        fs::create_dir_all(place.store.dir().join(dead).join("deep/er")).unwrap();
    }
    fs::write(place.store.dir().join("tmp/dead/lock"), "").unwrap();
    // Not while somebody is adding something.
    place.store.collect().unwrap();
    assert_eq!(place.count("tmp"), 2);
    drop(shared);
    place.store.collect().unwrap();
    assert_eq!((place.count("tmp"), place.count("containers"), place.count("layers")), (1, 0, 0));
    drop(living);
    place.is_empty();
}

#[test]
fn containers_share_layers_and_write_apart() {
    let place = Place::new();
    let lower: &[Item] =
        &[Item::file("etc/a", b"lower"), Item::file("gone", b"x"), Item::file("hid/den", b"x")];
    let upper: &[Item] = &[
        Item { mode: 0o750, ..Item::dir("./") },
        Item::file("etc/b", b"upper"),
        Item::file(".wh.gone", b""),
        Item::file("hid/.wh..wh..opq", b""),
        Item::symlink("lib", "usr/lib"),
        Item::dir("usr/lib"),
    ];
    let image = place.import(&Layout::of(&[lower, upper]), "app").unwrap();
    let [one, two] = [(); 2].map(|()| place.store.container(&image, false).unwrap());
    let path = |container: &Container, name: &str| {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{name}", container.root().as_raw_fd()))
    };
    let mut names: Vec<_> = fs::read_dir(path(&one, "."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["etc", "hid", "lib", "usr"]);
    assert_eq!(fs::read(path(&one, "etc/a")).unwrap(), b"lower");
    assert_eq!(fs::read_dir(path(&one, "hid")).unwrap().count(), 0);
    fs::write(path(&one, "etc/a"), "mine").unwrap();
    fs::remove_file(path(&one, "etc/b")).unwrap();
    assert_eq!(fs::read(path(&two, "etc/a")).unwrap(), b"lower");
    assert_eq!(fs::read(path(&two, "etc/b")).unwrap(), b"upper");
    // Directories are made where the container's links lead, never the host's.
    one.make_directory("/lib/deep/er").unwrap();
    assert!(path(&one, "usr/lib/deep/er").is_dir());
    one.make_directory("/../../up").unwrap();
    assert!(path(&one, "up").is_dir());
    assert!(one.make_directory("/etc/a/x").is_err());
    let locked = place.store.container(&image, true).unwrap();
    assert!(fs::write(path(&locked, "etc/a"), "x").is_err());
    drop(locked);
    // An image in use stays, whatever becomes of its name.
    place.store.remove(&image).unwrap();
    assert_eq!(place.count("layers"), 2);
    drop((one, two));
    place.store.collect().unwrap();
    place.is_empty();
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    let place = Place::new();
    let image = place.import(&Layout::of(&[]), "empty").unwrap();
    let container = place.store.container(&image, false).unwrap();
    container.make_directory("/tmp").unwrap();
}

#[test]
fn an_opaque_root_hides_all_lower_layers() {
    let place = Place::new();
    let upper: &[Item] = &[Item::file(".wh..wh..opq", b""), Item::file("new", b"")];
    let image = place.import(&Layout::of(&[&[Item::file("old", b"")], upper]), "x").unwrap();
    let container = place.store.container(&image, false).unwrap();
    use std::os::fd::AsRawFd;
    let root = PathBuf::from(format!("/proc/self/fd/{}", container.root().as_raw_fd()));
    assert!(root.join("new").exists() && !root.join("old").exists());
}
