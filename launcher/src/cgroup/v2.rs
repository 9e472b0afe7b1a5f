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
pub(crate) const LEAF: &str = "rlaunch.processes";

/// Gives all the controllers that we use, as far as it has them itself. Those that cannot be given are returned.
pub(crate) fn give_controllers(
    directory: &Directory,
    may_move_processes: bool,
) -> Result<Vec<(Controller, Errno)>, Errno> {
    let (has, gives) = (directory.read("cgroup.controllers")?, directory.read("cgroup.subtree_control")?);
    let is_in = |text: &str, name| text.split_whitespace().any(|word| word == name);
    let is_due = |name| is_in(&has, name) && !is_in(&gives, name);
    let due: Vec<Controller> = USED.into_iter().filter(|controller| is_due(controller.name(Version::V2))).collect();
    if let Err(errno) = due.first().map_or(Ok(()), |_| make_place(directory, may_move_processes)) {
        return Ok(due.into_iter().map(|controller| (controller, errno)).collect());
    }
    let give = |controller: &Controller| {
        let given = directory.write("cgroup.subtree_control", &format!("+{}", controller.name(Version::V2)));
        Some((*controller, given.err()?))
    };
    Ok(due.iter().filter_map(give).collect())
}

/// Makes sure that no process is in a cgroup that is to give controllers. EBUSY where they have to stay.
///
/// The kernel itself refuses only some controllers. With the others, as `cpu`, the cgroup becomes one of threads, and
/// those below it could not hold processes: see cgroups(7), "Thread mode".
fn make_place(directory: &Directory, may_move_processes: bool) -> Result<(), Errno> {
    // The uppermost cgroup of all, which may do both, is the only one without a type.
    let is_root = directory.read("cgroup.type") == Err(Errno::ENOENT);
    match is_root || directory.processes()?.is_empty() {
        true => Ok(()),
        false if may_move_processes => move_to_leaf(directory),
        false => Err(Errno::EBUSY),
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

    /// As a cgroup of the kernel's, but that files keep what was written, the last thing over the first.
    fn cgroup(files: &[(&str, &str)]) -> (tempfile::TempDir, Directory) {
        let place = tempfile::tempdir().unwrap();
        let controllers = [("cgroup.controllers", "cpuset cpu hugetlb pids\n"), ("cgroup.subtree_control", "cpu\n")];
        for (name, text) in controllers.iter().chain(files) {
            fs::write(place.path().join(name), text).unwrap();
        }
        let directory = Directory::open(place.path()).unwrap();
        (place, directory)
    }

    #[test]
    fn controllers_that_are_there_are_given() {
        for files in [&[("cgroup.procs", "7\n")][..], &[("cgroup.procs", ""), ("cgroup.type", "domain\n")]] {
            let (_place, directory) = cgroup(files);
            assert_eq!(give_controllers(&directory, false), Ok(Vec::new()));
            assert!(directory.read("cgroup.subtree_control").unwrap().starts_with("+pids"));
        }
    }

    #[test]
    fn nothing_is_given_where_processes_have_to_stay() {
        let (_place, directory) = cgroup(&[("cgroup.procs", "7\n"), ("cgroup.type", "domain\n")]);
        let withheld = [Controller::Cpuset, Controller::Pids].map(|controller| (controller, Errno::EBUSY));
        assert_eq!(give_controllers(&directory, false), Ok(withheld.to_vec()));
        assert_eq!(directory.read("cgroup.subtree_control").unwrap(), "cpu\n");
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
        let refused = make_place(&directory, false);
        let made = make_place(&directory, true);
        let given = directory.write("cgroup.subtree_control", &format!("+{name}"));
        let (left, leaf) = (directory.processes(), Directory::open(&path.join(LEAF)).and_then(|l| l.processes()));
        child.kill().unwrap();
        child.wait().unwrap();
        directory.remove().unwrap();
        if !gives.split_whitespace().any(|word| word == name) {
            root.write("cgroup.subtree_control", &format!("-{name}")).unwrap();
        }
        assert_eq!((refused, made, given), (Err(Errno::EBUSY), Ok(()), Ok(())));
        assert_eq!((left, leaf), (Ok(Vec::new()), Ok(vec![pid])));
    }
}
