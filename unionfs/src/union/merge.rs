//! Making one listing of many (rule 10): exactly the names that [`mod@super::resolve`] finds.

use super::resolve::{Found, Verdict};

/// What one branch's directory holds under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'a> {
    /// A hash of the name, the same for the same name.
    pub hash: u64,
    /// The name.
    pub name: &'a [u8],
    /// The branch's word on it.
    pub found: Found,
}

/// Merges the words of a stack of directories: each visible name stays once, with the word of its
/// topmost entry. `of` says what a word is.
///
/// The words are in the order of their hashes, and those of one hash in that of the branches, top
/// first. A whiteout counts for the branches below; of an entry and a whiteout of one name in one
/// branch the first counts, so entries come before whiteouts.
pub fn merge<'a, W>(words: &mut Vec<W>, of: impl Fn(&W) -> Listed<'a>) {
    let mut group = None;
    // the names of one hash that something was said of: one, but for names that collide
    let mut decided: Vec<&[u8]> = Vec::new();
    words.retain(|word| {
        let Listed { hash, name, found } = of(word);
        if group.replace(hash) != Some(hash) {
            decided.clear();
        }
        let verdict = found.verdict();
        if verdict == Verdict::Open || decided.contains(&name) {
            return false;
        }
        decided.push(name);
        verdict == Verdict::Shown
    });
}
