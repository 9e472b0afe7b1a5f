//! One trial of a property: branches, a union over them, the plain directory beside it, and what both are told to do.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestCaseResult, TestError, TestRng, TestRunner};
use rustix::io::Errno;

use crate::model::{self, Clock, Naming};
use crate::mount::Mounted;
use crate::ops::{Act, Caller, HandleUse, Op, Present, Sight};
use crate::rootless;
use crate::snapshot::{Kind, Snapshot};
use crate::tree::{self, Layout};
use crate::world::Access;

/// A history makes no more branches than these.
const MOST_BRANCHES: usize = 8;

/// The generator of a run: always the same cases, so that a change is judged by what it changes, or others each time
/// with `RUNIONFS_SEED=random`, which is how new ones are found.
fn runner(config: Config) -> TestRunner {
    match std::env::var("RUNIONFS_SEED") {
        Ok(seed) if seed == "random" => TestRunner::new(config),
        Ok(seed) => {
            let mut bytes = [0; 32];
            bytes.iter_mut().zip(seed.bytes()).for_each(|(to, from)| *to = from);
            TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
        }
        Err(_) => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    }
}

/// The number in an environment variable, or the default that continuous integration uses.
///
/// # Panics
/// When the variable holds no number.
#[must_use]
pub fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// Tries a property on many values, and shows the smallest one that fails.
///
/// # Panics
/// When the property does not hold.
#[track_caller]
pub fn try_many<S: proptest::strategy::Strategy>(
    cases: u32,
    values: &S,
    property: impl Fn(S::Value) -> TestCaseResult,
) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 1_000, ..Config::default() };
    match runner(config).run(values, property) {
        Ok(()) => {}
        Err(TestError::Fail(reason, value)) => panic!("{}\nof {value:#?}", reason.message()),
        Err(TestError::Abort(reason)) => panic!("given up: {}", reason.message()),
    }
}

/// Branches on disk and a place to mount them; removed with everything in it when dropped.
#[derive(Debug)]
pub struct Ground {
    directory: PathBuf,
    layout: Layout,
    options: Vec<String>,
}

impl Ground {
    /// Writes the branches of a layout into the new directory `parent/name`.
    ///
    /// # Errors
    /// The first system call that fails.
    pub fn new(parent: &Path, name: &str, layout: &Layout) -> io::Result<Ground> {
        let directory = parent.join(name);
        for path in [&directory, &directory.join("mnt"), &directory.join("elsewhere")] {
            fs::create_dir(path)?;
        }
        if rootless::has_ordinary_daemons() {
            // fusermount3 mounts on what belongs to the user
            rootless::give(&directory.join("mnt"));
        }
        let ground = Ground { directory, layout: layout.clone(), options: Vec::new() };
        tree::write_branches(&layout.world(), &ground.directory)?;
        Ok(ground)
    }

    /// Has the branches mounted with an option.
    #[must_use]
    pub fn with_option(mut self, option: &str) -> Ground {
        self.options.push(option.to_owned());
        self
    }

    /// Writes the merged tree into the plain directory.
    ///
    /// # Errors
    /// The first system call that fails.
    pub fn write_plain(&self) -> io::Result<PathBuf> {
        let plain = self.at("plain");
        tree::write_merged(&self.layout.world(), &plain, &self.at("elsewhere"))?;
        Ok(plain)
    }

    /// The operations with paths in the place of picks: those that are there if a plain directory is told to do them.
    ///
    /// # Errors
    /// The first system call that fails in making the directory.
    pub fn rehearse(&self, acts: &[Act]) -> io::Result<Vec<Act>> {
        let (stage, elsewhere) = (self.at("stage"), self.at("behind"));
        fs::create_dir(&elsewhere)?;
        tree::write_merged(&self.layout.world(), &stage, &elsewhere)?;
        let mut caller = Caller::new(&stage);
        let rehearsed = acts.iter().map(|act| {
            let act = Present::of(&stage).resolve(act);
            // an operation that fails is part of the play
            let (Ok(_) | Err(_)) = caller.act(&act);
            act
        });
        let rehearsed = rehearsed.collect();
        caller.close_all();
        fs::remove_dir_all(stage)?;
        fs::remove_dir_all(elsewhere)?;
        Ok(rehearsed)
    }

    /// Mounts the branches.
    #[must_use]
    pub fn mount(&self, binary: &str) -> Mounted {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        Mounted::mount(binary, self.layout.branch_string(&self.directory), &self.at("mnt"), &options)
    }

    /// Whether directories with content below are not renamed.
    fn writes_no_records(&self) -> bool {
        self.options.iter().any(|option| option == "whiteout=overlay")
    }

    /// Whether some of a directory at this path lies below the top.
    fn has_content_below(&self, path: &str) -> bool {
        (1..self.layout.branches.len()).any(|index| self.at(format!("{index}/{path}")).is_dir())
    }

    /// Whether branches hold names of files that the union does not show, but that count as links.
    #[must_use]
    pub fn hides_names(&self) -> bool {
        fs::read_dir(self.at("elsewhere")).is_ok_and(|mut names| names.next().is_some())
    }

    /// A path in the directory of the trial: `"0/a"` lies in the topmost branch.
    #[must_use]
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }

    /// Puts an empty top over the one that is there, which becomes a layer. Says whether that was possible: the top alone
    /// is written, and no read-only branch holds a hard link, for what is known of names that are gone is not kept in a
    /// layer.
    ///
    /// # Errors
    /// The first system call that fails.
    pub fn put_top_on(&mut self) -> io::Result<bool> {
        let count = self.layout.branches.len();
        let linked = |index: usize| {
            let tree = Snapshot::take(&self.at(index.to_string()));
            tree.entries.values().any(|entry| entry.kind != Kind::Directory && entry.nlink > 1)
        };
        if !self.layout.only_top_is_writable() || count >= MOST_BRANCHES || (1..count).any(linked) {
            return Ok(false);
        }
        for index in (0..count).rev() {
            fs::rename(self.at(index.to_string()), self.at((index + 1).to_string()))?;
        }
        tree::write_like(&self.at("1"), &self.at("0"))?;
        self.layout.branches[0] = Access::Whiteouts;
        self.layout.branches.insert(0, Access::Writable);
        Ok(true)
    }

    /// The read-only branches as they are on disk.
    #[must_use]
    pub fn read_only_branches(&self) -> Vec<(usize, Snapshot)> {
        let accesses = self.layout.branches.iter().enumerate();
        let read_only = accesses.filter(|(_, access)| **access != Access::Writable);
        read_only.map(|(index, _)| (index, Snapshot::take(&self.at(index.to_string())))).collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("cannot remove {}: {error}", self.directory.display());
        }
    }
}

/// A union and the plain directory that it must look like.
#[derive(Debug)]
pub struct Trial {
    union: Caller,
    plain: Caller,
    plain_root: PathBuf,
    mounted: Mounted,
    gathers_writes: bool,
    naming: Naming,
    ground: Ground,
}

impl Trial {
    /// Mounts a layout beside its plain directory.
    ///
    /// # Errors
    /// The first system call that fails.
    pub fn new(ground: Ground, binary: &str) -> io::Result<Trial> {
        let plain_root = ground.write_plain()?;
        let mounted = ground.mount(binary);
        let (union, plain) = (Caller::new(mounted.target()), Caller::new(&plain_root));
        let gathers_writes = mounted.gathers_writes();
        Ok(Trial { union, plain, plain_root, mounted, gathers_writes, naming: Naming::default(), ground })
    }

    /// Lets both do the same and compares what they say.
    ///
    /// # Errors
    /// What differs.
    pub fn act(&mut self, act: &Act) -> TestCaseResult {
        let act = &Present::of(&self.plain_root).resolve(act);
        if !self.gathers_writes && self.plain.writes_set_id_file(act) {
            // with passthrough the bits go if they are younger than the handle, even where root may keep them
            return Ok(());
        }
        let found = self.union.act(act);
        if found.as_ref().is_err_and(|errno| self.excuses(&act.op, *errno)) {
            if let Op::Hold { handle, .. } = act.op {
                // the handle that was there is closed all the same
                self.plain.close(handle);
            }
            return Ok(());
        }
        let expected = self.plain.act(act);
        if found != expected {
            return fail(format!("{act:?}\nsays {}\nbut a plain directory {}", told(&found), told(&expected)));
        }
        match act.op {
            Op::Remount => self.remount(),
            Op::Flush => self.flush(),
            Op::Layer => self.put_top_on(),
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> TestCaseResult {
        let outcome = self.mounted.flush();
        // names of writable branches below the one with the copy cannot be brought up
        if outcome.status != Some(0) && self.ground.layout.only_top_is_writable() {
            return fail(format!("a flush failed: {outcome:?}"));
        }
        self.forget_hidden_names();
        self.compare()
    }

    /// Names that branches hide count as links as long as there is a record, not when the top carries an object alone.
    fn forget_hidden_names(&self) {
        let mut hidden: HashMap<u64, Vec<PathBuf>> = HashMap::new();
        for entry in fs::read_dir(self.ground.at("elsewhere")).expect("list the hidden names") {
            let path = entry.expect("a hidden name").path();
            hidden.entry(path.symlink_metadata().expect("look at a hidden name").ino()).or_default().push(path);
        }
        let plain = Snapshot::take(&self.plain_root);
        for (path, entry) in plain.entries.iter().filter(|(_, entry)| entry.kind != Kind::Directory) {
            let names = hidden.get(&entry.ino).map(Vec::as_slice).unwrap_or_default();
            let shown = fs::symlink_metadata(self.mounted.target().join(path)).map(|stat| stat.nlink());
            if !names.is_empty() && shown.is_ok_and(|shown| shown + names.len() as u64 == entry.nlink) {
                names.iter().for_each(|name| fs::remove_file(name).expect("forget a hidden name"));
                hidden.remove(&entry.ino);
            }
        }
    }

    fn put_top_on(&mut self) -> TestCaseResult {
        self.flush()?;
        self.mounted.umount();
        if self.ground.put_top_on().map_err(|error| TestCaseError::fail(error.to_string()))? {
            self.mounted.mount_again_over(self.ground.layout.branch_string(&self.ground.directory));
            // the table of numbers lies in the work area of the former top
            self.naming = Naming::default();
        } else {
            self.mounted.mount_again();
        }
        self.compare()
    }

    /// Whether there are writable branches that cannot share a hard link.
    fn may_be_torn_apart(&self) -> bool {
        !self.ground.layout.only_top_is_writable()
    }

    /// Errors that a plain directory does not know.
    fn excuses(&self, op: &Op, errno: Errno) -> bool {
        match (op, errno) {
            // what has several names was copied up to one writable branch, and only a higher one can show the new name
            (Op::Rename { .. } | Op::Link { .. }, Errno::XDEV) if self.may_be_torn_apart() => true,
            // a branch in the form of overlayfs takes no record of a directory with content below
            (Op::Rename { from, to, .. }, Errno::XDEV) if self.ground.writes_no_records() => {
                [from, to].iter().any(|path| self.ground.has_content_below(path))
            }
            (_, Errno::ROFS) => !self.ground.layout.top_is_writable(),
            // the kernel opens these itself, so nobody keeps what a read-only branch holds of one that was removed
            (Op::Use { handle, what: HandleUse::Chmod { .. } }, Errno::STALE) => {
                self.union.holds_removed_special(*handle)
            }
            _ => false,
        }
    }

    fn remount(&mut self) -> TestCaseResult {
        self.compare()?;
        self.mounted.remount();
        self.compare()
    }

    /// Compares the whole trees.
    ///
    /// # Errors
    /// What differs.
    pub fn compare(&mut self) -> TestCaseResult {
        let union = match Snapshot::try_take(self.mounted.target()) {
            Ok(union) => union,
            Err((path, error)) => return fail(format!("the union cannot be read: {}: {error}", path.display())),
        };
        let plain = Snapshot::take(&self.plain_root);
        let clock = if self.ground.layout.only_top_is_writable() { Clock::All } else { Clock::NotDirectories };
        let mut lines = model::difference(&union, &plain, clock);
        lines.extend(self.naming.check(&union, &plain, &self.plain_root));
        if lines.is_empty() {
            Ok(())
        } else {
            fail(format!("the union is not the plain directory:\n{}", lines.join("\n")))
        }
    }
}

fn told(outcome: &Result<Sight, Errno>) -> String {
    match outcome {
        Ok(Sight::Bytes(bytes)) if bytes.len() > 200 => format!("{} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}

/// A property that does not hold.
///
/// # Errors
/// Always.
pub fn fail(why: impl Into<String>) -> TestCaseResult {
    Err(TestCaseError::fail(why.into()))
}
