use std::fs;
use std::os::unix::fs::symlink;

use bulkhead_protocol::rpc::agent::Mount;

use super::*;

/// A root with a program in /usr/bin, a link to it in /sbin, and /bin as in a merged /usr.
fn root() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in ["usr/bin", "usr/sbin", "sbin", "etc", "opt"] {
        fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    fs::write(dir.path().join("usr/bin/tool"), "").unwrap();
    fs::write(dir.path().join("usr/file"), "").unwrap();
    symlink("nowhere", dir.path().join("sbin/tool")).unwrap();
    symlink("usr/bin", dir.path().join("bin")).unwrap();
    symlink("usr/sbin", dir.path().join("link")).unwrap();
    fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    dir
}

fn container(path: &str, mounts: &[&str]) -> ContainerSpec {
    let mount = |place: &&str| Mount { destination: (*place).to_owned(), ..Default::default() };
    let process = Process {
        args: vec!["tool".to_owned()],
        env: vec![format!("PATH={path}")],
        ..Default::default()
    };
    let mounts = mounts.iter().map(mount).collect();
    ContainerSpec { mounts, process: Some(process).into(), ..Default::default() }
}

/// What is foreseen of it, if anything is.
fn foreseen(root: &tempfile::TempDir, container: ContainerSpec) -> Option<Foreseen> {
    add(Root::At(root.path()), container).process.take()?.foreseen.take()
}

#[test]
fn the_first_directories_of_path_without_the_program_are_counted() {
    let root = root();
    for (path, expected) in [
        ("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 3),
        ("/usr/sbin:/none", 2),
        ("//usr//sbin/:/usr/./file:/usr/bin", 2),
        ("/usr/bin", 0),
        // Links may lead to what is mounted; so may what is not absolute.
        ("/usr/sbin:/bin:/usr/bin", 1),
        ("/usr/sbin:/link:/usr/bin", 1),
        ("/usr/sbin:/sbin:/usr/bin", 1),
        ("/usr/sbin::/usr/bin", 1),
        ("/usr/sbin:usr/sbin", 1),
        ("/usr/sbin/../sbin", 0),
        // The kernel's.
        ("/usr/sbin:/proc/self:/usr/bin", 1),
        ("/usr/sbin:/dev", 1),
    ] {
        let foreseen = foreseen(&root, container(path, &[])).unwrap();
        assert_eq!(foreseen.path_without, expected, "{path}");
    }
    let many = foreseen(&root, container(&"/none:".repeat(99), &[])).unwrap();
    assert_eq!(many.path_without as usize, DIRECTORIES_MAX);
}

#[test]
fn only_a_plain_name_is_searched_for() {
    let root = root();
    for (name, expected) in [("none", 2), ("/usr/bin/tool", 0), ("a/b", 0), ("..", 0), ("", 0)] {
        let mut container = container("/usr/sbin:/usr/bin", &[]);
        container.process.as_mut().unwrap().args[0] = name.to_owned();
        assert_eq!(foreseen(&root, container).unwrap().path_without, expected, "{name}");
    }
}

#[test]
fn what_mounts_may_cover_is_not_foreseen() {
    let root = root();
    let path = "/usr/local/sbin:/usr/sbin:/usr/bin";
    for (mounts, expected) in [
        (&["/opt", "/srv/not/there", "/usr/share"][..], Some((2, true))),
        (&["/usr/local"], Some((0, true))),
        (&["/usr/local/sbin/tool"], Some((0, true))),
        (&["/usr/sbin"], Some((1, true))),
        (&["/etc"], Some((2, false))),
        (&["/etc/passwd"], Some((2, false))),
        (&["/etc/hosts"], Some((2, true))),
        (&["/"], None),
        // Where these are is up to links, or to what is in another mount.
        (&["/link"], None),
        (&["/link/below"], None),
        (&["/opt/../usr/sbin"], None),
        (&["/opt", "/opt/volume"], None),
        (&["/opt/volume", "/opt"], None),
        (&["/opt", "/opt"], None),
        (&["/dev/log"], None),
    ] {
        let foreseen = foreseen(&root, container(path, mounts));
        let found = foreseen.map(|seen| (seen.path_without, seen.passwd.is_some()));
        assert_eq!(found, expected, "{mounts:?}");
    }
}

#[test]
fn a_root_that_leads_the_agent_s_own_mounts_astray_is_not_foreseen() {
    let root = root();
    symlink("passwd", root.path().join("etc/machine-id")).unwrap();
    let mut given = container("/usr/sbin", &[]);
    assert!(foreseen(&root, given.clone()).is_some());
    given.machine_id = "0123456789abcdef0123456789abcdef".to_owned();
    assert!(foreseen(&root, given).is_none());
    symlink("/usr/sbin", root.path().join("proc")).unwrap();
    assert!(foreseen(&root, container("/usr/sbin", &[])).is_none());
}

#[test]
fn users_are_sent_along_where_they_are_wanted() {
    let root = root();
    let seen = |change: fn(&mut Process)| {
        let mut container = container("/usr/bin", &[]);
        change(container.process.as_mut().unwrap());
        let foreseen = foreseen(&root, container).unwrap();
        (foreseen.passwd.map(|text| text.len()), foreseen.group.map(|text| text.len()))
    };
    assert_eq!(seen(|_| {}), (Some(26), None));
    assert_eq!(seen(|process| process.env.push("HOME=/".to_owned())), (None, None));
    // There is no /etc/group.
    assert_eq!(seen(|process| process.user_name = "root".to_owned()), (Some(26), Some(0)));
}

#[test]
fn a_passwd_that_is_no_small_file_is_the_guest_s_to_read() {
    let root = root();
    let file = root.path().join("etc/passwd");
    let text = || foreseen(&root, container("/usr/bin", &[])).unwrap().passwd.map(|t| t.len());
    for (len, expected) in [(TEXT_MAX, Some(TEXT_MAX as usize)), (TEXT_MAX + 1, None)] {
        fs::write(&file, vec![b'x'; len as usize]).unwrap();
        assert_eq!(text(), expected);
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(text(), Some(0));
    rustix::fs::mknodat(rustix::fs::CWD, &file, FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert_eq!(text(), None, "a pipe would never end");
    fs::remove_file(&file).unwrap();
    symlink("/etc/hostname", &file).unwrap();
    assert_eq!(text(), None, "a link leads somewhere else in the container");
}
