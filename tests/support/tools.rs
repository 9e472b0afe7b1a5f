//! Tools that are not part of the project, and the folder that keeps them and other costly things between runs.

use std::path::PathBuf;

/// The folder that survives a run: `$RUNIONFS_CACHE`, or `/var/cache/runionfs-tests`.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("RUNIONFS_CACHE").map_or_else(|| PathBuf::from("/var/cache/runionfs-tests"), PathBuf::from)
}

/// A program from the cache's `cargo/bin` or from `PATH`; `None`, with the reason said, where it is missing.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(cache().join("cargo/bin")).chain(std::env::split_paths(&path));
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    if found.is_none() {
        harness::sandbox::skip(&format!("it needs {name}, which tests/setup installs"));
    }
    found
}
