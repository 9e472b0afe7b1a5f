//! What the fuzz targets (`tests/fuzz`) reach of what is private here; with the feature `fuzzing` only.

pub use crate::copy::fuzzing::unpack;
pub use crate::image::fuzzing::{Dockerfile, dockerfile, expand, host, image, leaves_out, location, realm, reference};
