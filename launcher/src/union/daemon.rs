//! The unions' daemon: a process of its own, forked from the launcher before there is a container.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_name;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use nix::sys::statvfs::{Statvfs, statvfs};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use unionfs::fs::Union;
use unionfs::fuse::Server;
use unionfs::options::Access;

use super::requests::{self, Served};
use super::{Memory, Plan, Stack};
use crate::cgroup;
use crate::cgroup::memory::top_size;
use crate::confine::restrict_helper;
use crate::failure::{Doing as _, Failure, OWN_FAILURE};
use crate::init_branch;
use crate::process::channel::{Channel, Message};
use crate::process::close_descriptors_but;
use crate::{lock, scratch};

/// What `ps` shows of it; the kernel keeps 15 bytes.
const NAME: &std::ffi::CStr = c"rlaunch: union";

/// Serves until the container's mount namespace is gone.
pub(super) fn run(plan: &Plan<'_>, devices: &[OwnedFd], joins: &[PathBuf], channel: &Channel) -> u8 {
    match join(joins).and_then(|()| serve(plan, devices, channel)) {
        Ok(()) => 0,
        Err(failure) => {
            // The launcher tells it. One that has ended already does not hear it, and nobody is left to tell.
            channel.send(&Message::Refused(failure.to_string())).map_or(OWN_FAILURE, |()| OWN_FAILURE)
        }
    }
}

/// Joins the cgroups that it is not started in.
fn join(joins: &[PathBuf]) -> Result<(), Failure> {
    joins.iter().try_for_each(|tasks| cgroup::join(tasks).doing(&format!("write {}", tasks.display())))
}

fn serve(plan: &Plan<'_>, devices: &[OwnedFd], channel: &Channel) -> Result<(), Failure> {
    // Of the launcher's descriptors, none may live on here: not its end of the channel, by which we notice its end.
    let kept: Vec<_> = devices.iter().map(|device| device.as_fd()).chain([channel.as_fd()]).collect();
    close_descriptors_but(&kept).doing("let go of the launcher's descriptors")?;
    let _in_use = lock::hold(plan.scratch).doing("keep the directory for what the container writes")?;
    let null = File::options().read(true).write(true).open("/dev/null").doing("open /dev/null")?;
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).doing("let go of the launcher's streams")?;
    detach().doing("become a daemon")?;
    if let Some(memory) = &plan.memory {
        let doing = "keep what the container writes in memory";
        mount_memory(memory, plan.scratch).doing(doing)?;
        scratch::make_tops(plan.scratch, &memory.parts).doing(doing)?;
    }
    let unions = plan.stacks.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    channel.send(&Message::Opened).doing("speak to the launcher")?;
    let mut running = Vec::new();
    let (life, lives) = UnixStream::pair().doing("watch over the union")?;
    let lives = Arc::new(lives);
    let places = plan.places.iter().map(|place| place.to_path_buf());
    let served: Arc<Served> = Arc::new(places.zip(unions.iter().map(Arc::clone)).collect());
    for (union, device) in unions.into_iter().zip(devices) {
        match channel.receive().doing("hear the launcher")? {
            Some(Message::Mounted) => {}
            // The launcher has given up, or was killed.
            _ => return Ok(()),
        }
        let device = device.try_clone().doing("keep the device")?;
        let server = Server::new(union, device).doing("speak to the kernel's FUSE")?;
        let counts = server.counts();
        let lives = Arc::clone(&lives);
        let run = move || {
            let _lives = lives;
            server.run()
        };
        let thread = thread::Builder::new().spawn(run).doing("start a thread for the union")?;
        running.push((thread, counts));
        channel.send(&Message::Serving).doing("speak to the launcher")?;
    }
    dup2_stderr(&null).doing("let go of the launcher's streams")?;
    drop(lives);
    // A container does without it. Whoever asks then is told.
    let listener = requests::listen(&plan.socket).ok();
    requests::answer_while(&life.into(), listener.as_ref(), &served).doing("answer who asks for what was written")?;
    drop(served);
    let mut ran_full = false;
    for (server, counts) in running {
        let ended = server.join().map_err(|_| Failure::new("the union's daemon has a defect"))?;
        ended.doing("serve the union")?;
        ran_full |= counts.ran_full();
    }
    if ran_full || plan.stacks.iter().any(is_full) {
        // Only to explain what the container was told; a launcher that has ended does not ask.
        return channel.send(&Message::Full).or(Ok(()));
    }
    Ok(())
}

/// Mounts it over the scratch directory in a mount namespace that nobody else has. What the host mounts and unmounts
/// still reaches it.
fn mount_memory(memory: &Memory<'_>, scratch: &Path) -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    let options = format!("mode=700,size={},nr_inodes={}", memory.size, inodes(memory.size));
    mount(Some("tmpfs"), scratch, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
}

/// How many files fit into a size as tmpfs takes it: two for each page. Names and inodes are not counted by the size, so
/// without this empty files could take any memory.
fn inodes(size: &str) -> u64 {
    const PER_FILE: u64 = 2048;
    const LEAST: u64 = 1024;
    (top_size(size) / PER_FILE).max(LEAST)
}

/// Shows also what the kernel has written without a word to us. A few blocks are mostly left: of files that were closed, and
/// where a disk has room only for what belongs together.
fn is_full(stack: &Stack) -> bool {
    const FEW: u64 = 16;
    let mut written = stack.branches.iter().filter(|branch| branch.access == Access::ReadWrite);
    written.any(|branch| {
        let has_no_room = |left: Statvfs| {
            let few = FEW.min(left.blocks() / 1024);
            // Some file systems count no files.
            left.blocks_available() <= few || left.files() > 0 && left.files_available() == 0
        };
        statvfs(&branch.path).is_ok_and(has_no_room)
    })
}

fn open(stack: &Stack) -> Result<Arc<Union>, Failure> {
    let union = Union::open(&stack.branches, &stack.options).map_err(|error| Failure::new(error.to_string()))?;
    // Nobody has looked at the union yet, so nothing of it is known that this changes.
    stack.init.as_ref().map_or(Ok(()), |contents| init_branch::fill(&stack.branches, contents))?;
    if !stack.branches.iter().any(|branch| branch.access == Access::ReadWrite || branch.init) {
        union.is_mounted_read_only();
    }
    Ok(union)
}

/// A session of its own, so that no terminal's signals arrive; nobody who may trace it; no directory kept busy; all the
/// descriptors one may have.
fn detach() -> Result<(), Errno> {
    setsid()?;
    set_name(NAME)?;
    restrict_helper()?;
    nix::unistd::chdir("/")?;
    umask(Mode::empty());
    SigSet::empty().thread_set_mask()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_bounds_the_number_of_files_too() {
        for (size, expected) in [("1", 1024), ("64m", 32_768), ("2g", 1 << 20), ("4096k", 2048)] {
            assert_eq!(inodes(size), expected, "{size}");
        }
    }
}
