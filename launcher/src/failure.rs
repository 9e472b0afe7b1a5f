//! What can go wrong before the command runs, and the exit statuses.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// The exit status for failures of our own, as docker's.
pub const OWN_FAILURE: u8 = 125;
/// The exit status for a command that is there but cannot be executed.
pub const CANNOT_EXECUTE: u8 = 126;
/// The exit status for a command that is not there.
pub const NOT_FOUND: u8 = 127;
/// Added to the number of the signal that ended the command.
pub const SIGNAL_BASE: u8 = 128;

/// Why the command was not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit status that says so.
    pub status: u8,
    /// Whether a container of a name is missing, so that the name may have been meant as something else.
    pub is_about_a_name: bool,
    /// Where a disk, or what a user may have of it, is full: what says so.
    pub(crate) no_room: Option<Errno>,
    message: String,
}

impl Failure {
    /// A failure of our own: what was being done, or what is wrong.
    pub fn new(message: impl Into<String>) -> Self {
        Failure { status: OWN_FAILURE, is_about_a_name: false, no_room: None, message: message.into() }
    }

    /// A system call that failed while `doing` something.
    pub fn because(doing: &str, cause: impl fmt::Display) -> Self {
        Failure::new(format!("cannot {doing}: {cause}"))
    }

    /// What was being done when this happened.
    pub(crate) fn within(self, doing: &str) -> Self {
        Failure { no_room: self.no_room, ..Failure::because(doing, self) }
    }

    /// Where it happened: a line of a file.
    pub(crate) fn at(self, place: &str) -> Self {
        Failure { message: format!("{place}: {}", self.message), ..self }
    }

    /// There is no container of this name.
    pub(crate) fn no_container(name: &str) -> Self {
        Failure { is_about_a_name: true, ..Failure::new(format!("there is no container {name}")) }
    }

    /// The same with another exit status.
    #[must_use]
    pub fn with_status(self, status: u8) -> Self {
        Failure { status, ..self }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn remedy(self, remedy: &str) -> Self {
        Failure { message: format!("{} ({remedy})", self.message), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The errno of an I/O error; EIO where the system gave none.
pub(crate) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// An error, where it is that a disk, or what a user may have of it, is full.
pub(crate) fn no_room(errno: Errno) -> Option<Errno> {
    Some(errno).filter(|errno| matches!(errno, Errno::ENOSPC | Errno::EDQUOT))
}

/// What the kernel has said, alone.
pub(crate) fn said(errno: Errno) -> Failure {
    Failure { no_room: no_room(errno), ..Failure::new(errno.desc()) }
}

/// What an error tells, alone. It may tell of the kernel's word and where that came.
pub(crate) fn told(error: &io::Error) -> Failure {
    let no_room = match error.kind() {
        io::ErrorKind::StorageFull => Some(Errno::ENOSPC),
        io::ErrorKind::QuotaExceeded => Some(Errno::EDQUOT),
        _ => None,
    };
    match error.raw_os_error() {
        Some(number) => said(Errno::from_raw(number)),
        None => Failure { no_room, ..Failure::new(error.to_string()) },
    }
}

/// A system call that failed while `doing` something.
pub(crate) fn failed(doing: &str, errno: Errno) -> Failure {
    said(errno).within(doing)
}

/// Adds to a failing call what was being done.
pub(crate) trait Doing<T> {
    fn doing(self, what: &str) -> Result<T, Failure>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, what: &str) -> Result<T, Failure> {
        self.map_err(|errno| failed(what, errno))
    }
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| told(&error).within(what))
    }
}
