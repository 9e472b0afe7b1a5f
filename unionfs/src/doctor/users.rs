//! Ordinary users: namespaces of their own, and the helpers that give them more ids.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;

use super::child::{attempt, enter_namespaces};
use super::fuse::{Found, words};
use super::{Row, State};

const GROUP: &str = "users";
/// Where login.defs(5) begins to give ids away, and how many a user gets.
const FIRST: u64 = 100_000;
const RANGE: u64 = 65_536;

pub(super) fn rows(fuse: &Found) -> Vec<Row> {
    vec![fuse.helper_row(), allow_other(), namespaces(), mounts_in_namespace(fuse), helpers(), further_ids()]
}

fn allow_other() -> Row {
    let text = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let allowed = rustix::process::geteuid().is_root() || text.lines().any(|line| line.trim() == "user_allow_other");
    Row::new(GROUP, "allow_other", State::of(allowed))
        .gives("others than the user see a union that fusermount3 has mounted")
        .or("write the line user_allow_other to /etc/fuse.conf")
}

fn namespaces() -> Row {
    let tried = attempt(|| enter_namespaces(true).map(|()| Vec::new()));
    let row = Row::new(GROUP, "user namespaces", State::of(tried.is_ok())).gives("containers and unions without root");
    let Err(errno) = tried else { return row };
    row.found(words(errno)).or(why_no_namespace(errno))
}

fn why_no_namespace(errno: Errno) -> &'static str {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    match errno {
        Errno::INVAL => "use a kernel with CONFIG_USER_NS",
        _ if is("/proc/sys/user/max_user_namespaces", "0") => "sysctl user.max_user_namespaces=10000",
        _ if is("/proc/sys/kernel/unprivileged_userns_clone", "0") => "sysctl kernel.unprivileged_userns_clone=1",
        _ if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") => {
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give the program an AppArmor profile with userns"
        }
        Errno::NOSPC | Errno::USERS => "raise user.max_user_namespaces, or leave one of the nested namespaces",
        _ => "let the container around this one make namespaces (its seccomp filter, and not in a chroot)",
    }
}

fn mounts_in_namespace(fuse: &Found) -> Row {
    let mounts = fuse.mounts_in_namespace();
    let row =
        Row::new(GROUP, "FUSE in a user namespace", State::of(mounts.is_ok())).gives("containers of users on unions");
    let Err(errno) = mounts else { return row };
    row.found(words(errno)).or("use Linux 4.18 or later, with user namespaces and /dev/fuse open to users")
}

fn helpers() -> Row {
    let [uid, gid] = ["newuidmap", "newgidmap"].map(|name| find_program(name).filter(|path| becomes_root(path)));
    Row::new(GROUP, "newuidmap and newgidmap", State::of(uid.is_some() && gid.is_some()))
        .gives("more than one user in a container of an ordinary user")
        .or("install the package uidmap; both programs are set-user-id root, or have the capability")
}

fn further_ids() -> Row {
    let uid = rustix::process::geteuid().as_raw();
    let name = user_name(uid);
    let has = |file: &str| fs::read_to_string(file).is_ok_and(|text| has_range(&text, uid, name.as_deref()));
    let there = has("/etc/subuid") && has("/etc/subgid");
    let user = name.unwrap_or_else(|| uid.to_string());
    let row = Row::new(GROUP, "/etc/subuid and /etc/subgid", State::of(there || uid == 0));
    let tables = ["/etc/subuid", "/etc/subgid"].map(|file| fs::read_to_string(file).unwrap_or_default());
    let first = first_free(&tables);
    let range = format!("{first}-{}", first + RANGE - 1);
    row.gives("ids for the users of a container")
        .or(format!("usermod --add-subuids {range} --add-subgids {range} {user}"))
}

/// The first id above all that these tables give away: users who share one could change each other's files.
fn first_free(tables: &[String]) -> u64 {
    let ends = tables.iter().flat_map(|table| table.lines()).filter_map(|line| {
        let mut numbers = line.trim().split(':').skip(1).map(str::parse::<u64>);
        numbers.next()?.ok()?.checked_add(numbers.next()?.ok()?)
    });
    ends.filter(|end| *end <= u64::from(u32::MAX) - RANGE).fold(FIRST, u64::max)
}

fn user_name(uid: u32) -> Option<String> {
    let table = fs::read_to_string("/etc/passwd").ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Whether a user has a range of ids, by subuid(5).
fn has_range(table: &str, uid: u32, name: Option<&str>) -> bool {
    table.lines().any(|line| {
        let mut fields = line.trim().split(':');
        let who = fields.next().unwrap_or_default();
        let is_user = who == uid.to_string() || Some(who) == name;
        is_user && fields.nth(1).is_some_and(|count| count.parse::<u32>().is_ok_and(|count| count > 0))
    })
}

/// Where a program is, by PATH, and where administration keeps its own.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0))
}

/// Whether whoever runs it is root meanwhile, or has a capability of it.
pub(super) fn becomes_root(program: &Path) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let works = rustix::fs::statvfs(program).is_ok_and(|at| !at.f_flag.contains(StatVfsMountFlags::NOSUID));
    let is_set = fs::metadata(program).is_ok_and(|about| about.mode() & 0o4000 != 0 && about.uid() == 0);
    let has_capability = rustix::fs::getxattr(program, "security.capability", &mut [0; 64]).is_ok();
    works && (is_set || has_capability) && !cannot_gain()
}

/// Whether a program that becomes root may mount: not in most containers, whose bounding set lacks CAP_SYS_ADMIN
/// (capabilities(7)). Without `/proc` nothing mounts.
pub(super) fn may_come_to_mount() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounds = bounds.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    bounds & SYS_ADMIN != 0 && (rustix::process::geteuid().is_root() || !cannot_gain())
}

/// Whether this process has given up to gain privileges (PR_SET_NO_NEW_PRIVS), as in most containers.
fn cannot_gain() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_user() {
        let table = "other:100000:65536\nme:165536:65536\n1001:1:0\n";
        assert!(has_range(table, 7, Some("me")) && has_range(table, 7, Some("other")));
        assert!(!has_range(table, 1001, None) && !has_range(table, 7, Some("m")) && !has_range("", 0, None));
        assert!(has_range("1001:5:1\n", 1001, None));
    }

    #[test]
    fn nobody_is_told_to_take_what_others_have() {
        let free = |tables: [&str; 2]| first_free(&tables.map(str::to_owned));
        assert_eq!(free(["", "#\nme\nme:x:y\nme:5:6\n"]), 100_000);
        assert_eq!(free(["a:100000:65536\nb:165536:65536\n", "a:100000:65536\n"]), 231_072);
        assert_eq!(free(["a:100000:65536\n", "a:300000:1\n"]), 300_001);
        // one who has all that there are leaves what lies below
        assert_eq!(free(["a:1:4294967294\nb:18446744073709551615:9\n", ""]), 100_000);
    }
}
