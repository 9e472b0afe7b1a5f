//! `runionfs mount`: from words to a request, and who carries it out.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use rustix::process::geteuid;
use unionfs::control::Text;
use unionfs::control::client::{self, Client};
use unionfs::mount::{MountOptions, given_device, remount};
use unionfs::options::{Access, BranchSpec, Options, Words, branches};

use super::notify::Manager;
use super::{Failure, MountArgs, daemon, log, overlay, serve};

/// Sources that stand for nothing: the branches are in `-o br=`.
pub(super) const NO_SOURCE: &[&str] = &["none", "runionfs", "aufs"];

/// A mount as it was asked for, with absolute paths.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) branches: Vec<BranchSpec>,
    pub(super) target: PathBuf,
    pub(super) options: Options,
    pub(super) flags: MsFlags,
    pub(super) allow_other: bool,
    /// Labels for SELinux, as the kernel takes them.
    pub(super) labels: Vec<OsString>,
    /// What is mounted already, by who starts us.
    pub(super) device: Option<OwnedFd>,
    /// Whether it may be laid on itself.
    pub(super) stacks: bool,
    /// Where its daemon logs.
    pub(super) log: log::Place,
    /// Who wants to know when it serves.
    pub(super) manager: Manager,
}

pub(super) fn run(args: &MountArgs) -> Result<(), Failure> {
    log::start(&args.log)?;
    if overlay::is_given(args) {
        return overlay::from_command(args);
    }
    let words = read_words(args)?;
    if words.remount && args.fake {
        return Ok(());
    }
    if words.remount {
        let target = Path::new(args.second.as_ref().unwrap_or(&args.first));
        refuse_other_branches(&words, target)?;
        return Ok(remount(target, words.flags)?);
    }
    let may_be_missing = args.helper && words.nofail;
    let request = Request::read(args, words)?;
    let is_missing = || request.branches.iter().any(|branch| matches!(branch.path.try_exists(), Ok(false)));
    if args.fake || may_be_missing && is_missing() {
        return Ok(());
    }
    carry_out(&request, args.foreground)
}

/// A line of fstab says its branches at a remount once more, and that is all that may be said of them then.
fn refuse_other_branches(words: &Words, target: &Path) -> Result<(), Failure> {
    let Some(list) = words.branches.as_deref() else { return Ok(()) };
    let asked = branches_of(list, &words.options)?;
    // a mount that answers nobody keeps its branches, too
    let Ok(mounted) = client::find(target).and_then(|mount| Client::connect(&mount)?.show()) else { return Ok(()) };
    let is_same = asked.iter().map(|branch| Text::from(branch.to_text().as_os_str())).eq(mounted.branches);
    if is_same {
        return Ok(());
    }
    Err(format!("{}: a remount changes flags, and not the branches: umount it, and mount these", target.display())
        .into())
}

/// Mounts and serves, in the foreground or as a daemon.
pub(super) fn carry_out(request: &Request, foreground: bool) -> Result<(), Failure> {
    if foreground {
        return serve::serve(request, daemon::Readiness::Nobody);
    }
    let kept = request.device.as_ref().map(OwnedFd::as_fd);
    let daemon = daemon::start(kept, || serve::serve(request, daemon::Readiness::Parent))?;
    if let Some(daemon) = daemon {
        request.manager.ready_as(daemon);
    }
    Ok(())
}

fn read_words(args: &MountArgs) -> Result<Words, Failure> {
    let mut words = Words { sloppy: args.sloppy, ..Words::default() };
    args.options.iter().try_for_each(|argument| words.add(argument))?;
    Ok(words)
}

impl Request {
    fn read(args: &MountArgs, words: Words) -> Result<Request, Failure> {
        let (source, target) = match &args.second {
            Some(target) => (Some(args.first.as_os_str()), target),
            None => (None, &args.first),
        };
        let list = choose(source, words.branches.as_deref())?;
        Ok(Request {
            branches: branches_of(list, &words.options)?,
            device: given_device(target.as_ref())?,
            target: target.into(),
            options: Options { workdir: words.options.workdir.map(std::path::absolute).transpose()?, ..words.options },
            flags: words.flags,
            allow_other: words.allow_other || geteuid().is_root(),
            labels: Vec::new(),
            stacks: false,
            log: args.log.place(),
            manager: if args.helper { Manager::default() } else { Manager::of_this_process() },
        })
    }

    /// How to mount it; the source is the branches where no other name is given.
    pub(super) fn mount_options(&self) -> MountOptions {
        let source = self.options.fsname.clone().unwrap_or_else(|| branches::print(&self.branches));
        // where nothing can be written the kernel says so by itself, at an open, too
        let written = |branch: &BranchSpec| branch.access == Access::ReadWrite || branch.init;
        let read_only = if self.branches.iter().any(written) { MsFlags::empty() } else { MsFlags::MS_RDONLY };
        let plain = MountOptions::new(source, self.flags | read_only, self.allow_other);
        let subtype = self.options.subtype.clone().unwrap_or_else(|| plain.subtype.clone());
        MountOptions { subtype, data: self.labels.clone(), stacks: self.stacks, ..plain }
    }
}

/// The branch string: where a source stands, or after `br=`.
fn choose<'a>(source: Option<&'a OsStr>, words: Option<&'a OsStr>) -> Result<&'a OsStr, Failure> {
    let source = source.filter(|source| !NO_SOURCE.iter().any(|none| *source == *none));
    match (source, words) {
        (Some(list), None) | (None, Some(list)) => Ok(list),
        (None, None) => Err(Failure::Usage("no branches: say 'runionfs mount BRANCHES MOUNTPOINT'".into())),
        (Some(_), Some(_)) => Err(Failure::Usage("branches stand before the mount point and in -o br=, too".into())),
    }
}

fn branches_of(list: &OsStr, options: &Options) -> Result<Vec<BranchSpec>, Failure> {
    let branches = branches::settle(branches::parse(list)?, options.whiteout)?;
    Ok(branches.into_iter().map(absolute).collect::<Result<_, _>>()?)
}

/// The daemon leaves the working directory, and `show` is asked from other ones.
fn absolute(branch: BranchSpec) -> std::io::Result<BranchSpec> {
    Ok(BranchSpec { path: std::path::absolute(&branch.path)?, ..branch })
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;
    use clap::Parser;

    fn read(line: &[&str]) -> Result<Request, Failure> {
        let cli = Cli::try_parse_from(["runionfs", "mount"].iter().chain(line)).expect("the words are known");
        match cli.command {
            Command::Mount(args) => Request::read(&args, read_words(&args)?),
            _ => unreachable!("it is a mount"),
        }
    }

    #[test]
    fn branches_stand_before_the_mount_point_or_in_the_options() {
        for line in [
            &["/a:/b", "/m"][..],
            &["-o", "br=/a:/b", "/m"],
            &["-obr=/a:/b", "/m"],
            &["/m", "-o", "br:/a:/b"],
            &["none", "/m", "-o", "ro,br=/a:/b"],
            &["-o", "br=/a", "-o", "append=/b", "aufs", "/m"],
        ] {
            let request = read(line).expect("it is a mount");
            assert_eq!(branches::print(&request.branches), "/a=rw:/b=ro", "{line:?}");
            assert_eq!(request.target, PathBuf::from("/m"), "{line:?}");
            assert_eq!(request.mount_options().source, "/a=rw:/b=ro", "{line:?}");
        }
    }

    #[test]
    fn branches_twice_or_not_at_all_are_wrong_usage() {
        for line in [&["/m"][..], &["none", "/m"], &["/a", "/m", "-o", "br=/a"]] {
            assert!(matches!(read(line), Err(Failure::Usage(_))), "{line:?}");
        }
        for line in [&["/a=x", "/m"][..], &["/a", "/m", "-o", "nonsense"]] {
            assert!(matches!(read(line), Err(Failure::Refused(_))), "{line:?}");
        }
    }

    #[test]
    fn paths_are_made_absolute_and_never_cleaned() {
        let here = std::env::current_dir().unwrap();
        let request = read(&["a/../b", "/m", "-o", "workdir=w"]).expect("it is a mount");
        assert_eq!(request.branches[0].path, here.join("a/../b"));
        assert_eq!(request.options.workdir, Some(here.join("w")));
    }
}
