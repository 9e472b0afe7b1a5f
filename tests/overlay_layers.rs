//! Layers of overlayfs, written and read by the kernel's own and by us: both show the same tree.
//!
//! `RUNIONFS_OVERLAY_CASES` sets how often, `RUNIONFS_OVERLAY_OPS` how long.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::model::{self, Clock};
use harness::mount::Mounted;
use harness::ops::{Act, Allocate, Caller, HandleUse, Op, Present, acts, acts_and_remounts, single_changes};
use harness::overlay::{Layers, Marks, Overlay, copy_tree};
use harness::sandbox::{self, Medium};
use harness::snapshot::{Exactness, Kind, Snapshot};
use harness::tree::{NAMES, layouts};
use harness::trial::{self, Ground, fail, number, try_many};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");

/// Layers, and what is done over them: what kernel and union are told.
fn histories() -> impl Strategy<Value = (Vec<Vec<Act>>, Vec<Act>)> {
    let length = usize::try_from(number("RUNIONFS_OVERLAY_OPS", 60)).expect("a length");
    // most of what makes a mark is about names
    let in_a_layer = prop_oneof![3 => single_changes(), 1 => acts()];
    let above = prop_oneof![3 => single_changes(), 1 => acts_and_remounts()];
    let layers = prop::collection::vec(prop::collection::vec(in_a_layer, 10..length.max(11)), 1..=4);
    (layers, prop::collection::vec(above, length / 2..2 * length))
}

fn cases() -> u32 {
    number("RUNIONFS_OVERLAY_CASES", 25)
}

/// A tree but for its root, which is the top branch's and not that of the layers.
fn tree(root: &Path) -> Result<Snapshot, TestCaseError> {
    let mut snapshot = Snapshot::try_take(root)
        .map_err(|(path, error)| TestCaseError::fail(format!("cannot read {}: {error}", path.display())))?;
    snapshot.entries.remove(Path::new(""));
    Ok(snapshot)
}

/// The names that lookup finds where no listing has them.
fn found_but_not_listed(root: &Path, tree: &Snapshot) -> Vec<String> {
    let dirs = tree.entries.iter().filter(|(_, entry)| entry.kind == Kind::Directory).map(|(path, _)| path.as_path());
    let all = dirs.chain([Path::new("")]).flat_map(|dir| NAMES.map(|name| dir.join(name)));
    let found = all.filter(|path| !tree.entries.contains_key(path) && fs::symlink_metadata(root.join(path)).is_ok());
    found.map(|path| path.display().to_string()).collect()
}

fn assert_none(lines: &[String], what: &str) -> TestCaseResult {
    if lines.is_empty() { Ok(()) } else { fail(format!("{what}:\n{}", lines.join("\n"))) }
}

/// A union over layers, and the plain directory that it must look like.
struct Trial {
    root: PathBuf,
    mounted: Mounted,
    plain: PathBuf,
    /// Whether directories with content below stay where they are.
    no_records: bool,
}

impl Trial {
    fn new(root: &Path, layers: &Layers, options: &[&str]) -> Trial {
        let (top, plain, target) = (root.join("top"), root.join("plain"), root.join("mnt"));
        for path in [&top, &target, &root.join("work")] {
            fs::create_dir(path).expect("make a directory");
        }
        copy_tree(layers.shown().target(), &plain);
        let mut branches = top.into_os_string();
        branches.push("=rw:");
        branches.push(layers.branch_string());
        let workdir = format!("workdir={}", root.join("work").display());
        let words: Vec<&str> = options.iter().copied().chain([workdir.as_str()]).collect();
        let mounted = Mounted::mount(BINARY, branches, &target, &words);
        Trial { root: root.to_owned(), mounted, plain, no_records: options.contains(&"whiteout=overlay") }
    }

    /// Lets both do the same.
    fn act_all(&mut self, acts: &[Act]) -> TestCaseResult {
        let (mut union, mut plain) = (Caller::new(self.mounted.target()), Caller::new(&self.plain));
        for act in acts {
            let act = &Present::of(&self.plain).resolve(act);
            let found = union.act(act);
            if found.as_ref().is_err_and(|errno| self.excuses(&union, &act.op, *errno)) {
                if let Op::Hold { handle, .. } = act.op {
                    plain.close(handle);
                }
                continue;
            }
            let expected = plain.act(act);
            if found != expected {
                return fail(format!("{act:?}\nsays {found:?}\nbut a plain directory {expected:?}"));
            }
            if act.op == Op::Remount {
                self.compare()?;
                self.mounted.remount();
                self.compare()?;
            }
        }
        Ok(())
    }

    fn excuses(&self, union: &Caller, op: &Op, errno: rustix::io::Errno) -> bool {
        match (op, errno) {
            // of two names one must be a directory that merges
            (Op::Rename { from, to, .. }, rustix::io::Errno::XDEV) if self.no_records => {
                [from, to].iter().any(|path| self.plain.join(path).is_dir())
            }
            (Op::Use { handle, what: HandleUse::Chmod { .. } }, rustix::io::Errno::STALE) => {
                union.holds_removed_special(*handle)
            }
            _ => false,
        }
    }

    fn compare(&self) -> TestCaseResult {
        let union = tree(self.mounted.target())?;
        let lines = model::difference(&union, &tree(&self.plain)?, Clock::All);
        assert_none(&lines, "the union is not the plain directory")?;
        assert_none(&found_but_not_listed(self.mounted.target(), &union), "found but not listed")
    }

    /// What lies in the top must be, to the kernel, what it was in the union: as a layer, and as the upper directory.
    fn compare_with_kernel(mut self, layers: &Layers) -> TestCaseResult {
        self.mounted.umount();
        let expected = tree(&self.plain)?;
        let top = self.root.join("top");
        let all: Vec<PathBuf> = [&top].into_iter().chain(&layers.paths).cloned().collect();
        let lower = Overlay::mount(&self.root.join("as-lower"), &all, None, &layers.reading());
        assert_none(&model::difference(&tree(lower.target())?, &expected, Clock::All), "the kernel over our layer")?;
        drop(lower);
        let work = self.root.join("kernel-work");
        let upper = Overlay::mount(&self.root.join("as-upper"), &layers.paths, Some((&top, &work)), &layers.reading());
        assert_none(&model::difference(&tree(upper.target())?, &expected, Clock::All), "the kernel in our top")
    }
}

/// Says how many marks the layers had, and the top after it.
fn try_layers(
    medium: Medium,
    options: &str,
    property: impl Fn(&Path, &Layers, &[Act]) -> TestCaseResult,
) -> Option<(Marks, Marks)> {
    let sandbox = sandbox::enter_for(medium, Duration::from_secs(1_200))?;
    let trials = Cell::new(0);
    let (met, written) = (Cell::new(Marks::default()), Cell::new(Marks::default()));
    let count = |marks: &Cell<Marks>, layer: &Path| {
        let mut all = marks.get();
        all.count(layer);
        marks.set(all);
    };
    // tmpfs has none of it
    let allowed =
        |act: &Act| medium == Medium::Disk || !matches!(act.op, Op::Allocate { manner: Allocate::ZeroRange, .. });
    try_many(cases(), &histories(), |(histories, acts)| {
        trials.set(trials.get() + 1);
        let root = sandbox.path().join(trials.get().to_string());
        let only = |acts: Vec<Act>| acts.into_iter().filter(allowed).collect::<Vec<_>>();
        let layers = Layers::write(&root, options, &histories.into_iter().map(only).collect::<Vec<_>>());
        layers.paths.iter().for_each(|layer| count(&met, layer));
        let result = property(&root, &layers, &only(acts));
        count(&written, &root.join("top"));
        fs::remove_dir_all(&root).expect("remove what a trial made");
        result
    });
    Some((met.get(), written.get()))
}

/// Layers of the kernel below a fresh top: the same tree, and operations over it do the same as in a plain directory.
fn below_a_fresh_top(root: &Path, layers: &Layers, acts: &[Act]) -> TestCaseResult {
    let expected = tree(layers.shown().target())?;
    let mut trial = Trial::new(root, layers, &[]);
    let lines = expected.difference(&tree(trial.mounted.target())?, Exactness::Equal);
    assert_none(&lines, "the union is not what overlayfs shows")?;
    trial.act_all(acts)?;
    trial.compare()?;
    trial.mounted.remount();
    trial.compare()
}

#[test]
fn layers_with_redirects_are_read_as_they_lie() {
    let Some((met, _)) = try_layers(Medium::Disk, "redirect_dir=on", below_a_fresh_top) else { return };
    assert!(met.whiteouts > 50 && met.opaque > 10 && met.redirects > 10, "too little was tried: {met:?}");
}

#[test]
fn layers_with_user_attributes_are_read_as_they_lie() {
    let Some((met, _)) = try_layers(Medium::Tmpfs, "userxattr", below_a_fresh_top) else { return };
    assert!(met.whiteouts > 50 && met.opaque > 0, "too little was tried: {met:?}");
}

#[test]
fn what_we_write_in_the_form_of_overlayfs_it_reads() {
    for medium in [Medium::Disk, Medium::Tmpfs] {
        let tried = try_layers(medium, "redirect_dir=on", |root, layers, acts| {
            let mut trial = Trial::new(root, layers, &["whiteout=overlay"]);
            trial.act_all(acts)?;
            trial.compare()?;
            trial.compare_with_kernel(layers)
        });
        let Some((_, written)) = tried else { return };
        assert!(written.whiteouts > 30 && written.opaque > 0, "too little was tried: {written:?}");
    }
}

/// Several writable branches, with marks of the other form in them from the start.
#[test]
fn a_union_that_is_written_so_looks_like_a_plain_directory() {
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(1_200)) else { return };
    let trials = Cell::new(0);
    let values = (layouts(), prop::collection::vec(acts_and_remounts(), 0..120));
    try_many(cases(), &values, |(layout, acts)| {
        trials.set(trials.get() + 1);
        let ground = Ground::new(sandbox.path(), &trials.get().to_string(), &layout).expect("write the branches");
        let ground = ground.with_option("whiteout=overlay");
        let mut trial = trial::Trial::new(ground, BINARY).expect("write the plain directory");
        trial.compare()?;
        acts.iter().try_for_each(|act| trial.act(act))?;
        trial.compare()
    });
}
