//! Starting as an ordinary user: the launcher makes itself root of a user namespace of its own before it makes anything
//! else, so that all it makes then (processes, mounts, unions and their daemon) belongs to that namespace.
//!
//! Users to whom /etc/subuid and /etc/subgid give further ids have those in it, by newuidmap(1) and newgidmap(1). Others are
//! alone there: their files are root's, and everybody else's are nobody's.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};

use crate::confine::seal::{PROGRAM, run_again};
use crate::failure::{Doing as _, Failure};
use crate::idmap::{IdMaps, IdRange};
use crate::message::say;
use crate::process;

const MAKING: &str = "make a user namespace";

/// Who is there in the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// Root, who is the caller, and the users that the machine gives it.
    Ranges,
    /// Root alone.
    Single,
}

/// A range of ids of the machine: the first, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

impl Ids {
    /// What this program is called when it runs once more as root of the namespace.
    fn name(self) -> &'static str {
        match self {
            Ids::Ranges => "rlaunch: of a user with further ids",
            Ids::Single => "rlaunch: of a user alone",
        }
    }

    /// Who is there, if this process is that run.
    fn of_this_run() -> Option<Ids> {
        let name = std::env::args_os().next()?;
        [Ids::Ranges, Ids::Single].into_iter().find(|ids| name == ids.name() && geteuid().is_root())
    }
}

/// Whether this process is root of the machine, or of what it can see of it, and not only of a namespace of its own.
pub(crate) fn is_root() -> bool {
    geteuid().is_root() && Ids::of_this_run().is_none()
}

/// The user as the machine knows it.
///
/// # Errors
/// Where /proc cannot be read.
pub(crate) fn user() -> std::io::Result<u32> {
    if Ids::of_this_run().is_none() {
        return Ok(geteuid().as_raw());
    }
    let map = fs::read_to_string("/proc/self/uid_map")?;
    outside(&map).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// Who root is outside of the namespace; see user_namespaces(7).
fn outside(map: &str) -> Option<u32> {
    let words = |line: &str| line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<Vec<u32>>>();
    map.lines().filter_map(words).find(|words| words.first() == Some(&0))?.get(1).copied()
}

/// Makes this process, which has one thread, root of a user namespace; nothing if it is root already.
///
/// Its ids are those of the maps; without them, all that the machine gives. It runs the program once more in there: memory belongs to the namespace in which a program was started, and the user
/// could not reach the container's first process later, see ptrace(2), "Ptrace access mode checking".
///
/// # Errors
/// Where this machine does not let ordinary users do that.
pub(crate) fn enter(maps: Option<&IdMaps>) -> Result<Option<Ids>, Failure> {
    if let Some(ids) = Ids::of_this_run() {
        return Ok(Some(ids));
    }
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return Ok(None);
    }
    let ids = match maps {
        Some(maps) => enter_as_asked(maps, user, group)?,
        None => enter_with_all(user, group)?,
    };
    if ids == Ids::Single {
        map_one(user, group).doing("map this user's id")?;
    }
    become_root(ids).doing("become root of the user namespace")?;
    let program = fs::File::open(PROGRAM).doing("open this program itself")?;
    Err(Failure::because("run this program in the user namespace", run_again(program, Some(ids.name())).desc()))
}

/// With all the ids that the machine gives.
fn enter_with_all(user: Uid, group: Gid) -> Result<Ids, Failure> {
    let (users, groups) = (ranges("/etc/subuid", user), ranges("/etc/subgid", user));
    if users.is_empty() || groups.is_empty() {
        make_namespace()?;
        return Ok(Ids::Single);
    }
    let maps = [("newuidmap", map(user.as_raw(), &users)), ("newgidmap", map(group.as_raw(), &groups))];
    let ids = enter_with(maps)?;
    if ids == Ids::Single {
        say("note: newuidmap and newgidmap, of Debian's package uidmap, gave no further ids; there is root alone");
    }
    Ok(ids)
}

/// With those that were asked for, and no others.
fn enter_as_asked(maps: &IdMaps, user: Uid, group: Gid) -> Result<Ids, Failure> {
    const DOING: &str = "map the ids of the container";
    if !maps.root_is(user, group) {
        let failure = Failure::because(DOING, "its root has to be the caller, whose files it works on");
        return Err(failure.remedy(&format!("begin with --uidmap 0:{user}:1 --gidmap 0:{group}:1")));
    }
    let words = |ranges: &[IdRange]| {
        let text: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        text.iter().flat_map(|range| range.split(' ')).map(str::to_owned).collect()
    };
    match enter_with([("newuidmap", words(&maps.users)), ("newgidmap", words(&maps.groups))])? {
        Ids::Ranges => Ok(Ids::Ranges),
        Ids::Single => Err(Failure::because(DOING, "newuidmap and newgidmap refuse them, or are missing").remedy(
            "they are in Debian's package uidmap, and map what /etc/subuid and /etc/subgid give to a user, beside the user's \
             own id",
        )),
    }
}

fn make_namespace() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| {
        let failure = Failure::because(MAKING, errno.desc());
        match errno {
            Errno::ENOSPC => failure.remedy("there may be no more of them: see user.max_user_namespaces of sysctl"),
            Errno::EPERM | Errno::EACCES => failure.remedy(
                "this machine does not let ordinary users do that: see kernel.unprivileged_userns_clone and \
                 kernel.apparmor_restrict_unprivileged_userns of sysctl, or start as root",
            ),
            _ => failure,
        }
    })
}

/// Makes the namespace while a helper, which stays outside, waits to map the ids; single where it could not.
fn enter_with(maps: [(&str, Vec<String>); 2]) -> Result<Ids, Failure> {
    let (ours, theirs) = UnixStream::pair().doing(MAKING)?;
    let (mut ours, mut theirs) = (Some(ours), Some(theirs));
    let launcher = nix::unistd::getpid();
    let helper = process::fork(|| {
        // Without the launcher's end here, the launcher's end is the only one, and its end is seen.
        drop(ours.take());
        let is_there = theirs.take().is_some_and(|mut theirs| theirs.read_exact(&mut [0]).is_ok());
        let has_mapped = is_there && maps.iter().all(|(program, arguments)| run(program, launcher, arguments));
        u8::from(!has_mapped)
    })
    .doing(MAKING)?;
    drop(theirs);
    let made = make_namespace();
    if let (Ok(()), Some(ours)) = (&made, &mut ours) {
        ours.write_all(&[0]).doing(MAKING)?;
    }
    drop(ours);
    let status = wait(helper).doing("wait for newuidmap")?;
    made?;
    if matches!(status, WaitStatus::Exited(_, 0)) {
        return Ok(Ids::Ranges);
    }
    Ok(Ids::Single)
}

fn wait(helper: Pid) -> Result<WaitStatus, Errno> {
    loop {
        match waitpid(helper, None) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Whether the program has mapped ids. What it complains about is seen.
fn run(program: &str, launcher: Pid, arguments: &[String]) -> bool {
    let mut command = Command::new(program);
    command.arg(launcher.to_string()).args(arguments).stdin(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The caller is root, and has the further ids from 1 on: triples as newuidmap(1) takes them.
fn map(own: u32, ranges: &[Range]) -> Vec<String> {
    let mut triples = vec![[0, own, 1]];
    let mut next = 1_u32;
    for Range { first, count } in ranges {
        triples.push([next, *first, *count]);
        next = next.saturating_add(*count);
    }
    triples.iter().flatten().map(u32::to_string).collect()
}

/// A process may map its own id itself, once it gives up to change its groups; see user_namespaces(7).
fn map_one(user: Uid, group: Gid) -> std::io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))
}

fn become_root(ids: Ids) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    if ids == Ids::Ranges {
        match setgroups(&[]) {
            // With one id the kernel does not let them go, and newgidmap sees to that as well; they are nobody's in there.
            Ok(()) | Err(Errno::EPERM) => {}
            result => result?,
        }
    }
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}

/// What a file gives to a user, by name or number; see subuid(5). None where there is no such file.
fn ranges(path: &str, user: Uid) -> Vec<Range> {
    let name = name_of(user);
    let text = fs::read_to_string(path).unwrap_or_default();
    ranges_in(&text, name.as_deref(), user.as_raw())
}

/// The name of a user: from the table, or from whatever else this machine asks (nsswitch.conf(5)). That is getent's to
/// ask: getpwuid(3) loads libraries for it, which a static binary must not.
fn name_of(user: Uid) -> Option<String> {
    let table = fs::read("/etc/passwd").unwrap_or_default();
    name_in(&table, user).or_else(|| {
        let mut getent = Command::new("getent");
        getent.args(["passwd", &user.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
        // without it, the number alone counts
        name_in(&getent.output().ok()?.stdout, user)
    })
}

/// The name that a table in the form of passwd(5) has for a user.
fn name_in(table: &[u8], user: Uid) -> Option<String> {
    let name = |line: &str| {
        let mut words = line.split(':');
        let (name, id) = (words.next()?, words.nth(1)?);
        (!name.is_empty() && id.parse() == Ok(user.as_raw())).then(|| name.to_owned())
    };
    String::from_utf8_lossy(table).lines().find_map(name)
}

fn ranges_in(text: &str, name: Option<&str>, user: u32) -> Vec<Range> {
    let number = user.to_string();
    let line = |line: &str| {
        let mut words = line.split(':');
        let owner = words.next()?.trim();
        let (first, count) = (words.next()?.trim().parse().ok()?, words.next()?.trim().parse().ok()?);
        (owner == number || Some(owner) == name).then_some(Range { first, count }).filter(|range| range.count > 0)
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_belong_to_a_name_or_a_number() {
        let text = "me:100000:65536\nother:1:2\n1000:300000:10\nme:broken\n\nme:5:0\n";
        let range = |first, count| Range { first, count };
        assert_eq!(ranges_in(text, Some("me"), 1000), [range(100_000, 65_536), range(300_000, 10)]);
        assert_eq!(ranges_in(text, None, 1000), [range(300_000, 10)]);
        assert_eq!(ranges_in(text, Some("nobody"), 7), []);
    }

    #[test]
    fn a_name_is_that_of_the_first_line_with_the_number() {
        let table =
            b"root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000:M\xfcller:/home/me:/bin/sh\ntoo:x:1000:1::/:\nbroken\n";
        assert_eq!(name_in(table, Uid::from_raw(1000)).as_deref(), Some("me"));
        assert_eq!(name_in(table, Uid::from_raw(1)), None);
    }

    #[test]
    fn root_is_somebody_outside() {
        assert_eq!(outside("         0       1000          1\n         1     100000      65536\n"), Some(1000));
        assert_eq!(outside("         1     100000      65536\n"), None);
        assert_eq!(outside("0 x 1"), None);
    }

    #[test]
    fn the_caller_is_root_and_the_others_follow() {
        let ranges = [Range { first: 100_000, count: 65_536 }, Range { first: 300_000, count: 10 }];
        let triples = ["0", "1000", "1", "1", "100000", "65536", "65537", "300000", "10"];
        assert_eq!(map(1000, &ranges), triples);
    }
}
