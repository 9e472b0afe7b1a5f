//! Mounting with the real binary, and what can happen to a mount: unmount, remount, kill, abort.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MntFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::old_kernel;
use crate::rootless;
use crate::sandbox::{self, MountEntry, abort_connections_below, mount_table};

/// Names more options for every mount of the tests: another way of serving them.
const EXTRA_OPTIONS: &str = "RUNIONFS_TEST_OPTIONS";
const PATIENCE: Duration = Duration::from_secs(90);

/// How a command ended and what it said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a command to its end, and to the end of its output: whoever keeps its pipes open is noticed here, as callers
/// such as container engines wait for that too.
///
/// # Panics
/// When the command does not end, or leaves its output open, for 90 seconds.
#[track_caller]
pub fn finish(command: &mut Command) -> Outcome {
    old_kernel::restrict(command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    let stdout = collect(child.stdout.take().expect("stdout is piped"));
    let stderr = collect(child.stderr.take().expect("stderr is piped"));
    let status = wait(&mut child, command);
    let text = |pipe: mpsc::Receiver<Vec<u8>>| {
        let bytes =
            pipe.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{command:?} ended but keeps its output open"));
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Outcome { status, stdout: text(stdout), stderr: text(stderr) }
}

fn collect(mut pipe: impl std::io::Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("read the output of a command");
        // The receiver is gone only when the test has already failed.
        sender.send(bytes).unwrap_or_default();
    });
    receiver
}

#[track_caller]
fn wait(child: &mut Child, command: &Command) -> Option<i32> {
    let ended = poll(PATIENCE, || child.try_wait().expect("wait for a command"));
    let Some(status) = ended else {
        child.kill().expect("kill a command that hangs");
        panic!("{command:?} did not end within {PATIENCE:?}");
    };
    status.code()
}

/// Asks again and again, until there is an answer or the time is up.
pub fn poll<T>(limit: Duration, mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = question() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A mounted union, served by a daemon of its own. Dropping it unmounts lazily and never hangs.
#[derive(Debug)]
pub struct Mounted {
    binary: PathBuf,
    arguments: Vec<OsString>,
    target: PathBuf,
    daemon: Option<Pid>,
}

impl Mounted {
    /// Mounts `branches` at `target` with `runionfs mount`. `options` are comma lists for `-o`.
    ///
    /// # Panics
    /// When the command fails, prints anything, or does not leave a mount behind.
    #[track_caller]
    pub fn mount(binary: impl AsRef<Path>, branches: impl AsRef<OsStr>, target: &Path, options: &[&str]) -> Mounted {
        match Mounted::try_mount(binary, branches, target, options) {
            Ok(mounted) => mounted,
            Err(outcome) => panic!("runionfs mount failed: {outcome:?}"),
        }
    }

    /// As [`Mounted::mount`], but a refusal is a value.
    ///
    /// # Errors
    /// How the command ended, where its status is not 0.
    ///
    /// # Panics
    /// When the command succeeds but prints something or leaves no mount.
    #[track_caller]
    pub fn try_mount(
        binary: impl AsRef<Path>,
        branches: impl AsRef<OsStr>,
        target: &Path,
        options: &[&str],
    ) -> Result<Mounted, Outcome> {
        let mut arguments: Vec<OsString> = vec!["mount".into(), branches.as_ref().into(), target.into()];
        for option in options {
            arguments.extend(["-o".into(), OsString::from(option)]);
        }
        // first, so that a test which is about an option has its own
        if let Some(options) = std::env::var_os(EXTRA_OPTIONS) {
            arguments.splice(3..3, ["-o".into(), options]);
        }
        if rootless::has_ordinary_daemons() {
            arguments.extend(["-o".into(), "allow_other".into()]);
        }
        let mut mounted =
            Mounted { binary: binary.as_ref().into(), arguments, target: target.to_owned(), daemon: None };
        mounted.start()?;
        Ok(mounted)
    }

    fn command(&self) -> Command {
        if !rootless::has_ordinary_daemons() {
            return Command::new(&self.binary);
        }
        let mut command = rootless::Way::Fusermount.command();
        command.arg(&self.binary);
        command
    }

    #[track_caller]
    fn start(&mut self) -> Result<(), Outcome> {
        let before = daemons(&self.binary, &self.target);
        let outcome = finish(self.command().args(&self.arguments));
        if outcome.status != Some(0) {
            return Err(outcome);
        }
        assert_eq!((&*outcome.stdout, &*outcome.stderr), ("", ""), "a mount that succeeds is silent");
        assert!(self.entry().is_some(), "runionfs mount succeeded but nothing is mounted at {}", self.target.display());
        let daemon = daemons(&self.binary, &self.target).into_iter().find(|pid| !before.contains(pid));
        self.daemon = Some(daemon.expect("runionfs mount succeeded but no daemon runs"));
        Ok(())
    }

    /// Where the union is mounted.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The process that serves the mount.
    ///
    /// # Panics
    /// When it was unmounted.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.daemon.expect("the union is mounted")
    }

    /// What the kernel's mount table says about it, the topmost where several are mounted.
    #[must_use]
    pub fn entry(&self) -> Option<MountEntry> {
        mount_table().into_iter().rev().find(|entry| entry.target == self.target && entry.kind.starts_with("fuse"))
    }

    /// Unmounts and waits until the daemon has ended.
    ///
    /// # Panics
    /// When the mount stays busy or the daemon does not end.
    #[track_caller]
    pub fn umount(&mut self) {
        self.detach();
        self.wait_for_the_end();
    }

    /// Unmounts and does not wait for the daemon.
    ///
    /// # Panics
    /// When the mount stays busy.
    #[track_caller]
    pub fn detach(&mut self) {
        // Somebody may just be looking (a file descriptor of a test that is about to be closed by a dying child).
        let result = poll(Duration::from_secs(5), || match sandbox::unmount(&self.target, MntFlags::empty()) {
            Err(Errno::EBUSY) => None,
            result => Some(result),
        });
        result.expect("unmount: still busy after 5 s").expect("unmount");
    }

    /// Waits until the daemon has ended.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn wait_for_the_end(&mut self) {
        let Some(pid) = self.daemon.take() else { return };
        let ended = poll(PATIENCE, || (!is_alive(pid)).then_some(()));
        assert!(ended.is_some(), "the daemon {pid} still runs {PATIENCE:?} after its mount is gone");
    }

    /// Mounts again with the same arguments, after [`Mounted::umount`] or [`Mounted::detach`].
    ///
    /// # Panics
    /// When the command fails.
    #[track_caller]
    pub fn mount_again(&mut self) {
        if let Err(outcome) = self.start() {
            panic!("mounting again failed: {outcome:?}");
        }
    }

    /// As [`Mounted::mount_again`], with other branches.
    ///
    /// # Panics
    /// When the command fails.
    #[track_caller]
    pub fn mount_again_over(&mut self, branches: impl AsRef<OsStr>) {
        self.arguments[1] = branches.as_ref().into();
        self.mount_again();
    }

    /// Unmounts, waits for the daemon's end, and mounts again: nothing is left but what lies on disk.
    ///
    /// # Panics
    /// When one of the steps fails.
    #[track_caller]
    pub fn remount(&mut self) {
        self.umount();
        self.mount_again();
    }

    /// `runionfs flush`.
    #[track_caller]
    #[must_use]
    pub fn flush(&self) -> Outcome {
        finish(Command::new(&self.binary).arg("flush").arg(&self.target))
    }

    /// Whether the kernel gathers writes for this mount, by what `runionfs show` says.
    #[track_caller]
    #[must_use]
    pub fn gathers_writes(&self) -> bool {
        let outcome = finish(Command::new(&self.binary).arg("show").arg(&self.target));
        outcome.stdout.lines().any(|line| line == "feature writeback_cache")
    }

    /// How many requests of a kind the kernel has sent, as `runionfs show` names them.
    ///
    /// # Panics
    /// When the count is no number.
    #[track_caller]
    #[must_use]
    pub fn requests(&self, kind: &str) -> u64 {
        let outcome = finish(Command::new(&self.binary).arg("show").arg(&self.target));
        let count = outcome.stdout.lines().find_map(|line| line.strip_prefix("requests ")?.strip_prefix(kind));
        count.map_or(0, |count| count.trim().parse().expect("a number"))
    }

    /// What `runionfs check` finds wrong in the branches; nothing where all is well.
    ///
    /// # Panics
    /// When it fails without having found anything.
    #[track_caller]
    #[must_use]
    pub fn check(&self) -> String {
        let outcome = finish(Command::new(&self.binary).args(["check", "--quiet"]).arg(&self.target));
        assert_eq!(outcome.status, Some(i32::from(!outcome.stdout.is_empty())), "{outcome:?}");
        outcome.stdout
    }

    /// Kills the daemon at once, as a crash would, and waits until it is gone. The dead mount stays.
    ///
    /// # Panics
    /// When it cannot be killed.
    #[track_caller]
    pub fn kill9(&mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("kill the daemon");
        self.wait_for_the_end();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // EINVAL: a test has unmounted it already.
        if self.entry().is_some() {
            abort_connection_if_stuck(&self.target);
            if let Err(errno) = sandbox::unmount(&self.target, MntFlags::MNT_DETACH) {
                eprintln!("cannot unmount {}: {errno}", self.target.display());
            }
        }
        let Some(pid) = self.daemon.take() else { return };
        if poll(Duration::from_secs(10), || (!is_alive(pid)).then_some(())).is_none() {
            eprintln!("the daemon {pid} outlives its mount: killed");
            if let Err(errno) = kill(pid, Signal::SIGKILL) {
                eprintln!("cannot kill it: {errno}");
            }
            assert!(thread::panicking(), "the daemon {pid} outlives its mount at {}", self.target.display());
        }
    }
}

/// A lazy unmount succeeds on a hung connection too, but its callers would wait for ever.
fn abort_connection_if_stuck(target: &Path) {
    if !thread::panicking() {
        return;
    }
    let (sender, receiver) = mpsc::channel();
    let path = target.to_owned();
    thread::spawn(move || {
        let answers = fs::read_dir(path).is_ok();
        // Nobody waits for an answer that comes too late.
        sender.send(answers).unwrap_or_default();
    });
    if receiver.recv_timeout(Duration::from_secs(5)).is_err() {
        abort_connections_below(target);
    }
}

/// The processes that run `binary` with `target` among their arguments.
fn daemons(binary: &Path, target: &Path) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    numbers.map(Pid::from_raw).filter(|pid| serves(*pid, binary, target) && is_alive(*pid)).collect()
}

fn serves(pid: Pid, binary: &Path, target: &Path) -> bool {
    // A process may end while we look: then it serves nothing.
    let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let runs = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program == binary);
    let mut arguments = command.split(|byte| *byte == 0);
    let first = arguments.next().is_some_and(|first| first == binary.as_os_str().as_bytes());
    (runs || first) && arguments.any(|argument| argument == target.as_os_str().as_bytes())
}

/// Whether a process runs, with any of its threads; one that only awaits its parent does not.
#[must_use]
pub fn is_alive(pid: Pid) -> bool {
    // The first thread of a process that was killed may be gone while another one still holds its descriptors.
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.filter_map(Result::ok).any(|thread| runs(&thread.path().join("stat")))
}

/// Whether a thread runs, by its proc_pid_stat(5).
fn runs(stat: &Path) -> bool {
    // It may end while we look.
    let Ok(text) = fs::read_to_string(stat) else { return false };
    let state = text.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}
