//! The open /dev/fuse: requests are read from it, replies and notifications are written to it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use smallvec::SmallVec;
use zerocopy::{Immutable, IntoBytes};

use super::abi::{NOTIFY_INVAL_INODE, NOTIFY_STORE, NotifyInvalInode, NotifyStore, OutHeader};
use super::counts::Counts;

/// One end of a connection; the kernel has the other.
#[derive(Debug)]
pub(super) struct Device {
    fd: OwnedFd,
    /// What was asked for and answered.
    counts: Arc<Counts>,
}

impl Device {
    /// Takes an open device, whose reads do not wait from now on.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Arc<Device>> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Arc::new(Device { fd, counts: Arc::default() }))
    }

    pub(super) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Takes the next request, if there is one.
    ///
    /// # Errors
    /// EAGAIN if there is none; ENODEV once the mount is gone.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(&self.fd, buffer)
    }

    /// Sleeps until there may be a request, or for so long; whether it was the former.
    pub(super) fn wait(&self, limit: Option<Duration>) -> bool {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // whatever it answers, the next read tells more
        poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], limit.as_ref()) != Ok(0)
    }

    /// Writes a message; the parts of its body lie where they lie.
    fn send(&self, unique: u64, error: i32, body: &[&[u8]]) -> Result<(), Errno> {
        let length = size_of::<OutHeader>() + body.iter().map(|part| part.len()).sum::<usize>();
        let len = u32::try_from(length).map_err(|_| Errno::INVAL)?;
        let header = OutHeader { len, error, unique };
        let mut parts = SmallVec::<[IoSlice<'_>; 4]>::new();
        parts.push(IoSlice::new(header.as_bytes()));
        parts.extend(body.iter().map(|part| IoSlice::new(part)));
        rustix::io::writev(&self.fd, &parts).map(drop)
    }

    /// Tells the kernel that what it has of an inode is stale: attributes, and pages from `offset`
    /// on if that is not negative.
    ///
    /// # Errors
    /// ENOENT if the kernel does not know the inode.
    pub(super) fn invalidate_inode(&self, ino: u64, offset: i64, length: i64) -> Result<(), Errno> {
        let stale = NotifyInvalInode { ino, off: offset, len: length };
        self.send(0, NOTIFY_INVAL_INODE, &[stale.as_bytes()])
    }

    /// Puts the whole content of a file into the kernel's page cache. It waits for whoever has a page
    /// of the file locked, so there must be nobody who waits for us.
    ///
    /// # Errors
    /// ENOENT if the kernel does not know the inode.
    pub(super) fn store(&self, ino: u64, content: &[u8]) -> Result<(), Errno> {
        let size = u32::try_from(content.len()).map_err(|_| Errno::INVAL)?;
        let stored = NotifyStore { nodeid: ino, offset: 0, size, padding: 0 };
        self.send(0, NOTIFY_STORE, &[stored.as_bytes(), content])
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A request was replied to, or will be.
#[derive(Debug)]
#[must_use]
pub(super) struct Answered(());

impl Answered {
    /// By the job that has the reply now.
    pub(super) fn later() -> Answered {
        Answered(())
    }
}

/// The reply that a request waits for, from any thread. One that is dropped is EIO.
#[derive(Debug)]
pub(super) struct Reply {
    device: Arc<Device>,
    /// The request; 0 once it was replied to.
    unique: u64,
    /// What it asks for and since when, where that is counted.
    counted: Option<(u32, Instant)>,
}

impl Reply {
    pub(super) fn new(device: &Arc<Device>, unique: u64) -> Reply {
        Reply { device: Arc::clone(device), unique, counted: None }
    }

    /// The reply to a request that is counted, and the time until it is sent.
    pub(super) fn counted(device: &Arc<Device>, unique: u64, opcode: u32) -> Reply {
        device.counts.came(opcode);
        Reply { device: Arc::clone(device), unique, counted: Some((opcode, Instant::now())) }
    }

    /// Nothing is waited for.
    pub(super) fn none(mut self) -> Answered {
        self.unique = 0;
        Answered(())
    }

    /// The request failed.
    pub(super) fn error(mut self, errno: Errno) -> Answered {
        self.send(-errno.raw_os_error(), &[])
    }

    /// The request is done; there is nothing to tell, or this.
    pub(super) fn parts(mut self, body: &[&[u8]]) -> Answered {
        self.send(0, body)
    }

    /// Nothing to tell but whether it worked.
    pub(super) fn empty(self, result: Result<(), Errno>) -> Answered {
        match result {
            Ok(()) => self.parts(&[]),
            Err(errno) => self.error(errno),
        }
    }

    /// A message.
    pub(super) fn message<T: IntoBytes + Immutable>(self, result: Result<T, Errno>) -> Answered {
        match result {
            Ok(message) => self.parts(&[message.as_bytes()]),
            Err(errno) => self.error(errno),
        }
    }

    /// Bytes.
    pub(super) fn bytes(self, result: Result<impl AsRef<[u8]>, Errno>) -> Answered {
        match result {
            Ok(bytes) => self.parts(&[bytes.as_ref()]),
            Err(errno) => self.error(errno),
        }
    }

    fn send(&mut self, error: i32, body: &[&[u8]]) -> Answered {
        match self.device.send(std::mem::take(&mut self.unique), error, body) {
            // who asked was killed meanwhile, or the mount is gone
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::PERM) => {}
            Err(errno) => tracing::error!(%errno, "replying"),
        }
        if let Some((opcode, begun)) = self.counted {
            self.device.counts.answered(opcode, begun.elapsed(), error != 0);
        }
        Answered(())
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.unique != 0 {
            let Answered(()) = self.send(-Errno::IO.raw_os_error(), &[]);
        }
    }
}
