//! A disk that remembers in which order it was written to, so that its power can be cut afterwards, at any write.
//!
//! The image of a file system lies in a file; a file of a FUSE mount of the test's own stands for it, and a loop device
//! over that is the disk. What the file system writes arrives here as writes and flushes, and is kept in a log. A copy
//! of an image that is in use would be no moment of it at all, and even an instant copy would hold every write that was
//! done, which no disk promises: it may hold back whatever came after the last flush. So a [`Disk::cut`] is made from
//! the log: all writes before the last flush, and those after it by chance, the last of them torn.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyOpen, ReplyWrite, Request, Session, SessionACL, WriteFlags,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proptest::prelude::Rng;
use rustix::fs::{Mode, OFlags};

use crate::mount::poll;
use crate::sandbox::run;

/// Disks tear writes at this size, and at no smaller one.
const SECTOR: usize = 512;
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A file system to put on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// ext4, whose journal keeps the order of all changes of names and attributes.
    Ext4,
    /// XFS, whose log does the same.
    Xfs,
}

impl Format {
    fn mebibytes(self) -> u64 {
        match self {
            Format::Ext4 => 24,
            // mkfs.xfs makes none that is smaller
            Format::Xfs => 300,
        }
    }

    fn make(self, image: &Path) {
        match self {
            Format::Ext4 => run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image)),
            Format::Xfs => run(Command::new("mkfs.xfs").args(["-q", "-f", "-m", "reflink=1"]).arg(image)),
        }
    }

    fn mount_word(self) -> &'static str {
        match self {
            Format::Ext4 => "ext4",
            Format::Xfs => "xfs",
        }
    }
}

/// What reached a disk.
#[derive(Debug)]
enum Event {
    /// Bytes at an offset. A disk is free to keep them in its cache.
    Write(u64, Vec<u8>),
    /// All that was written before is there to stay.
    Flush,
}

#[derive(Debug)]
struct Medium {
    image: File,
    size: u64,
    log: Mutex<Vec<Event>>,
}

impl Medium {
    fn log(&self) -> MutexGuard<'_, Vec<Event>> {
        self.log.lock().expect("no request panics")
    }
}

/// A disk that is in use. Dropping it cuts it off.
#[derive(Debug)]
pub struct Disk {
    medium: Arc<Medium>,
    format: Format,
    directory: PathBuf,
    /// What the image held when the log began; it grows along the cuts.
    past: PathBuf,
    applied: usize,
    server: Option<JoinHandle<io::Result<()>>>,
}

impl Disk {
    /// Makes a disk with an empty file system in the new directory `directory`.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn new(directory: &Path, format: Format) -> Disk {
        fs::create_dir(directory).expect("make a directory for a disk");
        let at = |name: &str| directory.join(name);
        let image = File::options().read(true).write(true).create_new(true).open(at("image")).expect("make an image");
        image.set_len(format.mebibytes() << 20).expect("size the image");
        format.make(&at("image"));
        copy(&at("image"), &at("past"));
        fs::write(at("device"), "").expect("make a mount point");
        fs::create_dir(at("fs")).expect("make a mount point");
        let size = format.mebibytes() << 20;
        let medium = Arc::new(Medium { image, size, log: Mutex::new(Vec::new()) });
        let server = serve(Server(Arc::clone(&medium)), &at("device")).expect("serve the device");
        mount_image(&at("device"), &at("fs"), format);
        Disk { medium, format, directory: directory.to_owned(), past: at("past"), applied: 0, server: Some(server) }
    }

    /// Where its file system is mounted.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory.join("fs")
    }

    /// How much has reached the disk until now: a moment to cut it at.
    #[must_use]
    pub fn position(&self) -> usize {
        self.medium.log().len()
    }

    /// Takes the file system away; what it writes then comes after everything else.
    ///
    /// # Panics
    /// When it is busy.
    pub fn stop(&mut self) {
        unmount(&self.root());
        unmount(&self.directory.join("device"));
        let server = self.server.take().expect("stopped once");
        server.join().expect("the server of the device panicked").expect("serve the device");
    }

    /// Makes `image` what the disk holds if its power was cut after so many writes and flushes. Moments must not
    /// decrease from call to call.
    ///
    /// # Panics
    /// When the image cannot be written.
    pub fn cut(&mut self, moment: usize, image: &Path, chance: &mut impl Rng) {
        let log = self.medium.log();
        let flushed = (0..moment).rev().find(|at| matches!(log[*at], Event::Flush)).unwrap_or(0);
        let past = File::options().write(true).open(&self.past).expect("open the past of a disk");
        for event in log.get(self.applied..flushed).unwrap_or_default() {
            write(&past, event, usize::MAX);
        }
        self.applied = self.applied.max(flushed);
        copy(&self.past, image);
        let file = File::options().write(true).open(image).expect("open an image");
        // nothing in the cache, everything, or some of it
        let kept_of_four = [0, 2, 3, 4][chance.next_u32() as usize % 4];
        for (at, event) in log.iter().enumerate().take(moment).skip(flushed) {
            if chance.next_u32() % 4 < kept_of_four {
                let torn = at + 1 == moment && chance.next_u32().is_multiple_of(2);
                write(&file, event, if torn { chance.next_u32() as usize % 16 * SECTOR } else { usize::MAX });
            }
        }
    }

    /// Mounts an image that [`Disk::cut`] made, which brings its journal to an end.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount_cut(&self, image: &Path, target: &Path) {
        mount_image(image, target, self.format);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.server.is_none() {
            return;
        }
        for name in ["fs", "device"] {
            if let Err(errno) = umount2(&self.directory.join(name), MntFlags::MNT_DETACH) {
                eprintln!("cannot unmount a disk: {errno}");
            }
        }
    }
}

/// Unmounts, once the last process that used it is quite gone.
///
/// # Panics
/// When it stays busy.
pub fn unmount(target: &Path) {
    let outcome = poll(Duration::from_secs(20), || match umount2(target, MntFlags::empty()) {
        Err(nix::errno::Errno::EBUSY) => None,
        outcome => Some(outcome),
    });
    let outcome = outcome.unwrap_or_else(|| panic!("{} stays busy", target.display()));
    outcome.unwrap_or_else(|errno| panic!("unmount {}: {errno}", target.display()));
}

fn mount_image(image: &Path, target: &Path, format: Format) {
    run(Command::new("mount").args(["-o", "loop", "-t", format.mount_word()]).arg(image).arg(target));
}

/// Copies an image with its holes.
fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").arg(from).arg(to));
}

/// Brings one event to an image, and of a write so many bytes at most.
fn write(image: &File, event: &Event, most: usize) {
    if let Event::Write(offset, bytes) = event {
        image.write_all_at(&bytes[..bytes.len().min(most)], *offset).expect("write to an image");
    }
}

/// Mounts a file that is the device, and serves it until it is unmounted.
fn serve(server: Server, target: &Path) -> io::Result<JoinHandle<io::Result<()>>> {
    let device: OwnedFd = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let data = format!("fd={},rootmode=100000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    mount(Some("disk"), target, Some("fuse.disk"), MsFlags::empty(), Some(data.as_str()))?;
    let session = Session::from_fd(server, device, SessionACL::All, Config::default())?;
    Ok(thread::spawn(move || session.run()))
}

/// Answers for the one file, which is the root of its mount.
struct Server(Arc<Medium>);

impl Server {
    fn attributes(&self) -> FileAttr {
        FileAttr {
            ino: INodeNo(1),
            size: self.0.size,
            blocks: self.0.size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4_096,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &self.attributes());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // what is written must arrive in its order, not when a page cache likes to send it
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        match self.0.image.read_at(&mut bytes, offset) {
            Ok(count) => reply.data(&bytes[..count]),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut log = self.0.log();
        match (self.0.image.write_all_at(data, offset), u32::try_from(data.len())) {
            (Ok(()), Ok(count)) => {
                log.push(Event::Write(offset, data.to_vec()));
                reply.written(count);
            }
            _ => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.log().push(Event::Flush);
        reply.ok();
    }
}
