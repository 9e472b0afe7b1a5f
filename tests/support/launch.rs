//! Containers for tests: a small root file system, and rlaunch at work in it.

// Every test file uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use harness::mount::{Outcome, finish, is_alive, poll};
use harness::old_kernel;
use harness::sandbox::{self, Sandbox, run};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tools;

pub(crate) const RLAUNCH: &str = env!("CARGO_BIN_EXE_rlaunch");
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A root directory with busybox in it and nothing else.
pub(crate) struct Tree {
    sandbox: Sandbox,
}

impl Tree {
    /// `None` where the test is skipped.
    pub(crate) fn new() -> Option<Tree> {
        let sandbox = sandbox::enter()?;
        fill(&sandbox.path().join("tree"))?;
        Some(Tree { sandbox })
    }

    /// A path beside the root directory.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    /// A path in the root directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join("tree").join(name)
    }

    /// `rlaunch --rootfs` the root directory.
    pub(crate) fn rlaunch(&self) -> Command {
        let mut command = Command::new(RLAUNCH);
        command.arg("--rootfs").arg(self.path(""));
        command
    }

    /// Runs a shell script in a container.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> Outcome {
        finish(self.rlaunch().args(["sh", "-c", script]))
    }

    /// What a shell script prints in a container, where it must succeed in silence.
    #[track_caller]
    pub(crate) fn print(&self, script: &str) -> String {
        printed(self.sh(script))
    }
}

/// A tree whose containers are recorded where no other test looks. What is left of them at the end is killed.
pub(crate) struct Recorded(pub(crate) Tree);

impl Recorded {
    /// A tree with the host's records hidden. `None` where the test is skipped.
    pub(crate) fn new() -> Option<Recorded> {
        Tree::new().map(Recorded::over)
    }

    /// Hides the host's records, of what runs and of what stays: in either, the end of this test would find the containers
    /// of others.
    pub(crate) fn over(tree: Tree) -> Recorded {
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("hide the host's /run");
        let state = tree.beside("lib");
        fs::create_dir(&state).expect("make a directory for what stays");
        mount(Some(&state), "/var/lib", None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .expect("hide the host's /var/lib");
        Recorded(tree)
    }

    /// That nothing is there any more of any container.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        for folder in ["/run/rlaunch", "/var/lib/rlaunch"] {
            let left =
                fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>());
            assert!(left.is_err(), "left in {folder}: {left:?}");
        }
    }
}

impl std::ops::Deref for Recorded {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        &self.0
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let list = finish(Command::new(RLAUNCH).arg("ps")).stdout;
        for name in list.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
            finish(Command::new(RLAUNCH).args(["rm", "--force", name]));
        }
    }
}

/// The output of a command that succeeded and had nothing to complain about.
#[track_caller]
pub(crate) fn printed(outcome: Outcome) -> String {
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""), "{outcome:?}");
    outcome.stdout
}

/// Makes a root directory with busybox.
fn fill(root: &Path) -> Option<()> {
    let busybox = tools::find("busybox")?;
    fs::create_dir_all(root.join("bin")).expect("make /bin");
    fs::create_dir_all(root.join("etc")).expect("make /etc");
    fs::copy(&busybox, root.join("bin/busybox")).expect("copy busybox");
    let list = finish(Command::new(&busybox).arg("--list")).stdout;
    for name in list.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(name)).expect("link to busybox");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("write passwd");
    Some(())
}

/// A container that runs while the test looks at it. Killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it, and waits until it has printed the line `ready`.
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Running {
        let mut running = Running::begin(command);
        assert_eq!(running.line(), "ready");
        running
    }

    /// Starts it.
    pub(crate) fn begin(command: &mut Command) -> Running {
        Running::begin_with(command, Stdio::null())
    }

    /// Starts it, with something to read.
    pub(crate) fn begin_with(command: &mut Command, input: impl Into<Stdio>) -> Running {
        old_kernel::restrict(command);
        let mut child = command.stdin(input).stdout(Stdio::piped()).spawn().expect("start rlaunch");
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Running { child, output }
    }

    /// The container's first process.
    #[track_caller]
    pub(crate) fn init(&self) -> Pid {
        self.children()
            .into_iter()
            .find(|pid| !name(*pid).starts_with("rlaunch: "))
            .expect("the container's first process")
    }

    /// The next line of its output, or what there is at the end.
    ///
    /// # Panics
    /// When nothing comes.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        if self.output.buffer().is_empty() {
            let mut source = [PollFd::new(self.output.get_ref().as_fd(), PollFlags::POLLIN)];
            let limit = PollTimeout::try_from(PATIENCE).expect("a time that poll takes");
            assert_ne!(nix::poll::poll(&mut source, limit), Ok(0), "the container prints nothing");
        }
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read the container's output");
        line.trim_end().to_owned()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("send a signal to rlaunch");
    }

    /// The processes that the launcher itself has made.
    pub(crate) fn children(&self) -> Vec<Pid> {
        let pid = self.pid();
        let list =
            fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("read the launcher's children");
        list.split_whitespace().map(|pid| Pid::from_raw(pid.parse().expect("a number"))).collect()
    }

    /// The process that serves the container's unions.
    #[track_caller]
    pub(crate) fn daemon(&self) -> Pid {
        let is_daemon = |pid: &Pid| name(*pid) == "rlaunch: union";
        self.children().into_iter().find(is_daemon).expect("the union's daemon")
    }

    /// Waits for the end: the exit status and the rest of the output.
    #[track_caller]
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let status = poll(PATIENCE, || self.child.try_wait().expect("wait for rlaunch")).expect("rlaunch does not end");
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("read the container's output");
        (status.code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended long ago.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

/// Waits until none of the processes runs any more.
#[track_caller]
pub(crate) fn wait_until_gone(processes: &[Pid]) {
    let gone = poll(PATIENCE, || processes.iter().all(|pid| !is_alive(*pid)).then_some(()));
    assert!(gone.is_some(), "still there: {:?}", processes.iter().filter(|pid| is_alive(**pid)).collect::<Vec<_>>());
}

/// Waits until nobody writes a file any more, who has written it many times a second.
#[track_caller]
pub(crate) fn wait_until_still(file: &Path) {
    let read = || fs::read(file).unwrap_or_default();
    let is_still = || {
        let before = read();
        std::thread::sleep(Duration::from_millis(300));
        (before == read()).then_some(())
    };
    assert!(poll(PATIENCE, is_still).is_some(), "{} is still written", file.display());
}

/// Waits until somebody writes a file.
#[track_caller]
pub(crate) fn wait_until_changed(file: &Path) {
    let before = fs::read(file).unwrap_or_default();
    let has_changed = || fs::read(file).is_ok_and(|now| !now.is_empty() && now != before).then_some(());
    assert!(poll(PATIENCE, has_changed).is_some(), "{} is not written", file.display());
}

/// The name of a process, as `ps` shows it.
pub(crate) fn name(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The arguments of a process.
pub(crate) fn arguments(pid: Pid) -> Vec<String> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// All processes that have `word` as one of their arguments.
pub(crate) fn processes_with(word: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").expect("list /proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
    pids.filter(|pid| arguments(*pid).iter().any(|argument| argument == word)).collect()
}

/// The mount table of this thread's namespace, as the kernel writes it.
pub(crate) fn mounts() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").expect("read mountinfo")
}

/// Runs a command that must succeed.
#[track_caller]
pub(crate) fn sh(script: &str) {
    run(Command::new("sh").args(["-ec", script]));
}
