//! A union looks exactly like a plain directory that is filled with the merged tree.
//!
//! Random branches, random operations, remounts, flushes and new tops in the middle; the oracle is a plain directory on
//! the same file system that is told to do the same. `RUNIONFS_ORACLE_CASES` sets how often, `RUNIONFS_ORACLE_OPS` how long.

use std::cell::Cell;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use harness::ops::{Act, Allocate, Op, Xattr, acts_over_layers};
use harness::rootless::{self, Way};
use harness::sandbox::{self, Medium};
use harness::tree::layouts;
use harness::trial::{Ground, Trial, number, try_many};
use proptest::prelude::*;

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");

/// One history at a time: a child that a test beside this one starts has copies of all descriptors until it executes its
/// program, and with that of a fifo's reader a writer finds somebody who is not there.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_on(parent: &Path, cases: u32, allowed: impl Fn(&Act) -> bool) {
    let length = usize::try_from(number("RUNIONFS_ORACLE_OPS", 120)).expect("a length");
    let (trials, done) = (Cell::new(0), Cell::new(0));
    let values = (layouts(), prop::collection::vec(acts_over_layers(), 0..length));
    try_many(cases, &values, |(layout, acts)| {
        trials.set(trials.get() + 1);
        let ground = Ground::new(parent, &trials.get().to_string(), &layout).expect("write the branches");
        let mut trial = Trial::new(ground, BINARY).expect("write the plain directory");
        trial.compare()?;
        for act in acts.iter().filter(|act| allowed(act)) {
            trial.act(act)?;
            done.set(done.get() + 1);
        }
        if trials.get() % 500 == 0 {
            println!("{} operations in {} histories", done.get(), trials.get());
        }
        trial.compare()
    });
}

/// How many histories are tried, and how long that may take.
fn cases() -> (u32, Duration) {
    let cases = number("RUNIONFS_ORACLE_CASES", 200);
    (cases, Duration::from_secs(1_000 + 5 * u64::from(cases)))
}

#[test]
fn a_union_on_disk_looks_like_a_plain_directory() {
    let _alone = alone();
    let (cases, limit) = cases();
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, limit) else { return };
    try_on(sandbox.path(), cases, |_| true);
}

/// What an ordinary user's top keeps of owners and modes is read in a writable branch only.
fn puts_top_on(act: &Act) -> bool {
    act.op == Op::Layer
}

#[test]
fn an_ordinary_user_with_one_id_sees_a_plain_directory() {
    let _alone = alone();
    if rootless::again(Way::OneId, "an_ordinary_user_with_one_id_sees_a_plain_directory") {
        let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
        try_on(sandbox.path(), number("RUNIONFS_ORACLE_ROOTLESS_CASES", 25), |act| !puts_top_on(act));
    }
}

#[test]
fn an_ordinary_user_with_ranges_sees_a_plain_directory() {
    let _alone = alone();
    if rootless::again(Way::Ranges, "an_ordinary_user_with_ranges_sees_a_plain_directory") {
        let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
        try_on(sandbox.path(), number("RUNIONFS_ORACLE_ROOTLESS_CASES", 25), |act| !puts_top_on(act));
    }
}

/// All that root does through the mount of an ordinary user is kept: owners, modes, devices.
#[test]
fn root_sees_a_plain_directory_in_the_mount_of_an_ordinary_user() {
    let _alone = alone();
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
    if !rootless::ordinary_daemons(&sandbox) {
        return;
    }
    // the kernel keeps these from everybody but root, and that is who looks
    let trusted = |act: &Act| {
        matches!(act.op, Op::SetXattr { name, .. } | Op::GetXattr { name, .. } | Op::RemoveXattr { name, .. }
            if name == Xattr::Trusted)
    };
    let ground = rootless::without_devices_and_set_ids(sandbox.path());
    try_on(&ground, number("RUNIONFS_ORACLE_ROOTLESS_CASES", 25), |act| {
        // where nobody may reach the control socket, nobody flushes
        !trusted(act) && !puts_top_on(act) && act.op != Op::Flush
    });
}

#[test]
fn a_union_on_tmpfs_looks_like_a_plain_directory() {
    let _alone = alone();
    let (cases, limit) = cases();
    let Some(sandbox) = sandbox::enter_for(Medium::Tmpfs, limit) else { return };
    // tmpfs cannot do it, and says so; under FUSE the kernel has stripped the set-id bits by then
    let zeroes = |act: &Act| matches!(act.op, Op::Allocate { manner: Allocate::ZeroRange, .. });
    try_on(sandbox.path(), cases, |act| !zeroes(act));
}
