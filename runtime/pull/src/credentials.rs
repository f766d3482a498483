//! Who this user is to a registry: containers-auth.json(5) and docker's config.json.
//!
//! Looked at in this order, the first that knows the registry wins: `$REGISTRY_AUTH_FILE` alone if
//! it is set, else `$XDG_RUNTIME_DIR/containers/auth.json` (for root /run/containers/0/auth.json),
//! `$XDG_CONFIG_HOME/containers/auth.json`, `$DOCKER_CONFIG/config.json`. Within a file a
//! credential helper of the registry comes first, then its entry, the most specific one
//! (`registry/repository`), then the helper for all.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

/// What docker calls its own registry in its files.
const DOCKER_IO: &str = "docker.io";
const DOCKER_IO_KEY: &str = "https://index.docker.io/v1/";

/// Why it is not known who this user is.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("{} cannot be read: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is malformed: {source}", .path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("the entry of {registry} in {} is malformed; log in again", .path.display())]
    Entry { path: PathBuf, registry: String },
    #[error("the credential helper {0:?} is no plain name")]
    HelperName(String),
    #[error("docker-credential-{helper} cannot be run: {source}")]
    Helper { helper: String, source: io::Error },
    #[error("docker-credential-{0} gave an answer that makes no sense")]
    HelperAnswer(String),
    #[error("an identity token for {0} cannot be used; log in with a user and a password")]
    IdentityToken(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuthFile {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    identitytoken: String,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Credentials for `registry`, or nobody's.
pub fn find(registry: &str, repository: &str) -> Result<RegistryAuth, CredentialError> {
    for path in files() {
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text.map_err(|source| CredentialError::Read { path: path.clone(), source })?,
        };
        let file: AuthFile = serde_json::from_slice(&text)
            .map_err(|source| CredentialError::Json { path: path.clone(), source })?;
        if let Some(found) = in_file(&file, &path, registry, repository)? {
            return Ok(found);
        }
    }
    Ok(RegistryAuth::Anonymous)
}

fn files() -> Vec<PathBuf> {
    let dir = |name: &str| env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    if let Some(file) = dir("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = dir("HOME");
    let in_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
    let runtime =
        dir("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")).or_else(|| {
            let is_root = rustix::process::geteuid().is_root();
            is_root.then(|| "/run/containers/0/auth.json".into())
        });
    let config = dir("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
    let docker = dir("DOCKER_CONFIG").or_else(|| in_home(".docker"));
    let config = config.map(|dir| dir.join("containers/auth.json"));
    [runtime, config, docker.map(|dir| dir.join("config.json"))].into_iter().flatten().collect()
}

fn in_file(
    file: &AuthFile,
    path: &Path,
    registry: &str,
    repository: &str,
) -> Result<Option<RegistryAuth>, CredentialError> {
    let helper_key = if registry == DOCKER_IO { DOCKER_IO_KEY } else { registry };
    let own = [registry, helper_key].into_iter().find_map(|key| file.cred_helpers.get(key));
    if let Some(helper) = own
        && let Some(found) = ask(helper, helper_key)?
    {
        return Ok(Some(found));
    }
    let entry = keys(registry, repository).find_map(|key| file.auths.get(&key));
    if let Some(entry) = entry.filter(|entry| !entry.auth.is_empty()) {
        let malformed =
            || CredentialError::Entry { path: path.to_owned(), registry: registry.to_owned() };
        return decode(&entry.auth).ok_or_else(malformed).map(Some);
    }
    if entry.is_some_and(|entry| !entry.identitytoken.is_empty()) {
        return Err(CredentialError::IdentityToken(registry.to_owned()));
    }
    match &file.creds_store {
        Some(helper) => ask(helper, helper_key),
        None => Ok(None),
    }
}

/// What an entry may be called, the most specific first.
fn keys(registry: &str, repository: &str) -> impl Iterator<Item = String> {
    let full = format!("{registry}/{repository}");
    let ends: Vec<usize> = full.match_indices('/').map(|(at, _)| at).chain([full.len()]).collect();
    let mut keys: Vec<String> = ends.iter().rev().map(|end| full[..*end].to_owned()).collect();
    keys.extend([format!("https://{registry}"), format!("http://{registry}")]);
    if registry == DOCKER_IO {
        keys.push(DOCKER_IO_KEY.to_owned());
    }
    keys.into_iter()
}

fn decode(auth: &str) -> Option<RegistryAuth> {
    let text = String::from_utf8(BASE64_STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    // Docker pads with NULs.
    let password = password.trim_end_matches('\0');
    Some(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}

/// Asks docker-credential-HELPER; `None` if it does not know the registry.
fn ask(helper: &str, registry: &str) -> Result<Option<RegistryAuth>, CredentialError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if helper.is_empty() || !helper.chars().all(plain) {
        return Err(CredentialError::HelperName(helper.to_owned()));
    }
    let failed = |source| CredentialError::Helper { helper: helper.to_owned(), source };
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing says so by its exit code.
        let _ = writeln!(stdin, "{registry}");
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Ok(None);
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| CredentialError::HelperAnswer(helper.to_owned()))?;
    match answer.username.as_str() {
        "<token>" => Err(CredentialError::IdentityToken(registry.to_owned())),
        _ => Ok(Some(RegistryAuth::Basic(answer.username, answer.secret))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(json: &str, registry: &str, repository: &str) -> Option<RegistryAuth> {
        let file: AuthFile = serde_json::from_str(json).unwrap();
        in_file(&file, Path::new("f"), registry, repository).unwrap()
    }

    #[test]
    fn the_most_specific_entry_wins() {
        let entry = |name: &str| {
            format!(r#"{{"auth":"{}"}}"#, BASE64_STANDARD.encode(format!("{name}:p:w")))
        };
        let json = format!(
            r#"{{"auths":{{"r.x":{},"r.x/team":{},"{DOCKER_IO_KEY}":{}}}}}"#,
            entry("all"),
            entry("team"),
            entry("docker"),
        );
        let user = |name: &str| Some(RegistryAuth::Basic(name.to_owned(), "p:w".to_owned()));
        assert_eq!(look(&json, "r.x", "app"), user("all"));
        assert_eq!(look(&json, "r.x", "team/app"), user("team"));
        assert_eq!(look(&json, "r.x", "teams/app"), user("all"));
        assert_eq!(look(&json, "docker.io", "library/a"), user("docker"));
        assert_eq!(look(&json, "other.x", "app"), None);
    }

    #[test]
    fn what_is_malformed_is_an_error_and_no_program_is_run_for_it() {
        for json in [
            r#"{"auths":{"r.x":{"auth":"%%%"}}}"#,
            r#"{"credHelpers":{"r.x":"../../bin/sh"}}"#,
            r#"{"credsStore":"a b"}"#,
            r#"{"auths":{"r.x":{"identitytoken":"t"}}}"#,
        ] {
            let file: AuthFile = serde_json::from_str(json).unwrap();
            assert!(in_file(&file, Path::new("f"), "r.x", "app").is_err(), "{json}");
        }
    }
}
