//! Bounds of the daemon: memory comes back, and descriptors do not grow with the number of files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use harness::mount::{Mounted, poll};
use harness::sandbox::{self, Medium, Sandbox};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

const RUNIONFS: &str = env!("CARGO_BIN_EXE_runionfs");
const LIMIT: Duration = Duration::from_secs(600);
const MEBIBYTE: usize = 1 << 20;
/// A hard limit that real machines have.
const DESCRIPTORS: u64 = 20_000;

/// The tests would see each other's load.
static ALONE: Mutex<()> = Mutex::new(());

/// A union of an empty top and a branch of `directories` times `files` files, on a tmpfs.
fn union(sandbox: &Sandbox, directories: usize, files: usize) -> Mounted {
    union_with(sandbox, directories, files, &[])
}

/// The same with options for the command.
fn union_with(sandbox: &Sandbox, directories: usize, files: usize, options: &[&str]) -> Mounted {
    let path = |name: &str| sandbox.path().join(name);
    for name in ["top", "below", "mnt"] {
        fs::create_dir(path(name)).expect("make a branch");
    }
    for directory in 0..directories {
        let directory = path("below").join(format!("tree/directory{directory}"));
        fs::create_dir_all(&directory).expect("make a directory");
        for file in 0..files {
            fs::write(directory.join(format!("file{file}")), format!("{file}")).expect("make a file");
        }
    }
    let branches = format!("{}=rw:{}=ro+wh", path("top").display(), path("below").display());
    Mounted::mount(RUNIONFS, branches, &path("mnt"), options)
}

/// The resident memory of a process, in bytes.
fn resident(pid: Pid) -> usize {
    memory(pid, "VmRSS:")
}

/// What a process has of some memory, in bytes; see proc_pid_status(5).
fn memory(pid: Pid, kind: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("read the daemon's status");
    let line = status.lines().find_map(|line| line.strip_prefix(kind)).expect("a line of memory");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number of kB") << 10
}

fn descriptors(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("list the daemon's descriptors").count()
}

/// Looks at every file below `root`; the number of files.
fn look_at_all(root: &Path) -> usize {
    let mut count = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("list") {
            let path = entry.expect("an entry").path();
            if fs::symlink_metadata(&path).expect("look at a file").is_dir() {
                pending.push(path);
            } else {
                count += 1;
            }
        }
    }
    count
}

/// Counts the daemon's descriptors while something else goes on.
struct Watch {
    highest: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn start(pid: Pid) -> Watch {
        let (highest, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (shared, ended) = (Arc::clone(&highest), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                shared.fetch_max(descriptors(pid), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        Watch { highest, stop, thread }
    }

    /// The highest number seen.
    fn highest(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch ends");
        self.highest.load(Ordering::Relaxed)
    }
}

/// Lets the kernel forget names and inodes, as memory pressure would; see proc_sys_vm(5).
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "2").expect("drop the kernel's caches");
}

fn enter() -> Option<Sandbox> {
    let sandbox = sandbox::enter_for(Medium::Tmpfs, LIMIT)?;
    if fs::File::options().write(true).open("/proc/sys/vm/drop_caches").is_err() {
        sandbox::skip("it needs to write /proc/sys/vm/drop_caches");
        return None;
    }
    Some(sandbox)
}

/// The daemon raises its limit to the hard one: lowers it for the daemons of this process.
fn lower_the_limit_of_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("read a limit");
    let limit = hard.min(DESCRIPTORS);
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).expect("lower a limit");
}

#[test]
fn memory_comes_back_after_200000_files_were_looked_at_and_forgotten() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(sandbox) = enter() else { return };
    let mounted = union(&sandbox, 1000, 200);
    let start = resident(mounted.pid());
    let watch = Watch::start(mounted.pid());
    assert_eq!(look_at_all(mounted.target()), 200_000);
    let grown = resident(mounted.pid());
    let open = watch.highest();
    assert!(open < 2500, "{open} descriptors for 1000 directories and 200,000 files");
    let back = poll(Duration::from_secs(60), || {
        drop_caches();
        thread::sleep(Duration::from_millis(200));
        (resident(mounted.pid()) <= start + 20 * MEBIBYTE).then_some(())
    });
    let end = resident(mounted.pid());
    println!(
        "resident: {start} bytes at the start, {grown} with all files known, {end} at the end; {open} descriptors"
    );
    assert!(back.is_some(), "{start} bytes at the start, {grown} with all files known, still {end} at the end");
}

#[test]
fn what_large_requests_take_comes_back_when_nobody_asks() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(sandbox) = sandbox::enter_for(Medium::Tmpfs, LIMIT) else { return };
    // the daemon has to see what is read and written
    let mounted = union_with(&sandbox, 1, 1, &["passthrough=off,writeback=off"]);
    let content = vec![7; 8 * MEBIBYTE];
    fs::write(sandbox.path().join("below/large"), &content).expect("make a file");
    assert_eq!(look_at_all(mounted.target()), 2);
    let start = memory(mounted.pid(), "RssAnon:");
    for name in ["first", "second"] {
        assert!(fs::read(mounted.target().join("large")).expect("read") == content);
        fs::write(mounted.target().join(name), &content).expect("write");
        let back = poll(Duration::from_secs(60), || {
            thread::sleep(Duration::from_millis(200));
            (memory(mounted.pid(), "RssAnon:") <= start + MEBIBYTE / 2).then_some(())
        });
        let end = memory(mounted.pid(), "RssAnon:");
        assert!(back.is_some(), "{start} bytes at the start, still {end} long after {name}");
    }
}

#[test]
fn files_are_copied_and_removed_by_the_ten_thousands_with_few_descriptors() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(sandbox) = enter() else { return };
    lower_the_limit_of_descriptors();
    let mounted = union(&sandbox, 100, 500);
    let watch = Watch::start(mounted.pid());
    let copy = mounted.target().join("copy");
    sandbox::run(Command::new("cp").arg("-a").arg(mounted.target().join("tree")).arg(&copy));
    assert_eq!(look_at_all(&copy), 50_000);
    sandbox::run(Command::new("rm").arg("-rf").arg(&copy).arg(mounted.target().join("tree")));
    let open = watch.highest();
    assert!(open < 2500, "{open} descriptors for 200 directories and 100,000 files");
    assert_eq!(names(mounted.target()), Vec::<PathBuf>::new());
}

fn names(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).expect("list").map(|entry| entry.expect("an entry").path()).collect()
}
