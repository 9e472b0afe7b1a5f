//! Containers and their processes, printed.

use std::fmt::Write as _;
use std::fs;

use nix::unistd::Pid;

use super::resources;
use crate::failure::{Doing as _, Failure};
use crate::state::Record;

/// One line for each.
pub(super) fn containers(records: &[Record]) -> Result<String, Failure> {
    let mut lines = vec![["NAME", "PID", "STATUS", "ROOT", "COMMAND"].map(str::to_owned)];
    for record in records {
        let is_running = runs(record)?;
        let pid = record.init.filter(|_| is_running).map_or("-".to_owned(), |init| init.pid.to_string());
        let status = status(record)?;
        lines.push(
            [record.name.clone(), pid, status, record.root.clone(), record.command.join(" ")].map(|text| plain(&text)),
        );
    }
    Ok(aligned(&lines))
}

/// What it does now, in a word.
pub(super) fn status(record: &Record) -> Result<String, Failure> {
    let is_running = runs(record)?;
    Ok(match record.status {
        Some(status) => format!("ended ({status})"),
        None if is_running && is_paused(record) => "paused".to_owned(),
        None if is_running => "runs".to_owned(),
        None if record.open_launcher().doing("look at the container")?.is_some() => "starts or ends".to_owned(),
        // Its launcher was killed, or the machine went down.
        None => "ended (?)".to_owned(),
    })
}

/// The processes that are in the container's own process namespace or, where it has none, below its first process.
pub(super) fn processes(record: &Record) -> Result<String, Failure> {
    let (init, _open) = super::running(record)?;
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(init.pid).filter(|own| Some(own) != namespace(Pid::this().as_raw()).as_ref());
    let mut lines = vec![["PID", "COMMAND"].map(str::to_owned)];
    for pid in numbers()? {
        let is_in = match &own {
            Some(own) => namespace(pid).as_ref() == Some(own),
            None => is_below(pid, init.pid),
        };
        if is_in {
            lines.push([pid.to_string(), command(pid)]);
        }
    }
    Ok(aligned(&lines))
}

fn is_paused(record: &Record) -> bool {
    // Where there are no control groups nobody can be paused.
    resources::cgroups(record).is_ok_and(|cgroups| cgroups.is_frozen())
}

pub(super) fn runs(record: &Record) -> Result<bool, Failure> {
    Ok(record.status.is_none() && record.open_init().doing("look at the container")?.is_some())
}

fn numbers() -> Result<Vec<i32>, Failure> {
    let entries = fs::read_dir("/proc").doing("list processes")?;
    let mut numbers: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn is_below(pid: i32, above: i32) -> bool {
    let parent = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok().filter(|parent| *parent > 1)
    };
    std::iter::successors(Some(pid), parent).any(|pid| pid == above)
}

fn command(pid: i32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&words).replace('\0', " ");
    plain(text.trim_end())
}

/// What a container says of itself must not move the cursor of whoever looks.
fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

pub(super) fn aligned<const COLUMNS: usize>(lines: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a string cannot fail.
            write!(row, "{cell:width$}  ").unwrap_or_default();
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_harmless() {
        let lines = [["NAME", "X"], ["a-long-name", "1"]].map(|line| line.map(str::to_owned));
        assert_eq!(aligned(&lines), "NAME         X\na-long-name  1\n");
        assert_eq!(plain("a\x1b[2Jb\n"), "a?[2Jb?");
    }
}
