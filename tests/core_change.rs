//! Changes, tried on every small world: the view after them is that of a plain directory, at every step it is the one
//! before or the one after, only the carrier is written, and no mark is left that hides nothing (rules 13 to 26).

#[path = "core/carry.rs"]
mod carry;
#[path = "core/check.rs"]
#[allow(dead_code, reason = "shared with the tests of views")]
mod check;
#[path = "core/worlds.rs"]
mod worlds;

use carry::{Change, Path, Refusal};
use check::assert_change_is_right;
use harness::world::{Access, Branch, Dir, Name};
use unionfs::union::plan::Manner;
use worlds::{Detail, branches, for_each_world, roots, roots_with_records};

const ANY: [Access; 3] = [Access::Writable, Access::Whiteouts, Access::Plain];

fn path(path: &str) -> Path {
    path.split('/').map(|name| name.as_bytes().to_vec()).collect()
}

/// How often changes were carried out and refused: a test that only ever sees refusals proves nothing.
#[derive(Debug, Default)]
struct Tally {
    done: usize,
    read_only: usize,
    refused: usize,
}

impl Tally {
    fn count(&mut self, outcome: Result<(), Refusal>) {
        match outcome {
            Ok(()) => self.done += 1,
            Err(Refusal::ReadOnly) => self.read_only += 1,
            Err(_) => self.refused += 1,
        }
    }
}

fn try_all(choices: &[Vec<Branch<u32>>], changes: &[Change]) -> Tally {
    let mut tally = Tally::default();
    for_each_world(choices, |world| {
        let before = world.view();
        for change in changes {
            tally.count(assert_change_is_right(world, &before, change));
        }
    });
    tally
}

fn in_one_name(depth: usize, opaque: &[bool], detail: Detail, changes: &[Change]) -> Tally {
    let roots_of = |branch| roots(branch, &[b"a".to_vec()], detail, opaque);
    let choices: Vec<_> = (0..depth).map(|branch| branches(&roots_of(branch), &ANY)).collect();
    try_all(&choices, changes)
}

fn creations_and_removals() -> Vec<Change> {
    vec![
        Change::Create { at: path("a"), dir: false },
        Change::Create { at: path("a"), dir: true },
        Change::Create { at: path("a/x"), dir: false },
        Change::Create { at: path("a/x"), dir: true },
        Change::Remove { at: path("a") },
        Change::Remove { at: path("a/x") },
    ]
}

#[test]
fn create_and_remove_with_opaque_roots() {
    for depth in [1, 2] {
        let tally = in_one_name(depth, &[false, true], Detail::Full, &creations_and_removals());
        assert!(tally.done > 50 && tally.read_only > 50 && tally.refused > 50, "{tally:?}");
    }
}

#[test]
fn create_and_remove_in_three_branches() {
    let tally = in_one_name(3, &[false], Detail::Full, &creations_and_removals());
    assert!(tally.done > 10_000 && tally.read_only > 10_000, "{tally:?}");
}

#[test]
fn create_and_remove_in_four_branches() {
    let tally = in_one_name(4, &[false], Detail::Few, &creations_and_removals());
    assert!(tally.done > 10_000 && tally.read_only > 10_000, "{tally:?}");
}

fn moves(from: &str, to: &str) -> Vec<Change> {
    vec![
        Change::Rename { from: path(from), to: path(to), manner: Manner::Plain },
        Change::Rename { from: path(from), to: path(to), manner: Manner::LeavingDevice },
        Change::Exchange { one: path(from), other: path(to) },
    ]
}

fn two_names(branch: usize, detail: Detail) -> Vec<Dir<u32>> {
    let names: [Name; 2] = [b"a".to_vec(), b"b".to_vec()];
    roots(branch, &names, detail, &[false])
}

fn assert_all_outcomes(tally: &Tally) {
    let Tally { done, read_only, refused } = tally;
    assert!([done, read_only, refused].iter().all(|times| **times > 1_000), "{tally:?}");
}

#[test]
fn moves_in_one_directory_of_two_branches() {
    let choices = [branches(&two_names(0, Detail::Full), &ANY[..2]), branches(&two_names(1, Detail::Full), &ANY[..1])];
    assert_all_outcomes(&try_all(&choices, &moves("a", "b")));
}

#[test]
fn moves_between_directories_of_two_branches() {
    let choices = [branches(&two_names(0, Detail::Full), &ANY[..2]), branches(&two_names(1, Detail::Full), &ANY[..1])];
    let changes = [moves("a/x", "b"), moves("b", "a/x"), moves("a/x", "b/x"), moves("a", "a/x")].concat();
    assert_all_outcomes(&try_all(&choices, &changes));
}

#[test]
fn moves_in_one_directory_of_three_branches() {
    let [rw, wh, plain] = ANY;
    for accesses in [[rw, rw, wh], [rw, plain, rw], [wh, rw, wh]] {
        let one = |branch: usize| branches(&two_names(branch, Detail::Few), &[accesses[branch]]);
        let tally = try_all(&[one(0), one(1), one(2)], &moves("a", "b"));
        assert!(tally.done > 2_000, "{tally:?}");
    }
}

/// Below the one writable branch, so that no directory shows twice what can be changed.
fn recorded(branch: usize, detail: Detail, records: &[&str]) -> Vec<Dir<u32>> {
    let names: [Name; 2] = [b"a".to_vec(), b"b".to_vec()];
    let records: Vec<Path> = records.iter().map(|record| path(record)).collect();
    roots_with_records(branch, &names, detail, &[false], &records)
}

#[test]
fn moves_of_directories_with_records_over_two_branches() {
    let choices = [
        branches(&recorded(0, Detail::Few, &["b", "a/x"]), &ANY[..1]),
        branches(&two_names(1, Detail::Few), &ANY[..1]),
    ];
    let changes = [moves("a", "b"), moves("a/x", "b"), moves("b", "a/x"), creations_and_removals()].concat();
    assert_all_outcomes_but_read_only(&try_all(&choices, &changes));
}

#[test]
fn moves_of_directories_with_records_over_three_branches() {
    let [rw, wh, _] = ANY;
    let middle = roots_with_records(1, &[b"b".to_vec()], Detail::Few, &[false], &[path("a")]);
    let choices = [
        branches(&recorded(0, Detail::Few, &["b"]), &[rw]),
        branches(&middle, &[wh]),
        branches(&two_names(2, Detail::Few), &[wh]),
    ];
    assert_all_outcomes_but_read_only(&try_all(&choices, &moves("a", "b")));
}

fn assert_all_outcomes_but_read_only(tally: &Tally) {
    assert!(tally.done > 10_000 && tally.refused > 1_000 && tally.read_only == 0, "{tally:?}");
}
