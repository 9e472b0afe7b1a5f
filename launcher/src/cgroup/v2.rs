//! Giving controllers to the cgroups below one of v2.
//!
//! A cgroup that holds processes may not do that, unless it is the root of all: see cgroups(7), "no internal processes".

use nix::errno::Errno;

use super::detect::{Controller, Version};
use super::directory::Directory;

/// The controllers that a container can use.
const USED: [Controller; 5] =
    [Controller::Cpu, Controller::Cpuset, Controller::Memory, Controller::Pids, Controller::Io];

/// Where the processes of a cgroup go that has to give controllers to those below it.
const LEAF: &str = "rlaunch.processes";

/// Gives all the controllers that we use, as far as it has them itself. Those that cannot be given are returned.
pub(crate) fn give_controllers(
    directory: &Directory,
    may_move_processes: bool,
) -> Result<Vec<(Controller, Errno)>, Errno> {
    let (has, gives) = (directory.read("cgroup.controllers")?, directory.read("cgroup.subtree_control")?);
    let is_in = |text: &str, name| text.split_whitespace().any(|word| word == name);
    let mut failed = Vec::new();
    for controller in USED {
        let name = controller.name(Version::V2);
        let is_due = is_in(&has, name) && !is_in(&gives, name);
        if is_due && let Err(errno) = give(directory, name, may_move_processes) {
            failed.push((controller, errno));
        }
    }
    Ok(failed)
}

/// Gives one controller.
fn give(directory: &Directory, name: &str, may_move_processes: bool) -> Result<(), Errno> {
    let word = format!("+{name}");
    match directory.write("cgroup.subtree_control", &word) {
        Err(Errno::EBUSY) if may_move_processes => {
            move_to_leaf(directory)?;
            directory.write("cgroup.subtree_control", &word)
        }
        result => result,
    }
}

/// Moves the processes of a cgroup to one below it. EBUSY where some cannot be moved.
fn move_to_leaf(directory: &Directory) -> Result<(), Errno> {
    const ROUNDS: usize = 10;
    let (leaf, _) = Directory::open_or_make(&directory.path().join(LEAF))?;
    for _ in 0..ROUNDS {
        let processes = directory.processes()?;
        if processes.is_empty() {
            return Ok(());
        }
        // Processes that are outside of what can be seen have the number 0, which would mean this one.
        for process in processes.into_iter().filter(|process| process.as_raw() != 0) {
            match leaf.admit(process) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(_) => return Err(Errno::EBUSY),
            }
        }
    }
    Err(Errno::EBUSY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::{Command, Stdio};

    #[test]
    fn controllers_that_are_there_are_given() {
        let place = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(place.path().join(name), text).unwrap();
        put("cgroup.controllers", "cpuset cpu hugetlb pids\n");
        put("cgroup.subtree_control", "cpu\n");
        let directory = Directory::open(place.path()).unwrap();
        assert_eq!(give_controllers(&directory, false), Ok(Vec::new()));
        // The kernel's file adds; this one keeps what was written, the last thing over the first.
        assert!(directory.read("cgroup.subtree_control").unwrap().starts_with("+pids"));
    }

    /// On this machine's own v2, with whatever controller is left for it.
    #[test]
    fn processes_make_place_in_a_leaf() {
        let Some(v2) = super::super::detect::observe().unwrap().into_iter().find(|m| m.version == Version::V2) else {
            eprintln!("skipped: no cgroup v2 is mounted");
            return;
        };
        let root = Directory::open(&v2.root).unwrap();
        let names = root.read("cgroup.controllers").unwrap();
        // Those that count threads apart do not mind processes beside other cgroups.
        let minds = |name: &&str| ["memory", "io", "hugetlb"].contains(name);
        let Some(name) = names.split_whitespace().find(minds).filter(|_| nix::unistd::geteuid().is_root()) else {
            eprintln!("skipped: no controller, or not root");
            return;
        };
        let gives = root.read("cgroup.subtree_control").unwrap();
        root.write("cgroup.subtree_control", &format!("+{name}")).unwrap();
        let path = v2.root.join(format!("rlaunch-test-{}", std::process::id()));
        let directory = Directory::make(&path).unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        directory.admit(pid).unwrap();
        let refused = give(&directory, name, false);
        let given = give(&directory, name, true);
        let (left, leaf) = (directory.processes(), Directory::open(&path.join(LEAF)).and_then(|l| l.processes()));
        child.kill().unwrap();
        child.wait().unwrap();
        directory.remove().unwrap();
        if !gives.split_whitespace().any(|word| word == name) {
            root.write("cgroup.subtree_control", &format!("-{name}")).unwrap();
        }
        assert_eq!((refused, given), (Err(Errno::EBUSY), Ok(())));
        assert_eq!((left, leaf), (Ok(Vec::new()), Ok(vec![pid])));
    }
}
