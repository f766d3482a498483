//! Debian's docker with `--runtime bulkhead`.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use bulkhead_tests::{Finished, binary, busybox, finish, signal, until};
use tempfile::TempDir;

const IMAGE: &str = "busybox";

/// A dockerd with state of its own, ended when dropped.
struct Docker {
    dir: TempDir,
    daemon: Child,
}

impl Docker {
    /// One that has [`IMAGE`], with bulkhead as its runtime.
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("bh-dkr-").tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let config = format!(
            r#"{{"runtimes": {{"bulkhead": {{"path": {:?}}}}}, "default-runtime": "bulkhead",
                 "data-root": {:?}, "exec-root": {:?}, "pidfile": {:?}, "hosts": ["unix://{}"]}}"#,
            binary("bulkhead"),
            path("data"),
            path("exec"),
            path("pid"),
            path("sock").display(),
        );
        fs::write(path("daemon.json"), config).expect("a file");
        let log = fs::File::create(path("log")).expect("a file");
        let mut daemon = Command::new("dockerd");
        daemon.arg("--config-file").arg(path("daemon.json")).args(["--log-level", "warn"]);
        let daemon = daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let docker = Self { daemon: daemon.expect("dockerd starts"), dir };
        until("dockerd answers", || docker.call(&["version"]).code == 0);
        let tar = docker.path("root.tar");
        let packed =
            Command::new("tar").arg("-C").arg(busybox()).arg("-cf").arg(&tar).arg(".").status();
        assert!(packed.expect("tar runs").success(), "the busybox root is packed");
        docker.call(&["import", tar.to_str().expect("ASCII"), IMAGE]).ok();
        docker
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `docker ARGS...`
    #[track_caller]
    fn call(&self, args: &[&str]) -> Finished {
        let mut docker = Command::new("docker");
        docker.arg("-H").arg(format!("unix://{}", self.path("sock").display())).args(args);
        docker.stdin(Stdio::null());
        finish(docker)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Not killed: it ends the containerd that it has started, too.
        signal(self.daemon.id(), "TERM");
        let _ = self.daemon.wait();
    }
}

fn fetch(url: &str) -> Finished {
    let mut get = Command::new("busybox");
    get.args(["wget", "-q", "-O", "-", url]);
    finish(get)
}

#[test]
fn docker_runs_publishes_executes_copies_stops_and_builds() {
    let docker = Docker::start();
    let script = "echo out; echo err >&2; uname -r; exit 7";
    let finished = docker.call(&["run", "--rm", IMAGE, "sh", "-c", script]);
    assert_eq!((finished.code, &*finished.stderr), (7, "err\n"), "{finished:#?}");
    let here = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let (out, there) = finished.stdout.split_once('\n').expect("two lines");
    assert!(out == "out" && there != here, "a kernel of its own: {finished:#?}");
    for (command, code) in [("nonesuch", 127), ("/nonesuch", 127), ("/etc", 126)] {
        let finished = docker.call(&["run", "--rm", IMAGE, command]);
        assert_eq!(finished.code, code, "{finished:#?}");
    }
    runs_a_server(&docker);

    let context = docker.path("context");
    fs::create_dir(&context).expect("a directory");
    let steps =
        format!("FROM {IMAGE}\nRUN uname -r >/kernel && ip addr show eth0\nCMD cat /kernel\n");
    fs::write(context.join("Dockerfile"), steps).expect("a file");
    docker.call(&["build", "-q", "-t", "built", context.to_str().expect("ASCII")]).ok();
    assert_eq!(docker.call(&["run", "--rm", "built"]).ok(), there);
    let log = fs::read_to_string(docker.path("log")).expect("a log");
    assert!(!log.contains("failed to parse"), "it understands --version: {log}");
}

/// Everything that is done to a container that runs, on a network of its own.
fn runs_a_server(docker: &Docker) {
    docker.call(&["network", "create", "net"]).ok();
    let volume = format!("{}:/volume", docker.path("").display());
    let script = "echo up; mkdir /w; echo page >/w/index.html; httpd -p 80 -h /w
        trap 'exit 5' TERM; while :; do sleep 0.1; done";
    let run =
        ["run", "-d", "--name=server", "--network=net", "-p", "8098:80", "-v", &volume, IMAGE];
    docker.call(&[&run, &["sh", "-c", script][..]].concat()).ok();
    let executed = docker.call(&["exec", "server", "sh", "-c", "ls /volume/daemon.json; exit 3"]);
    assert_eq!((executed.code, &*executed.stdout), (3, "/volume/daemon.json\n"), "{executed:#?}");
    until("it has started", || docker.call(&["logs", "server"]).ok() == "up\n");
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = docker.call(&["inspect", "-f", format, "server"]).ok();
    until("it serves", || fetch(&format!("http://{}/", address.trim())).stdout == "page\n");
    assert_eq!(fetch("http://127.0.0.1:8098/").ok(), "page\n");

    docker.call(&["pause", "server"]).ok();
    docker.call(&["unpause", "server"]).ok();
    let (there, back) = (docker.path("daemon.json"), docker.path("back"));
    docker.call(&["cp", there.to_str().expect("ASCII"), "server:/w/new"]).ok();
    docker.call(&["cp", "server:/w/index.html", back.to_str().expect("ASCII")]).ok();
    assert_eq!(fs::read_to_string(back).expect("a file"), "page\n");
    docker.call(&["exec", "server", "test", "-s", "/w/new"]).ok();
    docker.call(&["stop", "server"]).ok();
    assert_eq!(docker.call(&["inspect", "-f", "{{.State.ExitCode}}", "server"]).ok(), "5\n");
    docker.call(&["start", "server"]).ok();
    docker.call(&["rm", "-f", "server"]).ok();
    docker.call(&["network", "rm", "net"]).ok();
}
