//! Memory of which much is needed at one time, and none at most times.

use std::ptr::{NonNull, null_mut};

use rustix::io::Errno;

use super::last_errno;

/// Less than this is kept: to give it back and take it again costs more than it is worth.
const FEW: usize = 32 << 10;

/// Bytes in pages of their own, all zero at first. The system provides a page when it is first written, and again
/// after all of them were given back.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    length: usize,
    /// So many, from the first on, may have been written: ever, and since somebody asked.
    used: usize,
    lately: usize,
}

// SAFETY: the memory is this value's alone, in whatever thread that is.
unsafe impl Send for Pages {}

impl Pages {
    /// So many bytes, which take up addresses only.
    ///
    /// # Errors
    /// Those of mmap(2): ENOMEM.
    pub(crate) fn new(length: usize) -> Result<Pages, Errno> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the kernel chooses addresses at which there is nothing.
        let start = unsafe { libc::mmap(null_mut(), length, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Pages { start, length, used: 0, lately: 0 })
    }

    /// All of them. Who has written there says so with [`note`](Pages::note).
    pub(crate) fn all(&mut self) -> &mut [u8] {
        // SAFETY: these bytes were mapped for this value, which is borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }

    /// The first bytes, to write to; nothing if there are not so many.
    pub(crate) fn first(&mut self, length: usize) -> Option<&mut [u8]> {
        self.note(length);
        self.all().get_mut(..length)
    }

    /// The first bytes were written.
    pub(crate) fn note(&mut self, length: usize) {
        self.lately = self.lately.max(length.min(self.length));
        self.used = self.used.max(self.lately);
    }

    /// Whether they take so much memory that it should be given back once it is not needed.
    pub(crate) fn are_many(&self) -> bool {
        self.used > FEW
    }

    /// Whether as much was written since the last call of this.
    pub(crate) fn were_many_lately(&mut self) -> bool {
        std::mem::take(&mut self.lately) > FEW
    }

    /// Gives back what they take; they hold zeros afterwards.
    ///
    /// # Errors
    /// Those of madvise(2). Then they hold what they held.
    pub(crate) fn give_back(&mut self) -> Result<(), Errno> {
        // SAFETY: private memory of this value, of which nothing is borrowed.
        let result = unsafe { libc::madvise(self.start.as_ptr().cast(), self.length, libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(last_errno());
        }
        (self.used, self.lately) = (0, 0);
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody refers to it any more.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert_eq!(result, 0, "what was mapped can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_zero_and_can_be_used_again() {
        let mut pages = Pages::new(1 << 20).unwrap();
        assert!(!pages.are_many());
        pages.first(FEW + 1).unwrap().fill(7);
        assert!(pages.are_many());
        assert!(pages.were_many_lately());
        pages.note(9);
        assert!(pages.are_many() && !pages.were_many_lately());
        pages.give_back().unwrap();
        assert!(!pages.are_many());
        assert!(pages.all().iter().all(|byte| *byte == 0));
        pages.all()[..3].copy_from_slice(b"abc");
        pages.note(3);
        assert!(!pages.are_many());
        assert_eq!(pages.first(3).unwrap(), b"abc");
    }

    #[test]
    fn there_are_not_more_than_there_are() {
        let mut pages = Pages::new(4096).unwrap();
        assert_eq!(pages.first(4096).map(|all| all.len()), Some(4096));
        assert_eq!(pages.first(4097), None);
        assert_eq!(Pages::new(usize::MAX).err(), Some(Errno::NOMEM));
        assert_eq!(Pages::new(0).err(), Some(Errno::INVAL));
    }
}
