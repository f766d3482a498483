//! The one place where a VM and its container are made up: request and host facts in, [`VmSpec`]
//! for the host and [`ContainerSpec`] for the guest out. Pure: no file is touched here.

use std::path::PathBuf;

use bulkhead_protocol::rpc::agent::{
    Capabilities, ContainerSpec, Mount, Process, Rlimit, Terminal,
};
use bulkhead_vmm::spec::{Share, VmSpec};

use crate::facts::Facts;
use crate::request::{Request, Ulimit, limits};

/// Name of the share that is the container's root.
pub const ROOT_SHARE: &str = "rootfs";
/// The guest's vsock context ID. It need not be unique: no VM sees another's.
pub const CID: u32 = 3;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What every root file system's terminfo knows.
const DEFAULT_TERM: &str = "xterm";

/// The VM for `request`, named `name`, with its vsock socket at `vsock`. Descriptors are filled in
/// when it is started.
pub fn vm(
    request: &Request,
    facts: &Facts,
    name: &str,
    vsock: PathBuf,
    timeline_from_ns: Option<u64>,
) -> VmSpec {
    let root = Share {
        name: ROOT_SHARE.to_owned(),
        source: facts.rootfs.clone(),
        readonly: request.read_only,
        fd: facts.image.as_ref().map(|image| image.root_fd),
        idmap: request.idmap.clone(),
        ..Share::default()
    };
    let volumes = request.volumes.iter().zip(&facts.volumes).enumerate();
    let volumes = volumes.map(|(index, (volume, source))| Share {
        name: volume_share(index),
        source: source.clone(),
        readonly: volume.read_only,
        idmap: request.idmap.clone(),
        ..Share::default()
    });
    VmSpec {
        name: name.to_owned(),
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        kernel: facts.kernel.clone(),
        init: facts.agent.clone(),
        cmdline: Vec::new(),
        cid: CID,
        vsock,
        vsock_fd: None,
        control_fd: None,
        template: None,
        restore: None,
        working_set_fd: None,
        shares: std::iter::once(root).chain(volumes).collect(),
        window_mib: facts.walls.window_mib,
        nets: Vec::new(),
        net_places: 0,
        limits: limits::or(request.limits, facts.walls.limits),
        terminal: request.tty,
        console: request.console,
        report_fd: None,
        host_events: false,
        leash_fd: None,
        dies_with: None,
        jail: facts.walls.jail,
        keep_fds: Vec::new(),
        timeline_from_ns,
    }
}

/// The container for `request` in the VM `name`; `clock_ns` is the wall clock.
pub fn container(request: &Request, facts: &Facts, name: &str, clock_ns: u64) -> ContainerSpec {
    let hostname = request.hostname.as_deref().unwrap_or(name);
    let mounts = request.volumes.iter().enumerate().map(|(index, volume)| Mount {
        destination: volume.guest.clone(),
        type_: "share".to_owned(),
        source: volume_share(index),
        options: volume.read_only.then(|| "ro".to_owned()).into_iter().collect(),
        ..Default::default()
    });
    ContainerSpec {
        hostname: hostname.to_owned(),
        root_share: ROOT_SHARE.to_owned(),
        root_readonly: request.read_only,
        mounts: mounts.collect(),
        process: Some(process(request, facts, hostname)).into(),
        clock_ns,
        ..Default::default()
    }
}

fn volume_share(index: usize) -> String {
    format!("v{index}")
}

fn process(request: &Request, facts: &Facts, hostname: &str) -> Process {
    let window = facts.window.as_ref().map(|window| Terminal {
        rows: window.ws_row.into(),
        columns: window.ws_col.into(),
        ..Default::default()
    });
    let image = facts.image.as_ref();
    let workdir = request.workdir.as_ref().or_else(|| image?.workdir.as_ref());
    let user = request.user.as_ref().or_else(|| image?.user.as_ref());
    Process {
        args: image.map_or(&request.command, |image| &image.args).clone(),
        env: environment(request, facts, hostname),
        cwd: workdir.map_or("/", String::as_str).to_owned(),
        user_name: user.cloned().unwrap_or_default(),
        terminal: window.into(),
        rlimits: request.ulimits.iter().map(rlimit).collect(),
        capabilities: Some(capabilities(&request.capabilities)).into(),
        stdin: request.interactive,
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

/// Defaults, then the image's, then what was asked for; the last of a name stays. HOME is the agent's to add, who can
/// read the container's /etc/passwd.
fn environment(request: &Request, facts: &Facts, hostname: &str) -> Vec<String> {
    let mut env: Vec<(&str, &str)> = vec![("PATH", DEFAULT_PATH), ("HOSTNAME", hostname)];
    if request.tty {
        env.push(("TERM", DEFAULT_TERM));
    }
    for (name, value) in facts.image.iter().flat_map(|image| &image.env) {
        env.retain(|(known, _)| known != name);
        env.push((name, value));
    }
    for variable in &request.env {
        let passed_on = || facts.passed_on.iter().find(|(name, _)| *name == variable.name);
        let value = match &variable.value {
            Some(value) => Some(value),
            None => passed_on().map(|(_, value)| value),
        };
        let Some(value) = value else { continue };
        env.retain(|(name, _)| *name != variable.name);
        env.push((&variable.name, value));
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn rlimit(ulimit: &Ulimit) -> Rlimit {
    Rlimit {
        type_: ulimit.resource.to_owned(),
        soft: ulimit.soft,
        hard: ulimit.hard,
        ..Default::default()
    }
}

/// As container engines set them: root gets all, another user none of them after execve(2), for
/// nothing is inheritable or ambient.
fn capabilities(names: &[&str]) -> Capabilities {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use crate::facts::ImageFacts;
    use rustix::termios::Winsize;

    fn request(options: &[&str]) -> Request {
        let typed = ["bulkhead", "run", "--rootfs", "r"].iter().chain(options);
        let Command::Run(run) =
            Args::try_parse_from(typed.chain(&["sh", "-c", "x"])).unwrap().command
        else {
            panic!("not run")
        };
        Request::try_from(&*run).unwrap()
    }

    fn facts() -> Facts {
        Facts {
            rootfs: "/abs/r".into(),
            image: None,
            volumes: vec!["/abs/a".into(), "/abs/b".into()],
            vmm: "/lib/bulkhead-vmm".into(),
            agent: "/lib/bulkhead-agent".into(),
            kernel: "/lib/vmlinux".into(),
            window: None,
            walls: Default::default(),
            passed_on: vec![("LANG".to_owned(), "C".to_owned())],
        }
    }

    #[test]
    fn the_vm_is_valid_and_has_every_share() {
        let request = request(&["--cpus=2", "-m1g", "-va:/x", "-vb:/y:ro", "--read-only"]);
        let vm = vm(&request, &facts(), "web", "/run/web/vsock.sock".into(), None);
        assert_eq!(vm.check(), Ok(()));
        assert_eq!((vm.vcpus, vm.memory_mib, vm.terminal), (2, 1024, false));
        let shares: Vec<_> = vm
            .shares
            .iter()
            .map(|share| (&*share.name, share.source.to_str().unwrap(), share.readonly))
            .collect();
        let expected =
            [("rootfs", "/abs/r", true), ("v0", "/abs/a", false), ("v1", "/abs/b", true)];
        assert_eq!(shares, expected);
    }

    #[test]
    fn volumes_are_mounted_from_their_shares() {
        let request = request(&["-va:/x", "-vb:/y:ro"]);
        let mounts = container(&request, &facts(), "web", 0).mounts;
        let mounts: Vec<_> = mounts
            .iter()
            .map(|mount| (&*mount.source, &*mount.type_, &*mount.destination, mount.options.len()))
            .collect();
        assert_eq!(mounts, [("v0", "share", "/x", 0), ("v1", "share", "/y", 1)]);
    }

    #[test]
    fn the_process_is_as_typed() {
        let request = request(&["-i", "-u", "app:www", "-w/tmp", "--ulimit", "nofile=9"]);
        let container = container(&request, &facts(), "web", 7);
        assert_eq!((&*container.hostname, container.clock_ns), ("web", 7));
        let process = container.process.unwrap();
        assert_eq!(process.args, ["sh", "-c", "x"]);
        assert_eq!((&*process.cwd, &*process.user_name), ("/tmp", "app:www"));
        assert!(process.stdin && process.stdout && process.stderr && process.terminal.is_none());
        assert_eq!(process.rlimits[0].type_, "RLIMIT_NOFILE");
        assert!(process.capabilities.ambient.is_empty());
        assert_eq!(process.capabilities.bounding.len(), 14);
    }

    #[test]
    fn an_image_says_what_the_command_line_leaves_open() {
        let image = ImageFacts {
            root_fd: 7,
            args: vec!["/entry".to_owned(), "x".to_owned()],
            env: [("PATH", "/i"), ("A", "1"), ("B", "1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            workdir: Some("/srv".to_owned()),
            user: Some("www".to_owned()),
            stop_signal: None,
        };
        let facts = Facts { image: Some(image), ..facts() };
        let plain = request(&["-eA=2", "--hostname=h"]);
        let vm = vm(&plain, &facts, "web", "/run/web/vsock.sock".into(), None);
        assert_eq!((vm.shares[0].fd, vm.check()), (Some(7), Ok(())));
        let process = container(&plain, &facts, "web", 0).process.unwrap();
        assert_eq!(process.args, ["/entry", "x"]);
        assert_eq!((&*process.cwd, &*process.user_name), ("/srv", "www"));
        assert_eq!(process.env, ["HOSTNAME=h", "PATH=/i", "B=1", "A=2"]);
        let asked = request(&["-w/tmp", "-uroot"]);
        let process = container(&asked, &facts, "web", 0).process.unwrap();
        assert_eq!((&*process.cwd, &*process.user_name), ("/tmp", "root"));
    }

    #[test]
    fn a_terminal_has_a_size_and_a_type() {
        let window = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let facts = Facts { window: Some(window), ..facts() };
        let process = container(&request(&["-t"]), &facts, "web", 0).process.unwrap();
        assert_eq!((process.terminal.rows, process.terminal.columns), (30, 100));
        assert!(process.env.contains(&"TERM=xterm".to_owned()));
        assert!(!process.stdin);
    }

    #[test]
    fn the_last_variable_of_a_name_stays() {
        let options = ["-ePATH=/x", "-eA=1", "-eA=2", "-eLANG", "-eUNSET", "--hostname=h"];
        let env = container(&request(&options), &facts(), "web", 0).process.unwrap().env;
        assert_eq!(env, ["HOSTNAME=h", "PATH=/x", "A=2", "LANG=C"]);
    }
}
