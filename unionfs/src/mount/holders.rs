//! Where a file system is mounted, in whichever mount namespace: by the tables of all processes that there are.

use std::collections::HashSet;
use std::fs::{File, read_dir, read_link};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::table::{self, DeviceNumber, Entry};
use crate::proc;

/// Who may reach a file system by a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: it lives on for those who have something open in it.
    Nobody,
    /// This process's own namespace, at this path.
    Ours(PathBuf),
    /// That of a process, at this path of its own.
    Other(i32, PathBuf),
    /// Perhaps that of a process whose table cannot be read.
    Unknown(i32),
    /// Perhaps that of a process that cannot be seen (hidepid= of proc(5)).
    Hidden,
}

/// Looks for mounts of a file system, in the tables of all threads, for each may have a namespace of its own. No file
/// system but /proc is asked.
///
/// A table shows what its process can reach from its root directory; whoever has changed that hides the rest. A
/// namespace that no process is in, but that is kept by a mount or a descriptor, is not seen.
///
/// # Errors
/// Those of reading /proc.
pub fn holder(device: DeviceNumber) -> io::Result<Holder> {
    let own = table::read()?;
    if let Some(found) = on_device(&own, device) {
        return Ok(Holder::Ours(found.target.clone()));
    }
    if hides_processes(&own) {
        return Ok(Holder::Hidden);
    }
    let mut seen = HashSet::new();
    for process in numbers(&proc::path("."))? {
        let tasks = match numbers(&proc::path(&format!("{process}/task"))) {
            Ok(tasks) => tasks,
            Err(error) if is_gone(&error) => continue,
            Err(_) => return Ok(Holder::Unknown(process)),
        };
        for task in tasks {
            let task = proc::path(&format!("{process}/task/{task}"));
            if view(&task).is_some_and(|view| !seen.insert(view)) {
                continue;
            }
            match read_table(&task) {
                Ok(table) => {
                    if let Some(found) = on_device(&table, device) {
                        return Ok(Holder::Other(process, found.target.clone()));
                    }
                }
                Err(error) if is_gone(&error) => {}
                Err(_) => return Ok(Holder::Unknown(process)),
            }
        }
    }
    Ok(Holder::Nobody)
}

fn on_device(table: &[Entry], device: DeviceNumber) -> Option<&Entry> {
    table.iter().find(|entry| entry.device == device)
}

/// Whether there are processes that are not shown to us. Whoever may look into the first one is shown all.
fn hides_processes(own: &[Entry]) -> bool {
    let hides = |entry: &Entry| {
        let options = entry.options.to_string_lossy();
        entry.fs_type == "proc" && options.split(',').any(|word| word.starts_with("hidepid=") && word != "hidepid=0")
    };
    own.iter().any(hides) && read_link(proc::path("1/ns/mnt")).is_err()
}

/// What the table of a thread depends on: its namespace and its root directory, where they may be seen.
fn view(task: &Path) -> Option<(PathBuf, PathBuf)> {
    Some((read_link(task.join("ns/mnt")).ok()?, read_link(task.join("root")).ok()?))
}

fn read_table(task: &Path) -> io::Result<Vec<Entry>> {
    let mut text = Vec::new();
    File::open(task.join("mountinfo"))?.read_to_end(&mut text)?;
    Ok(table::parse(&text))
}

/// The processes or threads in a directory of /proc.
fn numbers(directory: &Path) -> io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in read_dir(directory)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(numbers)
}

/// Whether it has ended: then it is EINVAL, too, for a thread that is about to has no namespace any more.
fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::SRCH, Errno::INVAL].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| gone.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_found_and_what_is_not_is_nobodys() {
        let proc = table::read().unwrap().into_iter().find(|entry| entry.fs_type == "proc").unwrap();
        assert!(matches!(holder(proc.device).unwrap(), Holder::Ours(_)));
        assert_eq!(holder(DeviceNumber { major: 0, minor: 0 }).unwrap(), Holder::Nobody);
    }
}
