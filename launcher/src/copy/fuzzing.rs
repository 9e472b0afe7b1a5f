//! What the fuzz targets (`tests/fuzz`) reach of `rlaunch cp`; with the feature `fuzzing` only.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use super::unpack::Unpacked;

/// Unpacks a stream as `rlaunch cp` does: one of the caller's in a directory, or a copy that gets a name.
///
/// # Errors
/// What would be told.
pub fn unpack(stream: impl Read, path: &Path, name: Option<&OsStr>) -> Result<(), String> {
    let name = name.map(OsStr::to_owned);
    let unpacked = Unpacked { path: path.to_owned(), is_stream: name.is_none(), name, keeps_owners: true };
    unpacked.read(stream).map_err(|failure| failure.to_string())
}
