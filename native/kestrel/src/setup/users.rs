//! Who a process runs as, by the guest's own /etc/passwd and /etc/group.
//!
//! The rules are those of container runtimes: `name`, `uid`, `name:group`, `uid:gid`; a number that no file lists is taken
//! as it is; supplementary groups come from /etc/group unless a group is named.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::setup::guest_file;

/// Files larger than this are not user lists.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A resolved user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The home directory, `/` where no file says one.
    pub home: String,
}

/// Why a name is no user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("user \"{0}\" is not in /etc/passwd")]
    UserUnknown(String),
    #[error("group \"{0}\" is not in /etc/group")]
    GroupUnknown(String),
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Resolves `spec` against the files of the running guest; an empty one is root.
///
/// # Errors
/// A name that the files do not know.
pub fn resolve(spec: Option<&str>) -> Result<User, UserError> {
    resolve_in(
        spec.unwrap_or("0"),
        Path::new("/etc/passwd"),
        Path::new("/etc/group"),
    )
}

fn resolve_in(spec: &str, passwd: &Path, group: &Path) -> Result<User, UserError> {
    let (user_spec, group_spec) = match spec.split_once(':') {
        Some((user, group)) => (user, (!group.is_empty()).then_some(group)),
        None => (spec, None),
    };
    let user_spec = if user_spec.is_empty() { "0" } else { user_spec };
    let number = id(user_spec);
    // A name is preferred to a number, so that an account called "1000" is found; the first line wins.
    let accounts = lines(passwd, account);
    let account = accounts
        .iter()
        .find(|account| account.name == user_spec)
        .or_else(|| accounts.iter().find(|account| Some(account.uid) == number));
    let (uid, own_gid, home) = match (account, number) {
        (Some(account), _) => (account.uid, account.gid, account.home.clone()),
        (None, Some(uid)) => (uid, 0, String::new()),
        (None, None) => return Err(UserError::UserUnknown(user_spec.to_owned())),
    };
    let groups = lines(group, group_line);
    let home = if home.is_empty() {
        "/".to_owned()
    } else {
        home
    };
    if let Some(group_spec) = group_spec {
        let gid = groups
            .iter()
            .find(|group| group.name == group_spec)
            .map(|group| group.gid)
            .or_else(|| id(group_spec))
            .ok_or_else(|| UserError::GroupUnknown(group_spec.to_owned()))?;
        return Ok(User {
            uid,
            gid,
            groups: Vec::new(),
            home,
        });
    }
    let mut supplementary: Vec<u32> = match account {
        Some(account) => groups
            .iter()
            .filter(|group| group.members.contains(&account.name))
            .map(|group| group.gid)
            .collect(),
        None => Vec::new(),
    };
    supplementary.sort_unstable();
    supplementary.dedup();
    // NGROUPS_MAX: setgroups refuses more.
    supplementary.truncate(65_536);
    Ok(User {
        uid,
        gid: own_gid,
        groups: supplementary,
        home,
    })
}

/// Lines that do not parse are skipped, as the C libraries do.
fn lines<T>(path: &Path, parse: fn(&str) -> Option<T>) -> Vec<T> {
    let Ok(file) = guest_file::open(path, OpenOptions::new().read(true)) else {
        return Vec::new();
    };
    BufReader::new(file.take(FILE_BYTES_MAX))
        .split(b'\n')
        .map_while(Result::ok)
        .filter_map(|line| parse(&String::from_utf8_lossy(&line)))
        .collect()
}

/// Reads the number of a user or a group. The largest one is none: to setresuid(2) it says "leave it as it is", which is root.
fn id(text: &str) -> Option<u32> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let _password = fields.next()?;
    let uid = id(fields.next()?)?;
    let gid = id(fields.next()?)?;
    let _gecos = fields.next();
    let home = fields.next().unwrap_or_default().to_owned();
    Some(Account {
        name,
        uid,
        gid,
        home,
    })
}

fn group_line(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let _password = fields.next()?;
    let gid = id(fields.next()?)?;
    let members = fields
        .next()
        .unwrap_or_default()
        .split(',')
        .filter(|member| !member.is_empty())
        .map(str::to_owned)
        .collect();
    Some(Group { name, gid, members })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        broken line\n\
        web:x:33:33::/var/www:/bin/false\n\
        1000:x:1234:55::/home/odd:/bin/sh\n\
        dup:x:33:99::/home/dup:/bin/sh\n\
        bad:x:notanumber:1::/:\n\
        minus:x:4294967295:0::/:\n\
        homeless:x:7:7";
    const GROUP: &str = "root:x:0:\nminus:x:4294967295:\nwww:x:33:\nadm:x:4:web,root\naudio:x:29:root,web\nbad\ntwice:x:4:web\n";

    fn try_resolve(spec: &str) -> Result<User, UserError> {
        let folder = crate::test_folder::TestFolder::new();
        let (passwd, group) = (folder.path().join("passwd"), folder.path().join("group"));
        std::fs::write(&passwd, PASSWD).unwrap();
        std::fs::write(&group, GROUP).unwrap();
        resolve_in(spec, &passwd, &group)
    }

    fn ids(spec: &str) -> (u32, u32, Vec<u32>, String) {
        let user = try_resolve(spec).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn a_name_has_its_ids_groups_and_home() {
        assert_eq!(ids("web"), (33, 33, vec![4, 29], "/var/www".to_owned()));
    }

    #[test]
    fn a_named_group_replaces_the_supplementary_ones() {
        assert_eq!(ids("web:adm"), (33, 4, vec![], "/var/www".to_owned()));
        assert_eq!(ids("web:77"), (33, 77, vec![], "/var/www".to_owned()));
    }

    #[test]
    fn a_number_finds_its_account_and_stands_alone_without_one() {
        assert_eq!(ids("33").3, "/var/www");
        assert_eq!(ids("4711"), (4711, 0, vec![], "/".to_owned()));
        assert_eq!(ids("4711:12"), (4711, 12, vec![], "/".to_owned()));
    }

    #[test]
    fn an_account_whose_name_is_a_number_is_preferred() {
        assert_eq!(ids("1000").0, 1234);
    }

    #[test]
    fn nothing_before_the_colon_is_root() {
        assert_eq!(ids("").0, 0);
        assert_eq!(ids(":adm").1, 4);
        assert_eq!(ids("web:").1, 33);
    }

    #[test]
    fn names_that_no_file_has_are_errors() {
        assert_eq!(
            try_resolve("nobody"),
            Err(UserError::UserUnknown("nobody".to_owned()))
        );
        assert_eq!(
            try_resolve("web:nogroup"),
            Err(UserError::GroupUnknown("nogroup".to_owned()))
        );
        assert_eq!(
            try_resolve("-1"),
            Err(UserError::UserUnknown("-1".to_owned()))
        );
        assert_eq!(
            try_resolve("4294967296"),
            Err(UserError::UserUnknown("4294967296".to_owned()))
        );
    }

    #[test]
    fn what_the_kernel_takes_for_no_change_is_nobody() {
        for spec in [
            "4294967295",
            "04294967295",
            "4294967295:0",
            "minus",
            "+7",
            "0x7",
        ] {
            assert!(
                matches!(try_resolve(spec), Err(UserError::UserUnknown(_))),
                "{spec}"
            );
        }
        for spec in ["7:4294967295", "7:minus", ":4294967295", "7:+7"] {
            assert!(
                matches!(try_resolve(spec), Err(UserError::GroupUnknown(_))),
                "{spec}"
            );
        }
        assert_eq!(ids("4294967294:4294967294").0, u32::MAX - 1);
    }

    #[test]
    fn without_files_root_is_root() {
        let user = resolve_in(
            "0",
            Path::new("/no-such-place/a"),
            Path::new("/no-such-place/b"),
        );

        assert_eq!(
            user,
            Ok(User {
                uid: 0,
                gid: 0,
                groups: vec![],
                home: "/".to_owned()
            })
        );
    }
}
