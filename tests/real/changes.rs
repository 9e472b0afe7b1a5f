//! What `runionfs diff` must say, worked out from the tree before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::fixture::Union;
use harness::mount::finish;
use harness::snapshot::{Entry, Kind, Snapshot};

/// Lines as `docker diff` prints them, without those of the root.
#[derive(Debug, Default)]
struct Changes {
    added: BTreeSet<PathBuf>,
    changed: BTreeSet<PathBuf>,
    deleted: BTreeSet<PathBuf>,
}

/// Asserts that `runionfs diff` tells what became of the tree `before`.
#[track_caller]
pub(crate) fn assert_diff(runionfs: &Path, union: &Union, before: &Snapshot, after: &Snapshot) {
    let said = said(runionfs, union);
    let seen = seen(before, after);
    assert_equal("added", &said.added, &seen.added);
    assert_equal("deleted", &said.deleted, &seen.deleted);
    let missing: Vec<_> = seen.changed.difference(&said.changed).collect();
    assert!(missing.is_empty(), "{} changes are not told: {missing:?}", missing.len());
    // What was brought up and then given its old attributes back looks as before, yet lies in the top.
    let too_many = said.changed.difference(&seen.changed);
    let too_many: Vec<_> =
        too_many.filter(|path| !in_top(union, path) || !before.entries.contains_key(*path)).collect();
    assert!(too_many.is_empty(), "{} changes are told that are none: {too_many:?}", too_many.len());
}

fn in_top(union: &Union, path: &Path) -> bool {
    union.at("0").join(path).symlink_metadata().is_ok()
}

#[track_caller]
fn assert_equal(what: &str, said: &BTreeSet<PathBuf>, seen: &BTreeSet<PathBuf>) {
    let missing: Vec<_> = seen.difference(said).collect();
    let too_many: Vec<_> = said.difference(seen).collect();
    assert!(missing.is_empty() && too_many.is_empty(), "{what}: not told {missing:?}, wrongly told {too_many:?}");
}

fn said(runionfs: &Path, union: &Union) -> Changes {
    let outcome = finish(Command::new(runionfs).arg("diff").arg(union.mounted.target()));
    assert_eq!(outcome.status, Some(0), "runionfs diff: {}", outcome.stderr);
    let mut changes = Changes::default();
    for line in outcome.stdout.lines() {
        let (kind, path) = line.split_once(" /").unwrap_or_else(|| panic!("not a line of a diff: {line:?}"));
        let set = match kind {
            "A" => &mut changes.added,
            "C" => &mut changes.changed,
            "D" => &mut changes.deleted,
            _ => panic!("neither A, C nor D: {line:?}"),
        };
        assert!(path.is_empty() || set.insert(path.into()), "told twice: {line:?}");
    }
    changes
}

fn seen(before: &Snapshot, after: &Snapshot) -> Changes {
    let mut changes = Changes::default();
    for (path, entry) in &after.entries {
        match before.entries.get(path) {
            None => _ = changes.added.insert(path.clone()),
            Some(old) if differs(old, entry) => _ = changes.changed.insert(path.clone()),
            Some(_) => (),
        }
    }
    for path in before.entries.keys().filter(|path| !after.entries.contains_key(*path)) {
        // A removed tree is told once; so is one whose directory became something else.
        let parent = path.parent().expect("a path below the root");
        if parent.as_os_str().is_empty() || is_directory(&after.entries, parent) {
            changes.deleted.insert(path.clone());
        }
    }
    let all: Vec<_> = changes.added.iter().chain(&changes.changed).chain(&changes.deleted).cloned().collect();
    for parent in all.iter().flat_map(|path| path.ancestors().skip(1)) {
        if before.entries.contains_key(parent) && after.entries.contains_key(parent) {
            changes.changed.insert(parent.to_owned());
        }
    }
    changes
}

fn is_directory(tree: &BTreeMap<PathBuf, Entry>, path: &Path) -> bool {
    tree.get(path).is_some_and(|entry| entry.kind == Kind::Directory)
}

/// Whether an entry has other content or attributes. As for docker, a directory has no content and no time, and one
/// that was made again like the old one is no change; a file that was is one.
fn differs(old: &Entry, new: &Entry) -> bool {
    let essence = |entry: &Entry| {
        let timeless = Entry { ctime: (0, 0), atime: None, nlink: 0, ..entry.clone() };
        if entry.kind == Kind::Directory { Entry { mtime: (0, 0), ino: 0, ..timeless } } else { timeless }
    };
    essence(old) != essence(new)
}
