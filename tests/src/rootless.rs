//! Tests as an ordinary user.
//!
//! A test that calls [`again`] runs once more, in a process of its own, as a user without any privilege: as root of a
//! user namespace, or outside of any. One that calls [`ordinary_daemons`] stays root, and its daemons become ordinary
//! users. Either way `/dev/fuse` and `/dev/net/tun` are nodes that everybody may open, and the user has a name,
//! ranges of ids and the right to `allow_other`, all bound over the machine's in the private mount namespace of the test.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags, makedev, mknodat};

use crate::old_kernel;
use crate::sandbox::{self, Medium, Sandbox};
use crate::tree::{Layout, What};

/// The ordinary user, and its group.
pub const USER: u32 = 10_001;
/// First of its [`RANGE`] further ids.
pub const FIRST: u32 = 200_000;
/// How many further ids it has.
pub const RANGE: u32 = 65_536;

const VARIABLE: &str = "RUNIONFS_ROOTLESS";
const NAME: &str = "runionfs-tester";
const LIMIT: Duration = Duration::from_secs(1_200);

/// The ways in which an ordinary user mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As root of a user namespace that knows nobody else.
    OneId,
    /// As root of a user namespace with a range of further ids.
    Ranges,
    /// Outside of any namespace, by fusermount3.
    Fusermount,
}

impl Way {
    fn word(self) -> &'static str {
        match self {
            Way::OneId => "one-id",
            Way::Ranges => "ranges",
            Way::Fusermount => "fusermount",
        }
    }

    /// The command that runs another one like that.
    #[must_use]
    pub fn command(self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--"]);
        match self {
            Way::OneId => command.args(["unshare", "--user", "--map-root-user"]),
            Way::Ranges => command.args(["unshare", "--user", "--map-root-user", "--map-auto"]),
            Way::Fusermount => return command,
        };
        command.args(["--mount", "--propagation", "private", "--"]);
        command
    }
}

/// In which way this process is that of an ordinary user, if it is.
#[must_use]
pub fn inside() -> Option<Way> {
    let word = std::env::var(VARIABLE).ok()?;
    [Way::OneId, Way::Ranges, Way::Fusermount].into_iter().find(|way| way.word() == word)
}

/// Runs the test of this name once more as an ordinary user, in a directory of that user. True in that run, which is
/// the one that has to do the work; there [`sandbox::enter`] works as everywhere.
///
/// # Panics
/// When the test fails there.
#[must_use]
#[track_caller]
pub fn again(way: Way, test: &str) -> bool {
    if inside().is_some() {
        return true;
    }
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, LIMIT) else { return false };
    if !prepare(&sandbox) {
        return false;
    }
    let home = sandbox.path().join("home");
    give(&home);
    let program = std::env::current_exe().expect("the path of the test");
    make_reachable(program.parent().and_then(Path::parent).expect("the build directory"));
    let mut command = way.command();
    command.arg(program).args(["--exact", test, "--nocapture", "--test-threads=1", "--include-ignored"]);
    command.env(VARIABLE, way.word()).env("RUNIONFS_TEST_DIR", &home).env("XDG_RUNTIME_DIR", &home).current_dir(&home);
    let output = old_kernel::restrict(&mut command).output().expect("run the test again");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "as an ordinary user ({way:?}):\n{out}\n{err}");
    print!("{err}");
    false
}

thread_local! {
    static ORDINARY: Cell<bool> = const { Cell::new(false) };
}

/// From now on the daemons of this test are those of an ordinary user, who lets everybody use the mounts. Whether it
/// can be; the reason why not is said.
#[must_use]
pub fn ordinary_daemons(sandbox: &Sandbox) -> bool {
    ORDINARY.set(prepare(sandbox));
    ORDINARY.get()
}

/// Whether [`ordinary_daemons`] was called.
#[must_use]
pub fn has_ordinary_daemons() -> bool {
    ORDINARY.get()
}

/// Makes the machine one where an ordinary user can mount, for this test.
fn prepare(sandbox: &Sandbox) -> bool {
    for tool in ["setpriv", "unshare", "newuidmap", "fusermount3"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()) {
            sandbox::skip(&format!("it needs {tool}, which tests/setup installs"));
            return false;
        }
    }
    let folder = sandbox.path().join("machine");
    fs::create_dir(&folder).expect("make a directory");
    for (path, minor) in [("/dev/fuse", 229), ("/dev/net/tun", 200)] {
        let (path, node) = (Path::new(path), folder.join(minor.to_string()));
        mknodat(CWD, &node, FileType::CharacterDevice, Mode::from(0o666), makedev(10, minor))
            .expect("make a device node");
        rustix::fs::chmod(&node, Mode::from(0o666)).expect("chmod");
        // a machine without the second cannot have what it is for
        if minor == 229 || path.exists() {
            bind(&node, path);
        }
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = format!("{passwd}\n{NAME}:x:{USER}:{USER}::/:/bin/sh\n");
    let ids = format!("{NAME}:{FIRST}:{RANGE}\n");
    for (path, text) in [
        ("/etc/passwd", &*user),
        ("/etc/subuid", &ids),
        ("/etc/subgid", &ids),
        ("/etc/fuse.conf", "user_allow_other\n"),
    ] {
        let ours = folder.join(Path::new(path).file_name().expect("a name"));
        fs::write(&ours, text).expect("write a file");
        if !Path::new(path).exists() {
            sandbox::skip(&format!("it needs {path}, which comes with uidmap and fuse3"));
            return false;
        }
        bind(&ours, Path::new(path));
    }
    true
}

fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind a file");
}

/// Makes a directory of the ordinary user.
///
/// # Panics
/// When that fails.
pub fn give(directory: &Path) {
    fs::create_dir_all(directory).expect("make a directory");
    chown(directory, Some(USER), Some(USER)).expect("chown");
}

/// Shows a directory under its path to those who may not pass the directories above it.
fn make_reachable(directory: &Path) {
    let closed = |path: &&Path| fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o001 == 0);
    let above: Vec<&Path> = directory.ancestors().skip(1).collect();
    let Some(closed) = above.into_iter().rev().find(closed) else { return };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let held = rustix::fs::open(directory, flags, Mode::empty()).expect("hold the build directory");
    mount(Some("tmpfs"), closed, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("cover a closed directory");
    fs::create_dir_all(directory).expect("make the path again");
    let held = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    bind(Path::new(&held), directory);
}

/// A layout as an ordinary user can write it: devices are refused to that user, and so are owners that the namespace
/// does not know.
#[must_use]
pub fn possible(mut layout: Layout) -> Layout {
    for thing in &mut layout.things {
        if thing.what == What::Device && inside().is_some() {
            thing.what = What::Fifo;
        }
        if matches!(inside(), Some(Way::OneId | Way::Fusermount)) {
            thing.look.owner = 0;
        }
        // what cannot carry the attribute is owned by who owns it
        if has_ordinary_daemons() && matches!(thing.what, What::Symlink(_) | What::Fifo) {
            thing.look.owner = USER;
        }
    }
    layout
}

/// Gives a branch to the ordinary user, with what that loses kept in `user.containers.override_stat`.
///
/// # Errors
/// The first system call that fails.
pub fn give_branch(root: &Path) -> io::Result<()> {
    let mut found = vec![(root.to_owned(), fs::symlink_metadata(root)?)];
    let mut at = 0;
    while let Some((path, about)) = found.get(at) {
        if about.is_dir() {
            for entry in fs::read_dir(path)? {
                let path = entry?.path();
                let about = fs::symlink_metadata(&path)?;
                found.push((path, about));
            }
        }
        at += 1;
    }
    // a directory after what is in it, which moves its times
    let mut devices = HashMap::new();
    for (path, about) in found.iter().rev() {
        let is_device = FileType::from_raw_mode(about.mode()) == FileType::CharacterDevice;
        match devices.get(&about.ino()) {
            Some(first) if is_device => {
                fs::remove_file(path)?;
                fs::hard_link(first, path)?;
            }
            _ => give_entry(path, about)?,
        }
        if is_device {
            devices.insert(about.ino(), path);
        }
    }
    Ok(())
}

fn give_entry(path: &Path, about: &fs::Metadata) -> io::Result<()> {
    if fs::symlink_metadata(path)?.uid() == USER {
        // one more name of an object, or one that has nothing to keep
        return Ok(());
    }
    let (mut word, kind) = ("file".to_owned(), FileType::from_raw_mode(about.mode()));
    match kind {
        FileType::Directory => "dir".clone_into(&mut word),
        FileType::CharacterDevice => word = format!("char{}:{}", major(about), minor(about)),
        FileType::RegularFile => {}
        _ => return std::os::unix::fs::lchown(path, Some(USER), Some(USER)),
    }
    let times = |time, nanos| rustix::fs::Timespec { tv_sec: time, tv_nsec: nanos };
    let times = rustix::fs::Timestamps {
        last_access: times(about.atime(), about.atime_nsec()),
        last_modification: times(about.mtime(), about.mtime_nsec()),
    };
    if kind == FileType::CharacterDevice {
        fs::remove_file(path)?;
        fs::write(path, "")?;
    }
    let text = format!("{}:{}:0{:o}:{word}", about.uid(), about.gid(), about.mode() & 0o7777);
    rustix::fs::lsetxattr(path, "user.containers.override_stat", text.as_bytes(), XattrFlags::empty())?;
    chown(path, Some(USER), Some(USER))?;
    let own = if kind == FileType::Directory { 0o700 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(about.mode() & 0o777 | own))?;
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn major(about: &fs::Metadata) -> u32 {
    rustix::fs::major(about.rdev())
}

fn minor(about: &fs::Metadata) -> u32 {
    rustix::fs::minor(about.rdev())
}

/// A directory in which devices cannot be opened and set-id bits do nothing, as in what fusermount3 mounts.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn without_devices_and_set_ids(parent: &Path) -> std::path::PathBuf {
    let directory = parent.join("ground");
    fs::create_dir(&directory).expect("make a directory");
    bind(&directory, &directory);
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    mount(None::<&str>, &directory, None::<&str>, flags, None::<&str>).expect("remount");
    directory
}
