//! What a union shows, tried on every small world: `resolve` and `merge` against the reference (rules 3 to 7 and 10).

#[path = "core/carry.rs"]
#[allow(dead_code, reason = "shared with the tests of changes")]
mod carry;
#[path = "core/check.rs"]
#[allow(dead_code, reason = "shared with the tests of changes")]
mod check;
#[path = "core/worlds.rs"]
mod worlds;

use check::assert_seen_as_the_reference_says;
use harness::world::{Access, Name};
use worlds::{Detail, branches, for_each_world, roots, roots_with_records};

fn names(names: &[&str]) -> Vec<Name> {
    names.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// Every world of branches that hold `a` and `b`, also with these records, the top first.
fn try_records(records: &[&[&str]]) -> usize {
    let held = names(&["a", "b"]);
    let looked_up = names(&["a", "b", "x"]);
    let path = |path: &&str| path.split('/').map(|name| name.as_bytes().to_vec()).collect::<Vec<Name>>();
    let of = |(branch, paths): (usize, &&[&str])| {
        let paths: Vec<_> = paths.iter().map(path).collect();
        branches(&roots_with_records(branch, &held, Detail::Few, &[false], &paths), &[Access::Whiteouts])
    };
    let choices: Vec<_> = records.iter().enumerate().map(of).collect();
    let mut worlds = 0;
    for_each_world(&choices, |world| {
        assert_seen_as_the_reference_says(world, &looked_up);
        worlds += 1;
    });
    worlds
}

#[test]
fn records_over_two_branches() {
    assert_eq!(try_records(&[&["a", "b", "a/x", "x"], &[]]), (7 + 12) * (7 + 12) * 7 * 7);
}

#[test]
fn records_that_lead_to_records() {
    assert_eq!(try_records(&[&["b"], &["a"], &[]]), (7 + 3) * (7 + 3) * (7 + 3) * (7 + 3) * 7 * 7);
}

fn try_all(depth: usize, held: &[&str], detail: Detail, opaque: &[bool]) -> usize {
    let held = names(held);
    let looked_up = [held.clone(), names(&["x"])].concat();
    let accesses = [Access::Whiteouts, Access::Plain];
    let choices: Vec<_> = (0..depth).map(|branch| branches(&roots(branch, &held, detail, opaque), &accesses)).collect();
    let mut worlds = 0;
    for_each_world(&choices, |world| {
        assert_seen_as_the_reference_says(world, &looked_up);
        worlds += 1;
    });
    worlds
}

#[test]
fn one_name_in_up_to_three_branches_with_opaque_roots() {
    for (depth, worlds) in [(1, 52), (2, 52 * 52), (3, 52 * 52 * 52)] {
        assert_eq!(try_all(depth, &["a"], Detail::Full, &[false, true]), worlds);
    }
}

#[test]
fn one_name_in_four_branches() {
    assert_eq!(try_all(4, &["a"], Detail::Few, &[false]), 14usize.pow(4));
}

#[test]
fn two_names_in_two_branches() {
    assert_eq!(try_all(2, &["a", "b"], Detail::Full, &[false]), (2 * 13 * 13usize).pow(2));
}
