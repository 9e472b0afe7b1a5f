//! Files of the kernel's that are laid over by others, which tell a container what it may use.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use unionfs::mount::{MountError, MountOptions};

use super::volumes::OWN_FILES;
use super::{Rootfs, path_of};
use crate::proc_view::{File, ProcView};

/// Every kernel has this directory. What is mounted there is only there until its files are where they belong.
const AT: &str = "/proc/fs";
const FLAGS: MsFlags = MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

impl Rootfs {
    /// Mounts a device that somebody is going to serve. Nobody may look at it before that.
    pub(crate) fn mount_view(&self, device: &OwnedFd) -> Result<(), Errno> {
        let mut options = MountOptions::new("rlaunch".into(), FLAGS, true);
        options.subtype = "rlaunch".into();
        let mount = |target: &Path| match unionfs::mount::attach(std::os::fd::AsFd::as_fd(device), target, &options) {
            Ok(()) => Ok(()),
            Err(MountError::Mount { error, .. }) => Err(error),
            Err(_) => Err(Errno::EIO),
        };
        self.mount_on(Path::new(AT), mount)
    }

    /// Lays its files over those of the kernel, and takes it away otherwise.
    pub(crate) fn show_view(&self, view: &ProcView) -> Result<(), Errno> {
        let directory = Rootfs::from(self.walk_directories(Path::new(AT))?);
        // One answer tells about all files, so that none of them has to be asked for.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut listed = Dir::open(&path_of(directory.directory()), flags, Mode::empty())?;
        listed.iter().try_for_each(|entry| entry.map(drop))?;
        drop(listed);
        let shown = view.files.iter().try_for_each(|file| self.lay_over(&directory, *file));
        umount2(&path_of(directory.directory()), MntFlags::MNT_DETACH).and(shown)
    }

    /// Does the same with plain files.
    pub(crate) fn show_texts(&self, texts: &[(File, Vec<u8>)]) -> Result<(), Errno> {
        self.mount(&OWN_FILES)?;
        let memory = Rootfs::from(self.walk_directories(Path::new(OWN_FILES.at))?);
        for (file, text) in texts {
            memory.make_file(&Path::new("/").join(file.name()), text)?;
        }
        let place = path_of(memory.directory());
        // The file system itself, so that it is so wherever its files are.
        mount(None::<&str>, &place, None::<&str>, MsFlags::MS_REMOUNT | FLAGS, None::<&str>)?;
        texts.iter().try_for_each(|(file, _)| self.lay_over(&memory, *file))?;
        umount2(&place, MntFlags::MNT_DETACH)
    }

    /// What the container has not got, because there is no /sys, is not missed.
    fn lay_over(&self, directory: &Rootfs, file: File) -> Result<(), Errno> {
        let Some(target) = self.find(Path::new(file.path()))? else { return Ok(()) };
        let source = directory.walk(&Path::new("/").join(file.name()))?;
        mount(Some(&path_of(&source)), &path_of(&target), None::<&str>, MsFlags::MS_BIND, None::<&str>)
    }
}
