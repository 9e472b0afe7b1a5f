//! Paths that name what is there, so that most operations meet something.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::{Act, Op};
use crate::tree::{NAMES, paths};

/// What a tree holds at some moment, in a fixed order.
///
/// A path `@7` is the seventh entry, counted round; `@7/a` is `a` in the seventh directory; `&7` is the seventh entry
/// that is not a directory, `%7` the seventh directory but the root. A value that was drawn at random thus shrinks and still hits.
#[derive(Debug, Clone)]
pub struct Present {
    entries: Vec<String>,
    directories: Vec<String>,
    others: Vec<String>,
}

impl Present {
    /// Looks at the tree at `root`.
    ///
    /// # Panics
    /// When it cannot be listed.
    #[must_use]
    pub fn of(root: &Path) -> Present {
        let mut present = Present { entries: Vec::new(), directories: vec![String::new()], others: Vec::new() };
        let mut at = 0;
        while let Some(directory) = present.directories.get(at).cloned() {
            let mut names: Vec<_> = fs::read_dir(root.join(&directory))
                .expect("list a directory")
                .map(|entry| entry.expect("read a directory"))
                .map(|entry| (entry.file_name().into_string().expect("ASCII names"), entry.file_type()))
                .collect();
            names.sort_by(|one, other| one.0.cmp(&other.0));
            for (name, kind) in names {
                let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                let kind_list =
                    if kind.is_ok_and(|kind| kind.is_dir()) { &mut present.directories } else { &mut present.others };
                kind_list.push(path.clone());
                present.entries.push(path);
            }
            at += 1;
        }
        present
    }

    /// The same operation with paths in the place of picks.
    #[must_use]
    pub fn resolve(&self, act: &Act) -> Act {
        let mut act = act.clone();
        for path in act.op.paths_mut() {
            *path = self.path(path);
        }
        act
    }

    fn path(&self, pick: &str) -> String {
        let of = |list: &[String], number: &str| -> Option<String> {
            list.get(number.parse::<usize>().ok()? % list.len().max(1)).cloned()
        };
        let name_in = |directory: String, name: &str| match directory.as_str() {
            "" => name.to_owned(),
            directory => format!("{directory}/{name}"),
        };
        let found = match (pick.split_at_checked(1), pick.split_once('/')) {
            (Some(("&", number)), _) => of(&self.others, number),
            (Some(("%", number)), _) => of(self.directories.get(1..).unwrap_or_default(), number),
            (Some(("@", _)), Some((number, name))) => {
                of(&self.directories, number.trim_start_matches('@')).map(|directory| name_in(directory, name))
            }
            (Some(("@", number)), None) => of(&self.entries, number),
            _ => Some(pick.to_owned()),
        };
        found.unwrap_or_else(|| "a".to_owned())
    }
}

/// Paths of which most are there, or would be in a directory that is there.
pub(super) fn picks() -> BoxedStrategy<String> {
    prop_oneof![
        6 => (0..60usize).prop_map(|number| format!("@{number}")),
        3 => (0..20usize, prop::sample::select(NAMES.to_vec())).prop_map(|(number, name)| format!("@{number}/{name}")),
        1 => paths(),
    ]
    .boxed()
}

/// Paths of which most are there and are no directories.
pub(super) fn file_picks() -> BoxedStrategy<String> {
    prop_oneof![5 => (0..60usize).prop_map(|number| format!("&{number}")), 1 => picks()].boxed()
}

/// Paths of directories, where there are any.
pub(super) fn directory_picks() -> BoxedStrategy<String> {
    (0..20usize).prop_map(|number| format!("%{number}")).boxed()
}

/// Paths of which many are not there but could be made.
pub(super) fn places() -> BoxedStrategy<String> {
    prop_oneof![
        1 => (0..60usize).prop_map(|number| format!("@{number}")),
        6 => (0..20usize, prop::sample::select(NAMES.to_vec())).prop_map(|(number, name)| format!("@{number}/{name}")),
        1 => paths(),
    ]
    .boxed()
}

impl Op {
    /// The paths that it names.
    fn paths_mut(&mut self) -> Vec<&mut String> {
        match self {
            Op::Copy { from, to, .. } | Op::Link { from, to } | Op::Rename { from, to, .. } => vec![from, to],
            Op::Open { at, .. }
            | Op::Write { at, .. }
            | Op::Append { at, .. }
            | Op::Read { at }
            | Op::Stat { at, .. }
            | Op::Truncate { at, .. }
            | Op::Allocate { at, .. }
            | Op::Chmod { at, .. }
            | Op::Chown { at, .. }
            | Op::Times { at, .. }
            | Op::SetXattr { at, .. }
            | Op::GetXattr { at, .. }
            | Op::RemoveXattr { at, .. }
            | Op::Mkdir { at, .. }
            | Op::Rmdir { at }
            | Op::Unlink { at }
            | Op::Symlink { at, .. }
            | Op::Readlink { at }
            | Op::Mknod { at, .. }
            | Op::List { at }
            | Op::Sync { at }
            | Op::Hold { at, .. } => vec![at],
            Op::Use { .. } | Op::Close { .. } | Op::Remount | Op::Flush | Op::Layer => Vec::new(),
        }
    }
}
