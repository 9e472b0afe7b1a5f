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
    message: String,
}

impl Failure {
    /// A failure of our own: what was being done, or what is wrong.
    pub fn new(message: impl Into<String>) -> Self {
        Failure { status: OWN_FAILURE, is_about_a_name: false, message: message.into() }
    }

    /// A system call that failed while `doing` something.
    pub fn because(doing: &str, cause: impl fmt::Display) -> Self {
        Failure::new(format!("cannot {doing}: {cause}"))
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

/// Adds to a failing call what was being done.
pub(crate) trait Doing<T> {
    fn doing(self, what: &str) -> Result<T, Failure>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, what: &str) -> Result<T, Failure> {
        self.map_err(|errno| Failure::because(what, errno.desc()))
    }
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| match error.raw_os_error() {
            Some(number) => Failure::because(what, Errno::from_raw(number).desc()),
            None => Failure::because(what, error),
        })
    }
}
