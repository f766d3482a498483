//! Whose rights this process has, and how an ordinary user gets root's over IDs of their own: in a user
//! namespace, for what takes them, which is to unpack images and to stack their layers.

use std::fs;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

pub use bulkhead_image::user::is_host_root;
use rustix::process::{getegid, geteuid, getpid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Waits until the namespace is there, then has the programs that may do it (newuidmap(1)) map this
/// user to its root and the user's further IDs behind it.
const MAP: &str = "read -r _; newuidmap $1 0 $2 1 1 $3 && exec newgidmap $1 0 $4 1 1 $5";
/// The most that is read of what those programs say.
const SAID_MAX: u64 = 1000;

/// Why there is no such namespace.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error(
        "cannot make a user namespace, which images take without root's privileges \
         (`bulkhead doctor --security` says what forbids it): {0}"
    )]
    Namespace(#[source] io::Error),
    #[error("cannot run newuidmap and newgidmap (Debian: the package uidmap): {0}")]
    Programs(#[source] io::Error),
    #[error("cannot map this user's IDs of /etc/subuid and /etc/subgid: {0}")]
    Ids(String),
    #[error("cannot map this user into its user namespace: {0}")]
    Map(#[source] io::Error),
}

/// Becomes root of a user namespace with this user's IDs, those of /etc/subuid and /etc/subgid among
/// them, or with this one alone. Root stays what it is. To be called while this process has one
/// thread.
pub fn become_root() -> Result<(), UserError> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return Ok(());
    }
    let (uid, gid) = (uid.as_raw().to_string(), gid.as_raw().to_string());
    let names = names(&fs::read_to_string("/etc/passwd").unwrap_or_default(), &uid);
    let range = |file| further_ids(&fs::read_to_string(file).unwrap_or_default(), &names);
    let ranges = range("/etc/subuid").zip(range("/etc/subgid"));
    let Some((users, groups)) = ranges else {
        unshare()?;
        return map_one(&uid, &gid).map_err(UserError::Map);
    };
    let mut mapper = Command::new("sh");
    // Words of digits, which the shell is to split at their blank.
    mapper.args(["-c", MAP, "sh", &getpid().to_string(), &uid, &users, &gid, &groups]);
    mapper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut mapper = mapper.spawn().map_err(UserError::Programs)?;
    let made = unshare();
    if let Some(mut go) = mapper.stdin.take().filter(|_| made.is_ok()) {
        // One that is gone says why below.
        let _ = go.write_all(b"\n");
    }
    let mut said = String::new();
    if let Some(stderr) = mapper.stderr.take() {
        let _ = stderr.take(SAID_MAX).read_to_string(&mut said);
    }
    let status = mapper.wait().map_err(UserError::Programs)?;
    made?;
    match status.success() {
        true => Ok(()),
        false => Err(UserError::Ids(said.trim().to_owned())),
    }
}

fn unshare() -> Result<(), UserError> {
    // SAFETY: the flags leave this thread its descriptors, which is what could make one thread's
    // descriptor another's.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
        .map_err(|error| UserError::Namespace(error.into()))
}

/// Maps this user and group to root, without further IDs (user_namespaces(7)).
fn map_one(uid: &str, gid: &str) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// What files of IDs call the user `uid`: by number, and by name as of this passwd(5).
fn names(passwd: &str, uid: &str) -> Vec<String> {
    let named = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id == uid).then(|| name.to_owned())
    });
    named.chain([uid.to_owned()]).collect()
}

/// The first range of a subuid(5) or subgid(5) that is one of `names`', as "START COUNT".
fn further_ids(text: &str, names: &[String]) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let mut number = || fields.next()?.trim().parse::<u32>().ok().filter(|number| *number > 0);
        let (start, count) = (number()?, number()?);
        names.iter().any(|known| known == name).then(|| format!("{start} {count}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_ids_are_the_user_s_by_name_or_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nsailor:x:1000:100::/home/sailor:/bin/sh\n";
        assert_eq!(names(passwd, "1000"), ["sailor", "1000"]);
        let of = |text: &str| further_ids(text, &names(passwd, "1000"));
        assert_eq!(of("root:1:2\nsailor:200000:65536\n").as_deref(), Some("200000 65536"));
        assert_eq!(of("1000:5:6").as_deref(), Some("5 6"));
        for none in ["", "sailor", "sailor:x:1", "sailor:1:0", "sailor:-1:5", "sailors:1:2"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
