//! Where that is which does not come with the machine: what `bench/setup` has fetched, and what cargo has built.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;

/// The folder that `bench/setup` and `tests/setup` fill.
pub(crate) fn cache() -> PathBuf {
    PathBuf::from(std::env::var_os("RUNIONFS_CACHE").unwrap_or_else(|| "/var/cache/runionfs-tests".into()))
}

/// A program of this workspace: what this variable of the environment names, or what lies beside the bench's own binary.
///
/// # Errors
/// Where it is not there.
pub(crate) fn program(variable: &str, name: &str) -> io::Result<PathBuf> {
    let binary = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()?.with_file_name(OsStr::new(name)),
    };
    if binary.is_file() {
        return Ok(binary);
    }
    Err(io::Error::other(format!("{} is not there: build it first, or name one in ${variable}", binary.display())))
}
