//! Killed anywhere, a remount shows the state before or after the operation in flight, and nothing is left over.
//!
//! One thread does random operations, each of them one request to the file system; the daemon is killed with SIGKILL at
//! a random moment; the mount is taken away lazily, and the branches are mounted again. `RUNIONFS_CRASH_ROUNDS` sets
//! how often, on each medium; `RUNIONFS_CRASH_SEED` repeats a run (but for the moment of death).

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::model::{self, Clock};
use harness::ops::{Act, Caller, Op, Sight, single_changes};
use harness::rootless::{self, Way};
use harness::sandbox::{self, Medium};
use harness::snapshot::{Snapshot, WORK_AREA};
use harness::tree::{Layout, layouts};
use harness::trial::{Ground, number};
use nix::sys::signal::{Signal, kill};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use rustix::io::Errno;

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");

/// How many operations a round holds; it is over before they are all done.
const LENGTH: usize = 150;

/// What the worker had done when the daemon died.
struct Death {
    /// So many operations had been answered, each with what was said.
    answers: Vec<Result<Sight, Errno>>,
}

/// The errors of a mount that has lost its daemon.
fn is_dead(answer: &Result<Sight, Errno>) -> bool {
    matches!(answer, Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::NODEV))
}

/// Does the operations until the daemon is dead; `delay` after the first it is killed.
fn work_until_killed(ground: &Ground, acts: &[Act], delay: Duration) -> (Death, harness::mount::Mounted) {
    let mut mounted = ground.mount(BINARY);
    let mut caller = Caller::new(mounted.target());
    let pid = mounted.pid();
    let (begun, killed, done) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
    let mut answers = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !begun.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            while start.elapsed() < delay && done.load(Ordering::Acquire) < acts.len() {
                std::hint::spin_loop();
            }
            killed.store(true, Ordering::Release);
            kill(pid, Signal::SIGKILL).expect("kill the daemon");
        });
        begun.store(true, Ordering::Release);
        for act in acts {
            let answer = match act.op {
                // nothing is seen of it, whether it comes to its end or not
                Op::Flush => {
                    drop(mounted.flush());
                    Ok(Sight::Done)
                }
                _ => caller.act(act),
            };
            // a close answers so when writes that the kernel gathered found nobody any more
            let unwritten = matches!(answer, Err(Errno::IO)) && killed.load(Ordering::Acquire);
            if is_dead(&answer) || unwritten {
                break;
            }
            answers.push(answer);
            done.fetch_add(1, Ordering::AcqRel);
        }
        done.store(acts.len(), Ordering::Release);
    });
    mounted.wait_for_the_end();
    sandbox::unmount(mounted.target(), nix::mount::MntFlags::MNT_DETACH).expect("take the dead mount away");
    (Death { answers }, mounted)
}

/// Brings the plain directory to where the union was when the daemon died.
fn replay(plain: &mut Caller, acts: &[Act], death: &Death, torn_apart: bool) {
    for (act, answer) in acts.iter().zip(&death.answers) {
        // what has several names was copied up to one writable branch, and only a higher one can show the new name
        if torn_apart && matches!((&act.op, answer), (Op::Rename { .. } | Op::Link { .. }, Err(Errno::XDEV))) {
            continue;
        }
        let expected = plain.act(act);
        assert_eq!(answer, &expected, "{act:?}, while the daemon was alive");
    }
}

/// `Clock::NotDirectories`: whoever dies between two steps has touched directories already.
fn differs(union: &Snapshot, plain: &Path, clock: Clock) -> Vec<String> {
    model::difference(union, &Snapshot::take(plain), clock)
}

/// Whether content is written: the kernel tells the time of it first, and a killed process may come no further
/// (`ext4_write_checks` and `generic_perform_write` in the kernel).
fn writes(op: &Op) -> bool {
    matches!(op, Op::Open { .. } | Op::Write { .. } | Op::Append { .. } | Op::Copy { .. })
}

fn assert_no_leftovers(ground: &Ground, layout: &Layout, round: &str) {
    for branch in 0..layout.branches.len() {
        let temporary = ground.at(format!("{branch}/{WORK_AREA}/tmp"));
        let Ok(entries) = fs::read_dir(&temporary) else { continue };
        let left: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        assert!(left.is_empty(), "{round}: left over in {}: {left:?}", temporary.display());
    }
}

fn one_round(parent: &Path, round: u32, layout: &Layout, acts: &[Act], delay: Duration) -> usize {
    let ground = Ground::new(parent, &round.to_string(), layout).expect("write the branches");
    let plain_root = ground.write_plain().expect("write the plain directory");
    let mut plain = Caller::new(&plain_root);
    // hidden names do not count as links any more after a flush, and nobody knows whether it came to that
    let flushes = !ground.hides_names();
    let acts: Vec<_> = acts.iter().filter(|act| flushes || act.op != Op::Flush).cloned().collect();
    let acts = &ground.rehearse(&acts).expect("rehearse");
    let (death, mut mounted) = work_until_killed(&ground, acts, delay);
    mounted.mount_again();
    let name = format!("round {round}, killed after {} operations", death.answers.len());
    assert_no_leftovers(&ground, layout, &name);
    if !rootless::has_ordinary_daemons() {
        assert_eq!(mounted.check(), "", "{name}: runionfs check finds something");
    }
    let union = Snapshot::take(mounted.target());
    replay(&mut plain, acts, &death, !layout.only_top_is_writable());
    let before = differs(&union, &plain_root, Clock::NotDirectories);
    if !before.is_empty() {
        let Some(in_flight) = acts.get(death.answers.len()) else {
            panic!("{name}, of all: a remount shows what is not there\n{}", before.join("\n"))
        };
        let died_before_writing = writes(&in_flight.op) && differs(&union, &plain_root, Clock::None).is_empty();
        let (Ok(_) | Err(_)) = plain.act(in_flight);
        // the kernel tells the time of what it has gathered after the data
        let gathers = rootless::has_ordinary_daemons() || mounted.gathers_writes();
        let clock = if gathers { Clock::None } else { Clock::NotDirectories };
        let after = differs(&union, &plain_root, clock);
        assert!(
            after.is_empty() || died_before_writing,
            "{name}, in {in_flight:?}, a remount shows neither the state before:\n{}\nnor the one after:\n{}\nof {layout:#?}\nafter {:#?}",
            before.join("\n"),
            after.join("\n"),
            &acts[..death.answers.len()]
        );
    }
    still_works(mounted.target(), &plain_root, &name);
    death.answers.len()
}

/// What a crash left must not be in the way of what comes then.
fn still_works(union: &Path, plain: &Path, round: &str) {
    for entry in fs::read_dir(plain).expect("list the plain directory") {
        let path = union.join(entry.expect("an entry").file_name());
        let removed =
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.unwrap_or_else(|error| panic!("{round}: cannot remove {}: {error}", path.display()));
    }
    let left: Vec<_> =
        fs::read_dir(union).expect("list the union").map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(left.is_empty(), "{round}: all was removed, but {left:?} is there");
}

fn try_on(parent: &Path, rounds: u32) {
    let seed = number("RUNIONFS_CRASH_SEED", 1);
    let bytes: Vec<u8> = seed.to_le_bytes().iter().cycle().take(32).copied().collect();
    let mut runner =
        TestRunner::new_with_rng(ProptestConfig::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let writable_top = layouts().prop_filter("a top that takes every change", Layout::top_is_writable);
    let values = (writable_top, prop::collection::vec(single_changes(), LENGTH), 0..8_000_u64);
    let mut done = 0;
    for round in 0..rounds {
        let (layout, acts, micros) = values.new_tree(&mut runner).expect("a value").current();
        done += one_round(parent, round, &layout, &acts, Duration::from_micros(micros));
    }
    // on a machine that is busy with other things most rounds are over before they begin
    assert!(
        done > usize::try_from(rounds / 10).expect("few"),
        "the daemon died before it did anything: {done} operations"
    );
}

#[test]
fn killed_on_disk() {
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
    try_on(sandbox.path(), number("RUNIONFS_CRASH_ROUNDS", 500));
}

#[test]
fn killed_as_an_ordinary_user() {
    if rootless::again(Way::OneId, "killed_as_an_ordinary_user") {
        let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
        try_on(sandbox.path(), number("RUNIONFS_CRASH_ROOTLESS_ROUNDS", 25));
    }
}

/// What root does is kept beside the entries then.
#[test]
fn killed_as_the_daemon_of_an_ordinary_user() {
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
    if rootless::ordinary_daemons(&sandbox) {
        let ground = rootless::without_devices_and_set_ids(sandbox.path());
        try_on(&ground, number("RUNIONFS_CRASH_ROOTLESS_ROUNDS", 25));
    }
}

#[test]
fn killed_on_tmpfs() {
    let Some(sandbox) = sandbox::enter_for(Medium::Tmpfs, Duration::from_secs(1_200)) else { return };
    try_on(sandbox.path(), number("RUNIONFS_CRASH_ROUNDS", 500));
}
