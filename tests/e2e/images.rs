//! Images: from a layout or an archive to a container, with nothing else installed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bulkhead_tests::image::{Layer, Layout};
use bulkhead_tests::registry::Registry;
use bulkhead_tests::{Finished, Host, child_named, finish, processes, signal, start, until, wait};
use serde_json::{Value, json};

/// A host with a layout whose lowest layer is the busybox root, and a store of its own.
struct Images {
    host: Host,
    layout: Layout,
    base: Layer,
}

impl Images {
    fn new() -> Self {
        let host = Host::new();
        let layout = Layout::new(host.path("layout"));
        let base = layout.layer(&host.rootfs);
        Self { host, layout, base }
    }

    /// With an image `v1` of the busybox root alone.
    fn busybox(config: &Value) -> Self {
        let mut images = Self::new();
        images.layout.image("v1", &[images.base.clone()], config);
        images
    }

    /// A layer of files by name and content.
    fn files(&self, files: &[(&str, &str)]) -> Layer {
        let tree = tempfile::tempdir_in(self.host.dir.path()).expect("a directory");
        for (name, content) in files {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().expect("below the tree")).expect("a directory");
            fs::write(path, content).expect("a file");
        }
        self.layout.layer(tree.path())
    }

    fn store(&self) -> PathBuf {
        self.host.path("images")
    }

    fn bulkhead<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.host.bulkhead(args);
        command.env("BULKHEAD_IMAGES", self.store());
        command
    }

    fn run(&self, options: &[&str], tag: &str, command: &[&str]) -> Command {
        let mut run = self.bulkhead(["run"]);
        run.args(options).arg(self.layout.name(tag)).args(command);
        run
    }

    fn sh(&self, tag: &str, script: &str) -> Finished {
        finish(self.run(&[], tag, &["sh", "-c", script]))
    }

    /// Entries of a directory of the store.
    fn count(&self, dir: &str) -> usize {
        fs::read_dir(self.store().join(dir)).map_or(0, Iterator::count)
    }

    /// The image is refused in one sentence, and nothing of it stays.
    #[track_caller]
    fn is_refused(&self, tag: &str, words: &str) {
        finish(self.run(&[], tag, &["true"])).fails(125, words);
        for dir in ["names", "blobs/sha256", "layers", "tmp", "containers"] {
            assert_eq!(self.count(dir), 0, "{dir} is empty");
        }
        assert_eq!(self.host.leftovers(), [""; 0]);
    }
}

#[test]
fn an_image_says_what_runs_and_the_command_line_has_the_last_word() {
    let images = Images::busybox(&json!({
        "Entrypoint": ["sh", "-c"],
        "Cmd": ["echo $GREETING $(id -u):$(id -g) $(pwd) $PATH"],
        "Env": ["GREETING=hello", "PATH=/bin"],
        "User": "alice",
        "WorkingDir": "/srv/work",
        "Volumes": { "/data/here": {} },
        "ExposedPorts": { "80/tcp": {} },
    }));
    assert_eq!(finish(images.run(&[], "v1", &[])).ok(), "hello 1000:1000 /srv/work /bin\n");
    let options = ["--env", "GREETING=bye", "--user", "0:50", "--workdir", "/"];
    let said = finish(images.run(&options, "v1", &[])).ok();
    assert_eq!(said, "bye 0:50 / /bin\n");
    let said = finish(images.run(&["--entrypoint", "echo"], "v1", &["hi", "there"])).ok();
    assert_eq!(said, "hi there\n");
    assert_eq!(finish(images.run(&[], "v1", &["ls -d /data/*; exit 9"])).code, 9);
}

#[test]
fn layers_hide_what_is_below_them() {
    let mut images = Images::new();
    let middle = images.files(&[("home/alice/old", "x"), ("etc/kept", "kept"), ("opt/a", "a")]);
    let top = images.files(&[
        ("etc/.wh.group", ""),
        ("home/.wh..wh..opq", ""),
        ("home/new", "n"),
        ("opt/.wh.a", ""),
        ("opt/b", "b"),
    ]);
    let layers = [images.base.clone(), middle, top];
    images.layout.image("v1", &layers, &json!({}));
    let script = "ls /home /opt; cat /etc/kept; test ! -e /etc/group && test -e /etc/passwd";
    assert_eq!(images.sh("v1", script).ok(), "/home:\nnew\n\n/opt:\nb\nkept");
}

#[test]
fn containers_of_an_image_write_apart_and_leave_nothing() {
    let images = Images::busybox(&json!({}));
    let script = "echo first >/etc/mine; rm /etc/group; mv /home /moved; sleep 4; cat /etc/mine";
    let first = start(images.run(&[], "v1", &["sh", "-c", script]));
    let second = images.sh("v1", "sleep 2; cat /etc/mine; test -e /etc/group && test -d /home");
    assert_eq!(second.code, 0, "{second:?}");
    assert_eq!(wait(first).ok(), "first\n");
    assert_eq!(images.sh("v1", "test ! -e /etc/mine").code, 0);
    assert_eq!(
        (images.count("layers"), images.count("containers"), images.count("tmp")),
        (1, 0, 0)
    );
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let store = images.store().display().to_string();
    assert!(!mounts.contains(&store) && !mounts.contains("/proc/self/fd"), "{mounts}");
}

#[test]
fn a_killed_container_s_layer_is_swept() {
    let images = Images::busybox(&json!({}));
    let mut killed = start(images.run(&[], "v1", &["sh", "-c", "echo >/big; sleep 100"]));
    let upper = || fs::read_dir(images.store().join("containers")).ok()?.flatten().next();
    while !upper().is_some_and(|container| container.path().join("upper/big").exists()) {
        assert!(killed.try_wait().expect("a child").is_none(), "it runs until it is killed");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    killed.kill().expect("it is killed");
    wait(killed);
    assert_eq!(images.count("containers"), 1);
    images.sh("v1", "test ! -e /big").ok();
    assert_eq!((images.count("containers"), images.count("layers")), (0, 1));
}

#[test]
fn read_only_and_volumes_are_as_with_any_root() {
    let images = Images::busybox(&json!({}));
    let read_only = finish(images.run(&["--read-only"], "v1", &["sh", "-c", "touch /x || exit 8"]));
    assert_eq!(read_only.code, 8, "{read_only:?}");
    let data = images.host.path("data");
    fs::create_dir(&data).expect("a directory");
    let volume = format!("{}:/not/there/yet", data.display());
    finish(images.run(&["-v", &volume], "v1", &["touch", "/not/there/yet/file"])).ok();
    assert!(data.join("file").exists());
}

#[test]
fn images_are_listed_and_removed() {
    let images = Images::busybox(&json!({}));
    let id = finish(images.bulkhead(["pull", &images.layout.name("v1")])).ok();
    let listed = finish(images.bulkhead(["images", "--json"])).ok();
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[0]["name"], images.layout.name("v1"));
    assert_eq!(listed[0]["id"], id.trim());
    assert!(finish(images.bulkhead(["images"])).ok().contains(&id[7..19]));
    let said = finish(images.bulkhead(["run", &id.trim()[7..19], "echo", "by its ID"])).ok();
    assert_eq!(said, "by its ID\n");
    finish(images.bulkhead(["rmi", id.trim()])).ok();
    finish(images.bulkhead(["rmi", "busybox"])).fails(125, "no image busybox");
    assert_eq!((images.count("layers"), images.count("names")), (0, 0));
}

#[test]
fn an_archive_of_the_layout_runs_as_well() {
    let images = Images::busybox(&json!({ "Cmd": ["echo", "from an archive"] }));
    let archive = images.host.path("image.tar");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&archive).arg("-C").arg(&images.layout.dir).arg(".");
    assert!(tar.status().expect("tar runs").success());
    let said = finish(images.bulkhead([OsStr::new("run"), archive.as_os_str()])).ok();
    assert_eq!(said, "from an archive\n");
}

#[test]
fn an_image_is_pulled_from_a_registry_once() {
    let images = Images::busybox(&json!({ "Cmd": ["echo", "from a registry"] }));
    let registry = Registry::new();
    images.layout.serve(&registry);
    let name = format!("127.0.0.1:{}/app:v1", registry.port);
    let run = || finish(images.bulkhead(["run", &name])).ok();
    assert_eq!(run(), "from a registry\n");
    let asked = registry.asked("/v2/app/");
    assert_eq!(run(), "from a registry\n");
    assert_eq!(registry.asked("/v2/app/"), asked, "the second one comes from the store");
    // What is there is not fetched again.
    let layer = registry.asked(images.base.file_hex());
    finish(images.bulkhead(["pull", &name])).ok();
    assert_eq!((registry.asked(images.base.file_hex()), images.count("tmp")), (layer, 0));
    let missing = format!("127.0.0.1:{}/app:v2", registry.port);
    finish(images.bulkhead(["pull", &missing])).fails(125, "cannot pull");
    assert_eq!((images.count("names"), images.count("tmp")), (1, 0));
}

#[test]
fn a_pull_that_is_killed_leaves_nothing_the_next_one_does_not_clean() {
    let images = Images::busybox(&json!({}));
    let registry = Registry::new();
    images.layout.serve(&registry);
    let layer = images.base.file_hex();
    let stall = |part: Option<&str>| {
        registry.content.lock().expect("a registry").stalled = part.map(str::to_owned);
    };
    let name = format!("127.0.0.1:{}/app:v1", registry.port);
    let before = processes();
    stall(Some(layer));
    for (asked, killed) in [(1, "bulkhead-pull"), (2, "bulkhead")] {
        let child = start(images.bulkhead(["pull", &name]));
        until("it fetches the layer", || registry.asked(layer) >= asked);
        let pull = child_named(child.id(), "bulkhead-pull");
        match killed {
            "bulkhead" => signal(child.id(), "KILL"),
            _ => signal(pull, "KILL"),
        }
        let ended = wait(child);
        match killed {
            "bulkhead" => assert_eq!(ended.code, 137),
            _ => ended.fails(125, "bulkhead-pull ended without a word"),
        }
        until("neither is there any more", || processes() == before);
    }
    stall(None);
    finish(images.bulkhead(["pull", &name])).ok();
    assert_eq!((images.count("names"), images.count("tmp")), (1, 0));
}

#[test]
fn an_image_is_asked_to_end_by_its_own_signal() {
    let images = Images::busybox(&json!({ "StopSignal": "SIGQUIT" }));
    let script = "trap 'echo quit; exit 3' QUIT; trap 'exit 4' TERM; touch /ready; while :; do sleep 1; done";
    let run = start(images.run(&[], "v1", &["sh", "-c", script]));
    let container = || fs::read_dir(images.store().join("containers")).ok()?.flatten().next();
    while !container().is_some_and(|container| container.path().join("upper/ready").exists()) {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let sent = Command::new("kill").arg(run.id().to_string()).status().expect("kill runs");
    assert!(sent.success());
    let finished = wait(run);
    assert_eq!((finished.code, finished.stdout.as_str()), (3, "quit\n"), "{finished:?}");
}

#[test]
fn an_image_without_layers_has_nothing_to_run() {
    let mut images = Images::new();
    images.layout.image("v1", &[], &json!({}));
    finish(images.run(&[], "v1", &["true"])).fails(127, "true");
    finish(images.run(&[], "v1", &[])).fails(125, "names no command");
}

#[test]
fn hostile_and_damaged_images_are_refused() {
    let mut images = Images::new();
    let evil = images.host.path("evil");
    fs::write(&evil, "evil").expect("a file");
    let climbing = ["--transform", "s|.*|../../../evil-was-here|", evil.to_str().expect("UTF-8")];
    let climbing = images.layout.tar(&climbing.map(OsStr::new));
    let tree = images.host.path("tree");
    fs::create_dir(&tree).expect("a directory");
    std::os::unix::fs::symlink(images.host.dir.path(), tree.join("link")).expect("a symlink");
    fs::create_dir(images.host.path("other")).expect("a directory");
    fs::write(images.host.path("other/f"), "").expect("a file");
    let through =
        ["-C", tree.to_str().expect("UTF-8"), "link", "--transform", "s|^f$|link/f|", "-C"];
    let other = images.host.path("other");
    let through: Vec<&OsStr> =
        through.iter().map(OsStr::new).chain([other.as_os_str(), "f".as_ref()]).collect();
    let through = images.layout.tar(&through);
    let base = images.base.clone();
    images.layout.image("climbing", &[base.clone(), climbing], &json!({}));
    images.layout.image("through", &[base.clone(), through], &json!({}));
    images.layout.image("base", std::slice::from_ref(&base), &json!({}));
    images.is_refused("climbing", "leads out of the layer");
    images.is_refused("through", "goes through a symbolic link");
    assert!(!Path::new("/evil-was-here").exists() && !images.host.path("f").exists());
    let blob = images.layout.dir.join("blobs/sha256").join(base.file_hex());
    let whole = fs::read(&blob).expect("a layer");
    fs::write(&blob, &whole[..whole.len() / 2]).expect("a layer");
    images.is_refused("base", "is damaged");
    let mut wrong = whole.clone();
    wrong[whole.len() / 2] ^= 1;
    fs::write(&blob, wrong).expect("a layer");
    images.is_refused("base", "is damaged");
    images.is_refused("none", "there is no image");
}

/// Counts into a file that it keeps open, until it is told to end.
const COUNTER: &str = "
    exec 3>>/log; echo before >/who; echo hidden >/etc/hidden; rm /etc/hidden
    i=0; until test -e /go; do i=$((i + 1)); echo $i >&3; sleep 0.1; done; cat /who";

#[test]
fn a_clone_writes_to_a_layer_of_its_own() {
    let images = Images::busybox(&json!({}));
    let one = start(images.run(&["--name", "one"], "v1", &["sh", "-c", COUNTER]));
    let ask =
        |name: &str, script: &str| finish(images.bulkhead(["exec", name, "sh", "-c", script]));
    until("it counts", || ask("one", "tail -n 1 /log").stdout.trim().parse::<u32>().is_ok());
    for (from, to) in [("one", "two"), ("two", "three")] {
        ask(from, &format!("mkdir /of-{from}")).ok();
        let mut clone = images.bulkhead(["clone", from, to]);
        // Its VM keeps them.
        let status = clone.stdout(Stdio::null()).status();
        assert!(status.expect("bulkhead runs").success());
        ask(from, &format!("echo {from} >/who; mkdir /not-{from}")).ok();
    }
    let said = ask("three", "cat /who; ls -d /of-* /not-* /etc/hidden").stdout;
    assert_eq!(said, "before\n/of-one\n/of-two\n");
    ask("three", "echo three >/who").ok();
    for name in ["one", "two", "three"] {
        assert_eq!(ask(name, "cat /who").ok(), format!("{name}\n"));
        let count = || ask(name, "wc -l </log").ok().trim().parse::<usize>().expect("a number");
        let before = count();
        until("it goes on", || count() > before);
        let log = ask(name, "cat /log").ok();
        let numbers: Vec<usize> = log.lines().filter_map(|line| line.parse().ok()).collect();
        assert_eq!(
            numbers,
            (1..=numbers.len()).collect::<Vec<_>>(),
            "nothing is lost or another's"
        );
    }
    ask("two", "touch /go").ok();
    let state = || finish(images.bulkhead(["state", "two"])).ok();
    until("two has ended", || state().contains("\"stopped\""));
    finish(images.bulkhead(["delete", "--force", "two"])).ok();
    finish(images.bulkhead(["delete", "--force", "three"])).ok();
    ask("one", "touch /go").ok();
    assert_eq!(wait(one).ok(), "one\n");
    let layers = fs::read_dir(images.store().join("containers")).expect("the store").count();
    assert_eq!((layers, images.host.leftovers()), (0, vec![]));
}
