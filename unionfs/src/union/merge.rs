//! Making one listing of many (rule 10): exactly the names that [`mod@super::resolve`] finds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};

use super::name::NameBuf;
use super::resolve::{Found, Verdict};

/// What one branch's directory holds under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// The name.
    pub name: NameBuf,
    /// The branch's word on it.
    pub found: Found,
    /// What the caller wants to know of the topmost entry (type, inode number).
    pub about: T,
}

/// Merges the listings of a stack of directories, top first: each visible name once, with what
/// its topmost entry says. The order of the result is that of the branches' listings.
///
/// A whiteout counts for the branches below whatever its place in its own listing; of an entry and
/// a whiteout of one name in one listing, the first counts, so entries are listed before whiteouts.
pub fn merge<T>(listings: impl IntoIterator<Item = Vec<Listed<T>>>) -> Vec<Listed<T>> {
    let mut decided: HashMap<u64, Vec<usize>, RandomState> = HashMap::default();
    let mut words: Vec<Listed<T>> = Vec::new();
    let hasher = RandomState::new();
    for listing in listings {
        for word in listing {
            if word.found.verdict() == Verdict::Open {
                continue;
            }
            // names are kept once, in `words`; the table holds places in it
            match decided.entry(hasher.hash_one(&word.name)) {
                Entry::Vacant(place) => {
                    place.insert(vec![words.len()]);
                }
                Entry::Occupied(mut place) => {
                    if place.get().iter().any(|at| words[*at].name == word.name) {
                        continue;
                    }
                    place.get_mut().push(words.len());
                }
            }
            words.push(word);
        }
    }
    words.retain(|word| word.found.verdict() == Verdict::Shown);
    words
}
