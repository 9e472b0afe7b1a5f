//! Real input: a Debian root file system, split into layers, is the same Debian as a union, and real programs that
//! work in it leave behind what they leave in a plain directory.

#[path = "real/changes.rs"]
mod changes;
#[path = "real/debian.rs"]
mod debian;
#[path = "real/split.rs"]
mod split;
#[path = "support/tools.rs"]
mod tools;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use debian::{Debian, INIT_FILES};
use harness::fixture::{Branches, Union};
use harness::sandbox::{self, Medium, Sandbox, run};
use harness::snapshot::{Exactness, Snapshot};
use split::{Splitter, dress};

const RLAUNCH: &str = env!("CARGO_BIN_EXE_rlaunch");
const LIMIT: Duration = Duration::from_secs(1500);
/// An empty top, an init branch, and five layers.
const BRANCHES: &[&str] = &["rw", "ro+wh+init", "ro+wh", "ro+wh", "ro+wh", "ro+wh", "ro+wh"];

/// What is done inside, in this order.
const JOBS: &[(&str, &str)] = &[
    ("packages", include_str!("real/jobs/packages.sh")),
    ("python", include_str!("real/jobs/python.sh")),
    ("compile", include_str!("real/jobs/compile.sh")),
    ("sqlite", include_str!("real/jobs/sqlite.sh")),
    ("git", include_str!("real/jobs/git.sh")),
    ("trees", include_str!("real/jobs/trees.sh")),
];
const PRELUDE: &str = include_str!("real/jobs/prelude.sh");

/// The binary of the other package: cargo puts both into one folder.
fn runionfs() -> PathBuf {
    let binary = Path::new(RLAUNCH).with_file_name("runionfs");
    assert!(binary.is_file(), "{} is missing: build the whole workspace first", binary.display());
    binary
}

/// A union whose branches are a Debian split into layers, and what it has to look like. `prepare` adds to it first.
fn split_debian(debian: &Debian, sandbox: Sandbox, prepare: impl Fn(&Path)) -> (Union, Snapshot) {
    let stock = sandbox.path().join("stock");
    debian.unpack(&stock);
    prepare(&stock);
    let expected = Snapshot::take(&stock);
    let branches = Branches::inside(sandbox, runionfs(), BRANCHES);
    dress(&branches.at("0"), &expected.entries[Path::new("")]);
    let layers = (1..BRANCHES.len()).map(|index| branches.at(index.to_string())).collect();
    let mut splitter = Splitter::new(&expected, &stock, layers, INIT_FILES);
    splitter.split();
    println!("between the layers: {:#?}", splitter.done);
    assert!(splitter.done.len() >= 10 && splitter.done.values().all(|count| *count > 5), "{:?}", splitter.done);
    (branches.mount(), expected)
}

/// Without the root, whose time changes with the work area in the top.
fn tree(path: &Path) -> Snapshot {
    let mut tree = Snapshot::take(path);
    tree.entries.remove(Path::new(""));
    tree
}

/// Unmounts, mounts again, and expects the same tree with the same inode numbers.
fn remount_and_compare(union: &mut Union) {
    let before = Snapshot::take(union.mounted.target());
    union.mounted.remount();
    let after = Snapshot::take(union.mounted.target());
    before.assert_same(&after, Exactness::Equal, "a remount changed the tree");
    let moved = before.entries.iter().filter(|(path, entry)| after.entries[*path].ino != entry.ino);
    let moved: Vec<_> = moved.map(|(path, _)| path).collect();
    assert!(moved.is_empty(), "a remount changed {} inode numbers: {:?}", moved.len(), moved.iter().take(20));
}

#[test]
fn a_debian_split_into_layers_is_the_same_debian_as_a_union() {
    let Some(debian) = Debian::get() else { return };
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, LIMIT) else { return };
    let (mut union, mut expected) = split_debian(&debian, sandbox, |_| ());
    expected.entries.remove(Path::new(""));
    let shown = tree(union.mounted.target());
    expected.assert_same(&shown, Exactness::Equal, "the union is not the tree that was split");
    remount_and_compare(&mut union);
    assert_eq!(union.on_disk("0"), Vec::<String>::new(), "reading wrote into the top");
    union.assert_read_only_branches_untouched();
}

#[test]
fn work_in_a_split_debian_leaves_what_it_leaves_in_a_plain_one() {
    let Some(debian) = Debian::get() else { return };
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, LIMIT) else { return };
    let plain = sandbox.path().join("plain");
    debian.unpack(&plain);
    let (mut union, _) = split_debian(&debian, sandbox, |_| ());
    let before = tree(union.mounted.target());
    for root in [&plain, union.mounted.target()] {
        debian.packages(&root.join("packages"));
        for (name, job) in JOBS {
            work(root, name, job);
        }
    }
    let after = tree(union.mounted.target());
    let expected = tree(&plain).without(by_chance);
    expected.assert_same(
        &after.clone().without(by_chance),
        Exactness::EqualButTimes,
        "the union is no plain directory",
    );
    remount_and_compare(&mut union);
    union.assert_read_only_branches_untouched();
    changes::assert_diff(&runionfs(), &union, &before, &after);
}

#[test]
fn directories_of_a_split_debian_are_renamed_as_in_a_plain_one() {
    let Some(strace) = tools::find("strace") else { return };
    let Some(debian) = Debian::get() else { return };
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, LIMIT) else { return };
    let (plain, calls) = (sandbox.path().join("plain"), sandbox.path().join("calls"));
    let mover = |root: &Path| work(root, "mover", include_str!("real/jobs/mover.sh"));
    debian.unpack(&plain);
    mover(&plain);
    let (mut union, _) = split_debian(&debian, sandbox, mover);
    let renames = include_str!("real/jobs/renames.sh");
    let script = [renames, include_str!("real/jobs/upgrade.sh")].concat();
    work(&plain, "renames", &script);
    let mut traced = Command::new(strace);
    // only what fails is written down, and nobody hides it by copying
    traced.args(["-f", "-q", "--status=failed", "-e", "trace=rename,renameat,renameat2,link,linkat", "-o"]).arg(&calls);
    work_under(traced, union.mounted.target(), "renames", &script);
    let failed = std::fs::read_to_string(&calls).expect("read what strace wrote");
    let refused: Vec<_> = failed.lines().filter(|line| line.contains("EXDEV")).collect();
    assert!(refused.is_empty(), "{} renames are refused:\n{}", refused.len(), refused.join("\n"));
    for _remounted in 0..2 {
        let expected = tree(&plain).without(by_chance);
        let found = tree(union.mounted.target()).without(by_chance);
        expected.assert_same(&found, Exactness::EqualButTimes, "the union is no plain directory");
        remount_and_compare(&mut union);
    }
    // and again, right after a remount
    work(&plain, "renames", renames);
    work(union.mounted.target(), "renames", renames);
    let expected = tree(&plain).without(by_chance);
    expected.assert_same(
        &tree(union.mounted.target()).without(by_chance),
        Exactness::EqualButTimes,
        "the union is no plain directory after a remount",
    );
    union.assert_read_only_branches_untouched();
}

/// Runs one job in a container over `root`.
fn work(root: &Path, name: &str, job: &str) {
    let mut command = Command::new("timeout");
    command.arg("600");
    work_under(command, root, name, job);
}

/// As [`work`], by a command that runs another one.
fn work_under(mut command: Command, root: &Path, name: &str, job: &str) {
    let script = format!("{PRELUDE}\n{job}");
    println!("{name} in {}", root.display());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    run(command.arg(RLAUNCH).arg("--rootfs").arg(root).args(["sh", "-c", &script, name]));
}

/// What holds times, inode numbers or the order of events: it differs between two runs in plain directories, too.
fn by_chance(path: &Path) -> bool {
    let path = path.to_string_lossy();
    let index = path.contains("/.git/") && path.ends_with("/index");
    let cache = path == "var/cache/ldconfig/aux-cache" || path.starts_with("var/cache/apt/");
    index || cache || path.starts_with("var/log/")
}
