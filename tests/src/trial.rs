//! One trial of a property: branches, a union over them, the plain directory beside it, and what both are told to do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestCaseResult, TestError, TestRng, TestRunner};
use rustix::io::Errno;

use crate::model::{self, Clock, Naming};
use crate::mount::Mounted;
use crate::ops::{Act, Caller, HandleUse, Op, Present, Sight};
use crate::rootless;
use crate::snapshot::Snapshot;
use crate::tree::{self, Layout};

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

    /// A path in the directory of the trial: `"0/a"` lies in the topmost branch.
    #[must_use]
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }

    /// The read-only branches as they are on disk.
    #[must_use]
    pub fn read_only_branches(&self) -> Vec<(usize, Snapshot)> {
        let accesses = self.layout.branches.iter().enumerate();
        let read_only = accesses.filter(|(_, access)| **access != crate::world::Access::Writable);
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
        Ok(Trial { union, plain, plain_root, mounted, naming: Naming::default(), ground })
    }

    /// Lets both do the same and compares what they say.
    ///
    /// # Errors
    /// What differs.
    pub fn act(&mut self, act: &Act) -> TestCaseResult {
        let act = &Present::of(&self.plain_root).resolve(act);
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
        if act.op == Op::Remount { self.remount() } else { Ok(()) }
    }

    /// Whether there are writable branches that cannot share a hard link.
    fn may_be_torn_apart(&self) -> bool {
        !self.ground.layout.only_top_is_writable()
    }

    /// Errors that a plain directory does not know.
    fn excuses(&self, op: &Op, errno: Errno) -> bool {
        match (op, errno) {
            // what has several names was copied up to one writable branch, and only a higher one can show the new name
            (Op::Rename { .. } | Op::Link { .. }, Errno::XDEV) => self.may_be_torn_apart(),
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
