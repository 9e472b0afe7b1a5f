//! Which branch takes a new or copied-up entry (rule 13).

use super::resolve::BranchIndex;

/// A branch as the choice sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its place.
    pub branch: BranchIndex,
    /// Whether new names may be written to it.
    pub writable: bool,
    /// Whether the directory that would hold the entry exists there.
    pub has_parent: bool,
}

/// The branch for an entry that is seen on `lowest_seen` and above: by AuFS's `tdp`
/// (top-down-parent), the topmost writable branch where the parent exists, else the topmost
/// writable one. Nothing (EROFS) if no such branch is writable.
pub fn top_down_parent(candidates: &[Candidate], lowest_seen: BranchIndex) -> Option<BranchIndex> {
    let allowed = || candidates.iter().filter(|c| c.writable && c.branch <= lowest_seen);
    allowed().find(|c| c.has_parent).or_else(|| allowed().next()).map(|c| c.branch)
}

/// The branch that carries a rename or a link: `highest` is the highest of the source's, the
/// target's and any branch that would hide the result. That branch itself where it is writable,
/// else the nearest writable one above it. Nothing (EROFS) if there is none.
pub fn carrier(candidates: &[Candidate], highest: BranchIndex) -> Option<BranchIndex> {
    candidates.iter().rev().find(|c| c.writable && c.branch <= highest).map(|c| c.branch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(spec: &str) -> Vec<Candidate> {
        // "w" writable, "p" writable and holds the parent, "r" read-only
        spec.chars()
            .zip(0..)
            .map(|(c, i)| Candidate { branch: BranchIndex(i), writable: c != 'r', has_parent: c == 'p' })
            .collect()
    }

    #[test]
    fn the_topmost_writable_branch_with_the_parent_is_chosen() {
        for (spec, lowest, expected) in [
            ("pr", 1, Some(0)),
            ("wr", 1, Some(0)),
            ("wp", 1, Some(1)),
            ("wp", 0, Some(0)),
            ("wpp", 2, Some(1)),
            ("rp", 0, None),
            ("rr", 1, None),
            ("rwr", 2, Some(1)),
        ] {
            assert_eq!(top_down_parent(&candidates(spec), BranchIndex(lowest)), expected.map(BranchIndex), "{spec}");
        }
    }

    #[test]
    fn a_rename_is_carried_by_the_highest_branch_it_touches() {
        for (spec, highest, expected) in
            [("ww", 1, Some(1)), ("ww", 0, Some(0)), ("wr", 1, Some(0)), ("wwr", 2, Some(1)), ("rw", 0, None)]
        {
            assert_eq!(carrier(&candidates(spec), BranchIndex(highest)), expected.map(BranchIndex), "{spec}");
        }
    }
}
