//! One measurement: mount, prepare, run, read the result, and take everything away again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::contender::{Contender, Stack};
use crate::medium::{Ground, Medium};
use crate::mounted::Mounted;
use crate::requests::{Counter, Requests};
use crate::sandbox::Sandbox;
use crate::tree;
use crate::user_namespace;
use crate::watchdog::Watchdog;
use crate::workload::{Job, Measure, Place, Workload};

/// A workload on a contender.
#[derive(Debug)]
pub(crate) struct Cell<'a> {
    /// Where.
    pub(crate) sandbox: &'a Sandbox,
    /// Who.
    pub(crate) contender: &'a Contender,
    /// What.
    pub(crate) workload: &'a Workload,
    /// Counts the requests, where that is wanted and possible.
    pub(crate) counter: Option<&'a Counter>,
}

/// What came out.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// In the workload's unit.
    pub(crate) value: f64,
    /// What the daemon was asked meanwhile.
    pub(crate) requests: Option<Requests>,
}

impl Cell<'_> {
    /// Measures once, where the contender wants it.
    ///
    /// # Errors
    /// What went wrong, in one line.
    pub(crate) fn measure(&self) -> Result<Measured, String> {
        if self.contender.rootless { user_namespace::measure(self) } else { self.measure_here() }
    }

    /// The same in the namespaces in which this process is.
    pub(crate) fn measure_here(&self) -> Result<Measured, String> {
        let folder = Folder::new(&self.ground().tops).map_err(|error| format!("cannot make a folder: {error}"))?;
        if self.workload.evict {
            let branches = self.workload.tree.branches(&self.ground().trees);
            branches.iter().try_for_each(|branch| tree::evict(branch)).map_err(|error| format!("evict: {error}"))?;
        }
        let count = if let Measure::PageCache(count, _) = self.workload.measure { count } else { 1 };
        let mounts: Vec<(Mounted, Duration)> =
            (0..count).map(|index| self.mount(&folder.0.join(index.to_string()))).collect::<Result<_, _>>()?;
        let connections = mounts.iter().filter_map(|(mount, _)| mount.connection()).collect();
        self.guarded(connections, || self.work(&mounts))
    }

    fn ground(&self) -> Ground {
        self.sandbox.ground(self.workload.medium)
    }

    /// Mounts, and says how long it took until the mount answered.
    fn mount(&self, folder: &Path) -> Result<(Mounted, Duration), String> {
        let [top, work, target] = ["top", "work", "mount"].map(|name| folder.join(name));
        let trees = self.ground().trees;
        let (lower, plain) = (self.workload.branches(&trees), self.workload.tree.plain(&trees));
        let effect = self.workload.effect;
        let writable = Some(top.as_path()).filter(|_| !self.workload.read_only);
        let stack = Stack { top: writable, work: &work, lower: &lower, plain: &plain, effect, target: &target };
        let mount = || {
            [&top, &work, &target].into_iter().try_for_each(fs::create_dir_all)?;
            self.contender.fill_top(&stack)?;
            self.contender.mount(&stack)
        };
        self.guarded(Vec::new(), mount).map_err(|error| format!("mount: {error}"))
    }

    fn guarded<T>(&self, connections: Vec<u64>, act: impl FnOnce() -> io::Result<T>) -> Result<T, String> {
        let watchdog = Watchdog::start(self.sandbox.limit, connections);
        let result = act();
        if watchdog.expired() {
            return Err(format!("given up after {} s", self.sandbox.limit.as_secs()));
        }
        result.map_err(|error| error.to_string())
    }

    fn work(&self, mounts: &[(Mounted, Duration)]) -> io::Result<Measured> {
        let (mount, mount_time) = &mounts[0];
        match self.workload.measure {
            Measure::Time(prepare) => {
                let ran = self.run(mount, self.prepare(mount, prepare)?)?;
                Ok(Measured { value: ran.elapsed.as_secs_f64(), requests: ran.requests })
            }
            Measure::Value(_, prepare) => {
                let ran = self.run(mount, self.prepare(mount, prepare)?)?;
                Ok(Measured { value: ran.value, requests: ran.requests })
            }
            Measure::MountTime => Ok(Measured { value: mount_time.as_secs_f64(), requests: None }),
            Measure::DaemonMemory(prepare) => {
                self.prepare(mount, prepare)?()?;
                let daemon = mount.daemon().ok_or_else(|| io::Error::other("there is no daemon"))?;
                let memory = mebibytes(Path::new(&format!("/proc/{daemon}/status")), "VmRSS:")?;
                Ok(Measured { value: memory, requests: None })
            }
            Measure::PageCache(_, prepare) => {
                let before = mebibytes(Path::new("/proc/meminfo"), "Cached:")?;
                mounts.iter().try_for_each(|(mount, _)| self.prepare(mount, prepare)?())?;
                let after = mebibytes(Path::new("/proc/meminfo"), "Cached:")?;
                Ok(Measured { value: after - before, requests: None })
            }
        }
    }

    fn prepare<T>(&self, mount: &Mounted, prepare: fn(&Place<'_>) -> io::Result<Job<T>>) -> io::Result<Job<T>> {
        let assets = self.workload.assets.plain(&self.sandbox.ground(Medium::Usual).trees);
        let (scale, launcher) = (self.sandbox.scale, self.contender.launcher());
        let storage = self.contender.storage();
        prepare(&Place { root: mount.target(), assets: &assets, scale, launcher, storage: storage.as_ref() })
    }

    /// Runs the job: once more before, where it is to be measured warm.
    fn run<T>(&self, mount: &Mounted, mut job: Job<T>) -> io::Result<Ran<T>> {
        if self.workload.warm {
            job()?;
        }
        let counting = match (self.counter, mount.connection()) {
            (Some(counter), Some(connection)) => reported(counter.start(connection)),
            _ => None,
        };
        let start = Instant::now();
        let value = job()?;
        let elapsed = start.elapsed();
        let requests = counting.and_then(|counting| reported(counting.finish())).flatten();
        Ok(Ran { value, elapsed, requests })
    }
}

/// A count that fails is no failure of the workload.
fn reported<T>(counted: io::Result<T>) -> Option<T> {
    counted.map_err(|error| eprintln!("bench: requests are not counted: {error}")).ok()
}

/// What a job said, and how long it took.
struct Ran<T> {
    value: T,
    elapsed: Duration,
    requests: Option<Requests>,
}

/// A folder with a name that was never used before (the daemon of a former mount at the same path could still be there),
/// removed with all that is in it.
struct Folder(PathBuf);

impl Folder {
    fn new(parent: &Path) -> io::Result<Folder> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let folder = parent.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&folder)?;
        Ok(Folder(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("bench: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// A line such as `VmRSS:     1234 kB` of a file in /proc.
fn mebibytes(file: &Path, key: &str) -> io::Result<f64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kibibytes: Option<f64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    Ok(kibibytes.ok_or_else(|| io::Error::other(format!("{} has no {key}", file.display())))? / 1024.0)
}
