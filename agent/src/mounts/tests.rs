use super::*;

fn mount(destination: &str, type_: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        type_: type_.to_owned(),
        options: options.iter().map(|&word| word.to_owned()).collect(),
        ..Default::default()
    }
}

fn spec(mounts: &[Mount]) -> ContainerSpec {
    ContainerSpec { mounts: mounts.to_vec(), ..Default::default() }
}

#[test]
fn a_default_keeps_its_place_when_the_spec_changes_it() {
    let mounts = [
        mount("/data", "tmpfs", &[]),
        mount("/dev", "tmpfs", &["size=1m"]),
        mount("/dev/pts", "devpts", &["gid=7"]),
        mount("/dev/shm", "share", &[]),
    ];
    let spec = spec(&mounts);
    let (defaults, added) = plan(&spec, true).unwrap();
    let order = |planned: &[Planned<'_>]| -> Vec<String> {
        planned.iter().map(|mount| mount.destination.to_owned()).collect()
    };
    assert_eq!(order(&defaults), DEFAULTS.map(|(destination, ..)| destination));
    assert_eq!(order(&added), ["/data", "/dev/shm"]);
    let data = |path| &defaults.iter().find(|m| m.destination == path).unwrap().options.data;
    assert_eq!(data("/dev"), "size=1m");
    assert_eq!(data("/dev/pts"), "");
    assert_eq!(data("/dev/shm"), "mode=1777");
}

#[test]
fn the_same_destination_twice_is_a_change_and_an_addition() {
    let mounts = [mount("/sys", "sysfs", &["rw"]), mount("/sys", "tmpfs", &[])];
    let spec = spec(&mounts);
    let (defaults, added) = plan(&spec, true).unwrap();
    assert_eq!((defaults.len(), added.len()), (DEFAULTS.len(), 1));
    assert_eq!(added[0].fstype, "tmpfs");
}

#[test]
fn without_a_hierarchy_no_cgroups_are_mounted() {
    let spec = spec(&[]);
    let (defaults, _) = plan(&spec, false).unwrap();
    assert!(defaults.iter().all(|mount| mount.fstype != "cgroup2"));
    assert_eq!(defaults.len(), DEFAULTS.len() - 1);
}

#[test]
fn a_relative_destination_is_refused() {
    for destination in ["", "data", "./data"] {
        let spec = spec(&[mount(destination, "tmpfs", &[])]);
        let error = plan(&spec, true).unwrap_err();
        assert_eq!(error, MountError::Relative(destination.to_owned()));
    }
}

#[test]
fn a_spec_may_say_that_its_mounts_are_all() {
    let mut spec = spec(&[mount("/sys/fs/cgroup", "cgroup2", &[]), mount("/dev", "share", &[])]);
    spec.only_these_mounts = true;
    let (first, added) = plan(&spec, true).unwrap();
    assert_eq!((first.len(), added.len()), (2, 0));
    assert_eq!(plan(&spec, false).unwrap().0.len(), 1);
}
