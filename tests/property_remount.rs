//! A remount shows the same tree, with the same inode numbers, times and link counts.
//!
//! Nothing but the mount itself is asked, so that this holds for every union, whatever else is wrong with it.
//! `RUNIONFS_REMOUNT_CASES` sets how often.

use std::cell::Cell;
use std::time::Duration;

use harness::ops::{Caller, acts};
use harness::rootless::{self, Way};
use harness::sandbox::{self, Medium};
use harness::snapshot::{Exactness, Kind, Snapshot};
use harness::tree::layouts;
use harness::trial::{Ground, fail, number, try_many};
use proptest::prelude::*;

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");

#[test]
fn a_remount_shows_the_same_tree() {
    holds(number("RUNIONFS_REMOUNT_CASES", 100));
}

#[test]
fn a_remount_shows_the_same_tree_for_an_ordinary_user() {
    if rootless::again(Way::OneId, "a_remount_shows_the_same_tree_for_an_ordinary_user") {
        holds(number("RUNIONFS_REMOUNT_ROOTLESS_CASES", 25));
    }
}

fn holds(cases: u32) {
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
    let trials = Cell::new(0);
    let values = (layouts(), prop::collection::vec(acts(), 0..80));
    try_many(cases, &values, |(layout, acts)| {
        trials.set(trials.get() + 1);
        let ground = Ground::new(sandbox.path(), &trials.get().to_string(), &layout).expect("write the branches");
        let acts = ground.rehearse(&acts).expect("rehearse");
        let mut mounted = ground.mount(BINARY);
        let mut caller = Caller::new(mounted.target());
        for act in &acts {
            let (Ok(_) | Err(_)) = caller.act(act);
        }
        caller.close_all();
        let before = Snapshot::take(mounted.target());
        mounted.remount();
        let after = Snapshot::take(mounted.target());
        let mut lines = before.difference(&after, Exactness::Equal);
        for (path, entry) in &before.entries {
            let Some(now) = after.entries.get(path) else { continue };
            if now.ino != entry.ino {
                lines.push(format!("{}: st_ino was {} and is {}", path.display(), entry.ino, now.ino));
            }
            if entry.kind == Kind::Directory && now.nlink != entry.nlink {
                lines.push(format!("{}: {} links became {}", path.display(), entry.nlink, now.nlink));
            }
        }
        if lines.is_empty() { Ok(()) } else { fail(format!("a remount changed the tree:\n{}", lines.join("\n"))) }
    });
}
