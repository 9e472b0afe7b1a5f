//! Read-only branches never change: not a byte, not an attribute, no time, not even that of the last access.
//!
//! Random branches, random operations, remounts in the middle. `RUNIONFS_LOWER_CASES` sets how often.

use std::cell::Cell;
use std::time::Duration;

use harness::ops::{Caller, Op, acts_and_remounts};
use harness::rootless::{self, Way};
use harness::sandbox::{self, Medium};
use harness::snapshot::Exactness;
use harness::tree::layouts;
use harness::trial::{Ground, fail, number, try_many};
use proptest::prelude::*;

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");

#[test]
fn read_only_branches_never_change() {
    holds(number("RUNIONFS_LOWER_CASES", 100));
}

#[test]
fn read_only_branches_never_change_for_an_ordinary_user() {
    if rootless::again(Way::OneId, "read_only_branches_never_change_for_an_ordinary_user") {
        holds(number("RUNIONFS_LOWER_ROOTLESS_CASES", 25));
    }
}

fn holds(cases: u32) {
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
    let trials = Cell::new(0);
    let values = (layouts(), prop::collection::vec(acts_and_remounts(), 0..120));
    try_many(cases, &values, |(layout, acts)| {
        trials.set(trials.get() + 1);
        let ground = Ground::new(sandbox.path(), &trials.get().to_string(), &layout).expect("write the branches");
        let acts = ground.rehearse(&acts).expect("rehearse");
        let before = ground.read_only_branches();
        let mut mounted = ground.mount(BINARY);
        let mut caller = Caller::new(mounted.target());
        for act in &acts {
            // what it says is the oracle's matter; what it does to the branches is ours
            let (Ok(_) | Err(_)) = caller.act(act);
            if act.op == Op::Remount {
                mounted.remount();
            }
        }
        caller.close_all();
        mounted.umount();
        for ((branch, before), (_, after)) in before.iter().zip(&ground.read_only_branches()) {
            let lines = before.difference(after, Exactness::Untouched);
            if !lines.is_empty() {
                return fail(format!("the read-only branch {branch} has changed:\n{}", lines.join("\n")));
            }
        }
        Ok(())
    });
}
