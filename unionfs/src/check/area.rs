//! The work area of a writable branch.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Report, Weight};
use crate::branch::dir::{Dir, RawEntry};
use crate::branch::hold::is_in_use;
use crate::branch::stat::{Kind, Stat};
use crate::branch::table::{NUMBERS, is_table_head};
use crate::branch::work::{LINKS, TEMPORARY, VOLATILE};
use crate::links;
use crate::union::name::WORK_AREA;

/// Checks the work area in a directory, if there is one.
pub(super) fn check(parent: &Dir, report: &mut Report<'_>) -> Result<(), Errno> {
    let found = match parent.find(WORK_AREA) {
        // the branch lies in a union, which has such names for nobody
        Err(Errno::PERM) => None,
        found => found?,
    };
    match found.map(|stat| stat.kind) {
        None => return Ok(()),
        Some(Kind::Dir) => {}
        Some(_) => {
            report.say(
                Weight::Problem,
                WORK_AREA,
                "it should be a directory: remove it, or the branch cannot be mounted",
            );
            return Ok(());
        }
    }
    let area = parent.open_dir(WORK_AREA)?;
    let path = |name: &[u8]| [WORK_AREA, name].join(&b'/');
    if !is_in_use(&area)? {
        let left = contents(&area, TEMPORARY)?.len();
        if left > 0 {
            let what = format!("{left} temporary entries were left: the next mount removes them");
            report.say(Weight::Note, &path(TEMPORARY), what);
        }
        if area.find(VOLATILE)?.is_some() {
            let what = "a volatile mount did not end well: the content cannot be trusted; remove this file to use it \
                        all the same";
            report.say(Weight::Problem, &path(VOLATILE), what);
        }
    }
    if let Some(what) = fault_of_numbers(&area)? {
        report.say(Weight::Problem, &path(NUMBERS), what);
    }
    check_links(&area, report)
}

fn fault_of_numbers(area: &Dir) -> Result<Option<&'static str>, Errno> {
    const MADE_ANEW: &str = "it is no table of inode numbers: the next mount makes a new one, and some numbers change";
    let table = match area.open_file(NUMBERS, OFlags::RDONLY) {
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::STALE) => {
            return Ok(Some("it should be a regular file: remove it, or the branch cannot be mounted"));
        }
        table => table?,
    };
    let mut head = [0; 8];
    match rustix::io::pread(&table, &mut head, 0)? {
        // the file system was full when it was made
        0 => Ok(None),
        8 if is_table_head(head) => Ok(None),
        _ => Ok(Some(MADE_ANEW)),
    }
}

/// Checks the hard-link records.
fn check_links(area: &Dir, report: &mut Report<'_>) -> Result<(), Errno> {
    let entries = contents(area, LINKS)?;
    for RawEntry { name, kind, .. } in &entries {
        let path = [WORK_AREA, LINKS, name].join(&b'/');
        let (number, is_record) = match name.strip_suffix(b".o") {
            Some(number) => (number, true),
            None => (&name[..], false),
        };
        if number.len() != 16 || !number.iter().all(u8::is_ascii_hexdigit) {
            report.say(Weight::Problem, &path, "it is no record of hard links: remove it");
        } else if is_record {
            if *kind != Kind::File || !parses(&area.open_dir(LINKS)?, name)? {
                let what = "the record of hard links cannot be read, so that names of it below show the old content: \
                            remove it";
                report.say(Weight::Problem, &path, what);
            }
        } else if *kind == Kind::Dir {
            report.say(Weight::Problem, &path, "it should be a hard link to a file of the branch: remove it");
        } else if !entries.iter().any(|other| other.name.strip_suffix(b".o") == Some(number)) {
            report.say(Weight::Note, &path, "a hard link without a record, which nothing leads to: remove it");
        }
    }
    Ok(())
}

fn parses(links: &Dir, name: &[u8]) -> Result<bool, Errno> {
    let file = match links.open_file(name, OFlags::RDONLY) {
        // a mount removed it in this moment
        Err(Errno::NOENT) => return Ok(true),
        file => file?,
    };
    // longer ones are read by pieces, and the head says all that can be wrong
    Ok(Stat::of_file(&file)?.size >= links::HEAD as u64)
}

/// The entries of a directory of the area; none if there is no such directory.
fn contents(area: &Dir, name: &[u8]) -> Result<Vec<RawEntry>, Errno> {
    match area.open_dir(name) {
        Ok(dir) => dir.entries(),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
