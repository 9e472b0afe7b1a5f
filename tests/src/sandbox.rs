//! Where a test runs: a private mount namespace, a directory that goes away, and a watchdog.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::rootless::{self, Way};

/// How long a test may take before the watchdog ends it.
pub const TIME_LIMIT: Duration = Duration::from_secs(120);

const FUSECTL: &str = "/sys/fs/fuse/connections";

/// What lies under the directory of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// The file system of `RUNIONFS_TEST_DIR` or, where that is not set, of `/var/tmp`.
    Disk,
    /// A tmpfs of the test's own.
    Tmpfs,
}

/// The private mount namespace and the directory of one test. Dropping it unmounts and removes everything.
pub struct Sandbox {
    directory: Option<tempfile::TempDir>,
    path: PathBuf,
    _watchdog: Watchdog,
}

/// A sandbox on disk, or `None` with the reason printed where this machine cannot run the test.
#[must_use]
pub fn enter() -> Option<Sandbox> {
    enter_on(Medium::Disk)
}

/// As [`enter`], on the medium that is asked for.
///
/// # Panics
/// Where the test cannot run and the environment has `CI=true`.
#[must_use]
pub fn enter_on(medium: Medium) -> Option<Sandbox> {
    enter_for(medium, TIME_LIMIT)
}

/// As [`enter_on`], for a test that is known to take longer than [`TIME_LIMIT`].
///
/// # Panics
/// Where the test cannot run and the environment has `CI=true`.
#[must_use]
pub fn enter_for(medium: Medium, limit: Duration) -> Option<Sandbox> {
    if let Some(reason) = obstacle() {
        skip(&reason);
        return None;
    }
    if rootless::inside() == Some(Way::Fusermount) {
        // who may not make a namespace is in one that was made for the test
        return Some(settle(medium, limit));
    }
    // A thread that unshares its mount namespace gets its own root, working directory and umask as well, so tests of
    // one process do not disturb each other; children of the thread inherit the namespace.
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare the mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("make all mounts private");
    show_fuse_connections();
    Some(settle(medium, limit))
}

fn settle(medium: Medium, limit: Duration) -> Sandbox {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let directory = scratch_directory();
    let path = directory.path().canonicalize().expect("resolve the scratch directory");
    if medium == Medium::Tmpfs {
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("mount a tmpfs");
    }
    let watchdog = Watchdog::start(path.clone(), limit);
    Sandbox { directory: Some(directory), path, _watchdog: watchdog }
}

/// Unmounts, by fusermount3 where that is what an ordinary user has.
///
/// # Errors
/// As umount2(2).
pub fn unmount(target: &Path, flags: MntFlags) -> Result<(), Errno> {
    match umount2(target, flags) {
        Err(Errno::EPERM) if rootless::inside().is_some() => {}
        result => return result,
    }
    let lazy = flags.contains(MntFlags::MNT_DETACH).then_some("-z");
    let output = Command::new("fusermount3").arg("-u").args(lazy).arg(target).output();
    match output.map(|output| (output.status.success(), output.stderr)) {
        Ok((true, _)) => Ok(()),
        Ok((false, said)) if String::from_utf8_lossy(&said).contains("busy") => Err(Errno::EBUSY),
        _ => Err(Errno::EPERM),
    }
}

/// Says why a test does not run; a failure where `CI=true`, so that no gap goes unnoticed there.
///
/// # Panics
/// Where the environment has `CI=true`.
pub fn skip(reason: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "{test} must not be skipped in CI: {reason}");
    say(&format!("SKIPPED {test}: {reason}"));
}

impl Sandbox {
    /// The directory of the test, empty at first.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes `name` in the sandbox a small ext4 file system of its own. `mkfs` goes to mkfs.ext4, as in `["-N", "64"]`.
    ///
    /// # Panics
    /// When the image cannot be made or mounted.
    #[must_use]
    pub fn small_ext4(&self, name: &str, mebibytes: u64, mkfs: &[&str]) -> PathBuf {
        let target = self.file_system(name, "ext4", mebibytes, &[&["-F", "-m", "0"], mkfs].concat());
        fs::remove_dir(target.join("lost+found")).expect("remove lost+found");
        target
    }

    /// Makes `name` in the sandbox a file system of its own, of a kind that mkfs(8) knows. `mkfs` goes to that.
    ///
    /// # Panics
    /// When the image cannot be made or mounted.
    #[must_use]
    pub fn file_system(&self, name: &str, kind: &str, mebibytes: u64, mkfs: &[&str]) -> PathBuf {
        let image = self.path.join(format!("{name}.img"));
        let target = self.path.join(name);
        let file = fs::File::create(&image).expect("create the image");
        file.set_len(mebibytes << 20).expect("size the image");
        fs::create_dir(&target).expect("create the mount point");
        run(Command::new(format!("mkfs.{kind}")).arg("-q").args(mkfs).arg(&image));
        run(Command::new("mount").args(["-o", "loop", "-t", kind]).arg(&image).arg(&target));
        target
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for target in mounts_below(&self.path).iter().rev() {
            if let Err(errno) = unmount(target, MntFlags::MNT_DETACH) {
                say(&format!("cannot unmount {}: {errno}", target.display()));
            }
        }
        let directory = self.directory.take();
        if mounts_below(&self.path).is_empty() {
            drop(directory);
        } else {
            // Removing through a mount would delete what is mounted.
            std::mem::forget(directory);
        }
    }
}

/// Runs a command that must succeed.
///
/// # Panics
/// When it cannot be started or fails; with its output.
#[track_caller]
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed with {}: {text}", output.status);
}

/// Makes the control files of FUSE connections visible; on most machines they are.
fn show_fuse_connections() {
    // Empty means not mounted, or mounted and without a connection yet.
    if fs::read_dir(FUSECTL).is_ok_and(|mut entries| entries.next().is_none()) {
        match mount(Some("none"), FUSECTL, Some("fusectl"), MsFlags::empty(), None::<&str>) {
            Ok(()) | Err(Errno::EBUSY) => {}
            // those of the machine are not shown in a user namespace
            Err(Errno::EPERM) if rootless::inside().is_some() => {}
            Err(errno) => panic!("cannot mount fusectl: {errno}"),
        }
    }
}

/// Why tests with real mounts cannot run here.
fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() && rootless::inside().is_none() {
        return Some("it needs root, for mounts and namespaces".into());
    }
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        return Some(format!("it needs /dev/fuse, which cannot be opened: {error}"));
    }
    None
}

fn scratch_directory() -> tempfile::TempDir {
    let base = std::env::var_os("RUNIONFS_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let directory = tempfile::Builder::new().prefix("runionfs-test-").tempdir_in(base).expect("a scratch directory");
    // tempfile makes it 0700; tests that act as other users must be able to enter it.
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod 755");
    directory
}

/// The mount points at or below `path` in the calling thread's namespace, in the order in which they were mounted.
/// Reads a table of the kernel and so never hangs on a dead mount.
#[must_use]
pub fn mounts_below(path: &Path) -> Vec<PathBuf> {
    mount_table().into_iter().map(|entry| entry.target).filter(|target| target.starts_with(path)).collect()
}

/// One line of `/proc/thread-self/mountinfo`.
#[derive(Debug, Clone)]
pub struct MountEntry {
    /// Where it is mounted.
    pub target: PathBuf,
    /// The minor number of its `st_dev`: for FUSE, the number of its connection.
    pub minor: u32,
    /// The options of the mount, as in `rw,nosuid`.
    pub options: String,
    /// The file system type, with its subtype.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// The options of the file system.
    pub super_options: String,
}

/// The mounts of the calling thread's namespace.
///
/// # Panics
/// When /proc does not tell.
#[must_use]
pub fn mount_table() -> Vec<MountEntry> {
    let table = fs::read("/proc/thread-self/mountinfo").expect("read mountinfo");
    // Sources may be any bytes; the mount points of tests are text.
    String::from_utf8_lossy(&table).lines().filter_map(mount_entry).collect()
}

/// Parses one line; see proc_pid_mountinfo(5).
fn mount_entry(line: &str) -> Option<MountEntry> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    Some(MountEntry {
        target: PathBuf::from(unescape(left.get(4)?)),
        minor: left.get(2)?.split_once(':')?.1.parse().ok()?,
        options: (*left.get(5)?).to_owned(),
        kind: (*right.first()?).to_owned(),
        source: unescape(right.get(1)?),
        super_options: (*right.get(2)?).to_owned(),
    })
}

/// mountinfo writes space, tab, newline and backslash in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Aborts the FUSE connections mounted at or below `path`: every call that waits in them ends with an error.
pub fn abort_connections_below(path: &Path) {
    for entry in mount_table() {
        if entry.target.starts_with(path) && entry.kind.starts_with("fuse") {
            let control = Path::new(FUSECTL).join(entry.minor.to_string()).join("abort");
            if let Err(error) = fs::write(&control, "1") {
                say(&format!("cannot abort the connection of {}: {error}", entry.target.display()));
            }
        }
    }
}

/// Ends a test that takes too long; calls it off when dropped.
struct Watchdog {
    _finished: Sender<()>,
}

impl Watchdog {
    fn start(path: PathBuf, limit: Duration) -> Self {
        let (sender, receiver) = mpsc::channel::<()>();
        let test = thread::current().name().unwrap_or("a test").to_owned();
        let expired = move |after| receiver.recv_timeout(after) == Err(RecvTimeoutError::Timeout);
        // A thread that is started here shares the mount namespace of the test.
        thread::spawn(move || {
            if !expired(limit) {
                return;
            }
            say(&format!("{test} did not end within {limit:?}: aborting its FUSE connections"));
            abort_connections_below(&path);
            if expired(Duration::from_secs(15)) {
                say(&format!("{test} hangs even so: ending the test process"));
                std::process::abort();
            }
        });
        Watchdog { _finished: sender }
    }
}

/// Prints past the capture of the test runner.
fn say(message: &str) {
    // Nothing is left to tell it to when stderr is closed.
    drop(writeln!(std::io::stderr(), "{message}"));
}
