//! `runionfs export`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::exit;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use unionfs::branch;
use unionfs::layer::export;
use unionfs::options::BranchSpec;

use super::union::{Alone, Asked, of_workdir};
use super::{ExportArgs, Failure, complain, daemon, log, signals};

/// The environment variable that says what no time in a layer is later than
/// (<https://reproducible-builds.org/specs/source-date-epoch/>).
const EPOCH: &str = "SOURCE_DATE_EPOCH";

pub(super) fn run(args: &ExportArgs) -> Result<(), Failure> {
    log::start(&log::LogArgs::default())?;
    let latest = latest()?;
    // modes of branches are set as they are; that of the layer is the user's affair
    let umask = rustix::process::umask(Mode::empty());
    daemon::prepare()?;
    let union = Asked::find(&args.union, of_workdir(args.workdir.as_deref()), Alone::IsBranch)?;
    union.settle()?;
    let branches = union.branches();
    let mode = Mode::from_raw_mode(0o666) - umask;
    let output = Output::open(args.output.as_deref().map(Path::new), mode, branches, union.device())?;
    let mut left_out = |entry: export::LeftOut| {
        complain(&format!("{} is left out: {}", String::from_utf8_lossy(&entry.path), entry.why));
    };
    export::export(branches, union.workdir(), output.file()?, latest, &mut left_out)?;
    output.finish()
}

fn latest() -> Result<Option<i64>, Failure> {
    let Some(text) = std::env::var_os(EPOCH).filter(|text| !text.is_empty()) else { return Ok(None) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    let seconds = seconds.ok_or_else(|| format!("{EPOCH}={}: it is no number of seconds", text.display()))?;
    Ok(Some(seconds))
}

/// Where a layer goes.
enum Output {
    /// To what was there before: standard output, a device, a fifo.
    Stream(File),
    /// To a new file, which takes its name when it is complete.
    Fresh(Fresh),
}

/// A file that has no name, or a temporary one, until it is complete.
struct Fresh {
    file: File,
    directory: File,
    name: OsString,
    unfinished: Arc<Unfinished>,
}

/// A name that is removed when dropped.
struct Temporary {
    directory: File,
    name: OsString,
}

/// What a signal has to remove, where the file system takes no files without a name.
#[derive(Default)]
struct Unfinished(Mutex<Option<Temporary>>);

impl signals::Ending for Unfinished {
    fn ask(&self) -> bool {
        self.force()
    }

    fn force(&self) -> ! {
        drop(self.0.lock().take());
        exit(1)
    }
}

impl Output {
    fn open(path: Option<&Path>, mode: Mode, branches: &[BranchSpec], mounted: Option<u64>) -> Result<Output, Failure> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            let out = std::io::stdout();
            if out.is_terminal() {
                return Err("a layer is no text for a terminal: give a file with -o, or a pipe".into());
            }
            return Ok(Output::Stream(out.as_fd().try_clone_to_owned()?.into()));
        };
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
        let path = match fs::canonicalize(path) {
            Ok(path) => path,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => std::path::absolute(path).map_err(failed)?,
            Err(error) => return Err(failed(error).into()),
        };
        match fs::symlink_metadata(&path) {
            Ok(about) if about.is_dir() => {
                return Err(format!("cannot write {}: it is a directory", path.display()).into());
            }
            Ok(about) if about.file_type().is_char_device() || about.file_type().is_fifo() => {
                return Ok(Output::Stream(File::options().write(true).open(&path).map_err(failed)?));
            }
            _ => {}
        }
        refuse_inside(&path, branches, mounted)?;
        Ok(Output::Fresh(Fresh::new(&path, mode)?))
    }

    fn file(&self) -> Result<File, Failure> {
        match self {
            Output::Stream(file) | Output::Fresh(Fresh { file, .. }) => Ok(file.try_clone()?),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        match self {
            Output::Stream(_) => Ok(()),
            Output::Fresh(fresh) => fresh.finish(),
        }
    }
}

/// A layer that is written to where it is read from would hold itself.
fn refuse_inside(path: &Path, branches: &[BranchSpec], mounted: Option<u64>) -> Result<(), Failure> {
    let refused = || Err(format!("{} lies in the union that is exported: give another place", path.display()).into());
    let parent = path.parent().unwrap_or(Path::new("/"));
    let above =
        branch::ancestry::ancestry(parent).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    if mounted.is_some_and(|device| above.first().is_some_and(|(first, _)| *first == device)) {
        return refused();
    }
    for branch in branches {
        let root = rustix::fs::stat(&branch.path).map_err(|error| format!("{}: {error}", branch.path.display()))?;
        if above.contains(&(root.st_dev, root.st_ino)) && branch.access == unionfs::options::Access::ReadWrite {
            return refused();
        }
    }
    Ok(())
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // whoever waits for a signal holds it, too
        drop(self.unfinished.0.lock().take());
    }
}

impl Fresh {
    fn new(path: &Path, mode: Mode) -> Result<Fresh, Failure> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().ok_or(Errno::ISDIR)?.to_owned();
        let directory = File::from(rustix::fs::open(parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let unfinished = Arc::new(Unfinished::default());
        // without a name it is gone whatever ends the command
        match rustix::fs::openat(&directory, c".", flags | OFlags::TMPFILE, mode) {
            Ok(file) => return Ok(Fresh { file: file.into(), directory, name, unfinished }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        signals::block()?;
        let (file, temporary) =
            with_new_name(|name| rustix::fs::openat(&directory, name, flags | OFlags::CREATE | OFlags::EXCL, mode))?;
        let temporary = Temporary { directory: directory.try_clone()?, name: temporary };
        *unfinished.0.lock() = Some(temporary);
        signals::watch(Arc::clone(&unfinished))?;
        Ok(Fresh { file: file.into(), directory, name, unfinished })
    }

    fn finish(self) -> Result<(), Failure> {
        Ok(self.put().map_err(|error| format!("cannot write {}: {error}", self.name.display()))?)
    }

    fn put(&self) -> std::io::Result<()> {
        // a crash must not leave the name of a layer that is not all there
        rustix::fs::fdatasync(&self.file)?;
        let mut unfinished = self.unfinished.0.lock();
        if unfinished.is_none() {
            let held = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let ((), name) =
                with_new_name(|name| rustix::fs::linkat(CWD, &held, &self.directory, name, AtFlags::SYMLINK_FOLLOW))?;
            *unfinished = Some(Temporary { directory: self.directory.try_clone()?, name });
        }
        if let Some(temporary) = unfinished.as_ref() {
            rustix::fs::renameat(&self.directory, &temporary.name, &self.directory, &self.name)?;
            // the name that dropping it would remove is the layer's by now
            std::mem::forget(unfinished.take());
        }
        Ok(())
    }
}

/// Makes something under a name that is not taken yet.
fn with_new_name<T>(make: impl Fn(&OsStr) -> Result<T, Errno>) -> Result<(T, OsString), Errno> {
    let mut attempt = 0_u32;
    loop {
        let name: OsString = format!(".runionfs-export-{}-{attempt}", std::process::id()).into();
        match make(&name) {
            // left by a process of the same number that was killed
            Err(Errno::EXIST) => attempt += 1,
            made => return Ok((made?, name)),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty()) {
            complain(&format!("cannot remove {}: {error}", self.name.display()));
        }
    }
}
