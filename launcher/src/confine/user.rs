//! Who the command runs as: `--user` and `--group-add`, looked up in the container's own `/etc/passwd` and `/etc/group`.

use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use crate::failure::errno_of;

/// Longer files of accounts are cut, so that a container cannot fill our memory with one.
const LONGEST: u64 = 16 << 20;

/// A user or group, as it was named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Account {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

/// `--user`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The user.
    pub user: Account,
    /// The group; the user's own, where there is none.
    pub group: Option<Account>,
}

/// Reads `USER[:GROUP]`, each a name or a number.
///
/// # Errors
/// Where it is not of this form.
pub(crate) fn parse(text: &str) -> Result<Wanted, String> {
    match text.split_once(':') {
        Some((user, group)) => Ok(Wanted { user: account(user)?, group: Some(account(group)?) }),
        None => Ok(Wanted { user: account(text)?, group: None }),
    }
}

/// Reads a name or a number. A number is one as a whole or not at all (CVE-2026-30892: `1000x` is not 1000).
///
/// # Errors
/// Where it is neither.
pub(super) fn account(text: &str) -> Result<Account, String> {
    if text.is_empty() {
        return Err("the name is empty".into());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        // The highest number means "no change" to the kernel; see setresuid(2).
        let id = text.parse().ok().filter(|id| *id != u32::MAX);
        return id.map(Account::Id).ok_or_else(|| format!("{text} is too large for a user or a group"));
    }
    if text.bytes().any(|byte| matches!(byte, b':' | b'\n')) {
        return Err("a name has no colon and no line break".into());
    }
    Ok(Account::Name(text.to_owned()))
}

/// Who the command runs as, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) groups: Vec<u32>,
    /// The home directory of a user that was looked up.
    pub(crate) home: Option<CString>,
}

impl Identity {
    /// The container's root, and nobody's group.
    pub(crate) fn root() -> Identity {
        Identity { user: 0, group: 0, groups: Vec::new(), home: None }
    }

    /// Looks up, in the root that was entered, what was asked for; ENOENT where it is not there.
    pub(crate) fn find(wanted: Option<&Wanted>, additional: &[Account]) -> Result<Identity, Errno> {
        let mut identity = Identity::root();
        if let Some(wanted) = wanted {
            let (passwd, group) = (read(Path::new("/etc/passwd"))?, read(Path::new("/etc/group"))?);
            identity = resolve(wanted, &passwd, &group)?;
        }
        if !additional.is_empty() {
            let groups = read(Path::new("/etc/group"))?;
            for account in additional {
                let group = group_id(account, &groups)?;
                identity.groups.push(group);
            }
        }
        identity.groups.sort_unstable();
        identity.groups.dedup();
        Ok(identity)
    }

    /// Looks up what was asked for in these files of accounts; ENOENT where it is not there.
    pub(crate) fn look_up(wanted: &Wanted, passwd: &[u8], group: &[u8]) -> Result<Identity, Errno> {
        resolve(wanted, passwd, group)
    }

    /// Becomes it.
    pub(crate) fn assume(&self) -> Result<(), Errno> {
        let mut groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        // Its own stays one of them when a set-group-id program takes another one (CVE-2022-2989).
        if self.group != 0 && !self.groups.contains(&self.group) {
            groups.insert(0, Gid::from_raw(self.group));
        }
        match setgroups(&groups) {
            // In a user namespace with one mapped id the kernel refuses the call, and there is nothing to give up.
            Err(Errno::EPERM) if self.groups.is_empty() => {}
            result => result?,
        }
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        setresgid(group, group, group)?;
        setresuid(user, user, user)
    }
}

/// A file of accounts; empty where it is missing. What a container has put in its place cannot hold us up.
fn read(path: &Path) -> Result<Vec<u8>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        result => File::from(result?),
    };
    if !file.metadata().map_err(|error| errno_of(&error))?.is_file() {
        return Err(Errno::EINVAL);
    }
    let mut content = Vec::new();
    file.take(LONGEST).read_to_end(&mut content).map_err(|error| errno_of(&error))?;
    Ok(content)
}

/// The fields of each line; passwd(5), group(5).
fn lines(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    text.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect())
}

fn number(field: Option<&&[u8]>) -> Option<u32> {
    std::str::from_utf8(field?).ok()?.parse().ok()
}

fn resolve(wanted: &Wanted, passwd: &[u8], group: &[u8]) -> Result<Identity, Errno> {
    let is_wanted = |fields: &Vec<&[u8]>| match &wanted.user {
        Account::Name(name) => fields.first() == Some(&name.as_bytes()),
        Account::Id(id) => number(fields.get(2)) == Some(*id),
    };
    let entry = lines(passwd).find(is_wanted);
    let user = match &wanted.user {
        Account::Id(id) => *id,
        Account::Name(_) => number(entry.as_ref().and_then(|fields| fields.get(2))).ok_or(Errno::ENOENT)?,
    };
    let mut identity = Identity { user, ..Identity::root() };
    if let Some(fields) = &entry {
        identity.group = number(fields.get(3)).unwrap_or(0);
        identity.home = fields.get(5).and_then(|home| CString::new(*home).ok()).filter(|home| !home.is_empty());
        // As with docker: whoever names a group gets that one and no other.
        if let (None, Some(name)) = (&wanted.group, fields.first()) {
            identity.groups = memberships(name, group);
        }
    }
    if let Some(account) = &wanted.group {
        identity.group = group_id(account, group)?;
    }
    Ok(identity)
}

fn group_id(account: &Account, groups: &[u8]) -> Result<u32, Errno> {
    match account {
        Account::Id(id) => Ok(*id),
        Account::Name(name) => {
            let entry = lines(groups).find(|fields| fields.first() == Some(&name.as_bytes()));
            number(entry.as_ref().and_then(|fields| fields.get(2))).ok_or(Errno::ENOENT)
        }
    }
}

fn memberships(user: &[u8], groups: &[u8]) -> Vec<u32> {
    let has_user = |fields: &Vec<&[u8]>| {
        fields.get(3).is_some_and(|members| members.split(|byte| *byte == b',').any(|member| member == user))
    };
    lines(groups).filter(has_user).filter_map(|fields| number(fields.get(2))).collect()
}

/// The variable HOME for this user.
pub(crate) fn home_variable(home: &CString) -> Option<CString> {
    CString::new([b"HOME=", home.as_bytes()].concat()).ok()
}

/// Whether a process is in a user namespace with a single user.
pub(crate) fn is_alone(process: &str) -> std::io::Result<bool> {
    Ok(has_one_user(&std::fs::read_to_string(format!("/proc/{process}/uid_map"))?))
}

/// One line of three numbers: the first user inside, the one outside, and how many follow; see user_namespaces(7).
fn has_one_user(map: &str) -> bool {
    let mut lines = map.lines();
    let count = lines.next().and_then(|line| line.split_whitespace().nth(2));
    lines.next().is_none() && count == Some("1")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/srv/web:/bin/sh\nbroken\nshort:x:7\n";
    const GROUP: &[u8] = b"root:x:0:\nweb:x:34:\ndisk:x:6:web,root\naudio:x:29:other,web\nvideo:x:44:webmaster\n";

    fn find(text: &str) -> Result<(u32, u32, Vec<u32>), Errno> {
        let identity = resolve(&parse(text).unwrap(), PASSWD, GROUP)?;
        Ok((identity.user, identity.group, identity.groups))
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        assert_eq!(find("web"), Ok((33, 34, vec![6, 29])));
        assert_eq!(find("33"), Ok((33, 34, vec![6, 29])));
        assert_eq!(find("web:disk"), Ok((33, 6, vec![])));
        assert_eq!(find("web:77"), Ok((33, 77, vec![])));
        assert_eq!(find("1000"), Ok((1000, 0, vec![])));
        assert_eq!(find("1000:video"), Ok((1000, 44, vec![])));
        assert_eq!(find("short"), Ok((7, 0, vec![])));
        assert_eq!(resolve(&parse("web").unwrap(), PASSWD, GROUP).unwrap().home, Some(c"/srv/web".to_owned()));
    }

    #[test]
    fn who_is_not_there_is_not_root() {
        for text in ["nobody", "web:nogroup", "broken", "webmaster"] {
            assert_eq!(find(text), Err(Errno::ENOENT), "{text}");
        }
    }

    #[test]
    fn a_number_is_one_as_a_whole() {
        assert_eq!(account("1000x"), Ok(Account::Name("1000x".into())));
        assert_eq!(account("+5"), Ok(Account::Name("+5".into())));
        for text in ["", "4294967295", "4294967296", "99999999999999999999", "a\nb"] {
            assert!(account(text).is_err(), "{text}");
        }
        for text in ["", ":", "0:", ":0", "a:b:c"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_user_is_a_single_line_for_one() {
        assert!(has_one_user("         0       1000          1\n"));
        for map in ["", "0 0 4294967295\n", "0 1000 1\n1 100000 65536\n", "0 1000 10\n"] {
            assert!(!has_one_user(map), "{map}");
        }
    }
}
