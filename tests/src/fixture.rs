//! Branches filled for a test, and the union over them.
//!
//! Branches are called by their index, as in the rest of the code: `"1/etc/passwd"` is `/etc/passwd` in the branch B1.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::mount::Mounted;
use crate::sandbox::{self, Medium, Sandbox};
use crate::snapshot::{Exactness, Snapshot, WORK_AREA};

/// Branches before they are mounted.
pub struct Branches {
    sandbox: Sandbox,
    binary: PathBuf,
    access: Vec<String>,
}

impl Branches {
    /// Empty branches on disk, top first, with the given attributes: `&["rw", "ro+wh"]`. `None` where the test is
    /// skipped.
    #[must_use]
    pub fn new(binary: impl AsRef<Path>, access: &[&str]) -> Option<Branches> {
        Branches::on(Medium::Disk, binary, access)
    }

    /// As [`Branches::new`], on the medium that is asked for.
    #[must_use]
    pub fn on(medium: Medium, binary: impl AsRef<Path>, access: &[&str]) -> Option<Branches> {
        Some(Branches::inside(sandbox::enter_on(medium)?, binary, access))
    }

    /// As [`Branches::new`], in a sandbox that the test has made. Branches that are there already stay as they are.
    ///
    /// # Panics
    /// When a branch cannot be made.
    #[must_use]
    pub fn inside(sandbox: Sandbox, binary: impl AsRef<Path>, access: &[&str]) -> Branches {
        for name in (0..access.len()).map(|index| index.to_string()).chain(["mnt".to_owned()]) {
            fs::create_dir_all(sandbox.path().join(name)).expect("make a directory of the fixture");
        }
        let access = access.iter().map(|&attributes| attributes.to_owned()).collect();
        Branches { sandbox, binary: binary.as_ref().to_owned(), access }
    }

    /// A path in a branch: `"1/etc/passwd"`.
    #[must_use]
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.sandbox.path().join(path)
    }

    /// Writes a file into a branch, making the directories it needs.
    ///
    /// # Panics
    /// When that fails; so do all the other makers.
    #[track_caller]
    pub fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> &Self {
        self.parents(path.as_ref());
        fs::write(self.at(path), content).expect("write a file of the fixture");
        self
    }

    /// Makes a directory, and those above it.
    #[track_caller]
    pub fn dir(&self, path: impl AsRef<Path>) -> &Self {
        fs::create_dir_all(self.at(path)).expect("make a directory of the fixture");
        self
    }

    /// Makes a symlink.
    #[track_caller]
    pub fn symlink(&self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> &Self {
        self.parents(path.as_ref());
        symlink(target, self.at(path)).expect("make a symlink of the fixture");
        self
    }

    /// Makes a hard link within a branch.
    #[track_caller]
    pub fn hard_link(&self, old: impl AsRef<Path>, new: impl AsRef<Path>) -> &Self {
        fs::hard_link(self.at(old), self.at(new)).expect("make a hard link of the fixture");
        self
    }

    /// Hides the name at `path`: `"1/etc/passwd"` makes `1/etc/.wh.passwd`.
    #[track_caller]
    pub fn whiteout(&self, path: impl AsRef<Path>) -> &Self {
        let marker = whiteout_path(path.as_ref());
        self.file(&marker, "").mode(&marker, 0o444)
    }

    /// Makes the directory at `path` opaque.
    #[track_caller]
    pub fn opaque(&self, path: impl AsRef<Path>) -> &Self {
        let marker = path.as_ref().join(".wh..wh..opq");
        self.file(&marker, "").mode(&marker, 0o444)
    }

    /// Sets the mode.
    #[track_caller]
    pub fn mode(&self, path: impl AsRef<Path>, mode: u32) -> &Self {
        fs::set_permissions(self.at(path), PermissionsExt::from_mode(mode)).expect("chmod in the fixture");
        self
    }

    /// Sets owner and group.
    #[track_caller]
    pub fn owner(&self, path: impl AsRef<Path>, uid: u32, gid: u32) -> &Self {
        std::os::unix::fs::lchown(self.at(path), Some(uid), Some(gid)).expect("chown in the fixture");
        self
    }

    fn parents(&self, path: &Path) {
        fs::create_dir_all(self.at(path.parent().expect("a path in a branch"))).expect("make parents");
    }

    /// The branch string for `runionfs mount`.
    #[must_use]
    pub fn string(&self) -> OsString {
        let mut text = OsString::new();
        for (index, access) in self.access.iter().enumerate() {
            text.push(if index == 0 { "" } else { ":" });
            text.push(self.at(index.to_string()));
            text.push(format!("={access}"));
        }
        text
    }

    /// Mounts them.
    ///
    /// # Panics
    /// When the mount fails.
    #[must_use]
    #[track_caller]
    pub fn mount(self) -> Union {
        self.mount_with(&[])
    }

    /// Mounts them with options.
    ///
    /// # Panics
    /// When the mount fails.
    #[must_use]
    #[track_caller]
    pub fn mount_with(self, options: &[&str]) -> Union {
        let read_only = self.access.iter().enumerate().filter(|(_, access)| is_read_only(access));
        let before = read_only.map(|(index, _)| (index, Snapshot::take(&self.at(index.to_string())))).collect();
        let mounted = Mounted::mount(&self.binary, self.string(), &self.at("mnt"), options);
        Union { mounted, before, branches: self }
    }
}

fn is_read_only(access: &str) -> bool {
    access.starts_with('r') && !access.starts_with("rw") && !access.contains("+init")
}

/// `"1/etc/passwd"` → `"1/etc/.wh.passwd"`.
fn whiteout_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".wh.");
    name.push(path.file_name().expect("a name to hide"));
    path.with_file_name(name)
}

/// A mounted union. When it is dropped, it is unmounted and every read-only branch must be exactly what it was.
pub struct Union {
    /// The mount; unmounted first.
    pub mounted: Mounted,
    before: Vec<(usize, Snapshot)>,
    branches: Branches,
}

impl Union {
    /// A path in the union.
    #[must_use]
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.mounted.target().join(path)
    }

    /// A path in a branch, beneath the union: `"0/etc/passwd"`.
    #[must_use]
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.branches.at(path)
    }

    /// The branches it was made of.
    #[must_use]
    pub fn branches(&self) -> &Branches {
        &self.branches
    }

    /// Reads a file of the union as text.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    #[track_caller]
    pub fn read(&self, path: impl AsRef<Path>) -> String {
        let path = self.path(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    }

    /// Creates or overwrites a file of the union.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::write(&path, content).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// The attributes of an entry, itself and not what it points to.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn stat(&self, path: impl AsRef<Path>) -> fs::Metadata {
        let path = self.path(path);
        fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("stat {}: {error}", path.display()))
    }

    /// The mode bits of an entry, set-id and sticky bits included.
    #[must_use]
    #[track_caller]
    pub fn mode(&self, path: impl AsRef<Path>) -> u32 {
        self.stat(path).mode() & 0o7777
    }

    /// Whether lookup finds a name.
    ///
    /// # Panics
    /// On an error that is not "not there".
    #[must_use]
    #[track_caller]
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        exists(&self.path(path))
    }

    /// The sorted names in a directory of the union, as text.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    #[track_caller]
    pub fn list(&self, path: impl AsRef<Path>) -> Vec<String> {
        list(&self.path(path))
    }

    /// The sorted names that lie on disk in a directory of a branch, but for the work area.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    #[track_caller]
    pub fn on_disk(&self, path: impl AsRef<Path>) -> Vec<String> {
        let mut names = list(&self.at(path));
        names.retain(|name| name != WORK_AREA);
        names
    }

    /// Asserts that a whiteout as we write it lies where `path` (`"0/etc/passwd"`) is hidden.
    ///
    /// # Panics
    /// When it is missing or of another form.
    #[track_caller]
    pub fn assert_whiteout(&self, path: impl AsRef<Path>) {
        assert_marker(&self.at(whiteout_path(path.as_ref())));
    }

    /// Asserts that the directory at `path` in a branch is marked opaque.
    ///
    /// # Panics
    /// When it is not, or in another form.
    #[track_caller]
    pub fn assert_opaque(&self, path: impl AsRef<Path>) {
        assert_marker(&self.at(path).join(".wh..wh..opq"));
    }

    /// Asserts that no temporary entry is left in the work area of a branch.
    ///
    /// # Panics
    /// With what is left.
    #[track_caller]
    pub fn assert_no_temporaries(&self, branch: usize) {
        let directory = self.at(branch.to_string()).join(WORK_AREA).join("tmp");
        if exists(&directory) {
            assert_eq!(list(&directory), [""; 0], "left in the work area of branch {branch}");
        }
    }

    /// How many files the daemon prepares in the work area of a branch: those with a temporary name, and those
    /// without one.
    ///
    /// # Panics
    /// When the work area or the daemon's descriptors cannot be listed.
    #[must_use]
    pub fn prepared(&self, branch: usize) -> usize {
        let named = list(&self.at(branch.to_string()).join(WORK_AREA).join("tmp")).len();
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.mounted.pid())).expect("list the descriptors");
        // see O_TMPFILE in the kernel: what has no name is called #INODE
        let nameless = |path: PathBuf| {
            let target = fs::read_link(path).ok()?;
            let name = target.file_name()?.to_str()?.to_owned();
            Some(name.starts_with('#') && name.ends_with(" (deleted)"))
        };
        named + descriptors.filter_map(|entry| nameless(entry.ok()?.path())).filter(|nameless| *nameless).count()
    }

    /// Does something while the daemon is stopped; false if it does not end without it.
    ///
    /// # Panics
    /// When the daemon cannot be stopped.
    pub fn without_daemon(&self, act: impl FnOnce() + Send) -> bool {
        kill(self.mounted.pid(), Signal::SIGSTOP).expect("stop the daemon");
        thread::scope(|scope| {
            let (done, wait) = mpsc::channel();
            scope.spawn(move || {
                act();
                done.send(()).unwrap_or_default();
            });
            let ended = wait.recv_timeout(Duration::from_secs(10)).is_ok();
            kill(self.mounted.pid(), Signal::SIGCONT).expect("let the daemon go on");
            ended
        })
    }

    /// Asserts that every read-only branch is exactly what it was before the mount, times included.
    ///
    /// # Panics
    /// With what has changed.
    #[track_caller]
    pub fn assert_read_only_branches_untouched(&self) {
        for (index, before) in &self.before {
            let now = Snapshot::take(&self.at(index.to_string()));
            before.assert_same(&now, Exactness::Untouched, &format!("the read-only branch {index} has changed"));
        }
    }

    /// The test itself changes a read-only branch behind the mount's back: what is there now is what must stay.
    pub fn accept_read_only_branches(&mut self) {
        for (index, before) in &mut self.before {
            *before = Snapshot::take(&self.branches.at(index.to_string()));
        }
    }

    /// Unmounts and mounts again, and asserts that the tree is the same but for access times.
    ///
    /// # Panics
    /// With what differs.
    #[track_caller]
    pub fn remount_and_compare(&mut self) {
        let before = Snapshot::take(self.mounted.target());
        self.mounted.remount();
        let after = Snapshot::take(self.mounted.target());
        before.assert_same(&after, Exactness::Equal, "a remount changed the tree");
    }
}

impl Drop for Union {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.assert_read_only_branches_untouched();
        }
    }
}

#[track_caller]
fn exists(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => panic!("stat {}: {error}", path.display()),
    }
}

#[track_caller]
fn list(path: &Path) -> Vec<String> {
    let names = crate::snapshot::names(path).unwrap_or_else(|error| panic!("list {}: {error}", path.display()));
    names.iter().map(|name| name.to_string_lossy().into_owned()).collect()
}

/// A whiteout or an opaque mark: an empty regular file that nobody may write.
#[track_caller]
fn assert_marker(path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("no marker {}: {error}", path.display()));
    assert!(metadata.is_file(), "{} is not a regular file", path.display());
    assert_eq!(metadata.len(), 0, "{} is not empty", path.display());
    assert_eq!(metadata.mode() & 0o7777, 0o444, "{} has another mode", path.display());
}

/// Runs `action` with the file system identity of another user, as a thread of this process.
///
/// # Panics
/// When `action` panics.
pub fn as_user<T: Send>(uid: u32, gid: u32, action: impl FnOnce() -> T + Send) -> T {
    let run = || {
        // These two are per thread; leaving uid 0 drops the capabilities over files as well (capabilities(7)).
        nix::unistd::setfsgid(gid.into());
        nix::unistd::setfsuid(uid.into());
        action()
    };
    thread::scope(|scope| match scope.spawn(run).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
