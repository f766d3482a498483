//! OCI bundles: a root file system and a config.json of a test's own.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::{Finished, Host, finish};

/// A bundle in a host of its own.
pub struct Bundle {
    /// The host; its root file system is the bundle's.
    pub host: Host,
    config: Value,
}

impl Bundle {
    /// A bundle that runs `script` with busybox's shell, configured as `runc spec` would.
    pub fn new(script: &str) -> Self {
        let bundle = Self { host: Host::new(), config: plain(script) };
        bundle.write();
        bundle
    }

    /// The same with the value at `pointer` (RFC 6901) set; the last word of it may be new.
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        self.set(pointer, value);
        self
    }

    /// Sets the value at `pointer`.
    pub fn set(&mut self, pointer: &str, value: Value) {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let parent = self.config.pointer_mut(parent).expect("what is above it is there");
        match (parent, name.parse::<usize>()) {
            (Value::Array(list), Ok(index)) => list[index] = value,
            (parent, _) => parent[name] = value,
        }
        self.write();
    }

    /// Adds a mount.
    pub fn mount(mut self, mount: Value) -> Self {
        self.config["mounts"].as_array_mut().expect("mounts").push(mount);
        self.write();
        self
    }

    fn write(&self) {
        fs::write(self.host.path("config.json"), self.config.to_string()).expect("a file");
    }

    /// `bulkhead VERB --bundle DIR OPTIONS... NAME`
    pub fn command(&self, verb: &str, options: &[&str], name: &str) -> Command {
        let mut command = self.host.bulkhead([verb, "--bundle"]);
        command.arg(self.host.dir.path()).args(options).arg(name);
        command
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(&self) -> Finished {
        finish(self.command("run", &[], "test"))
    }
}

/// What `runc spec` writes, with all capabilities, no terminal, and a network of its own.
fn plain(script: &str) -> Value {
    let caps = [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_SYS_ADMIN",
        "CAP_SYS_NICE",
        "CAP_SYS_RESOURCE",
    ];
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "hostname": "lighthouse",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", script],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}, {"type": "cgroup"}],
        },
    })
}
