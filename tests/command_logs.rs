//! What a mount tells the system: its log, and the service manager that has started it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::mount::{Outcome, finish, poll};
use harness::sandbox::{self, Sandbox, mount_table};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, fstat, makedev, mknod};
use nix::unistd::Pid;
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const PATIENCE: Duration = Duration::from_secs(20);

/// Branches, a mount point, and a /run of the test's own.
struct Ground {
    sandbox: Sandbox,
}

impl Ground {
    fn new() -> Option<Ground> {
        let sandbox = sandbox::enter()?;
        for name in ["top", "low", "mnt", "dev"] {
            fs::create_dir(sandbox.path().join(name)).unwrap();
        }
        fs::write(sandbox.path().join("low/f"), "low").unwrap();
        mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Some(Ground { sandbox })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.sandbox.path().join(path)
    }

    /// `runionfs mount` with these options, silent about any service manager of the test itself.
    fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(BIN);
        command.arg("mount").args(options);
        command.arg(format!("{}=rw:{}=ro", self.at("top").display(), self.at("low").display()));
        // messages name it as it is to be found
        command.arg("mnt").current_dir(self.sandbox.path());
        for variable in ["NOTIFY_SOCKET", "SYSTEMD_EXEC_PID", "JOURNAL_STREAM", "RUNIONFS_LOG"] {
            command.env_remove(variable);
        }
        command
    }

    /// Mounts, and returns the daemon.
    #[track_caller]
    fn mount(&self, options: &[&str]) -> Pid {
        let outcome = finish(&mut self.command(options));
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
        let shown = finish(Command::new(BIN).arg("show").arg(self.at("mnt")));
        Pid::from_raw(shown.stdout.lines().find_map(|line| line.strip_prefix("pid ")?.parse().ok()).unwrap())
    }

    fn umount(&self) {
        let outcome = finish(Command::new(BIN).arg("umount").arg(self.at("mnt")));
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    }

    fn is_mounted(&self) -> bool {
        mount_table().iter().any(|entry| entry.target == self.at("mnt"))
    }

    /// A device directory without a system log, but with what a mount needs.
    fn own_dev(&self) {
        let dev = self.at("dev");
        mount(Some("none"), &dev, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        for (name, major, minor) in [("null", 1, 3), ("fuse", 10, 229)] {
            mknod(&dev.join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor)).unwrap();
        }
        mount(Some(&dev), "/dev", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }
}

/// Somebody who listens, as the journal, the system's log or a service manager do.
fn listen(path: impl AsRef<Path>) -> UnixDatagram {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn hear(socket: &UnixDatagram) -> String {
    let mut message = [0; 65_536];
    let length = socket.recv(&mut message).unwrap();
    String::from_utf8(message[..length].to_vec()).unwrap()
}

fn is_silent(socket: &UnixDatagram) -> bool {
    socket.set_nonblocking(true).unwrap();
    let silent = socket.recv(&mut [0; 64]).is_err();
    socket.set_nonblocking(false).unwrap();
    silent
}

/// Has the daemon say something: it tells its requests when it is asked by this signal.
fn ask(daemon: Pid) {
    kill(daemon, Signal::SIGUSR1).unwrap();
}

fn wait_for_line(path: &Path) -> String {
    let said = || fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'));
    poll(PATIENCE, said).unwrap_or_else(|| panic!("nothing in {}", path.display()))
}

#[test]
fn a_daemon_logs_to_a_file_as_text_or_json() {
    let Some(ground) = Ground::new() else { return };
    let log = ground.at("log");
    let here = log.to_str().unwrap();
    let daemon = ground.mount(&["--log", here]);
    ask(daemon);
    let said = wait_for_line(&log);
    let (time, rest) = said.split_once(' ').unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 27, "{said:?}");
    let requests = format!("WARN {}: requests: ", ground.at("mnt").display());
    assert!(rest.starts_with(&requests) && said.lines().count() == 1, "{said:?}");
    assert_eq!(fs::metadata(&log).unwrap().mode() & 0o7777, 0o640);
    // as logrotate's copytruncate does
    fs::File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
    ask(daemon);
    assert!(wait_for_line(&log).contains("requests"), "it goes on at the beginning");
    ground.umount();
    fs::remove_file(&log).unwrap();
    let daemon = ground.mount(&["--log", here, "--log-format", "json"]);
    ask(daemon);
    let said: Value = serde_json::from_str(&wait_for_line(&log)).unwrap();
    assert_eq!((&said["level"], &said["pid"]), (&"warn".into(), &daemon.as_raw().into()));
    assert_eq!(said["mountpoint"], ground.at("mnt").to_str().unwrap());
    assert!(said["message"].as_str().unwrap().contains("requests: "), "{said}");
    ground.umount();
}

#[test]
fn a_daemon_logs_to_the_journal_or_else_to_the_systems_log_whenever_they_come_and_go() {
    let Some(ground) = Ground::new() else { return };
    ground.own_dev();
    // nobody listens yet, as in an initramfs, but the kernel
    fs::write("/dev/kmsg", "").unwrap();
    let daemon = ground.mount(&[]);
    ask(daemon);
    let heard = || fs::read_to_string("/dev/kmsg").unwrap().contains("requests: ").then_some(());
    assert!(poll(PATIENCE, heard).is_some());
    let syslog = listen("/dev/log");
    ask(daemon);
    let line = format!("<28>runionfs[{daemon}]: WARN {}: requests: ", ground.at("mnt").display());
    assert!(hear(&syslog).starts_with(&line));
    drop(syslog);
    fs::remove_file("/dev/log").unwrap();
    let syslog = listen("/dev/log");
    ask(daemon);
    assert!(hear(&syslog).starts_with(&line), "it is started again");
    let journal = listen("/run/systemd/journal/socket");
    ask(daemon);
    let fields = hear(&journal);
    for field in ["PRIORITY=4", "SYSLOG_IDENTIFIER=runionfs", &format!("SYSLOG_PID={daemon}")] {
        assert!(fields.lines().any(|line| line == field), "{fields}");
    }
    let mountpoint = format!("RUNIONFS_MOUNTPOINT={}", ground.at("mnt").display());
    assert!(fields.lines().any(|line| line == mountpoint), "{fields}");
    assert!(is_silent(&syslog), "it is said once");
    ground.umount();
}

#[test]
fn a_log_that_is_asked_for_is_the_only_one_and_must_be_there() {
    let Some(ground) = Ground::new() else { return };
    ground.own_dev();
    let refused = |options: &[&str], status| {
        let outcome = finish(&mut ground.command(options));
        assert_eq!(outcome.status, Some(status), "{options:?}: {outcome:?}");
        assert!(!ground.is_mounted(), "{options:?}");
        outcome.stderr
    };
    assert!(refused(&["--log", "jurnal"], 2).contains("journald and syslog are known"));
    assert!(refused(&["--log-level", "loud"], 2).contains("warn"));
    assert!(refused(&["--log-format", "xml"], 2).contains("json"));
    assert!(refused(&["--log", "stderr"], 1).contains("needs --foreground"));
    let missing = refused(&["--log", "/nowhere/log"], 1);
    assert!(missing.contains("cannot open the log /nowhere/log") && missing.lines().count() == 1, "{missing}");
    let fifo = ground.at("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let unread = refused(&["--log", fifo.to_str().unwrap()], 1);
    assert!(unread.contains("cannot open the log") && unread.lines().count() == 1, "{unread}");
    assert!(refused(&["--log", "journald"], 1).contains("cannot reach the log at /run/systemd/journal/socket"));
    let (journal, syslog) = (listen("/run/systemd/journal/socket"), listen("/dev/log"));
    ask(ground.mount(&["--log", "syslog"]));
    assert!(hear(&syslog).contains("requests"));
    assert!(is_silent(&journal));
    ground.umount();
    ask(ground.mount(&["--log", "journald"]));
    assert!(hear(&journal).contains("requests"));
    assert!(is_silent(&syslog));
    ground.umount();
}

/// A mount in the foreground.
struct Foreground {
    child: Child,
}

impl Foreground {
    #[track_caller]
    fn start(ground: &Ground, command: &mut Command) -> Foreground {
        let foreground = Foreground { child: command.stdin(Stdio::null()).spawn().unwrap() };
        let served = || ground.at("mnt/f").exists().then_some(());
        assert!(poll(PATIENCE, served).is_some(), "it does not serve");
        foreground
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn end(mut self) -> Outcome {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let ended = poll(PATIENCE, || self.child.try_wait().unwrap()).expect("it ends");
        let mut stderr = String::new();
        if let Some(mut said) = self.child.stderr.take() {
            std::io::Read::read_to_string(&mut said, &mut stderr).unwrap();
        }
        Outcome { status: ended.code(), stdout: String::new(), stderr }
    }
}

#[test]
fn in_the_foreground_it_is_said_on_standard_error_unless_that_is_the_journals() {
    let Some(ground) = Ground::new() else { return };
    let journal = listen("/run/systemd/journal/socket");
    let mut command = ground.command(&["-f", "--log-format", "json", "--log-level", "info"]);
    let foreground = Foreground::start(&ground, command.stderr(Stdio::piped()));
    let outcome = foreground.end();
    assert_eq!(outcome.status, Some(0));
    let said: Value = serde_json::from_str(outcome.stderr.lines().last().unwrap()).unwrap();
    assert_eq!((&said["level"], &said["message"]), (&"info".into(), &"SIGTERM: ending".into()));
    assert!(is_silent(&journal));

    let stream = UnixDatagram::unbound().unwrap();
    let about = fstat(stream.as_fd()).unwrap();
    let mut command = ground.command(&["-f"]);
    command.env("JOURNAL_STREAM", format!("{}:{}", about.st_dev, about.st_ino));
    let foreground = Foreground::start(&ground, command.stderr(std::os::fd::OwnedFd::from(stream)));
    ask(foreground.pid());
    assert!(hear(&journal).contains("\nSYSLOG_IDENTIFIER=runionfs\n"));
    foreground.end();
}

#[test]
fn nothing_is_said_below_the_level() {
    let Some(ground) = Ground::new() else { return };
    let log = ground.at("log");
    let daemon = ground.mount(&["--log", log.to_str().unwrap(), "--log-level", "error"]);
    ask(daemon);
    kill(daemon, Signal::SIGTERM).unwrap();
    assert!(poll(PATIENCE, || (!ground.is_mounted()).then_some(())).is_some());
    assert_eq!(fs::read_to_string(&log).unwrap(), "");
    let mut command = ground.command(&["-f"]);
    let foreground = Foreground::start(&ground, command.env("RUNIONFS_LOG", "off").stderr(Stdio::piped()));
    ask(foreground.pid());
    assert_eq!(foreground.end().stderr, "");
    let outcome = finish(ground.command(&[]).env("RUNIONFS_LOG", "loud"));
    assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{outcome:?}");
}

#[test]
fn the_service_manager_is_told_when_the_mount_serves_and_when_it_ends() {
    let Some(ground) = Ground::new() else { return };
    let manager = listen("/run/notify");
    let mut command = ground.command(&["-f"]);
    let foreground = Foreground::start(&ground, command.env("NOTIFY_SOCKET", "/run/notify"));
    assert_eq!(hear(&manager), "READY=1\n");
    ground.umount();
    assert_eq!(hear(&manager), "STOPPING=1\n");
    assert_eq!(foreground.child.wait_with_output().unwrap().status.code(), Some(0));

    // a daemon is the main process from then on
    let outcome = finish(ground.command(&[]).env("NOTIFY_SOCKET", "/run/notify"));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    let told = hear(&manager);
    let shown = finish(Command::new(BIN).arg("show").arg(ground.at("mnt")));
    let pid = shown.stdout.lines().find_map(|line| line.strip_prefix("pid ")).unwrap();
    assert_eq!(told, format!("MAINPID={pid}\nREADY=1\n"));
    ground.umount();
    assert_eq!(hear(&manager), "STOPPING=1\n");
}

#[test]
fn a_mount_made_for_somebody_else_calls_no_service_ready() {
    let Some(ground) = Ground::new() else { return };
    let manager = listen("/run/notify");
    let lowers = format!("lowerdir={}", ground.at("low").display());
    for command in [
        ground.command(&[]).env("SYSTEMD_EXEC_PID", "1"),
        Command::new(BIN).arg("-o").arg(lowers).arg(ground.at("mnt")).env_remove("SYSTEMD_EXEC_PID"),
        ground.command(&["--helper"]).env_remove("SYSTEMD_EXEC_PID"),
    ] {
        let outcome = finish(command.env("NOTIFY_SOCKET", "/run/notify"));
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""), "{command:?}");
        umount2(&ground.at("mnt"), MntFlags::empty()).unwrap();
        assert!(poll(PATIENCE, || is_silent(&manager).then_some(())).is_some(), "{command:?}");
    }
    // one that cannot be told is no reason not to mount
    let outcome = finish(ground.command(&[]).env("NOTIFY_SOCKET", "/run/nobody"));
    assert_eq!(outcome.status, Some(0));
    assert!(outcome.stderr.contains("cannot tell the service manager"), "{outcome:?}");
    ground.umount();
}
