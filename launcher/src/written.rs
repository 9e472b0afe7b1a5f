//! What a container has written, for those who make a layer or a list of it: where it lies, and who can read it.
//!
//! While a container on unions runs, the daemon of those reads it: it alone has a top that is in memory, and what is only
//! noted. Once it has ended, the branches that its record names are read here. The same goes for a root that is a union
//! which `runionfs` has mounted. What is the container's own stays out: there is an init branch like the one that has gone
//! with it, or would have been there.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use unionfs::branch::work;
use unionfs::control::client::{self, Client};
use unionfs::diff::{self, DiffError};
use unionfs::fs::Union;
use unionfs::layer::export::{self, ExportError, LeftOut};
use unionfs::mount::table;
use unionfs::options::{Access, BranchSpec, Options, branches};

use crate::failure::{Doing as _, Failure};
use crate::init_branch::{self, Contents};
use crate::scratch::Scratch;
use crate::state::{self, Record, Word};
use crate::union::requests::{Asked, Request, socket_in};

/// What a container has written.
#[derive(Debug)]
pub(crate) struct Written {
    /// Its unions.
    unions: Vec<UnionOf>,
    /// Where its daemon listens, if it has one that runs.
    socket: Option<PathBuf>,
    /// The mount of `runionfs` that is its root.
    mounted: Option<table::Entry>,
    /// Where the init branches are.
    _scratch: Option<Scratch>,
}

/// A union of a container.
#[derive(Debug, Clone)]
pub(crate) struct UnionOf {
    /// Where it is in the container.
    place: PathBuf,
    branches: Vec<BranchSpec>,
    /// The work area of its top, if not in it.
    workdir: Option<PathBuf>,
}

/// One branch, to be written as a layer.
#[derive(Debug, Clone)]
pub(crate) struct BranchOf {
    union: UnionOf,
    branch: usize,
    socket: Option<PathBuf>,
}

/// Why there is no layer.
#[derive(Debug)]
pub(crate) enum NoLayer {
    /// Nobody reads it.
    Unread,
    /// Something else.
    Failed(Failure),
}

impl Written {
    /// Finds what a container has written.
    ///
    /// # Errors
    /// Where it has no union, or what it had is gone.
    pub(crate) fn by(record: &Record) -> Result<Written, Failure> {
        if record.unions.is_empty() {
            return Written::over_a_mount(record);
        }
        let doing = format!("read what the container {} has written", record.name);
        let runs = record.open_init().doing(&doing)?.is_some();
        let mut unions = Vec::new();
        for (place, words) in &record.unions {
            let branches = parse(words).map_err(|error| Failure::because(&doing, error))?;
            unions.push(UnionOf { place: place.into(), branches, workdir: None });
        }
        if runs {
            let socket = Some(socket_in(&state::running_directory(&record.name)?));
            return Ok(Written { unions, socket, mounted: None, _scratch: None });
        }
        let scratch = Scratch::create(&[])?;
        for union in &mut unions {
            union.are_tops_there(&doing)?;
            let is_own = record.is_a_copy();
            union.refill(scratch.init(&union.place)?, (!is_own).then(Contents::usual))?;
        }
        Ok(Written { unions, socket: None, mounted: None, _scratch: Some(scratch) })
    }

    /// One whose root is a directory: a union only if `runionfs` has mounted it.
    fn over_a_mount(record: &Record) -> Result<Written, Failure> {
        let tree = Path::new(&record.root);
        let none = || {
            let failure =
                Failure::new(format!("the container {} has no union: all of {} is its own", record.name, record.root));
            failure.remedy("start it with --image or --branches, or import the directory as an image")
        };
        let mount = client::find(tree).ok().filter(|mount| mount.target == tree).ok_or_else(none)?;
        let doing = format!("read the union at {}", record.root);
        let failed = |error: client::ClientError| Failure::because(&doing, error);
        let status = Client::connect(&mount).and_then(|mut daemon| daemon.show()).map_err(failed)?;
        let words: Vec<OsString> = status.branches.into_iter().map(OsString::from).collect();
        let branches = branches::parse(&words.join(":".as_ref())).map_err(|error| Failure::because(&doing, error))?;
        let options = status.options.into_iter().map(|text| OsString::from(text).into_vec());
        let workdir =
            options.filter_map(|word| Some(OsString::from_vec(word.strip_prefix(b"workdir=")?.to_vec()).into()));
        let workdir = workdir.into_iter().next();
        let scratch = Scratch::create(&[])?;
        let mut union = UnionOf { place: "/".into(), branches, workdir };
        union.add_own(scratch.init(Path::new("/"))?)?;
        Ok(Written { unions: vec![union], socket: None, mounted: Some(mount), _scratch: Some(scratch) })
    }

    /// The branches of the union at `/`, the top first, but for those that are the container's own.
    pub(crate) fn branches(&self) -> Vec<BranchOf> {
        let Some(union) = self.unions.iter().find(|union| union.place == Path::new("/")) else { return Vec::new() };
        let own = union.branches.iter().enumerate().filter(|(_, branch)| !branch.init);
        own.map(|(branch, _)| BranchOf { union: union.clone(), branch, socket: self.socket.clone() }).collect()
    }

    /// Makes sure that the tops stand alone: what is only noted becomes real. The daemon of a container that runs does that
    /// when it is asked. Where nobody has the branches mounted, nobody can as long as what this returns lives.
    ///
    /// # Errors
    /// Where it cannot.
    pub(crate) fn settle(&self) -> Result<Vec<Arc<Union>>, String> {
        if self.socket.is_some() {
            return Ok(Vec::new());
        }
        let Some(mount) = &self.mounted else {
            return self.unions.iter().map(|union| settle(&union.branches)).collect();
        };
        sync(&mount.target).map_err(|error| format!("{}: {error}", mount.target.display()))?;
        let flushed = Client::connect(mount).and_then(|mut daemon| daemon.flush());
        none_pending(flushed.map_err(|error| error.to_string())?.pending).map(|()| Vec::new())
    }

    /// What became of what lies below, `A`, `C` or `D` and a path on each line.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(crate) fn changes(&self) -> Result<Vec<u8>, Failure> {
        let doing = "read what the container has written";
        let Some(socket) = &self.socket else {
            return changes(&self.unions).map_err(|error| Failure::because(doing, error));
        };
        let (mut reader, writer) = io::pipe().doing(doing)?;
        let asked = Asked::of(socket, Request::Changes, writer.into())?;
        let mut text = Vec::new();
        io::Read::read_to_end(&mut reader, &mut text).doing(doing)?;
        asked.finish().map_err(|no_layer| no_layer.told(doing))?;
        Ok(text)
    }
}

impl UnionOf {
    pub(crate) fn new(place: &Path, branches: &[BranchSpec]) -> UnionOf {
        UnionOf { place: place.to_owned(), branches: branches.to_vec(), workdir: None }
    }

    fn are_tops_there(&self, doing: &str) -> Result<(), Failure> {
        let mut tops = self.branches.iter().filter(|branch| branch.access == Access::ReadWrite);
        let Some(gone) = tops.find(|top| !top.path.is_dir()) else { return Ok(()) };
        let failure = Failure::because(doing, format!("{} is not there any more", gone.path.display()));
        Err(failure.remedy("it is kept with --name or -d, without --rm and --tmpfs-top, or by --keep DIR"))
    }

    /// Gives it an init branch again, whose directory has gone with the container.
    fn refill(&mut self, directory: PathBuf, contents: Option<Contents>) -> Result<(), Failure> {
        let gone = self.branches.iter_mut().find(|branch| branch.init && !branch.path.exists());
        let Some(init) = gone else { return Ok(()) };
        init.path = directory;
        contents.map_or(Ok(()), |contents| init_branch::fill(&self.branches, &contents))
    }

    /// Gives it an init branch, to leave out what is a container's own.
    fn add_own(&mut self, directory: PathBuf) -> Result<(), Failure> {
        if !init_branch::is_added(&self.branches) {
            return Ok(());
        }
        self.branches = init_branch::add(&self.branches, directory);
        init_branch::fill(&self.branches, &Contents::usual())
    }
}

impl BranchOf {
    /// Writes it as a layer over those below it. No time in it is later than `latest`. What was left out, and why.
    ///
    /// # Errors
    /// Where it cannot be written in full.
    pub(crate) fn write(&self, content: OwnedFd, latest: Option<i64>) -> Result<Vec<String>, NoLayer> {
        if let Some(socket) = &self.socket {
            let asked = Asked::of(socket, Request::Layer { branch: self.branch, latest }, content);
            return asked.map_err(NoLayer::Failed)?.finish();
        }
        let branches = self.union.branches.get(self.branch..).unwrap_or_default();
        // The records of the top are in its own work area, wherever that is; those of others in theirs.
        let workdir = self.union.workdir.as_deref().filter(|_| self.branch == 0);
        layer(branches, workdir, content, latest)
    }

    /// Whether somebody may write to it.
    pub(crate) fn is_written(&self) -> bool {
        self.union.branches.get(self.branch).is_some_and(|branch| branch.access == Access::ReadWrite)
    }

    /// The directory, for messages.
    pub(crate) fn path(&self) -> &Path {
        self.union.branches.get(self.branch).map_or(Path::new(""), |branch| &branch.path)
    }
}

impl NoLayer {
    /// As a failure of something that was done.
    pub(crate) fn told(self, doing: &str) -> Failure {
        match self {
            NoLayer::Unread => Failure::because(doing, "nobody reads it"),
            NoLayer::Failed(failure) => failure,
        }
    }
}

/// Writes the topmost of these branches as a layer; what was left out, and why.
///
/// # Errors
/// Where it cannot be written in full.
pub(crate) fn layer(
    branches: &[BranchSpec],
    workdir: Option<&Path>,
    content: OwnedFd,
    latest: Option<i64>,
) -> Result<Vec<String>, NoLayer> {
    let mut notes = Notes::default();
    let written = export::export(branches, workdir, File::from(content), latest, &mut |entry| notes.add(&entry));
    match written {
        Ok(()) => Ok(notes.told()),
        Err(ExportError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Err(NoLayer::Unread),
        Err(error) => {
            let top = branches.first().map_or(Path::new(""), |branch| &branch.path);
            Err(NoLayer::Failed(Failure::because(&format!("read {}", top.display()), error)))
        }
    }
}

/// What is left out of a layer.
#[derive(Debug, Default)]
struct Notes {
    first: Vec<String>,
    more: usize,
}

/// Of more than this many things that are left out, only the number is told.
const MOST_NOTES: usize = 100;

impl Notes {
    fn add(&mut self, entry: &LeftOut) {
        match self.first.len() < MOST_NOTES {
            true => self.first.push(format!("{} is left out: {}", String::from_utf8_lossy(&entry.path), entry.why)),
            false => self.more += 1,
        }
    }

    fn told(mut self) -> Vec<String> {
        if self.more > 0 {
            self.first.push(format!("{} more are left out", self.more));
        }
        self.first
    }
}

/// The branches of a union as a record has them.
fn parse(words: &[Word]) -> Result<Vec<BranchSpec>, branches::BranchesError> {
    let words: Vec<OsString> = words.iter().cloned().map(OsString::from).collect();
    branches::parse(&words.join(":".as_ref()))
}

/// What became of what lies below the tops of unions, each at its place: `A`, `C` or `D` and a path on each line.
///
/// # Errors
/// Where a branch cannot be read.
pub(crate) fn changes(unions: &[UnionOf]) -> Result<Vec<u8>, DiffError> {
    let mut lines = Vec::new();
    // Nothing can have been written where nobody can write.
    let writes = |union: &&UnionOf| union.branches.first().is_some_and(|top| top.access == Access::ReadWrite);
    for union in unions.iter().filter(writes) {
        let place = union.place.as_os_str().as_bytes();
        let around = place.strip_suffix(b"/").unwrap_or(place);
        let found = diff::diff(&union.branches, union.workdir.as_deref())?;
        lines.extend(found.into_iter().map(|change| ([around, &change.path].concat(), change.kind)));
    }
    lines.sort();
    let line = |(path, kind): &(Vec<u8>, diff::Kind)| [kind.to_string().as_bytes(), b" ", path, b"\n"].concat();
    Ok(lines.iter().flat_map(line).collect())
}

/// Opens a union that nobody serves, and makes its tops stand alone. Nobody else can mount it as long as what this returns
/// lives.
///
/// # Errors
/// Where it cannot.
pub(crate) fn settle(branches: &[BranchSpec]) -> Result<Arc<Union>, String> {
    let top = branches.first().map_or(Path::new(""), |branch| &branch.path);
    let failed = |errno: rustix::io::Errno| io::Error::from(errno).to_string();
    if work::is_left_volatile(top).map_err(failed)? {
        return Err("it was killed while it did not wait for the disk: nobody knows what is whole".into());
    }
    let union = Union::open(branches, &Options::default()).map_err(|error| error.to_string())?;
    if work::has_links(top).map_err(failed)? {
        none_pending(union.flush_links().map_err(failed)?.pending)?;
    }
    Ok(union)
}

/// Whether all hard links are real.
pub(crate) fn none_pending(count: u64) -> Result<(), String> {
    match count {
        0 => Ok(()),
        count => Err(format!("{count} hard-linked files have names below that could not be brought up")),
    }
}

/// Has the kernel begin to write what it holds of a file system. Of one that belongs to another user it will not be asked;
/// the daemon waits for what counts.
pub(crate) fn sync(root: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(root)?.as_fd())?)
}

/// Prints what is to be known of something that was left out.
pub(crate) fn tell(notes: &[String]) {
    notes.iter().for_each(|note| crate::message::say(format_args!("note: {note}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_all_that_is_left_out_is_told_by_name() {
        let mut notes = Notes::default();
        for number in 0..MOST_NOTES + 3 {
            notes.add(&LeftOut { path: format!("srv/{number}").into(), why: "it is odd".into() });
        }
        let told = notes.told();
        assert_eq!((told.len(), told.last().map(String::as_str)), (MOST_NOTES + 1, Some("3 more are left out")));
    }
}
