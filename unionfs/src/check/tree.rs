//! The marks in the tree of a writable branch.

use std::collections::HashSet;

use rustix::io::Errno;

use super::{CheckError, Report, Weight};
use crate::branch::descent::Descent;
use crate::branch::dir::{Dir, RawEntry};
use crate::branch::leftovers::{self, ORPHANS, PSEUDO_LINKS, WHITEOUT_BASE};
use crate::branch::stat::Kind;
use crate::diff::view::View;
use crate::union::name::{RECORD, RECORDS, WORK_AREA};
use crate::union::redirect::{self, Places};
use crate::union::{BranchIndex, Name, NameBuf, RawName, Redirect};

/// What is known of the branch.
struct Tree<'a, 'b> {
    view: &'a View,
    branch: BranchIndex,
    /// Whether branches below are known, in which records lead somewhere.
    has_below: bool,
    has_records: bool,
    report: &'a mut Report<'b>,
}

pub(super) fn check(
    root: Dir,
    view: &View,
    branch: BranchIndex,
    has_below: bool,
    report: &mut Report<'_>,
) -> Result<(), CheckError> {
    let failed = |error| CheckError::Entry { path: report.root.as_os_str().as_encoded_bytes().to_vec(), error };
    let has_records = crate::branch::has_records(&root).map_err(failed)?;
    let mut tree = Tree { view, branch, has_below, has_records, report };
    let mut path = Vec::new();
    // for each directory of the way, those in it that are still to be looked at
    let mut pending = vec![tree.directory(&root, &path)?];
    let mut descent = Descent::new(root);
    while let Some(inside) = pending.last_mut() {
        let Some(name) = inside.pop() else {
            pending.pop();
            descent.leave();
            path.truncate(path.iter().rev().skip(1).position(|byte| *byte == b'/').map_or(0, |at| path.len() - at - 1));
            continue;
        };
        let opened = descent.here(open).and_then(|dir| open(dir, name.as_name()));
        match opened {
            Ok(dir) => {
                path.extend_from_slice(name.as_bytes());
                path.push(b'/');
                pending.push(tree.directory(&dir, &path)?);
                descent.enter(name.as_name(), dir);
            }
            // gone or another one by now, or a mount point, which is no part of the branch
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
            Err(error) => return Err(CheckError::Entry { path: [&path, name.as_bytes()].concat(), error }),
        }
    }
    Ok(())
}

fn open(dir: &Dir, name: Name<'_>) -> Result<Dir, Errno> {
    dir.open_dir(name.as_bytes())
}

impl Tree<'_, '_> {
    /// Checks the entries of one directory; the directories in it.
    fn directory(&mut self, dir: &Dir, path: &[u8]) -> Result<Vec<NameBuf>, CheckError> {
        let failed = |error| CheckError::Entry { path: path.to_vec(), error };
        let entries = dir.entries().map_err(failed)?;
        let names: HashSet<&[u8]> = entries.iter().map(|entry| &*entry.name).collect();
        let opaque = dir.is_opaque().map_err(failed)?;
        for entry in &entries {
            self.entry(dir, path, entry, &names, opaque).map_err(failed)?;
        }
        let dirs = entries.iter().filter(|entry| entry.kind == Kind::Dir);
        let names = dirs.filter_map(|entry| match RawName::parse(&entry.name) {
            RawName::Entry(name) => Some(name.to_owned()),
            _ => None,
        });
        Ok(names.collect())
    }

    fn entry(
        &mut self,
        dir: &Dir,
        path: &[u8],
        entry: &RawEntry,
        names: &HashSet<&[u8]>,
        opaque: bool,
    ) -> Result<(), Errno> {
        let full = [path, &entry.name[..]].concat();
        let mut say = |weight, what: &str| self.report.say(weight, &full, what);
        match RawName::parse(&entry.name) {
            RawName::Entry(_) => {}
            RawName::Whiteout(_) | RawName::Opaque | RawName::LongWhiteout if entry.kind != Kind::File => {
                say(Weight::Problem, "a mark is a regular file, and this is none: remove it");
            }
            RawName::Opaque => {}
            RawName::LongWhiteout if dir.long_name(&entry.name)?.is_none() => {
                say(
                    Weight::Problem,
                    "its name does not fit the name that it holds, so that it hides nothing: remove it",
                );
            }
            RawName::Whiteout(_) | RawName::LongWhiteout if opaque => {
                say(Weight::Note, "a whiteout in an opaque directory, where it hides nothing: it can be removed");
            }
            RawName::Whiteout(hidden) if names.contains(hidden.as_bytes()) => {
                say(Weight::Note, "a whiteout beside its name, left by a crash: it hides only what is below");
            }
            RawName::Whiteout(_) | RawName::LongWhiteout => {}
            RawName::Reserved => self.reserved(dir, path, entry, opaque)?,
        }
        Ok(())
    }

    /// A name that is never shown: ours, or one of AuFS.
    fn reserved(&mut self, dir: &Dir, path: &[u8], entry: &RawEntry, opaque: bool) -> Result<(), Errno> {
        let full = [path, &entry.name[..]].concat();
        let at_root = [WORK_AREA, RECORDS, PSEUDO_LINKS, ORPHANS, WHITEOUT_BASE];
        let name = &*entry.name;
        if name == RECORD {
            return self.record(dir, &full, entry, opaque);
        }
        if path.is_empty() && at_root.contains(&name) {
            return Ok(());
        }
        if !leftovers::is_record_of_renaming(name) {
            let what = "a name that is kept for marks, and none of ours: it is never shown, and can be removed";
            self.report.say(Weight::Note, &full, what);
        } else if !path.is_empty() {
            let leftover = leftovers::Leftover::Renamed(name.to_vec());
            self.report.say(Weight::Problem, &full, leftover.to_string());
        }
        Ok(())
    }

    /// The record of a renamed directory.
    fn record(&mut self, dir: &Dir, full: &[u8], entry: &RawEntry, opaque: bool) -> Result<(), Errno> {
        let target = match entry.kind {
            Kind::Symlink => dir.read_link(&entry.name)?,
            _ => {
                self.report.say(Weight::Problem, full, "a record is a symbolic link, and this is none: remove it");
                return Ok(());
            }
        };
        let Some(record) = Redirect::path(&target) else {
            let what = format!(
                "'{}' is no place of a directory, so that the directory cannot be read: remove it, and what lies below \
                 is missing in it",
                String::from_utf8_lossy(&target)
            );
            self.report.say(Weight::Problem, full, what);
            return Ok(());
        };
        if !self.has_records {
            let what = format!(
                "the record does not count, for {} is missing at the root of the branch: make it as an empty file",
                String::from_utf8_lossy(RECORDS)
            );
            self.report.say(Weight::Problem, full, what);
        }
        // an opaque directory shows nothing of what is below
        if opaque || !self.has_below {
            return Ok(());
        }
        let nowhere = Places { stack: Vec::new(), lowest_seen: self.branch };
        let target = String::from_utf8_lossy(&target);
        match redirect::follow(self.view, &nowhere, self.branch, &record) {
            Ok(found) if !found.stack.is_empty() => {}
            Ok(_) => {
                let what = format!(
                    "there is no directory '{target}' in the branches below, which it leads to: give the branches \
                     with which it was renamed"
                );
                self.report.say(Weight::Problem, full, what);
            }
            Err(Errno::LOOP) => {
                let what = format!("'{target}' and the records of the branches below lead on and on: remove it");
                self.report.say(Weight::Problem, full, what);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
