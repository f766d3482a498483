//! Bundles for tests.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::plan::Host;

/// A bundle in a directory of its own.
pub struct TestBundle(tempfile::TempDir);

impl TestBundle {
    /// A bundle with an empty root and a plain configuration, as changed by `change`.
    pub fn new(change: impl FnOnce(&mut Value)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("rootfs")).expect("a directory");
        let mut plain = config();
        plain["mounts"] = json!([]);
        let bundle = Self(dir);
        bundle.write(&plain);
        bundle.change(change);
        bundle
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Changes the configuration as it is.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let text = fs::read(self.path("config.json")).expect("a configuration");
        let mut config = serde_json::from_slice(&text).expect("JSON");
        change(&mut config);
        self.write(&config);
    }

    fn write(&self, config: &Value) {
        fs::write(self.path("config.json"), config.to_string()).expect("a file");
    }
}

/// Sets what `pointer` names in `config`, which must have all but the last word of it.
pub fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    config.pointer_mut(parent).expect("a parent")[name] = value;
}

/// A host with some CPUs and memory.
pub fn host() -> Host {
    Host { kernel: "/k".into(), agent: "/a".into(), vcpus: 4, memory_mib: 8192 }
}

/// A configuration with a value in every part that this runtime looks at.
pub fn config() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "hostname": "lighthouse",
        "domainname": "sea",
        "process": {
            "terminal": false,
            "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 1, "gid": 2, "umask": 63, "additionalGids": [3, 4]},
            "args": ["sh", "-c", "true"],
            "env": ["PATH=/bin", "A=b"],
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN"], "inheritable": [], "ambient": ["CAP_CHOWN"]
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
            "noNewPrivileges": true,
            "oomScoreAdj": -500,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["ro", "name=systemd"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
        ],
        "annotations": {"org.example.key": "value"},
        "linux": {
            "cgroupsPath": "/machine/x",
            "namespaces": [{"type": "pid"}, {"type": "network", "path": ""}, {"type": "mount"}],
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "65536"},
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "rootfsPropagation": "rslave",
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
                         "fileMode": 438, "uid": 5, "gid": 6}],
            "resources": {
                "memory": {"limit": 268435456, "reservation": 1048576},
                "cpu": {"shares": 1024, "quota": 150000, "period": 100000, "cpus": "0-3"},
                "pids": {"limit": 100},
                "blockIO": {"weight": 500},
            },
        },
    })
}
