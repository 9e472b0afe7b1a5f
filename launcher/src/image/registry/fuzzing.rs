//! What the fuzz targets (`tests/fuzz`) reach of what registries say; with the feature `fuzzing` only.

use super::address;
use super::challenge::Challenge;
use super::reference::{self, Reference};

/// The server of tokens that headers `WWW-Authenticate` name, where they ask for a token.
#[must_use]
pub fn realm(headers: &[&str]) -> Option<String> {
    match Challenge::read(headers.iter().copied())? {
        Challenge::Basic => None,
        Challenge::Bearer { realm, .. } => Some(realm),
    }
}

/// Where the header `Location` of an address's answer leads, and whether what is secret goes there, too.
#[must_use]
pub fn location(base: &str, location: &str) -> Option<(String, bool)> {
    let target = address::resolve(base, location)?;
    let is_same = address::origin(base).is_some_and(|origin| address::is_of(&target, origin));
    Some((target, is_same))
}

/// The registry, the path and the whole of an image's name.
#[must_use]
pub fn reference(text: &str) -> Option<[String; 3]> {
    let found = Reference::parse(text).ok()?;
    Some([found.host.clone(), found.path.clone(), found.name()])
}

/// A registry's name, as `login` takes it.
#[must_use]
pub fn host(text: &str) -> Option<String> {
    reference::parse_host(text).ok()
}
