//! `bulkhead doctor --security`: settings of the host that decide how much a wall is worth, and the
//! walls of the VMs that run now, as the kernel has them in force.

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_vmm::probe::Check;
use rustix::process::Pid;
use rustix::thread::{CoreSchedulingScope, core_scheduling_cookie};
use serde::Serialize;

/// Programs with walls, by what the kernel calls them.
const WALLED: [&str; 2] = ["bulkhead-vmm", "bulkhead-fs"];
/// Namespaces of its own that each has; the last is the worker's alone.
const NAMESPACES: [&str; 5] = ["mnt", "net", "ipc", "uts", "pid"];

/// A host's /proc and /sys, or a test's.
#[derive(Clone, Debug)]
pub struct HostFiles(PathBuf);

/// What confines a process of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Walls {
    /// Its process ID.
    pub pid: u32,
    /// What it is: the monitor or the file worker.
    pub program: String,
    /// Its user; 0 is root.
    pub user: String,
    /// Threads, and how many of them are behind a system call filter.
    pub threads: usize,
    pub filtered: usize,
    /// Effective capabilities, as /proc/PID/status has them.
    pub capabilities: String,
    /// Whether it can gain privileges by executing a program.
    pub no_new_privs: bool,
    /// Whether it shares a core with no other container's threads; `None` if the kernel says nothing,
    /// because cores have one thread or it knows no core scheduling.
    pub core: Option<bool>,
    /// Namespaces that are not this process's.
    pub namespaces: Vec<&'static str>,
    /// What is in its root directory; `None` if that cannot be seen.
    pub root: Option<Vec<String>>,
}

impl Walls {
    /// Whether all of them stand.
    pub fn stand(&self) -> bool {
        let monitor = self.program == WALLED[0];
        let empty = |root: &Vec<String>| root.iter().all(|name| monitor && name == "sockets");
        self.filtered == self.threads
            && self.no_new_privs
            && self.core != Some(false)
            && self.namespaces.len() == NAMESPACES.len() - usize::from(monitor)
            && self.root.as_ref().is_none_or(empty)
            && (!monitor || self.capabilities.bytes().all(|digit| digit == b'0'))
    }
}

impl HostFiles {
    /// This host's.
    pub fn new() -> Self {
        Self("/".into())
    }

    fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.0.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Checks what matters for strangers' code on one machine.
    pub fn checks(&self) -> Vec<Check> {
        let mut checks = vec![self.smt(), self.ksm(), self.swap()];
        checks.extend([self.mitigations(), self.cgroups(), self.landlock()]);
        let dir = "proc/sys/kernel";
        let restricted = [
            ("unprivileged_bpf_disabled", "0", "set kernel.unprivileged_bpf_disabled=1"),
            ("kptr_restrict", "0", "set kernel.kptr_restrict=1"),
            ("yama/ptrace_scope", "0", "set kernel.yama.ptrace_scope=1"),
        ];
        for (name, weak, advice) in restricted {
            let Some(value) = self.read(&format!("{dir}/{name}")) else { continue };
            let detail = format!("kernel.{} is {value}", name.replace('/', "."));
            checks.push(warn_if(value == weak, "kernel settings", detail, advice));
        }
        checks.extend(self.nested());
        checks
    }

    fn smt(&self) -> Check {
        let name = "hyper-threads";
        match self.read("sys/devices/system/cpu/smt/active").as_deref() {
            // Whoever asks is told of a cookie, 0 if it has none, where the kernel has them.
            Some("1") if self.core(std::process::id()).is_some() => {
                Check::ok(name, "a core runs two threads at a time, of one VM alone")
            }
            Some("1") => {
                let advice = "two VMs share a core's caches at a time, for the kernel has no core \
                              scheduling: boot with `nosmt`, or build it with CONFIG_SCHED_CORE";
                Check::warning(name, "a core runs two threads at a time", advice)
            }
            Some(_) => Check::ok(name, "a core runs one thread at a time"),
            None => Check::ok(name, "the kernel says nothing about them"),
        }
    }

    fn ksm(&self) -> Check {
        let on = self.read("sys/kernel/mm/ksm/run").is_some_and(|run| run == "1");
        let detail = if on { "pages are merged across VMs" } else { "pages are not merged" };
        let advice =
            "one VM can measure what is in another's memory: echo 2 > /sys/kernel/mm/ksm/run";
        warn_if(on, "memory merging", detail.to_owned(), advice)
    }

    fn swap(&self) -> Check {
        let areas = self.read("proc/swaps").map_or(0, |swaps| swaps.lines().count() - 1);
        let detail = format!("{areas} swap areas");
        warn_if(
            areas > 0,
            "swap",
            detail,
            "guest memory may stay on the disk: encrypt it, or `swapoff -a`",
        )
    }

    fn mitigations(&self) -> Check {
        let dir = self.0.join("sys/devices/system/cpu/vulnerabilities");
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut open: Vec<String> = entries
            .filter(|entry| {
                fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("Vulnerable"))
            })
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        open.sort();
        let detail = match open.len() {
            0 => "no known hole of this processor is open".to_owned(),
            _ => format!("open: {}", open.join(", ")),
        };
        let advice = "update the processor's microcode and boot without `mitigations=off`";
        warn_if(!open.is_empty(), "processor holes", detail, advice)
    }

    fn cgroups(&self) -> Check {
        let unified = self.0.join("sys/fs/cgroup/cgroup.controllers").exists();
        let detail = if unified { "version 2" } else { "version 1 or none" };
        let advice = "a container's limits on memory, processors and I/O need it: boot with \
                      systemd.unified_cgroup_hierarchy=1";
        warn_if(!unified, "cgroups", detail.to_owned(), advice)
    }

    fn landlock(&self) -> Check {
        let modules = self.read("sys/kernel/security/lsm").unwrap_or_default();
        let on = modules.split(',').any(|module| module == "landlock");
        let detail = if on { "in force for monitors" } else { "not there, or not to be seen" };
        let advice = "a second wall behind the empty root: boot with `lsm=landlock,...`";
        warn_if(!on, "Landlock", detail.to_owned(), advice)
    }

    fn nested(&self) -> Option<Check> {
        let on = ["kvm_intel", "kvm_amd"].iter().any(|module| {
            let nested = self.read(&format!("sys/module/{module}/parameters/nested"));
            nested.is_some_and(|value| matches!(&*value, "Y" | "1"))
        });
        let advice = "guests see no SVM or VMX, but the code is there to be attacked: load KVM with nested=0";
        on.then(|| Check::warning("nested virtualisation", "KVM offers it", advice))
    }

    /// The walls of every process of a VM that this user can see.
    pub fn walls(&self) -> Vec<Walls> {
        let entries = fs::read_dir(self.0.join("proc")).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut walls: Vec<Walls> = pids.filter_map(|pid| self.walls_of(pid)).collect();
        walls.sort_by_key(|walls| walls.pid);
        walls
    }

    /// See [`Walls::core`]. A process without a cookie shares cores with any other.
    fn core(&self, pid: u32) -> Option<bool> {
        let pid = Pid::from_raw(pid.cast_signed()).filter(|_| self.0 == Path::new("/"))?;
        let cookie = core_scheduling_cookie(pid, CoreSchedulingScope::Thread);
        cookie.ok().map(|cookie| cookie != 0)
    }

    fn walls_of(&self, pid: u32) -> Option<Walls> {
        let program = self.read(&format!("proc/{pid}/comm"))?;
        if !WALLED.contains(&program.as_str()) {
            return None;
        }
        let status = self.read(&format!("proc/{pid}/status"))?;
        let field = |name: &str| field(&status, name).unwrap_or_default().to_owned();
        let tasks = fs::read_dir(self.0.join(format!("proc/{pid}/task"))).ok()?.flatten();
        let filters: Vec<bool> = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
            .map(|status| self::field(&status, "Seccomp") == Some("2"))
            .collect();
        let link = |pid: &str, name: &str| {
            fs::read_link(self.0.join(format!("proc/{pid}/ns/{name}"))).ok()
        };
        let own = |name: &&str| {
            let theirs = link(&pid.to_string(), name);
            theirs.is_some() && theirs != link("self", name)
        };
        let root = fs::read_dir(self.0.join(format!("proc/{pid}/root/"))).ok();
        let names =
            |dir: fs::ReadDir| dir.flatten().map(|e| e.file_name().to_string_lossy().into());
        Some(Walls {
            pid,
            program,
            user: field("Uid").split_whitespace().nth(1).unwrap_or_default().to_owned(),
            threads: filters.len(),
            filtered: filters.iter().filter(|filtered| **filtered).count(),
            capabilities: field("CapEff"),
            no_new_privs: field("NoNewPrivs") == "1",
            core: self.core(pid),
            namespaces: NAMESPACES.into_iter().filter(own).collect(),
            root: root.map(|dir| names(dir).collect()),
        })
    }
}

/// One line a process, for a terminal.
pub fn table(walls: &[Walls]) -> String {
    let head = [
        "PID",
        "PROGRAM",
        "USER",
        "FILTERED",
        "CAPABILITIES",
        "NAMESPACES",
        "CORE",
        "ROOT",
        "WALLS",
    ];
    let rows = walls.iter().map(|walls| {
        let root = walls.root.as_ref().map_or("unseen".to_owned(), |root| match root.len() {
            0 => "empty".to_owned(),
            1..4 => root.join(" "),
            entries => format!("{entries} entries"),
        });
        [
            walls.pid.to_string(),
            walls.program.clone(),
            walls.user.clone(),
            format!("{}/{}", walls.filtered, walls.threads),
            walls.capabilities.trim_start_matches('0').to_owned(),
            walls.namespaces.join(" "),
            walls.core.map_or("-", |own| if own { "own" } else { "shared" }).to_owned(),
            root,
            if walls.stand() { "stand" } else { "MISSING" }.to_owned(),
        ]
    });
    let rows: Vec<[String; 9]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; 9] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let line = |row: &[String; 9]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn warn_if(weak: bool, name: &'static str, detail: String, advice: &str) -> Check {
    if weak { Check::warning(name, detail, advice) } else { Check::ok(name, detail) }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_vmm::probe::Outcome;
    use std::os::unix::fs::symlink;

    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn put(&self, path: &str, text: &str) -> &Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        fn files(&self) -> HostFiles {
            HostFiles(self.0.path().to_owned())
        }

        fn outcome(&self, name: &str) -> Outcome {
            let checks = self.files().checks();
            checks.iter().find(|check| check.name == name).unwrap().outcome
        }

        /// A monitor with one thread, behind a filter if so asked.
        fn monitor(&self, pid: u32, seccomp: &str) {
            let status = format!(
                "Uid:\t7\t7\t7\t7\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t{seccomp}\n"
            );
            self.put(&format!("proc/{pid}/comm"), "bulkhead-vmm\n");
            self.put(&format!("proc/{pid}/status"), &status);
            self.put(&format!("proc/{pid}/task/{pid}/status"), &status);
            fs::create_dir_all(self.0.path().join(format!("proc/{pid}/root/sockets"))).unwrap();
            for name in &NAMESPACES[..4] {
                for of in [&*pid.to_string(), "self"] {
                    let dir = self.0.path().join(format!("proc/{of}/ns"));
                    fs::create_dir_all(&dir).unwrap();
                    let _ = symlink(format!("{name}:[{of}]"), dir.join(name));
                }
            }
        }
    }

    #[test]
    fn settings_that_weaken_a_wall_are_warned_of() {
        let fake = Fake::new();
        fake.put("sys/devices/system/cpu/smt/active", "1\n").put("sys/kernel/mm/ksm/run", "1\n");
        fake.put("proc/swaps", "Filename Type\n/dev/sda2 partition\n");
        fake.put("sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable; SMT vulnerable\n");
        fake.put("sys/kernel/security/lsm", "capability,landlock,yama\n");
        for name in ["hyper-threads", "memory merging", "swap", "processor holes", "cgroups"] {
            assert_eq!(fake.outcome(name), Outcome::Warning, "{name}");
        }
        assert_eq!(fake.outcome("Landlock"), Outcome::Ok);
        fake.put("sys/devices/system/cpu/smt/active", "0\n").put("proc/swaps", "Filename Type\n");
        for name in ["hyper-threads", "swap"] {
            assert_eq!(fake.outcome(name), Outcome::Ok, "{name}");
        }
    }

    #[test]
    fn walls_are_read_from_proc_and_a_missing_one_shows() {
        let fake = Fake::new();
        fake.monitor(10, "2");
        fake.monitor(11, "0");
        fake.put("proc/12/comm", "bash\n");
        let walls = fake.files().walls();
        assert_eq!(
            walls.iter().map(|w| (w.pid, w.stand())).collect::<Vec<_>>(),
            [(10, true), (11, false)]
        );
        assert_eq!((walls[0].user.as_str(), walls[0].namespaces.len()), ("7", 4));
        let table = table(&walls);
        assert!(table.lines().nth(1).unwrap().ends_with("stand"), "{table}");
        assert!(table.contains("0/1") && table.contains("MISSING"), "{table}");
        fs::create_dir(fake.0.path().join("proc/10/root/etc")).unwrap();
        assert!(!fake.files().walls()[0].stand());
    }
}
