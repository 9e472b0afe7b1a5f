//! What the fuzz targets share.
//!
//! A target is a program of libFuzzer's: it makes up input by what of the code an earlier one has reached, and ends with the
//! input that has panicked, taken too long or too much memory, or broken what the target asserts. Seeds are written when
//! a target begins, so that each is in the file of what reads it.

pub mod archive;
pub mod ground;
pub mod seeds;
pub mod store;
