//! Inputs to begin with.

use std::fs;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::ground::output;

/// Writes inputs of a target for libFuzzer to find, each by its number.
///
/// # Panics
/// Where they cannot be written.
pub fn write<'a>(target: &str, seeds: impl IntoIterator<Item = &'a [u8]>) {
    let directory = output(&format!("seeds/{target}"));
    for (number, seed) in seeds.into_iter().enumerate() {
        fs::write(directory.join(format!("{number:02}")), seed).expect("write a seed");
    }
}

/// Compressed as most layers are.
///
/// # Panics
/// Never: there is nothing that could fail.
pub fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).and_then(|()| encoder.finish()).expect("compress in memory")
}

/// Compressed as some layers are.
pub fn zstd(plain: &[u8]) -> Vec<u8> {
    compress_to_vec(plain, CompressionLevel::Fastest)
}
