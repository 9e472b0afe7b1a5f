//! The error of a call that must fail, by name.

use std::io;

pub use nix::errno::Errno;

/// Results whose error is an errno, whichever library made the call.
pub trait ErrnoOf {
    /// The errno of a call that must fail.
    ///
    /// # Panics
    /// When the call succeeded, or failed without an errno.
    fn errno(self) -> Errno;
}

impl<T> ErrnoOf for io::Result<T> {
    #[track_caller]
    fn errno(self) -> Errno {
        match self {
            Ok(_) => panic!("the call succeeded but must fail"),
            Err(error) => Errno::from_raw(error.raw_os_error().expect("an error of the kernel has an errno")),
        }
    }
}

impl<T> ErrnoOf for nix::Result<T> {
    #[track_caller]
    fn errno(self) -> Errno {
        match self {
            Ok(_) => panic!("the call succeeded but must fail"),
            Err(errno) => errno,
        }
    }
}

impl<T> ErrnoOf for rustix::io::Result<T> {
    #[track_caller]
    fn errno(self) -> Errno {
        match self {
            Ok(_) => panic!("the call succeeded but must fail"),
            Err(errno) => Errno::from_raw(errno.raw_os_error()),
        }
    }
}
