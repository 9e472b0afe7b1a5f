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
use worlds::{Detail, branches, for_each_world, roots};

fn names(names: &[&str]) -> Vec<Name> {
    names.iter().map(|name| name.as_bytes().to_vec()).collect()
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
