//! The union's daemon: this program again, under another name, as a process of its own.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use unionfs::fs::Union;
use unionfs::fuse::Server;
use unionfs::options::{Access, BranchSpec, Options, Udba};

use crate::failure::{Doing as _, Failure, OWN_FAILURE};
use crate::process::channel::{Channel, Message};
use crate::process::take_standard_stream;
use crate::scratch;

/// The name under which the program is the daemon: what `ps` shows, and nothing that can be typed as a command.
pub(crate) const NAME: &str = "rlaunch: union";

/// Serves until the container's mount namespace is gone. Standard input is the device, standard output the channel to
/// the launcher; the only argument is the top.
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let result = take_standard_stream(1).doing("take over the channel").and_then(|channel| {
        let channel = Channel::from(channel);
        // The launcher tells it. One that has ended already does not hear it, and nobody is left to tell.
        let tell = |failure: Failure| channel.send(&Message::Refused(failure.to_string())).and(Err(Errno::ECANCELED));
        serve(arguments.next().map(PathBuf::from), &channel).or_else(tell).doing("serve the union")
    });
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(OWN_FAILURE) }
}

fn serve(top: Option<PathBuf>, channel: &Channel) -> Result<(), Failure> {
    let top = top.ok_or_else(|| Failure::new("the union's daemon is started by rlaunch, and not by hand"))?;
    let device = take_standard_stream(0).doing("take over the device")?;
    let _in_use = scratch::hold(&top).doing("keep the directory for what the container writes")?;
    let null = File::options().read(true).write(true).open("/dev/null").doing("open /dev/null")?;
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).doing("let go of the launcher's streams")?;
    detach().doing("become a daemon")?;
    // the host goes on below; and nothing on top is kept, so nothing has to wait for the disk
    let options = Options { udba: Udba::Reval, volatile: true, ..Options::default() };
    let union = Union::open(&branches(&top), &options).map_err(|error| Failure::new(error.to_string()))?;
    channel.send(&Message::Opened).doing("speak to the launcher")?;
    match channel.receive().doing("hear the launcher")? {
        Some(Message::Mounted) => {}
        // The launcher has given up, or was killed.
        _ => return Ok(()),
    }
    let server = Server::new(union, device).doing("speak to the kernel's FUSE")?;
    channel.send(&Message::Serving).doing("speak to the launcher")?;
    dup2_stderr(&null).doing("let go of the launcher's streams")?;
    drop(null);
    server.run().doing("serve the union")
}

/// A session of its own, so that no terminal's signals arrive; no directory kept busy; all the descriptors one may have.
fn detach() -> Result<(), Errno> {
    setsid()?;
    nix::unistd::chdir("/")?;
    umask(Mode::empty());
    SigSet::empty().thread_set_mask()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

fn branches(top: &Path) -> [BranchSpec; 2] {
    let branch = |path: &Path, access, whiteouts| BranchSpec {
        path: path.to_owned(),
        access,
        whiteouts,
        overlay: false,
        init: false,
        nolwh: false,
    };
    [branch(top, Access::ReadWrite, false), branch(Path::new("/"), Access::ReadOnly, true)]
}
