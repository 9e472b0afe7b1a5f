//! All small worlds, one after the other.

use harness::world::{Access, Branch, Dir, Entry, Name, Slot, World};

use crate::carry::{Id, Path};

/// How much a directory of a name may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Every state of its one name `x`: nothing, a whiteout, an entry.
    Full,
    /// An entry `x` where the directory is one that merges, nothing where it hides what is below.
    Few,
}

/// The number of an entry, told by its place.
fn id(branch: usize, name: usize, what: Id) -> Id {
    let place = Id::try_from(branch * 10 + name).expect("small worlds");
    place * 10 + what
}

/// Every state of one name in one branch: nothing, whiteout, leaf, directory, directory with the opaque mark, leaf and
/// whiteout, directory and whiteout; and a directory with each of the records, also with a mark beside or in it.
fn slots(branch: usize, name: usize, detail: Detail, records: &[Path]) -> Vec<Slot<Id>> {
    let leaf = || Some(Entry::Leaf(id(branch, name, 1)));
    let mut slots = vec![
        Slot { whiteout: false, entry: None },
        Slot { whiteout: true, entry: None },
        Slot { whiteout: false, entry: leaf() },
        Slot { whiteout: true, entry: leaf() },
    ];
    for (opaque, whiteout) in [(false, false), (true, false), (false, true)] {
        let hides = opaque || whiteout;
        for child in children(branch, name, detail, hides) {
            let mut body = Dir { opaque, ..Dir::default() };
            if child != Slot::default() {
                body.slots.insert(b"x".to_vec(), child);
            }
            slots.push(Slot { whiteout, entry: Some(Entry::Dir(id(branch, name, 2), body)) });
        }
    }
    for record in records {
        for (opaque, whiteout) in [(false, false), (true, false), (false, true)] {
            for child in children(branch, name, Detail::Few, opaque) {
                let mut body = Dir { opaque, record: Some(record.clone()), ..Dir::default() };
                if child != Slot::default() {
                    body.slots.insert(b"x".to_vec(), child);
                }
                slots.push(Slot { whiteout, entry: Some(Entry::Dir(id(branch, name, 2), body)) });
            }
        }
    }
    slots
}

fn children(branch: usize, name: usize, detail: Detail, hides: bool) -> Vec<Slot<Id>> {
    let nothing = Slot { whiteout: false, entry: None };
    let entry = Slot { whiteout: false, entry: Some(Entry::Leaf(id(branch, name, 3))) };
    match (detail, hides) {
        (Detail::Full, _) => vec![nothing, Slot { whiteout: true, entry: None }, entry],
        (Detail::Few, true) => vec![nothing],
        (Detail::Few, false) => vec![entry],
    }
}

/// Every root directory that holds the given names in any state.
pub(crate) fn roots(branch: usize, names: &[Name], detail: Detail, opaque: &[bool]) -> Vec<Dir<Id>> {
    roots_with_records(branch, names, detail, opaque, &[])
}

/// The same, where directories may have one of these records, too.
pub(crate) fn roots_with_records(
    branch: usize,
    names: &[Name],
    detail: Detail,
    opaque: &[bool],
    records: &[Path],
) -> Vec<Dir<Id>> {
    let mut roots: Vec<Dir<Id>> = opaque.iter().map(|opaque| Dir { opaque: *opaque, ..Dir::default() }).collect();
    for (number, name) in names.iter().enumerate() {
        let slots = slots(branch, number, detail, records);
        let with = |root: &Dir<Id>| {
            let each = slots.iter().map(|slot| {
                let mut root = root.clone();
                if *slot != Slot::default() {
                    root.slots.insert(name.clone(), slot.clone());
                }
                root
            });
            each.collect::<Vec<_>>()
        };
        roots = roots.iter().flat_map(with).collect();
    }
    roots
}

/// Every branch with one of these ways to access it.
pub(crate) fn branches(roots: &[Dir<Id>], accesses: &[Access]) -> Vec<Branch<Id>> {
    let each = |access: &Access| {
        let access = *access;
        roots.iter().map(move |root| Branch { access, root: root.clone() }).collect::<Vec<_>>()
    };
    accesses.iter().flat_map(each).collect()
}

/// Every world with one of `choices[i]` as branch `i`.
pub(crate) fn for_each_world(choices: &[Vec<Branch<Id>>], mut visit: impl FnMut(&World<Id>)) {
    assert!(choices.iter().all(|choice| !choice.is_empty()));
    let mut at = vec![0; choices.len()];
    let mut world = World { branches: choices.iter().map(|choice| choice[0].clone()).collect() };
    loop {
        visit(&world);
        let Some(turned) = (0..choices.len()).rev().find(|branch| at[*branch] + 1 < choices[*branch].len()) else {
            return;
        };
        at[turned] += 1;
        at[turned + 1..].fill(0);
        for branch in turned..choices.len() {
            world.branches[branch] = choices[branch][at[branch]].clone();
        }
    }
}
