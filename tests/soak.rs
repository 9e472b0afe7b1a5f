//! Everything at once, for a long time: fio with verification, processes that change names and attributes beside a plain
//! directory that is told the same, lower files that come up while others read them, listings. Then nothing is lost, the
//! read-only branches are what they were, a remount shows the same tree, and the daemon is as small as before.
//!
//! `RUNIONFS_SOAK_SECONDS` says how long (120 if nothing does), `RUNIONFS_SOAK_OPTIONS` with which mount options, and
//! `RUNIONFS_SOAK_SEED` with which numbers by chance. Needs fio(1).

#[path = "support/soak_files.rs"]
mod soak_files;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::model::{self, Clock, Naming};
use harness::mount::{Mounted, poll};
use harness::ops::{Caller, HandleUse, Op, Present, work_and_syncs};
use harness::sandbox::{self, Medium};
use harness::snapshot::{Exactness, Snapshot, WORK_AREA, names};
use harness::tree::layouts;
use harness::trial::{Ground, number};
use harness::world::Access;
use nix::unistd::Pid;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use rustix::io::Errno;
use soak_files::{COUNT, Lower, check_listing};

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");
/// What a process is told that changes names: where, how long, with which seed.
const CHURN: &str = "RUNIONFS_SOAK_CHURN";
const PROCESSES: u32 = 3;
/// The resident memory after the whole run may be larger than after its first third by so much.
const ROOM: usize = 32 << 20;
/// So many descriptors more than after the mount may be open when the kernel has forgotten all.
const DESCRIPTORS: usize = 24;

fn seed() -> u32 {
    number("RUNIONFS_SOAK_SEED", 1)
}

fn runner(seed: u32) -> TestRunner {
    let bytes: Vec<u8> = seed.to_le_bytes().iter().cycle().take(32).copied().collect();
    TestRunner::new_with_rng(ProptestConfig::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// The branches `0` to `2`, and `plain`, beside each other.
struct Place(PathBuf);

impl Place {
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    fn new(root: &Path) -> Place {
        let place = Place(root.to_owned());
        for name in ["0", "1", "2", "plain", "mnt"] {
            fs::create_dir(place.at(name)).expect("make a branch");
        }
        place
    }

    /// Fills the directory of a process: random in the branches, and the same merged in the plain directory.
    fn fill(&self, process: u32, runner: &mut TestRunner) {
        let mut layout = layouts().new_tree(runner).expect("a layout").current();
        layout.branches = vec![Access::Writable, Access::Whiteouts, Access::Whiteouts];
        let name = format!("churn{process}");
        let ground = Ground::new(&self.0, &format!("ground{process}"), &layout).expect("write branches");
        let plain = ground.write_plain().expect("write the plain directory");
        for branch in ["0", "1", "2"] {
            fs::rename(ground.at(branch), self.at(branch).join(&name)).expect("move what was made");
        }
        fs::rename(plain, self.at("plain").join(&name)).expect("move what was made");
        // names that branches hide count as links
        fs::rename(ground.at("elsewhere"), self.at(format!("elsewhere{process}"))).expect("move what was made");
    }

    fn mount(&self) -> Mounted {
        let branches =
            format!("{}=rw:{}=ro+wh:{}=ro+wh", self.at("0").display(), self.at("1").display(), self.at("2").display());
        let options = std::env::var("RUNIONFS_SOAK_OPTIONS").unwrap_or_default();
        let options: Vec<&str> = options.split(',').filter(|option| !option.is_empty()).collect();
        Mounted::mount(BINARY, branches, &self.at("mnt"), &options)
    }
}

/// Changes what is below one directory at random, and a plain one with it, until the time is up.
fn churn(union_root: &Path, plain_root: &Path, duration: Duration, seed: u32) {
    let mut runner = runner(seed);
    let (mut union, mut plain, mut naming) = (Caller::new(union_root), Caller::new(plain_root), Naming::default());
    let acts = work_and_syncs();
    let begun = Instant::now();
    let mut done = 0;
    while begun.elapsed() < duration {
        let act = acts.new_tree(&mut runner).expect("an operation").current();
        let act = Present::of(plain_root).resolve(&act);
        let found = union.act(&act);
        let stale =
            matches!(act.op, Op::Use { handle, what: HandleUse::Chmod { .. } } if union.holds_removed_special(handle));
        if stale && found == Err(Errno::STALE) {
            continue;
        }
        let expected = plain.act(&act);
        assert_eq!(found, expected, "seed {seed}, operation {done}: {act:?}");
        done += 1;
        if done % 1_500 == 0 {
            compare(union_root, plain_root, &mut naming, &format!("seed {seed}, after operation {done}"));
        }
    }
    compare(union_root, plain_root, &mut naming, &format!("seed {seed}, at the end"));
    assert!(done > 20, "only {done} operations in {duration:?}");
    println!("{done} operations in {}", union_root.display());
}

#[track_caller]
fn compare(union_root: &Path, plain_root: &Path, naming: &mut Naming, when: &str) {
    let (union, plain) = (Snapshot::take(union_root), Snapshot::take(plain_root));
    let mut lines = model::difference(&union, &plain, Clock::All);
    lines.extend(naming.check(&union, &plain, plain_root));
    assert!(lines.is_empty(), "{when}, the union is not the plain directory:\n{}", lines.join("\n"));
}

/// One of the processes of the long run, or by itself a short one.
#[test]
fn a_process_sees_what_it_sees_in_a_plain_directory() {
    if let Ok(told) = std::env::var(CHURN) {
        let words: Vec<&str> = told.split(':').collect();
        let [union, plain, seconds, seed] = words[..] else { panic!("{CHURN} is {told}") };
        let seconds = Duration::from_secs(seconds.parse().expect("seconds"));
        return churn(Path::new(union), Path::new(plain), seconds, seed.parse().expect("a seed"));
    }
    let Some(sandbox) = sandbox::enter_on(Medium::Disk) else { return };
    let place = Place::new(sandbox.path());
    place.fill(0, &mut runner(seed()));
    let mounted = place.mount();
    churn(&mounted.target().join("churn0"), &place.at("plain/churn0"), Duration::from_secs(3), seed());
}

/// The load, and what became of it.
struct Load<'a> {
    place: &'a Place,
    /// How many lower files were changed, and how many are to be until the end of a part.
    changed: AtomicUsize,
    goal: usize,
    over: AtomicBool,
}

impl Load<'_> {
    fn root(&self) -> PathBuf {
        self.place.at("mnt/files")
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Acquire)
    }

    /// Brings lower files up, evenly over the time.
    fn bring_up(&self, begun: Instant, duration: Duration) {
        let first = self.changed.load(Ordering::Acquire);
        for number in first..self.goal {
            let share = (number - first) as f64 / (self.goal - first) as f64;
            thread::sleep(duration.mul_f64(share).saturating_sub(begun.elapsed()));
            let lower = Lower(number);
            let checked = lower.check(&self.root(), Some(false));
            let acted = checked.and_then(|()| lower.act(&self.root()).map_err(|error| format!("{lower:?}: {error}")));
            acted.and_then(|()| lower.check(&self.root(), Some(true))).expect("a lower file that comes up");
            self.changed.store(number + 1, Ordering::Release);
        }
    }

    /// Reads files that come up now, did long ago, or will.
    fn read(&self, mut chance: TestRng) {
        while self.goes_on() {
            let (changed, any) = (self.changed.load(Ordering::Acquire), chance.next_u32() as usize);
            let number = if any.is_multiple_of(2) { changed + any / 2 % 4 } else { any / 2 % COUNT };
            let sure = if number < changed { Some(true) } else { None };
            Lower(number.min(COUNT - 1))
                .check(&self.root(), sure.filter(|_| number < COUNT))
                .expect("a file that is read");
            check_listing(&self.root()).expect("a listing");
        }
    }

    /// Runs fio again and again, each time in another way.
    fn run_fio(&self, first: usize, seed: u32) {
        const WAYS: [&[&str]; 5] = [
            &["--ioengine=psync", "--rw=randwrite", "--bsrange=4k-64k", "--fsync=64"],
            &["--ioengine=mmap", "--rw=randwrite", "--bs=4k"],
            &["--ioengine=psync", "--rw=randwrite", "--bs=16k", "--direct=1"],
            &["--ioengine=psync", "--rw=write", "--bs=128k", "--end_fsync=1"],
            &["--ioengine=psync", "--rw=randrw", "--bs=8k", "--fdatasync=128"],
        ];
        for (turn, way) in WAYS.iter().cycle().skip(first).enumerate() {
            if !self.goes_on() {
                return;
            }
            // every other time over what lies below
            let name = if turn % 2 == 0 { format!("new{first}") } else { format!("below{first}-{}", turn % 8) };
            let mut command = Command::new("fio");
            command.args(["--name=soak", "--size=12m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
            command.args(["--thread", "--output-format=terse", "--group_reporting", "--allow_file_create=1"]);
            command.arg(format!("--randseed={}", seed as usize + turn)).args(*way);
            command.arg("--filename").arg(self.place.at("mnt/fio").join(&name));
            let output = command.stdin(Stdio::null()).output().expect("run fio");
            let text =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            assert!(output.status.success(), "{command:?} fails with {}:\n{text}", output.status);
            if turn % 8 == 6 {
                fs::remove_file(self.place.at("mnt/fio").join(&name)).expect("remove what fio wrote");
            }
        }
    }

    /// All of it for some time.
    fn run(&self, duration: Duration, seed: u32) {
        let begun = Instant::now();
        let processes: Vec<Child> = (0..PROCESSES).map(|process| self.start(process, duration, seed)).collect();
        let over = Over(&self.over, processes);
        thread::scope(|scope| {
            let chance = |seed: u32| TestRng::from_seed(RngAlgorithm::ChaCha, &[seed as u8; 32]);
            let mut threads = vec![scope.spawn(move || self.bring_up(begun, duration))];
            threads.extend((0..2).map(|reader| scope.spawn(move || self.read(chance(seed + reader)))));
            threads.extend((0..2).map(|first| scope.spawn(move || self.run_fio(first, seed))));
            while begun.elapsed() < duration
                && !threads.iter().any(|thread| thread.is_finished() && self.is_early(begun, duration))
            {
                thread::sleep(Duration::from_millis(50));
            }
            self.over.store(true, Ordering::Release);
        });
        over.join();
    }

    /// Whether who ends now has failed.
    fn is_early(&self, begun: Instant, duration: Duration) -> bool {
        begun.elapsed() < duration && self.changed.load(Ordering::Acquire) < self.goal
    }

    fn start(&self, process: u32, duration: Duration, seed: u32) -> Child {
        let name = format!("churn{process}");
        let (union, plain) = (self.place.at("mnt").join(&name), self.place.at("plain").join(&name));
        let seed = seed.wrapping_mul(1_000) + process;
        let told = format!("{}:{}:{}:{seed}", union.display(), plain.display(), duration.as_secs());
        let program = std::env::current_exe().expect("the path of this test");
        let test = "a_process_sees_what_it_sees_in_a_plain_directory";
        let mut command = Command::new(program);
        command.args(["--exact", test, "--nocapture"]).env(CHURN, told).stdin(Stdio::null());
        command.spawn().expect("start a process")
    }
}

/// Tells threads that it is over, and processes when something fails.
struct Over<'a>(&'a AtomicBool, Vec<Child>);

impl Over<'_> {
    fn join(mut self) {
        for mut process in std::mem::take(&mut self.1) {
            let status = process.wait().expect("wait for a process");
            assert!(status.success(), "a process that changes names and attributes: {status}");
        }
    }
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        for process in &mut self.1 {
            let killed = process.kill().and_then(|()| process.wait().map(drop));
            killed.unwrap_or_else(|error| eprintln!("ending a process: {error}"));
        }
    }
}

/// What the daemon holds when the kernel has forgotten what it can: resident bytes, and descriptors.
fn at_rest(pid: Pid, descriptors_at_first: usize) -> (usize, Vec<String>) {
    let status = |word: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("read the daemon's status");
        let line = text.lines().find_map(|line| line.strip_prefix(word).map(str::to_owned)).expect("a line of it");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number of kB") << 10
    };
    let mut open = Vec::new();
    // forgets come when the kernel likes
    poll(Duration::from_secs(20), || {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("drop caches");
        thread::sleep(Duration::from_millis(200));
        open = descriptors(pid);
        (open.len() <= descriptors_at_first + DESCRIPTORS).then_some(())
    });
    (status("VmRSS:"), open)
}

fn descriptors(pid: Pid) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("list the daemon's descriptors");
    let target = |path: PathBuf| fs::read_link(path).ok().map(|target| target.display().to_string());
    entries.filter_map(|entry| target(entry.ok()?.path())).collect()
}

#[test]
fn a_long_mixed_load_loses_nothing_and_leaves_nothing() {
    if std::env::var_os(CHURN).is_some() {
        return;
    }
    let seconds = Duration::from_secs(number("RUNIONFS_SOAK_SECONDS", 120).into());
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, seconds * 2 + Duration::from_secs(600)) else { return };
    if Command::new("fio").arg("--version").output().is_err() {
        return sandbox::skip("it needs fio");
    }
    let place = Place::new(sandbox.path());
    let mut chance = runner(seed());
    (0..PROCESSES).for_each(|process| place.fill(process, &mut chance));
    for branch in ["0", "1", "2"] {
        fs::create_dir(place.at(branch).join("fio")).expect("make a directory");
        fs::create_dir(place.at(branch).join("files")).expect("make a directory");
    }
    soak_files::write([place.at("1/files"), place.at("2/files")]);
    for name in (0..2).flat_map(|first| [1, 3, 5, 7].map(|turn| format!("below{first}-{turn}"))) {
        fs::write(place.at("2/fio").join(name), vec![7; 5 << 20]).expect("write a lower file");
    }
    let below = ["1", "2"].map(|branch| (branch, Snapshot::take(&place.at(branch))));
    let mut mounted = place.mount();
    let first = descriptors(mounted.pid()).len();
    println!("seed {}, {seconds:?}", seed());

    let mut load = Load { place: &place, changed: 0.into(), goal: COUNT / 3, over: false.into() };
    load.run(seconds / 3, seed());
    let (before, _) = at_rest(mounted.pid(), first);
    load = Load { place: &place, changed: load.changed.into_inner().into(), goal: COUNT, over: false.into() };
    load.run(seconds - seconds / 3, seed() + 1);
    let (after, open) = at_rest(mounted.pid(), first);

    println!("resident: {} KiB after a third, {} KiB at the end", before >> 10, after >> 10);
    assert!(after <= before + ROOM, "the daemon grew from {before} to {after} bytes");
    assert!(open.len() <= first + DESCRIPTORS, "{first} descriptors became {}: {open:#?}", open.len());
    let changed = load.changed.load(Ordering::Acquire);
    let wrong: Vec<_> = (0..COUNT).filter_map(|at| Lower(at).check(&load.root(), Some(at < changed)).err()).collect();
    assert!(wrong.is_empty(), "seed {}: {}", seed(), wrong.join("\n"));
    let left = names(&place.at("0").join(WORK_AREA).join("tmp")).expect("list the temporary entries");
    assert!(left.is_empty(), "left over in the work area: {left:?}");
    let tree = Snapshot::take(mounted.target());
    mounted.remount();
    let lines = model::difference(&Snapshot::take(mounted.target()), &tree, Clock::All);
    assert!(lines.is_empty(), "seed {}, a remount changed the tree:\n{}", seed(), lines.join("\n"));
    let found = mounted.check();
    assert!(found.is_empty(), "runionfs check finds\n{found}");
    mounted.umount();
    for (branch, before) in below {
        before.assert_same(
            &Snapshot::take(&place.at(branch)),
            Exactness::Untouched,
            &format!("the branch {branch} changed"),
        );
    }
}
