//! What an image says about the process to run in it (OCI image specification, config.md), and what
//! becomes of it together with a command line.

use std::collections::HashMap;

use oci_spec::image::ImageConfiguration;

use crate::digest::{Digest, DigestError};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the document it should be.
    #[error("the image's configuration is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// A digest in it.
    #[error("the image's configuration is malformed: {0}")]
    Digest(#[from] DigestError),
    /// Nothing to run.
    #[error("the image names no command; give one behind the image")]
    NoCommand,
}

/// The parts of a configuration that matter to a container. Exposed ports, labels and history do
/// not: a port is published by whoever runs the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// From the lowest layer to the highest.
    pub diff_ids: Vec<Digest>,
    /// Comes before the command.
    pub entrypoint: Vec<String>,
    /// The command, if none is given.
    pub cmd: Vec<String>,
    /// NAME=VALUE.
    pub env: Vec<String>,
    /// "user", "user:group", names or numbers.
    pub user: Option<String>,
    /// Where the process starts; absolute.
    pub workdir: Option<String>,
    /// What ends the process in good order: "SIGTERM", "3".
    pub stop_signal: Option<String>,
    /// Directories whose content is to outlive other containers' and be shared. A container of ours
    /// is removed when it ends, and an anonymous volume with it: the writable layer does for both.
    pub volumes: Vec<String>,
}

impl ImageConfig {
    /// Reads a configuration.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let parsed: ImageConfiguration = serde_json::from_slice(json)?;
        let diff_ids = parsed.rootfs().diff_ids().iter().map(|id| id.parse());
        let diff_ids = diff_ids.collect::<Result<_, _>>()?;
        let Some(config) = parsed.config() else { return Ok(Self { diff_ids, ..Self::default() }) };
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let mut volumes = config.volumes().clone().unwrap_or_default();
        volumes.sort();
        Ok(Self {
            diff_ids,
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            user: filled(config.user()),
            workdir: filled(config.working_dir()).map(absolute),
            stop_signal: filled(config.stop_signal()),
            volumes: volumes.into_iter().map(absolute).collect(),
        })
    }

    /// The command to execute, as docker has it: `command` takes the place of the image's own; an
    /// `entrypoint` takes the place of both, and an empty one leaves the command alone.
    pub fn args(
        &self,
        entrypoint: Option<&str>,
        command: &[String],
    ) -> Result<Vec<String>, ConfigError> {
        let first = match entrypoint {
            None => self.entrypoint.clone(),
            Some("") => Vec::new(),
            Some(program) => vec![program.to_owned()],
        };
        let rest = match (command, entrypoint) {
            ([], None) => &self.cmd[..],
            (command, _) => command,
        };
        let args = [&first, rest].concat();
        if args.is_empty() { Err(ConfigError::NoCommand) } else { Ok(args) }
    }

    /// The image's variables, the last of a name only; entries without a name are left out.
    pub fn variables(&self) -> Vec<(&str, &str)> {
        let pairs = self.env.iter().filter_map(|entry| entry.split_once('='));
        let pairs: Vec<_> = pairs.filter(|(name, _)| !name.is_empty()).collect();
        let last: HashMap<_, _> =
            pairs.iter().enumerate().map(|(index, (name, _))| (*name, index)).collect();
        let kept = pairs.iter().enumerate().filter(|(index, (name, _))| last[name] == *index);
        kept.map(|(_, pair)| *pair).collect()
    }
}

/// Relative paths in a configuration mean the root.
fn absolute(path: String) -> String {
    if path.starts_with('/') { path } else { format!("/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        r#""os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}"#;

    fn config(config: &str) -> ImageConfig {
        ImageConfig::parse(format!("{{{HEAD},\"config\":{config}}}").as_bytes()).unwrap()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn entrypoint_and_command_are_joined_as_docker_does() {
        let both = config(r#"{"Entrypoint":["/entry","-x"],"Cmd":["serve"]}"#);
        let args = |entry, command: &[&str]| both.args(entry, &words(command)).unwrap();
        assert_eq!(args(None, &[]), ["/entry", "-x", "serve"]);
        assert_eq!(args(None, &["a", "b"]), ["/entry", "-x", "a", "b"]);
        assert_eq!(args(Some("sh"), &[]), ["sh"]);
        assert_eq!(args(Some("sh"), &["-c"]), ["sh", "-c"]);
        assert_eq!(args(Some(""), &["a"]), ["a"]);
        assert!(matches!(both.args(Some(""), &[]), Err(ConfigError::NoCommand)));
        assert!(matches!(config("{}").args(None, &[]), Err(ConfigError::NoCommand)));
    }

    #[test]
    fn empty_and_absent_fields_mean_the_same() {
        let empty = config(
            r#"{"User":"","WorkingDir":"","Env":null,"Cmd":null,"Entrypoint":[],"Volumes":null}"#,
        );
        assert_eq!(empty, config("{}"));
        assert_eq!(empty, ImageConfig::parse(format!("{{{HEAD}}}").as_bytes()).unwrap());
        let full = config(
            r#"{"User":"www:80","WorkingDir":"srv","StopSignal":"SIGQUIT","Volumes":{"/b":{},"a":{}},
            "ExposedPorts":{"80/tcp":{}},"Env":["A=1","B=x=y","A=2","=bad","worse"]}"#,
        );
        assert_eq!((full.user.as_deref(), full.workdir.as_deref()), (Some("www:80"), Some("/srv")));
        assert_eq!((full.stop_signal.as_deref(), full.volumes.len()), (Some("SIGQUIT"), 2));
        assert_eq!(full.variables(), [("B", "x=y"), ("A", "2")]);
    }
}
