use bulkhead_vmm::spec::IdMap;
use serde_json::json;

use super::*;
use crate::oci::bundle::Source;
use crate::oci::testing::{TestBundle, config, host};

fn bundle(change: impl FnOnce(&mut serde_json::Value)) -> Bundle {
    let bundle = TestBundle::new(|plain| {
        *plain = config();
        change(plain);
    });
    Bundle::load(bundle.dir()).expect("a bundle")
}

fn planned(change: impl FnOnce(&mut serde_json::Value)) -> ContainerSpec {
    container(&bundle(change), "0123456789abcdef", 7).expect("a plan")
}

fn shape(change: impl FnOnce(&mut serde_json::Value)) -> (u8, u32) {
    let vm = vm(&bundle(change), &host(), "id", "/v".into());
    assert_eq!(vm.check(), Ok(()));
    (vm.vcpus, vm.memory_mib)
}

#[test]
fn the_container_is_as_configured() {
    let container = planned(|_| ());
    assert_eq!((&*container.hostname, &*container.domainname), ("lighthouse", "sea"));
    assert!(container.only_these_mounts && !container.root_readonly);
    assert_eq!(container.root_propagation, "rslave");
    assert_eq!(container.masked_paths, ["/proc/kcore"]);
    assert_eq!(container.readonly_paths, ["/proc/sys"]);
    let settings = |settings: &[Setting]| -> Vec<String> {
        settings.iter().map(|s| format!("{}={}", s.name, s.value)).collect()
    };
    assert_eq!(settings(&container.sysctls), ["kernel.msgmax=65536", "net.ipv4.ip_forward=1"]);
    assert_eq!(
        settings(&container.cgroup),
        ["memory.max=268435456", "memory.low=1048576", "cpu.max=150000 100000", "pids.max=100"]
    );
    let device = &container.devices[0];
    assert_eq!((&*device.path, device.mode), ("/dev/fuse", libc::S_IFCHR | 0o666));
    assert_eq!([device.major, device.minor, device.uid, device.gid], [10, 229, 5, 6]);
}

#[test]
fn the_process_is_as_configured() {
    let process = planned(|_| ()).process.unwrap();
    assert_eq!(process.args, ["sh", "-c", "true"]);
    assert_eq!(process.env, ["PATH=/bin", "A=b"]);
    let user = &process.user;
    assert_eq!((user.uid, user.gid, user.umask), (1, 2, Some(0o77)));
    assert_eq!(user.additional_gids, [3, 4]);
    assert!(process.no_new_privileges && process.terminal.is_none());
    assert_eq!(process.oom_score_adj, "-500");
    let caps = &process.capabilities;
    assert_eq!(caps.bounding, ["CAP_CHOWN", "CAP_KILL"]);
    assert_eq!((caps.ambient.len(), caps.inheritable.len()), (1, 0));
    let limit = &process.rlimits[0];
    assert_eq!((&*limit.type_, limit.soft, limit.hard), ("RLIMIT_NOFILE", 1024, 4096));
}

#[test]
fn without_capabilities_there_are_none() {
    let process = planned(|config| config["process"]["capabilities"] = json!(null)).process;
    assert!(process.capabilities.is_some() && process.capabilities.bounding.is_empty());
}

#[test]
fn a_terminal_has_its_size() {
    let container = planned(|config| config["process"]["terminal"] = json!(true));
    let terminal = container.process.unwrap().terminal.unwrap();
    assert_eq!((terminal.rows, terminal.columns), (24, 80));
}

#[test]
fn a_container_without_a_name_is_called_by_its_id() {
    assert_eq!(planned(|config| config["hostname"] = json!(null)).hostname, "0123456789ab");
}

#[test]
fn binds_are_shares_and_read_only_on_the_host() {
    let bundle = bundle(|config| {
        config["root"]["readonly"] = json!(true);
        config["mounts"] = json!([
            {"destination": "/proc", "type": "proc"},
            {"destination": "/ro", "type": "bind", "source": "rootfs", "options": ["rbind", "ro"]},
            {"destination": "rw", "type": "bind", "source": "rootfs", "options": ["ro", "rw"]},
        ]);
    });
    let vm = vm(&bundle, &host(), "id", "/v".into());
    let shares: Vec<_> =
        vm.shares.iter().map(|share| (&*share.name, share.readonly, share.flat)).collect();
    assert_eq!(shares, [("rootfs", true, false), ("v1", true, false), ("v2", false, true)]);
    let mounts = container(&bundle, "id", 0).expect("a plan").mounts;
    let mounts: Vec<_> = mounts.iter().map(|m| (&*m.destination, &*m.type_, &*m.source)).collect();
    let expected = [("/proc", "proc", "proc"), ("/ro", "share", "v1"), ("/rw", "share", "v2")];
    assert_eq!(mounts, expected);
}

#[test]
fn cgroups_are_the_guests_and_shared_memory_too() {
    let mut bundle = bundle(|config| {
        let shm = json!({"destination": "/dev/shm", "type": "bind", "source": "rootfs",
                         "options": ["bind", "nosuid"]});
        config["mounts"].as_array_mut().expect("a list").push(shm);
    });
    bundle.sources[3] = Source::SharedMemory { bytes: 4096 };
    let mounts = container(&bundle, "id", 0).expect("a plan").mounts;
    assert_eq!((&*mounts[1].type_, &mounts[1].options[..]), ("cgroup2", &["ro".to_owned()][..]));
    assert_eq!(mounts[3].type_, "tmpfs");
    assert_eq!(mounts[3].options, ["bind", "nosuid", "mode=1777", "size=4096"]);
    assert_eq!(vm(&bundle, &host(), "id", "/v".into()).shares.len(), 1);
}

#[test]
fn overlays_are_shares_that_the_host_makes() {
    let bundle = bundle(|config| {
        config["mounts"] = json!([
            {"destination": "/rw", "type": "overlay", "options":
                ["lowerdir=/a", "upperdir=/u", "workdir=/w", "volatile", "nodev", "private"]},
            {"destination": "/ro", "type": "overlay", "options": ["lowerdir=/a:/b"]},
        ]);
    });
    let vm = vm(&bundle, &host(), "id", "/v".into());
    let shares: Vec<_> = vm.shares[1..].iter().map(|s| (&*s.name, s.readonly, s.fd)).collect();
    assert_eq!(shares, [("v0", false, None), ("v1", true, None)]);
    let mounts = container(&bundle, "id", 0).expect("a plan").mounts;
    assert_eq!((&*mounts[0].type_, &*mounts[0].source), ("share", "v0"));
    assert_eq!(mounts[0].options, ["nodev", "private"]);
}

#[test]
fn the_shape_follows_the_limits() {
    let cpu = |cpu: serde_json::Value| shape(|c| c["linux"]["resources"]["cpu"] = cpu).0;
    assert_eq!(cpu(json!(null)), 1);
    assert_eq!(cpu(json!({"quota": 150_000, "period": 100_000})), 2);
    assert_eq!(cpu(json!({"quota": 10_000})), 1);
    assert_eq!(cpu(json!({"quota": 9_000_000})), 4, "no more than the host has");
    assert_eq!(cpu(json!({"quota": -1, "cpus": "0-1,3"})), 3);
    assert_eq!(cpu(json!({"cpus": "nonsense"})), 1);
    assert_eq!(cpu(json!({"quota": i64::MAX, "period": 0})), 4);
    let memory =
        |limit: i64| shape(|c| c["linux"]["resources"]["memory"] = json!({"limit": limit})).1;
    assert_eq!(memory(256 << 20), 256 + 32 + 6);
    assert_eq!(memory(-1), 512);
    assert_eq!(memory(0), 512);
    assert_eq!(memory(1), 48, "the least in which the kernel boots");
    assert_eq!(memory(i64::MAX), 8192, "no more than the host has");
}

#[test]
fn what_a_kernel_of_its_own_cannot_join_is_refused() {
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        container(&bundle(change), "id", 0).expect_err("refused").to_string()
    };
    for (kind, word) in [("pid", "pid"), ("user", "user"), ("mount", "mnt"), ("time", "time")] {
        let namespaces = json!([{"type": kind, "path": "/proc/1/ns/x"}]);
        let sentence = refused(&|c| c["linux"]["namespaces"] = namespaces.clone());
        assert!(sentence.contains(word) && sentence.contains("/proc/1/ns/x"), "{sentence}");
    }
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    assert!(refused(&|c| c["linux"]["uidMappings"] = mapping.clone()).contains("Mappings"));
    let user = json!([{"type": "user"}]);
    assert!(refused(&|c| c["linux"]["namespaces"] = user.clone()).contains("Mappings"));
    let over = json!([{"containerID": 0, "hostID": 100_000, "size": u32::MAX}]);
    let all = json!({"namespaces": user, "uidMappings": over, "gidMappings": over});
    assert!(refused(&|c| c["linux"] = all.clone()).contains("Mappings"));
    let offsets = json!({"monotonic": {"secs": 1, "nanosecs": 0}});
    assert!(refused(&|c| c["linux"]["timeOffsets"] = offsets.clone()).contains("timeOffsets"));
    let mounts = json!([{"destination": "/x", "type": "tmpfs", "options": ["idmap"]}]);
    assert!(refused(&|c| c["mounts"] = mounts.clone()).contains("/x"));
    assert!(refused(&|c| c["mounts"] = json!([{"destination": "/x"}])).contains("no type"));
    let device = json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 0}]);
    assert!(refused(&|c| c["linux"]["devices"] = device.clone()).contains("/dev/x"));
}

#[test]
fn owners_of_a_mount_are_its_own_mapping_s_or_the_container_s() {
    let mapping = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 10}]);
    let of = |mount: serde_json::Value| {
        let bundle = bundle(|c| {
            c["linux"]["namespaces"] = json!([{"type": "user"}]);
            c["linux"]["uidMappings"] = mapping(100);
            c["linux"]["gidMappings"] = mapping(200);
            c["mounts"] = json!([mount]);
        });
        let planned = container(&bundle, "id", 0).map(|spec| spec.mounts[0].options.clone());
        (planned, vm(&bundle, &host(), "id", "/v".into()).shares.pop().unwrap().idmap)
    };
    let mut mount =
        json!({"destination": "/x", "type": "bind", "source": "/", "options": ["rbind", "idmap"]});
    let (options, ids) = of(mount.clone());
    assert_eq!(options, Ok(vec!["rbind".to_owned()]));
    let guest = |ids: Option<IdMap>| ids.map(|ids| (ids.uids[0].guest, ids.gids[0].guest));
    assert_eq!(guest(ids), Some((100, 200)));
    mount["uidMappings"] = mapping(5);
    assert!(of(mount.clone()).0.is_err(), "groups are missing");
    mount["gidMappings"] = mapping(6);
    assert_eq!(guest(of(mount).1), Some((5, 6)));
    let plain = json!({"destination": "/x", "type": "bind", "source": "/", "options": ["rbind"]});
    assert_eq!(of(plain).1, None);
}

#[test]
fn the_network_is_the_hosts_ones_own_or_another() {
    let of = |namespaces| network(&bundle(|c| c["linux"]["namespaces"] = namespaces).spec);
    assert_eq!(of(json!([])), Network::Host);
    assert_eq!(of(json!([{"type": "network"}])), Network::Own);
    let path = "/run/netns/x";
    assert_eq!(of(json!([{"type": "network", "path": path}])), Network::Joined(path.into()));
}

/// What podman 4.3.1 wrote for `podman run -t --memory 256m --cpus 1.5 --read-only --tmpfs /scratch
/// -v /tmp/v:/v:ro --device /dev/fuse ...`, with the paths of its storage replaced.
#[test]
fn a_configuration_of_podmans_is_planned() {
    let bundle = bundle(|config| {
        let text = include_str!("../testing/podman.json");
        *config = serde_json::from_str(text).expect("JSON");
        config["root"]["path"] = json!("rootfs");
        for mount in config["mounts"].as_array_mut().expect("mounts") {
            if mount["type"] == "bind" {
                mount["source"] = json!("rootfs");
            }
        }
    });
    let vm = vm(&bundle, &host(), "id", "/v".into());
    assert_eq!((vm.vcpus, vm.memory_mib, vm.terminal), (2, 294, true));
    assert!(vm.shares[0].readonly && vm.shares[1].readonly && !vm.shares[2].readonly);
    let container = container(&bundle, "id", 0).expect("a plan");
    assert_eq!(container.mounts.len(), 17);
    let process = container.process.unwrap();
    // Two tables of some 400 system calls each.
    let instructions = process.seccomp.program.len() / 8;
    assert!((500..2000).contains(&instructions), "{instructions} instructions");
    assert_eq!(container.devices[0].mode, libc::S_IFCHR | 0o666);
}

#[test]
fn with_a_user_namespace_things_belong_to_the_containers_root() {
    let container = planned(|config| {
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        config["linux"]["namespaces"] = json!([{"type": "user"}]);
        config["linux"]["uidMappings"] = mapping.clone();
        config["linux"]["gidMappings"] = mapping;
        config["mounts"] = json!([
            {"destination": "/a", "type": "tmpfs", "options": ["size=1m"]},
            {"destination": "/b", "type": "tmpfs", "options": ["uid=7", "gid=70000"]},
            {"destination": "/dev/pts", "type": "devpts", "options": ["newinstance"]},
            {"destination": "/proc", "type": "proc"},
        ]);
    });
    let options: Vec<String> = container.mounts.iter().map(|m| m.options.join(",")).collect();
    assert_eq!(
        options,
        [
            "size=1m,uid=100000,gid=100000",
            "uid=100007,gid=70000",
            "newinstance,uid=100000,gid=100005",
            ""
        ]
    );
    assert_eq!((container.devices[0].uid, container.devices[0].gid), (100_005, 100_006));
    assert_eq!(container.uid_mappings[0].kernel_id, 100_000);
}

#[test]
fn a_pod_s_vm_has_room_for_all_of_it() {
    let pod = |notes: serde_json::Value| {
        shape(|config| {
            config["linux"]["resources"] = json!({});
            config["annotations"] = notes;
            config["annotations"]["io.kubernetes.cri.container-type"] = json!("sandbox");
        })
    };
    let noted = json!({
        "io.kubernetes.cri.sandbox-memory": "1073741824",
        "io.kubernetes.cri.sandbox-cpu-quota": "150000",
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
    });
    assert_eq!(pod(noted), (2, 1024 + 32 + 22));
    // No more than the host has, and nothing that a note only seems to say.
    let most = (host().vcpus.min(4), 2048.min(host().memory_mib as u32));
    for none in ["0", "-1", "much"] {
        let noted = json!({
            "io.kubernetes.cri.sandbox-memory": none,
            "io.kubernetes.cri.sandbox-cpu-quota": none,
            "io.kubernetes.cri.sandbox-cpu-period": "0",
        });
        assert_eq!(pod(noted), most, "{none}");
    }
}

#[test]
fn shares_have_other_names_beside_another_s() {
    let bundle = bundle(|config| {
        config["mounts"] = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind"]},
        ]);
    });
    let mut container = container(&bundle, "id", 0).unwrap();
    rename_shares(&mut container, |share| format!("m1-{share}"));
    assert_eq!(container.root_share, "m1-rootfs");
    let sources: Vec<_> = container.mounts.iter().map(|mount| &*mount.source).collect();
    assert_eq!(sources, ["proc", "m1-v1"]);
    let names: Vec<_> = shares(&bundle).into_iter().map(|share| share.name).collect();
    assert_eq!(names, ["rootfs", "v1"]);
}
