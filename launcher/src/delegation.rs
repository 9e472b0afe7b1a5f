//! Limits for ordinary users: a cgroup of their own, which systemd(1) gives them.
//!
//! A user may limit only what is in a cgroup of v2 that was delegated to that user; see "Delegation" in cgroups(7). Where this
//! process is in none, and a manager of the user's runs, it is started once more in a scope of that by systemd-run(1), which
//! becomes this program: process, streams and terminal stay the same.

use std::ffi::{OsStr, OsString};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{AccessFlags, access, geteuid};

use crate::cgroup::detect::{self, Controller, Mounted, Version};
use crate::cgroup::limits::Limits;
use crate::cgroup::options::LimitOptions;
use crate::failure::Failure;

/// Tells the process of this number that it was started by systemd-run(1) already.
pub(crate) const VARIABLE: &str = "RLAUNCH_SCOPE";

/// Starts this program again in a cgroup of its user's, where limits need one and it is in none. Returns where that is not
/// so, or cannot be had: what a limit lacks is told when it is set.
///
/// # Errors
/// Where the machine's cgroups cannot be looked at.
pub(crate) fn enter(options: &LimitOptions) -> Result<(), Failure> {
    let this = std::process::id().to_string();
    if geteuid().is_root() || std::env::var_os(VARIABLE).is_some_and(|process| process == *this) {
        return Ok(());
    }
    // What is wrong with them is told when they are used.
    let Ok(limits) = Limits::new(options.clone()) else { return Ok(()) };
    let controllers = limits.controllers();
    if controllers.is_empty() || options.cgroup_parent.is_some() {
        return Ok(());
    }
    if !is_lacking(&controllers, &detect::observe()?, is_writable) || !has_manager() {
        return Ok(());
    }
    let Ok(program) = std::env::current_exe() else { return Ok(()) };
    let words = arguments(&program, std::env::args_os().skip(1));
    // Without systemd-run there is no such cgroup.
    drop(Command::new("systemd-run").args(words).env(VARIABLE, this).exec());
    Ok(())
}

/// Whether a cgroup of v2 would help, and there is none.
fn is_lacking(wanted: &[Controller], mounted: &[Mounted], is_writable: impl Fn(&Path) -> bool) -> bool {
    let is_v1 = |mounted: &&Mounted| mounted.version == Version::V1;
    let is_on_v1 = mounted.iter().filter(is_v1).any(|v1| v1.controllers.iter().any(|own| wanted.contains(own)));
    let v2 = mounted.iter().find(|mounted| mounted.version == Version::V2);
    // Processes that made place are in a cgroup below the one that was given.
    v2.is_some_and(|v2| !is_on_v1 && !v2.own.ancestors().take(2).any(is_writable))
}

fn is_writable(cgroup: &Path) -> bool {
    let may_write = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    may_write(cgroup) && may_write(&cgroup.join("cgroup.procs"))
}

/// Whether the user's own service manager answers; see user@.service(5).
fn has_manager() -> bool {
    let directory = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    directory.is_some_and(|directory| UnixStream::connect(PathBuf::from(directory).join("systemd/private")).is_ok())
}

fn arguments(program: &Path, words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let options = ["--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--"].map(OsStr::new);
    options.into_iter().chain([program.as_os_str()]).map(ToOwned::to_owned).chain(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(version: Version, controllers: &[Controller]) -> Mounted {
        let (root, own) = (PathBuf::from("/sys/fs/cgroup"), PathBuf::from("/sys/fs/cgroup/user/scope"));
        Mounted { version, controllers: controllers.to_vec(), names: Vec::new(), root, own }
    }

    #[test]
    fn a_cgroup_is_lacking_where_only_v2_can_limit_and_none_is_the_users() {
        use Controller::{Memory, Pids};
        let (v1, v2) = (mounted(Version::V1, &[Memory]), mounted(Version::V2, &[Pids]));
        let none = |_: &Path| false;
        let is = |path: &'static str| move |asked: &Path| asked == Path::new(path);
        assert!(is_lacking(&[Pids], std::slice::from_ref(&v2), none));
        assert!(is_lacking(&[Pids], &[v1.clone(), v2.clone()], none));
        assert!(!is_lacking(&[Pids, Memory], &[v1.clone(), v2.clone()], none), "v1 has one of them");
        assert!(!is_lacking(&[Memory], &[v1], none), "there is no v2");
        for writable in ["/sys/fs/cgroup/user/scope", "/sys/fs/cgroup/user"] {
            assert!(!is_lacking(&[Pids], std::slice::from_ref(&v2), is(writable)), "{writable} is the user's");
        }
        assert!(is_lacking(&[Pids], &[v2], is("/sys/fs/cgroup")));
    }

    #[test]
    fn the_program_is_run_as_it_was_called() {
        let words = ["run", "--memory=1m", "--", "sh"].map(OsString::from);
        let all = arguments(Path::new("/usr/bin/rlaunch"), words.into_iter());
        let expected = "--user --scope --quiet --collect -p Delegate=yes -- /usr/bin/rlaunch run --memory=1m -- sh";
        assert_eq!(all.join(OsStr::new(" ")), expected);
    }
}
