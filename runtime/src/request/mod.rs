//! What `bulkhead run` was asked for, checked as far as text alone can tell.

mod capabilities;
pub mod limits;
pub mod memory;
mod names;
mod port;
mod ulimit;
mod volume;

use std::path::PathBuf;

use bulkhead_vmm::spec::{Confinement, IdMap, Limits, VCPUS_MAX};

use crate::args::RunArgs;
pub use port::Port;
pub use ulimit::Ulimit;
pub use volume::Volume;

/// As many users as container tools give each container, nobody (65534) among them.
const IDS: &str = "65536";

/// Why what was typed makes no container.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error(
        "no root file system: give an image, --rootfs DIR, or --bundle DIR and the container's ID"
    )]
    Rootfs,
    #[error("--cpus {0}: give a number from 1 to {VCPUS_MAX}")]
    Cpus(String),
    #[error("--memory {0}")]
    Memory(#[from] memory::MemoryError),
    #[error(transparent)]
    Volume(#[from] volume::VolumeError),
    #[error(transparent)]
    Capability(#[from] capabilities::CapabilityError),
    #[error(transparent)]
    Ulimit(#[from] ulimit::UlimitError),
    #[error("--idmap {0}: give the first of the host's users, above 0, and how many: 100000:65536")]
    IdMap(String),
    #[error("--idmap: the files of images keep their owners; give --rootfs DIR")]
    IdMapOfImage,
    #[error("--limit {0}")]
    Limit(#[from] limits::LimitError),
    #[error(transparent)]
    Name(#[from] names::NameError),
    #[error("--env {0:?}: give NAME=VALUE or NAME")]
    Env(String),
    #[error("--workdir {0}: give an absolute path in the container")]
    Workdir(String),
    #[error("--user {0:?}: give USER or USER:GROUP")]
    User(String),
    #[error("--network {0:?}: give none, netns:PATH for a network namespace, or to `run` passt")]
    Network(String),
    #[error(transparent)]
    Port(#[from] port::PortError),
    #[error("--entrypoint: a root directory has none; give the command alone")]
    Entrypoint,
}

/// A variable of `--env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    pub name: String,
    /// `None` to pass the caller's on.
    pub value: Option<String>,
}

/// Where the container's root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// A directory of the host.
    Directory(PathBuf),
    /// An image, by whatever name.
    Image(String),
}

/// The container's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Loopback.
    None,
    /// That of a network namespace, whose interfaces the container takes over.
    Namespace(PathBuf),
    /// passt's, with these ports published.
    Passt(Vec<Port>),
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub name: Option<String>,
    pub hostname: Option<String>,
    pub root: Root,
    pub read_only: bool,
    pub volumes: Vec<Volume>,
    pub kernel: Option<PathBuf>,
    pub vcpus: u8,
    pub memory_mib: u32,
    /// May be empty for an image that has its own.
    pub command: Vec<String>,
    pub entrypoint: Option<String>,
    pub env: Vec<Variable>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub capabilities: Vec<&'static str>,
    pub ulimits: Vec<Ulimit>,
    /// Go before those of the host's profile.
    pub limits: Limits,
    /// Who the container's users are on the host, if not the same.
    pub idmap: Option<IdMap>,
    pub network: Network,
    pub tty: bool,
    pub interactive: bool,
    pub console: bool,
    pub timeline: bool,
    /// Goes before that of the host's profile.
    pub jail: Option<Confinement>,
}

impl TryFrom<&RunArgs> for Request {
    type Error = RequestError;

    fn try_from(args: &RunArgs) -> Result<Self, RequestError> {
        let volumes: Vec<Volume> =
            args.volume.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        volume::check_unique(&volumes)?;
        let ulimits = args.ulimit.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let (root, command) = root(args)?;
        if args.idmap.is_some() && matches!(root, Root::Image(_)) {
            return Err(RequestError::IdMapOfImage);
        }
        Ok(Self {
            name: args.name.as_deref().map(names::vm).transpose()?,
            hostname: args.hostname.as_deref().map(names::host).transpose()?,
            root,
            read_only: args.read_only,
            volumes,
            kernel: args.kernel.clone(),
            vcpus: vcpus(&args.cpus)?,
            memory_mib: memory::mib(&args.memory)?,
            command,
            entrypoint: args.entrypoint.clone(),
            env: args.env.iter().map(|text| variable(text)).collect::<Result<_, _>>()?,
            workdir: args.workdir.as_deref().map(workdir).transpose()?,
            user: args.user.as_deref().map(user).transpose()?,
            capabilities: capabilities::chosen(&args.cap_add, &args.cap_drop)?,
            ulimits,
            limits: limits::of(&args.limit)?,
            idmap: args.idmap.as_deref().map(idmap).transpose()?,
            network: network(args)?,
            tty: args.tty,
            interactive: args.interactive,
            console: args.console,
            timeline: args.timeline,
            jail: args.jail.as_deref().map(jail),
        })
    }
}

/// The root and the command: without a directory the first word is an image.
fn root(args: &RunArgs) -> Result<(Root, Vec<String>), RequestError> {
    match (&args.rootfs, &args.command[..]) {
        (Some(_), _) if args.entrypoint.is_some() => Err(RequestError::Entrypoint),
        (Some(dir), command) => Ok((Root::Directory(dir.clone()), command.to_vec())),
        (None, [image, command @ ..]) => Ok((Root::Image(image.clone()), command.to_vec())),
        (None, []) => Err(RequestError::Rootfs),
    }
}

fn vcpus(text: &str) -> Result<u8, RequestError> {
    let count = text.parse().ok().filter(|count| (1..=VCPUS_MAX).contains(count));
    count.ok_or_else(|| RequestError::Cpus(text.to_owned()))
}

fn variable(text: &str) -> Result<Variable, RequestError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    match name {
        "" => Err(RequestError::Env(text.to_owned())),
        name => Ok(Variable { name: name.to_owned(), value }),
    }
}

fn workdir(text: &str) -> Result<String, RequestError> {
    match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err(RequestError::Workdir(text.to_owned())),
    }
}

fn user(text: &str) -> Result<String, RequestError> {
    let (user, group) = text.split_once(':').unwrap_or((text, "0"));
    match user.is_empty() || group.is_empty() || group.contains(':') {
        true => Err(RequestError::User(text.to_owned())),
        false => Ok(text.to_owned()),
    }
}

fn idmap(text: &str) -> Result<IdMap, RequestError> {
    let (host, count) = text.split_once(':').unwrap_or((text, IDS));
    let number = |text: &str| text.parse::<u32>().ok();
    let host = number(host).filter(|host| *host > 0);
    let ids = host.zip(number(count)).map(|(host, count)| IdMap::of_root(host, count));
    ids.filter(IdMap::is_possible).ok_or_else(|| RequestError::IdMap(text.to_owned()))
}

/// The options' parser knows no other words.
fn jail(text: &str) -> Confinement {
    match text {
        "off" => Confinement::Off,
        "sealed" => Confinement::Sealed,
        _ => Confinement::Strict,
    }
}

/// The network namespace that `--network` names, if that is not none.
pub fn namespace(text: &str) -> Result<Option<PathBuf>, RequestError> {
    match (text, text.strip_prefix("netns:")) {
        ("none", _) => Ok(None),
        (_, Some(path)) if !path.is_empty() => Ok(Some(path.into())),
        _ => Err(RequestError::Network(text.to_owned())),
    }
}

fn network(args: &RunArgs) -> Result<Network, RequestError> {
    let ports = args.publish.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    if args.network == "passt" {
        return Ok(Network::Passt(ports));
    }
    let network = namespace(&args.network)?.map_or(Network::None, Network::Namespace);
    match args.publish.first() {
        Some(port) => Err(port::PortError::NoNetwork(port.clone()).into()),
        None => Ok(network),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};

    fn request(options: &[&str]) -> Result<Request, String> {
        let typed = ["bulkhead", "run", "--rootfs", "/r"].iter().chain(options).chain(&["true"]);
        let Command::Run(run) = Args::try_parse_from(typed).unwrap().command else {
            panic!("not run")
        };
        Request::try_from(&*run).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults() {
        let request = request(&[]).unwrap();
        assert_eq!((request.vcpus, request.memory_mib, request.workdir), (1, 128, None));
        assert!(!request.tty && !request.interactive && request.name.is_none());
        assert_eq!(request.capabilities.len(), 14);
        assert_eq!(request.idmap, None);
    }

    #[test]
    fn ids_are_of_a_directory_s_files_alone() {
        let ids = |text| request(&["--idmap", text]).unwrap().idmap;
        assert_eq!(ids("100000"), Some(IdMap::of_root(100_000, 65_536)));
        assert_eq!(ids("5:1"), Some(IdMap::of_root(5, 1)));
        let typed = ["bulkhead", "run", "--idmap=9", "busybox"];
        let Command::Run(run) = Args::try_parse_from(typed).unwrap().command else {
            panic!("not run")
        };
        assert_eq!(Request::try_from(&*run), Err(RequestError::IdMapOfImage));
    }

    #[test]
    fn without_a_directory_the_first_word_is_an_image() {
        let typed = |words: &[&str]| {
            let typed = ["bulkhead", "run"].iter().chain(words);
            let Command::Run(run) = Args::try_parse_from(typed).unwrap().command else {
                panic!("not run")
            };
            Request::try_from(&*run)
        };
        let request = typed(&["-it", "busybox", "ls", "-l"]).unwrap();
        assert_eq!(request.root, Root::Image("busybox".to_owned()));
        assert_eq!(request.command, ["ls", "-l"]);
        let request = typed(&["--entrypoint", "sh", "busybox"]).unwrap();
        assert_eq!((request.command.len(), request.entrypoint.as_deref()), (0, Some("sh")));
        let request = typed(&["--rootfs", "/r", "ls"]).unwrap();
        assert_eq!(request.root, Root::Directory("/r".into()));
        let both = typed(&["--rootfs", "/r", "--entrypoint", "sh", "ls"]);
        assert_eq!(both, Err(RequestError::Entrypoint));
    }

    #[test]
    fn each_bad_option_is_named_in_one_sentence() {
        for (option, value) in [
            ("--cpus", "0"),
            ("--cpus", "33"),
            ("--cpus", "99999999999999999999"),
            ("--cpus", "-1"),
            ("--cpus", "two"),
            ("--memory", "0"),
            ("--memory", "1"),
            ("--memory", "9999999g"),
            ("--env", "=x"),
            ("--env", ""),
            ("--workdir", "tmp"),
            ("--user", ""),
            ("--user", ":0"),
            ("--user", "a:b:c"),
            ("--volume", "/a:b"),
            ("--name", ".."),
            ("--hostname", "a b"),
            ("--cap-add", "CAP_FLY"),
            ("--ulimit", "nofile"),
            ("--idmap", "0"),
            ("--idmap", "1:0"),
            ("--idmap", "4294967295:1"),
            ("--idmap", "-1"),
            ("--limit", "fs-bytes"),
            ("--limit", "fs-bytes=0"),
            ("--limit", "disk-bytes=1"),
            ("--network", "host"),
            ("--network", "netns:"),
            ("--publish", "80"),
            ("--publish", "8080:80"),
        ] {
            let error = request(&[&format!("{option}={value}")]).unwrap_err();
            assert!(error.starts_with(option), "{option} {value}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn variables_are_set_or_passed_on() {
        let env = request(&["-e", "A=b=c", "-e", "D", "-e", "E="]).unwrap().env;
        let expected = [("A", Some("b=c")), ("D", None), ("E", Some(""))];
        let expected = expected.map(|(name, value)| Variable {
            name: name.to_owned(),
            value: value.map(str::to_owned),
        });
        assert_eq!(env, expected);
    }
}
