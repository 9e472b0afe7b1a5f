//! What a caller did, with the tree after each step as a plain directory had it, and what of it must be there after the
//! power was cut at some moment.
//!
//! File systems with a journal keep the order of all changes of names and attributes. So there is one step whose tree
//! is found again, not before the last one that an fsync covers, and not after the last one that had begun. Only the
//! bytes that were written into files since they were synchronised are free: each is one that the file had at its place
//! at some time since, or zero where the file was shorter. A copied-up file never had other bytes than the one below.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::model::{self, Clock, Object};
use crate::ops::{Act, Op, OpenHow};
use crate::snapshot::{Kind, Snapshot};

/// When a step was taken, in positions of a disk.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    /// Before the call.
    pub begun: usize,
    /// After its answer.
    pub answered: usize,
}

/// One step and the tree after it.
#[derive(Debug)]
struct Step {
    act: Option<Act>,
    begun: usize,
    tree: Tree,
}

/// A tree, with the object of each path.
#[derive(Debug, Default)]
struct Tree {
    snapshot: Snapshot,
    objects: BTreeMap<PathBuf, Object>,
}

/// Something that was made durable.
#[derive(Debug)]
struct Barrier {
    /// From here on.
    position: usize,
    /// Names and attributes up to this step.
    step: usize,
}

/// The bytes that a file had, and when.
#[derive(Debug, Default)]
struct Bytes {
    /// After which step, the bytes; in order.
    versions: Vec<(usize, Rc<Vec<u8>>)>,
    /// Synchronised at a position, as they were after a step.
    synced: Vec<(usize, usize)>,
}

/// A history of one caller over one tree.
#[derive(Debug)]
pub struct History {
    plain: PathBuf,
    steps: Vec<Step>,
    barriers: Vec<Barrier>,
    bytes: HashMap<Object, Bytes>,
    /// Modification and change time of what was read last, so that it is not read again.
    read: HashMap<Object, [i64; 4]>,
}

impl History {
    /// Begins with what the plain directory holds, all of it durable.
    #[must_use]
    pub fn begin(plain: &Path) -> History {
        let mut history = History {
            plain: plain.to_owned(),
            steps: Vec::new(),
            barriers: vec![Barrier { position: 0, step: 0 }],
            bytes: HashMap::new(),
            read: HashMap::new(),
        };
        history.push(None, 0);
        history
    }

    /// The number of the last step.
    #[must_use]
    pub fn last(&self) -> usize {
        self.steps.len() - 1
    }

    /// Notes a step that the plain directory has taken as well; `done` says whether it succeeded.
    pub fn note(&mut self, act: &Act, moments: Moments, done: bool) {
        self.push(Some(act.clone()), moments.begun);
        if let (Op::Sync { at }, true) = (&act.op, done) {
            self.synced(Path::new(at), moments.answered);
        }
    }

    /// Notes that the whole file system was synchronised (syncfs(2)) after a step. That is about names and attributes
    /// only: XFS asks for no flush of the disk there when its log has nothing new.
    pub fn all_synced(&mut self, step: usize, position: usize) {
        self.barriers.push(Barrier { position, step });
    }

    fn push(&mut self, act: Option<Act>, begun: usize) {
        let snapshot = Snapshot::take(&self.plain);
        let objects =
            snapshot.entries.keys().map(|path| (path.clone(), model::object(&self.plain.join(path)))).collect();
        let tree = Tree { snapshot, objects };
        self.read_contents(&tree, act.as_ref().is_some_and(|act| truncates(&act.op)));
        self.steps.push(Step { act, begun, tree });
    }

    /// Keeps the bytes of every file that has others than before. `emptied` says that they were none in between.
    fn read_contents(&mut self, tree: &Tree, emptied: bool) {
        let step = self.steps.len();
        for (path, _) in tree.snapshot.entries.iter().filter(|(_, entry)| entry.kind == Kind::File) {
            let (object, at) = (tree.objects[path], self.plain.join(path));
            let stat = fs::metadata(&at).expect("look at a plain file");
            let times = [stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()];
            if self.read.insert(object, times) == Some(times) {
                continue;
            }
            let now = fs::read(&at).expect("read a plain file");
            let bytes = self.bytes.entry(object).or_default();
            let empty = || Rc::new(Vec::new());
            match bytes.versions.last() {
                Some((_, before)) if **before == now => continue,
                Some(_) if emptied => bytes.versions.push((step, empty())),
                // what a step makes is there before anything is written into it
                None if step > 0 => bytes.versions.push((step, empty())),
                _ => {}
            }
            bytes.versions.push((step, Rc::new(now)));
        }
    }

    /// A file or directory was synchronised after the last step.
    fn synced(&mut self, at: &Path, position: usize) {
        let last = self.last();
        let tree = &self.steps[last].tree;
        let at = normal(at);
        let (Some(object), Some(entry)) = (tree.objects.get(&at).copied(), tree.snapshot.entries.get(&at)) else {
            return;
        };
        if entry.kind == Kind::File {
            self.bytes.entry(object).or_default().synced.push((position, last));
        }
        // the first step after which nothing changed that the fsync is about
        let now = tree.about(&at);
        let same = self.steps.iter().rev().take_while(|step| step.tree.holds(object, &now)).count();
        let step = self.steps.len() - same;
        self.barriers.push(Barrier { position, step });
    }

    /// Checks what a union shows whose disk was cut at `position`. Returns which step it is found after, and how many
    /// could have been.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, position: usize, union: &Path) -> Result<(usize, usize), String> {
        let mut found = Snapshot::try_take(union).map_err(|(path, error)| format!("{}: {error}", path.display()))?;
        for entry in found.entries.values_mut() {
            // XFS shows each ACL by the name that it has on disk as well
            entry.xattrs.retain(|name, _| !name.as_bytes().starts_with(b"trusted.SGI_ACL_"));
        }
        let least = self.barriers.iter().filter(|barrier| barrier.position <= position).map(|barrier| barrier.step);
        let least = least.max().unwrap_or(0);
        let most = self.steps.iter().rposition(|step| step.begun <= position).unwrap_or(0).max(least);
        let mut nearest: Option<(usize, Vec<String>)> = None;
        for step in least..=most {
            let lines = self.difference(step, most, position, found.clone(), union);
            if lines.is_empty() {
                return Ok((step, most - least + 1));
            }
            if nearest.as_ref().is_none_or(|(_, fewest)| lines.len() < fewest.len()) {
                nearest = Some((step, lines));
            }
        }
        let (step, lines) = nearest.unwrap_or_default();
        Err(format!(
            "it is none of the trees after the steps {least} to {most}; it is not the one after {step} by\n{}\nsteps:\n{}",
            lines.join("\n"),
            self.told(least.saturating_sub(3), most)
        ))
    }

    fn told(&self, from: usize, to: usize) -> String {
        let steps = self.steps.iter().enumerate().take(to + 1).skip(from);
        let lines = steps.map(|(number, step)| match &step.act {
            Some(act) => format!("  {number} at {}: {:?}", step.begun, act.op),
            None => format!("  {number}: the beginning"),
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn difference(&self, step: usize, most: usize, position: usize, mut found: Snapshot, union: &Path) -> Vec<String> {
        let tree = &self.steps[step].tree;
        let mut lines = Vec::new();
        for (path, expected) in tree.snapshot.entries.iter().filter(|(_, entry)| entry.kind == Kind::File) {
            let Some(entry) = found.entries.get_mut(path).filter(|entry| entry.kind == Kind::File) else { continue };
            let allowed = self.allowed(tree.objects[path], most, position);
            if allowed.len() < 2 {
                continue;
            }
            let bytes = fs::read(union.join(path)).unwrap_or_default();
            lines.extend(stranger(&bytes, &allowed).map(|text| format!("{}: {text}", path.display())));
            entry.content.clone_from(&expected.content);
            entry.size = expected.size;
        }
        lines.extend(model::difference(&found, &tree.snapshot, Clock::NotDirectories));
        let (ours, theirs) = (groups(&found), groups(&tree.snapshot));
        if ours != theirs {
            lines.push(format!("one file are {ours:?} and not {theirs:?}"));
        }
        lines
    }

    /// The contents that a file may have had: that which was synchronised last, and all since.
    fn allowed(&self, object: Object, most: usize, position: usize) -> Vec<&[u8]> {
        let Some(bytes) = self.bytes.get(&object) else { return Vec::new() };
        let base = bytes.synced.iter().filter(|(at, _)| *at <= position).map(|(_, step)| *step).max().unwrap_or(0);
        let first = bytes.versions.iter().rposition(|(step, _)| *step <= base).unwrap_or(0);
        let since = bytes.versions.iter().skip(first).filter(|(step, _)| *step <= most);
        since.map(|(_, bytes)| bytes.as_slice()).collect()
    }
}

/// What is strange about the bytes of a file that had these contents one after the other.
fn stranger(found: &[u8], allowed: &[&[u8]]) -> Option<String> {
    let lengths = allowed.iter().map(|bytes| bytes.len());
    let (least, most) = (lengths.clone().min().unwrap_or(0), lengths.max().unwrap_or(0));
    if !(least..=most).contains(&found.len()) {
        return Some(format!("it has {} bytes, but never had less than {least} or more than {most}", found.len()));
    }
    let known = |at: usize, byte: u8| allowed.iter().any(|bytes| bytes.get(at).copied().unwrap_or(0) == byte);
    let at = found.iter().enumerate().find(|(at, byte)| !known(*at, **byte))?.0;
    Some(format!("the byte {at} of {} is {}, which it never was", found.len(), found[at]))
}

/// Whether an operation leaves a file empty for a moment.
fn truncates(op: &Op) -> bool {
    use OpenHow::{CreateTruncate, ReadTruncate, WriteTruncate};
    matches!(op, Op::Open { how: CreateTruncate | WriteTruncate | ReadTruncate, .. })
}

/// The names of files by the number they show, so that torn links are seen.
fn groups(tree: &Snapshot) -> Vec<Vec<&Path>> {
    let mut groups: HashMap<u64, Vec<&Path>> = HashMap::new();
    for (path, entry) in tree.entries.iter().filter(|(_, entry)| entry.kind != Kind::Directory) {
        groups.entry(entry.ino).or_default().push(path);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort();
    groups
}

/// A path as snapshots have it: `.` is the empty one.
fn normal(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != std::path::Component::CurDir).collect()
}

/// What an fsync of something is about: how it looks, where its name lies and what it is, and what lies in it.
#[derive(Debug, PartialEq, Eq)]
struct Matter {
    look: String,
    place: Option<Object>,
    name: OsString,
    inside: BTreeMap<OsString, Object>,
}

impl Tree {
    fn about(&self, path: &Path) -> Matter {
        let entry = &self.snapshot.entries[path];
        // a directory's time is its children's matter
        let times = (entry.kind == Kind::File).then_some(entry.mtime);
        let look = (entry.kind, entry.mode, entry.uid, entry.gid, entry.size, &entry.content, &entry.xattrs, times);
        let inside = self.objects.iter().filter(|(inner, _)| inner.parent() == Some(path));
        Matter {
            look: format!("{look:?}"),
            place: path.parent().and_then(|parent| self.objects.get(parent)).copied(),
            name: last_name(path),
            inside: inside.map(|(inner, object)| (last_name(inner), *object)).collect(),
        }
    }

    /// Whether the same holds here of the object, wherever the directories above it lay.
    fn holds(&self, object: Object, matter: &Matter) -> bool {
        let places = self.objects.iter().filter(|(_, other)| **other == object).map(|(place, _)| place);
        places.filter(|place| last_name(place) == matter.name).any(|place| self.about(place) == *matter)
    }
}

fn last_name(path: &Path) -> OsString {
    path.file_name().unwrap_or_default().to_owned()
}
