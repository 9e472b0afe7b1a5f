//! Shared and private mappings of files: the one place of the harness that needs `unsafe`.
#![allow(unsafe_code, reason = "a mapping is raw memory; see the comment of each block")]

use std::fs::File;
use std::num::NonZero;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

/// How a file is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Reading, changes of others are seen.
    SharedReadOnly,
    /// Reading and writing the file.
    Shared,
    /// Reading, and writing to a copy of one's own.
    Private,
}

/// The first bytes of a file as memory.
pub struct Mapping {
    start: NonNull<u8>,
    length: NonZero<usize>,
}

impl Mapping {
    /// Maps the first `length` bytes.
    ///
    /// # Errors
    /// That of mmap(2).
    ///
    /// # Panics
    /// When `length` is 0.
    pub fn new(file: &File, length: usize, sharing: Sharing) -> nix::Result<Mapping> {
        let length = NonZero::new(length).expect("a mapping has a length");
        let (protection, flags) = match sharing {
            Sharing::SharedReadOnly => (ProtFlags::PROT_READ, MapFlags::MAP_SHARED),
            Sharing::Shared => (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED),
            Sharing::Private => (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE),
        };
        // SAFETY: the kernel chooses the address, so no memory in use is replaced.
        let start = unsafe { mmap(None, length, protection, flags, file, 0) }?;
        Ok(Mapping { start: start.cast(), length })
    }

    /// Copies a range out.
    ///
    /// # Panics
    /// When it lies outside.
    #[must_use]
    pub fn read(&self, offset: usize, count: usize) -> Vec<u8> {
        assert!(offset + count <= self.length.get(), "outside the mapping");
        // SAFETY: the range lies in the mapping, which lives as long as self. Others may change it meanwhile, so it is
        // read byte by byte, volatile, and no reference to it is made.
        (offset..offset + count).map(|at| unsafe { self.start.add(at).read_volatile() }).collect()
    }

    /// Writes into a range.
    ///
    /// # Panics
    /// When it lies outside.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length.get(), "outside the mapping");
        for (at, byte) in (offset..).zip(bytes) {
            // SAFETY: as in `read`; a mapping that is not writable ends the test with a signal.
            unsafe { self.start.add(at).write_volatile(*byte) };
        }
    }

    /// Writes changed pages to the file and waits for it.
    ///
    /// # Errors
    /// That of msync(2), for example ENOSPC.
    pub fn sync(&self) -> nix::Result<()> {
        // SAFETY: the range is exactly the mapping.
        unsafe { msync(self.start.cast(), self.length.get(), MsFlags::MS_SYNC) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly the mapping, and nothing refers to it any more.
        if let Err(errno) = unsafe { munmap(self.start.cast(), self.length.get()) } {
            eprintln!("cannot unmap: {errno}");
        }
    }
}
