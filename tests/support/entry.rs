//! The binary under the name of fuse-overlayfs, and directories to mount.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use harness::mount::{Outcome, finish, poll};
use harness::sandbox::{self, MountEntry, Sandbox, mount_table};
use nix::mount::{MntFlags, umount2};

pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
pub(crate) const NAME: &str = "fuse-overlayfs";

/// Directories `l1`, `l2`, `u`, `w` and `m`, and the binary under the names that callers know.
pub(crate) struct Ground {
    pub(crate) sandbox: Sandbox,
}

impl Ground {
    pub(crate) fn new() -> Option<Ground> {
        let sandbox = sandbox::enter()?;
        for name in ["l1", "l2", "u", "w", "m", "bin"] {
            fs::create_dir(sandbox.path().join(name)).unwrap();
        }
        for name in [NAME, "runionfs"] {
            symlink(BIN, sandbox.path().join("bin").join(name)).unwrap();
        }
        fs::write(sandbox.path().join("l2/below"), "below").unwrap();
        Some(Ground { sandbox })
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.sandbox.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, content: &str) -> &Ground {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    pub(crate) fn stat(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.at(path)).unwrap()
    }

    pub(crate) fn owner(&self, path: &str) -> (u32, u32) {
        let about = self.stat(path);
        (about.uid(), about.gid())
    }

    pub(crate) fn mode(&self, path: &str) -> u32 {
        self.stat(path).mode() & 0o7777
    }

    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(path)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs the binary under the name of fuse-overlayfs, in the sandbox's directory.
    pub(crate) fn call<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Outcome {
        finish(Command::new(self.at("bin").join(NAME)).args(words).current_dir(self.sandbox.path()))
    }

    /// Mounts on `m`, without a word.
    #[track_caller]
    pub(crate) fn mount(&self, options: &str) {
        let outcome = self.call(["-o", options, "m"]);
        assert_eq!((outcome.status, &*outcome.stdout, &*outcome.stderr), (Some(0), "", ""), "{options}");
    }

    /// Mounts all of `l1`, `l2`, `u` and `w`.
    #[track_caller]
    pub(crate) fn mount_all(&self, more: &str) {
        self.mount(&format!("lowerdir=l1:l2,upperdir=u,workdir=w{more}"));
    }

    /// Unmounts. A test beside this one may just be starting a process, which has our files open until it runs.
    #[track_caller]
    pub(crate) fn umount(&self) {
        let done = poll(Duration::from_secs(10), || umount2(&self.at("m"), MntFlags::empty()).ok());
        assert!(done.is_some(), "it stays busy");
    }

    /// How many system calls it takes to mount this; it is unmounted again.
    pub(crate) fn calls_to_mount(&self, options: &str) -> usize {
        let trace = self.at("trace");
        let mut command = Command::new("strace");
        command.args(["-f", "-o"]).arg(&trace).arg(self.at("bin").join(NAME)).args(["-o", options, "m"]);
        // it ends with the daemon
        let mut child = command.current_dir(self.sandbox.path()).spawn().expect("strace (tests/setup)");
        let mounted = poll(Duration::from_secs(60), || (!self.entries().is_empty()).then_some(()));
        assert!(mounted.is_some() && self.read("m/all") == "0");
        self.umount();
        assert!(child.wait().unwrap().success());
        let traced = fs::read_to_string(trace).unwrap();
        // until it tells its caller; a debug build asks more before it closes a descriptor
        let of_mount = traced.lines().take_while(|line| !line.contains("write(1, \"+\""));
        of_mount.filter(|line| !line.contains(" fcntl(")).count()
    }

    pub(crate) fn entries(&self) -> Vec<MountEntry> {
        mount_table().into_iter().filter(|entry| entry.target == self.at("m")).collect()
    }
}
