//! What packaging/build has made in target/packages.

use std::fs;
use std::path::PathBuf;

/// The folder.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/packages")
}

/// The file with a name that begins and ends so. `None`, with the reason said, where it is missing.
pub(crate) fn file(start: &str, end: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder()).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(start) && name.ends_with(end)
    };
    let found = entries.into_iter().find(is_it);
    if found.is_none() {
        harness::sandbox::skip(&format!("it needs target/packages/{start}*{end}, which packaging/build makes"));
    }
    found
}
