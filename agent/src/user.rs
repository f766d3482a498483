//! Users and groups by name, from the container's own /etc/passwd and /etc/group.

use std::fs::File;
use std::io::Read as _;

use bulkhead_protocol::rpc::agent::Process;
use rustix::io::Errno;

/// As much of /etc/passwd or /etc/group as is read, bytes: tens of thousands of users.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why a user could not be found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such name.
    #[error("no user {0:?} in the container's /etc/passwd")]
    NoUser(String),
    /// No such group.
    #[error("no group {0:?} in the container's /etc/group")]
    NoGroup(String),
}

impl UserError {
    /// The errno to report.
    pub fn errno(&self) -> Errno {
        Errno::INVAL
    }
}

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The home directory, where /etc/passwd was looked at and has one.
    pub home: Option<String>,
}

impl Identity {
    /// Resolves the user of `process` in the current root directory. /etc/passwd is read only if
    /// it can make a difference, and the host has not done so: there is a name to look up, or HOME is
    /// wanted (`want_home`).
    pub fn resolve(process: &Process, want_home: bool) -> Result<Self, UserError> {
        let user = process.user.get_or_default();
        let name = process.user_name.as_str();
        let foreseen = process.foreseen.get_or_default();
        let text = |seen: &Option<Vec<u8>>, path| match seen {
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            None => read(path),
        };
        let passwd = match want_home || !name.is_empty() {
            true => text(&foreseen.passwd, "/etc/passwd"),
            false => String::new(),
        };
        if name.is_empty() {
            let home = Entry::find(&passwd, &user.uid.to_string()).map(|e| e.home.to_owned());
            let groups = user.additional_gids.clone();
            return Ok(Self { uid: user.uid, gid: user.gid, groups, home });
        }
        let mut identity = lookup(name, &passwd, || text(&foreseen.group, "/etc/group"))?;
        identity.groups.extend(&user.additional_gids);
        Ok(identity)
    }
}

/// Resolves "user" or "user:group", each a name or a number.
fn lookup(
    wanted: &str,
    passwd: &str,
    group_file: impl FnOnce() -> String,
) -> Result<Identity, UserError> {
    let (user, group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let entry = Entry::find(passwd, user);
    let uid = entry.as_ref().map(|e| e.uid).or_else(|| user.parse().ok());
    let uid = uid.ok_or_else(|| UserError::NoUser(user.to_owned()))?;
    let mut identity = Identity {
        uid,
        gid: entry.as_ref().map_or(0, |e| e.gid),
        groups: Vec::new(),
        home: entry.as_ref().map(|e| e.home.to_owned()),
    };
    if let Some(group) = group {
        let known = groups(&group_file()).find(|(name, ..)| *name == group).map(|(_, gid, _)| gid);
        let gid = known.or_else(|| group.parse().ok());
        identity.gid = gid.ok_or_else(|| UserError::NoGroup(group.to_owned()))?;
    } else if let Some(entry) = entry {
        identity.groups = groups(&group_file())
            .filter(|(_, _, members)| members.split(',').any(|member| member == entry.name))
            .map(|(_, gid, _)| gid)
            .collect();
    }
    Ok(identity)
}

/// The file's text; empty if there is none that can be read, as in images without users.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    // What was read before an error counts too.
    let _ = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A line of /etc/passwd (passwd(5)).
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        Some(Self { name, uid, gid, home })
    }

    /// The entry of this name, else the first with this number.
    fn find(passwd: &'a str, user: &str) -> Option<Self> {
        let entries = || passwd.lines().filter_map(Self::parse);
        let uid = user.parse::<u32>().ok();
        entries().find(|e| e.name == user).or_else(|| entries().find(|e| Some(e.uid) == uid))
    }
}

/// Name, number and comma-separated members of each line of /etc/group (group(5)).
fn groups(file: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    file.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or("")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_protocol::rpc::agent::Foreseen;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        broken line\n\
        www:x:33:34::/var/www:/usr/sbin/nologin\n\
        7:x:1007:1007::/home/seven:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlogs:x:4:root,www\nhalf:x:5:ww\nbad:x:y:www\n";

    fn find(wanted: &str) -> Result<Identity, UserError> {
        lookup(wanted, PASSWD, || GROUP.to_owned())
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: Option<&str>) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.map(str::to_owned) }
    }

    #[test]
    fn users_and_groups_by_name_and_number() {
        let www = "/var/www";
        for (wanted, expected) in [
            ("www", identity(33, 34, &[4], Some(www))),
            ("33", identity(33, 34, &[4], Some(www))),
            ("www:logs", identity(33, 4, &[], Some(www))),
            ("www:77", identity(33, 77, &[], Some(www))),
            ("12345", identity(12345, 0, &[], None)),
            ("12345:54321", identity(12345, 54321, &[], None)),
            // A name that looks like a number is a name first.
            ("7", identity(1007, 1007, &[], Some("/home/seven"))),
        ] {
            assert_eq!(find(wanted), Ok(expected), "{wanted}");
        }
    }

    #[test]
    fn what_the_host_has_seen_is_not_read_again() {
        let foreseen = Foreseen {
            passwd: Some(PASSWD.into()),
            group: Some(GROUP.into()),
            ..Default::default()
        };
        let mut process = Process { foreseen: Some(foreseen).into(), ..Default::default() };
        process.user.mut_or_insert_default().uid = 33;
        let home = |process: &Process| Identity::resolve(process, true).unwrap().home;
        assert_eq!(home(&process).as_deref(), Some("/var/www"));
        process.user_name = "www".to_owned();
        let www = identity(33, 34, &[4], Some("/var/www"));
        assert_eq!(Identity::resolve(&process, false), Ok(www));
        process.foreseen.mut_or_insert_default().passwd = Some(Vec::new());
        assert_eq!(Identity::resolve(&process, true), Err(UserError::NoUser("www".into())));
    }

    #[test]
    fn unknown_names_are_refused() {
        assert_eq!(find("nobody"), Err(UserError::NoUser("nobody".into())));
        assert_eq!(find("-1"), Err(UserError::NoUser("-1".into())));
        assert_eq!(find("4294967296"), Err(UserError::NoUser("4294967296".into())));
        assert_eq!(find("www:none"), Err(UserError::NoGroup("none".into())));
        assert_eq!(find("www:"), Err(UserError::NoGroup(String::new())));
    }

    proptest! {
        #[test]
        fn any_files_are_survived(wanted in ".{0,20}", passwd in "(?s).{0,200}", group in "(?s).{0,200}") {
            let _ = lookup(&wanted, &passwd, || group);
        }

        #[test]
        fn a_written_user_is_found(name in "[a-z]{1,8}", uid: u32, gid: u32) {
            let passwd = format!("junk\n{name}:x:{uid}:{gid}::/h:/s\n");
            let found = lookup(&name, &passwd, String::new).unwrap();
            prop_assert_eq!(found, Identity { uid, gid, groups: vec![], home: Some("/h".into()) });
        }
    }
}
