//! Templates without a VM: who makes them, and when.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const MIB: u32 = 64;

struct Place {
    dir: tempfile::TempDir,
    templates: Templates,
    built: AtomicUsize,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in ["kernel", "init", "vmm"] {
            fs::write(dir.path().join(file), file).unwrap();
        }
        let templates = Templates(dir.path().join("templates"));
        Self { dir, templates, built: AtomicUsize::new(0) }
    }

    fn vm(&self, vcpus: u8) -> VmSpec {
        let path = |name| self.dir.path().join(name).display().to_string();
        let json = format!(
            r#"{{"name":"n","vcpus":{vcpus},"memory_mib":{MIB},"kernel":"{}","init":"{}","cid":3,"vsock":"v"}}"#,
            path("kernel"),
            path("init")
        );
        serde_json::from_str(&json).unwrap()
    }

    fn get(&self, vcpus: u8) -> Result<Template, TemplateError> {
        self.templates.get(&self.vm(vcpus), &self.dir.path().join("vmm"), |files| {
            self.built.fetch_add(1, Ordering::SeqCst);
            files.snapshot.memory.set_len(u64::from(MIB) << 20).unwrap();
            (&files.snapshot.state).write_all(&snapshot::seal(b"state")).unwrap();
            snapshot::WorkingSet::default().write(&files.working_set).unwrap();
            Ok(())
        })
    }

    fn built(&self) -> usize {
        self.built.load(Ordering::SeqCst)
    }

    fn only_dir(&self) -> PathBuf {
        let entries = fs::read_dir(&self.templates.0).unwrap().flatten().map(|entry| entry.path());
        let mut dirs: Vec<_> = entries.filter(|path| path.is_dir()).collect();
        assert_eq!(dirs.len(), 1, "{dirs:?}");
        dirs.remove(0)
    }
}

#[test]
fn a_template_is_made_once_even_by_many_at_a_time() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| place.get(1).unwrap());
        }
    });
    assert_eq!(place.built(), 1);
    place.get(2).unwrap();
    assert_eq!(place.built(), 2, "another shape");
}

#[test]
fn what_a_template_depends_on_makes_another() {
    let place = Place::new();
    place.get(1).unwrap();
    fs::write(place.dir.path().join("init"), "another").unwrap();
    place.get(1).unwrap();
    assert_eq!(place.built(), 2);
}

#[test]
fn a_damaged_template_is_made_anew() {
    let place = Place::new();
    place.get(1).unwrap();
    let dir = place.only_dir();
    let mut state = fs::read(dir.join(STATE)).unwrap();
    *state.last_mut().unwrap() ^= 1;
    fs::write(dir.join(STATE), &state).unwrap();
    place.get(1).unwrap();
    assert_eq!(place.built(), 2, "a flipped bit");
    OpenOptions::new().write(true).open(dir.join(MEMORY)).unwrap().set_len(4096).unwrap();
    place.get(1).unwrap();
    assert_eq!(place.built(), 3, "too short a memory");
    fs::remove_file(dir.join(MEMORY)).unwrap();
    place.get(1).unwrap();
    assert_eq!(place.built(), 4, "no memory");
    place.get(1).unwrap();
    assert_eq!(place.built(), 4);
}

#[test]
fn a_build_that_fails_leaves_no_template() {
    let place = Place::new();
    let vm = place.vm(1);
    let vmm = place.dir.path().join("vmm");
    let fail = |_: &Template| Err(TemplateError::Build("no".to_owned()));
    assert!(place.templates.get(&vm, &vmm, fail).is_err());
    place.get(1).unwrap();
    assert_eq!(place.built(), 1);
}

#[test]
fn the_oldest_go_when_there_are_too_many() {
    let place = Place::new();
    for vcpus in 1..=KEPT_MAX as u8 + 3 {
        place.get(vcpus).unwrap();
    }
    let entries = fs::read_dir(&place.templates.0).unwrap().flatten();
    assert_eq!(entries.filter(|entry| entry.path().is_dir()).count(), KEPT_MAX);
    let before = place.built();
    place.get(KEPT_MAX as u8 + 3).unwrap();
    assert_eq!(place.built(), before, "the newest is there");
}

/// As an archive of a checkpoint may hold them.
#[test]
fn what_is_no_file_of_a_snapshot_s_own_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let [state, memory] = Snapshot::files(dir.path());
    fs::write(&state, "").unwrap();
    fs::write(&memory, "").unwrap();
    assert!(Snapshot::open(dir.path()).is_ok());
    for file in [&memory, &state] {
        fs::remove_file(file).unwrap();
        std::os::unix::fs::symlink("/proc/version", file).unwrap();
        assert!(Snapshot::open(dir.path()).is_err(), "{} is a link", file.display());
        fs::remove_file(file).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, file, fifo, Mode::RWXU, 0).unwrap();
        assert!(Snapshot::open(dir.path()).is_err(), "{} is a FIFO", file.display());
    }
}
