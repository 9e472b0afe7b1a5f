//! What the fuzz targets (`tests/fuzz`) reach of images; with the feature `fuzzing` only.

use std::ffi::OsString;

pub use super::build::fuzzing::{Dockerfile, dockerfile, expand, leaves_out};
pub use super::registry::fuzzing::{host, location, realm, reference};
use crate::failure::OWN_FAILURE;

/// Does what `rlaunch image` does that has these words behind it.
///
/// # Errors
/// The exit status, and what would be told.
pub fn image(words: &[OsString]) -> Result<u8, (u8, String)> {
    let what = super::parse(words).map_err(|error| (OWN_FAILURE, error.to_string()))?;
    super::run(&what).map_err(|failure| (failure.status, failure.to_string()))
}
