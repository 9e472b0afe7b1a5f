//! Reading layers: each is copied, checked and unpacked in one pass, several at a time.
//!
//! One thread of a layer reads, computes the blob's digest and keeps a copy; the second decompresses, which takes longest;
//! the third computes the diff_id and unpacks. Between them are a few pieces, so that memory is bounded whatever an archive
//! holds. Nothing of a layer has a name outside of the workspace until both digests are what they are said to be.

use std::fs::{self, File};
use std::io::{self, BufWriter, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

use nix::errno::Errno;
use unionfs::layer::apply::{self, ApplyError, UNPACKED};
use unionfs::layer::compressed;
use unionfs::layer::holes::WithHoles;

use super::digest::{Digest, Digesting};
use super::files::Files;
use super::manifest::{Descriptor, LAYER};
use super::pieces::{Sending, pieces};
use super::progress::Progress;
use super::source::{LayerSource, Place};
use super::store::{Diff, Made, Store, Workspace};
use super::time;
use crate::failure::{self, Doing as _, Failure, failed};
use crate::written::{self, NoLayer};

/// So much of a blob is written at a time.
const PIECE: usize = 256 * 1024;
/// More layers at a time do not help a disk.
const MOST_AT_A_TIME: usize = 4;

/// A layer that has been read.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff: Diff,
}

/// What is being read, for all threads.
struct Loading<'a> {
    store: &'a Store,
    workspace: &'a Workspace,
    files: &'a Files,
    layers: &'a [LayerSource],
    progress: &'a Progress,
    next: AtomicUsize,
    /// Whether one has failed, so that the others need not go on.
    failed: AtomicBool,
    done: Mutex<Done>,
    /// Told whenever a layer is done, or has failed.
    changed: Condvar,
}

#[derive(Default)]
struct Done {
    made: Made,
    /// Each that is done, and where it is unpacked.
    layers: Vec<Option<(Loaded, PathBuf)>>,
    failure: Option<Failure>,
}

/// Reads the layers of an image; what was made of them is in the workspace.
pub(crate) fn load(
    store: &Store,
    workspace: &Workspace,
    files: &Files,
    layers: &[LayerSource],
) -> Result<(Vec<Loaded>, Made), Failure> {
    load_seen(store, workspace, files, layers, &Progress::none())
}

/// The same, with somebody who looks on.
pub(crate) fn load_seen(
    store: &Store,
    workspace: &Workspace,
    files: &Files,
    layers: &[LayerSource],
    progress: &Progress,
) -> Result<(Vec<Loaded>, Made), Failure> {
    let done = Done { layers: vec![None; layers.len()], ..Done::default() };
    let (next, failed, done) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(done));
    let loading = Loading { store, workspace, files, layers, progress, next, failed, done, changed: Condvar::new() };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_AT_A_TIME).min(layers.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| loading.work());
        }
    });
    let defect = || Failure::new("reading a layer has a defect");
    let done = loading.done.into_inner().map_err(|_| defect())?;
    if let Some(failure) = done.failure {
        return Err(failure);
    }
    let loaded = |at| done.layers.get(same_as(files, layers, at))?.as_ref().map(|(loaded, _)| loaded.clone());
    let loaded = (0..layers.len()).map(loaded).collect::<Option<_>>();
    Ok((loaded.ok_or_else(defect)?, done.made))
}

/// The first layer of the same content: some images have one more than once.
fn same_as(files: &Files, layers: &[LayerSource], at: usize) -> usize {
    let key = |layer: &LayerSource| match &layer.from {
        Place::Named(name) => Some((files.key(name), layer.diff_id)),
        Place::Whole(_) | Place::Branches(_) | Place::Written(_) => None,
    };
    let wanted = layers.get(at).and_then(key);
    let first = layers.iter().position(|layer| wanted.is_some() && key(layer) == wanted);
    first.unwrap_or(at)
}

impl Loading<'_> {
    /// Takes one layer after the other, until there are none left.
    fn work(&self) {
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(layer) = self.layers.get(at) else { return };
            if self.failed.load(Ordering::Relaxed) {
                return;
            }
            if same_as(self.files, self.layers, at) != at {
                continue;
            }
            let result = self.layer(at, layer);
            // One that panics poisons it, and all is told as a defect.
            let Ok(mut done) = self.done.lock() else { return };
            match result {
                Ok((loaded, made)) => {
                    let place = made.layers.first().map(|(path, _)| path.join(UNPACKED));
                    let place = place.unwrap_or_else(|| self.store.layer(loaded.diff.diff_id).branch);
                    done.layers[at] = Some((loaded, place));
                    done.made.add(made);
                }
                Err(failure) => {
                    // Those that were made to give up are not the reason.
                    let is_first = !self.failed.swap(true, Ordering::Relaxed);
                    if is_first {
                        done.failure = Some(failure);
                    }
                }
            }
            self.changed.notify_all();
        }
    }

    fn layer(&self, at: usize, layer: &LayerSource) -> Result<(Loaded, Made), Failure> {
        if let Some(known) = self.known(layer) {
            return Ok((known, Made::default()));
        }
        self.take(at, layer).map_err(|failure| match failure.no_room {
            Some(errno) => failed(&format!("write layer {}", at + 1), errno),
            None => failure,
        })
    }

    /// Reads one that the store does not have.
    fn take(&self, at: usize, layer: &LayerSource) -> Result<(Loaded, Made), Failure> {
        let doing = format!("read layer {}", at + 1);
        let holder = self.workspace.path().join(format!("layer-{at}"));
        let copy = self.workspace.path().join(format!("blob-{at}"));
        fs::create_dir(&holder).doing(&doing)?;
        let most = layer.descriptor.as_ref().map_or(u64::MAX, |descriptor| descriptor.size);
        let file = File::create(&copy).doing(&doing)?;
        let giving_up = || self.failed.load(Ordering::Relaxed);
        let below = || self.below(at);
        let target = Target { copy: file, most, holder: &holder, below: &below, giving_up: &giving_up };
        let (blob, diff) = match &layer.from {
            Place::Named(name) => {
                let input = self.files.open(name).doing(&format!("{doing}, {}", name.escape_debug()))?;
                let size = layer.descriptor.as_ref().map(|descriptor| descriptor.size);
                unpack(self.progress.bar(&shown(layer, at), size).count(input), target, &doing)?
            }
            Place::Whole(path) => {
                let input = File::open(path).doing(&doing)?;
                let size = input.metadata().doing(&doing)?.len();
                unpack(self.progress.bar(&shown(layer, at), Some(size)).count(input), target, &doing)?
            }
            Place::Branches(branches) => {
                let write = |output| written::layer(branches, None, output, time::epoch());
                through_a_pipe(write, |input| unpack(input, target, &doing))?
            }
            Place::Written(branch) => {
                let write = |output| branch.write(output, time::epoch());
                through_a_pipe(write, |input| unpack(input, target, &doing))?
            }
        };
        check(layer, &blob, &diff, &doing)?;
        let media_type = format!("{LAYER}{}", compression(&copy).doing(&doing)?);
        let descriptor = layer.descriptor.clone().unwrap_or_else(|| Descriptor::new(&media_type, blob.0, blob.1));
        let record = self.workspace.path().join(format!("diff-{at}"));
        let text = serde_json::to_vec(&diff).map_err(|error| Failure::because(&doing, error))?;
        fs::write(&record, text).doing(&doing)?;
        let made =
            Made { layers: vec![(holder, diff.diff_id)], blobs: vec![(copy, blob.0)], diffs: vec![(record, blob.0)] };
        Ok((Loaded { descriptor, diff }, made))
    }

    /// The layers below one, the topmost first, once they are all unpacked; nothing if one has failed. They were begun
    /// before it, so waiting for them ends.
    fn below(&self, at: usize) -> Option<Vec<PathBuf>> {
        let mut done = self.done.lock().ok()?;
        loop {
            if self.failed.load(Ordering::Relaxed) {
                return None;
            }
            let place =
                |at| done.layers.get(same_as(self.files, self.layers, at))?.as_ref().map(|(_, path)| path.clone());
            if let Some(places) = (0..at).rev().map(place).collect() {
                return Some(places);
            }
            done = self.changed.wait(done).ok()?;
        }
    }

    /// A layer that the store has.
    fn known(&self, layer: &LayerSource) -> Option<Loaded> {
        let diff_id = layer.diff_id?;
        // Archives of docker hold plain layers, of which both digests are the same.
        let blob = layer.descriptor.as_ref().map_or(diff_id, |descriptor| descriptor.digest);
        let diff = self.store.has(blob).filter(|diff| diff.diff_id == diff_id)?;
        // One that is damaged is read again, as far as that shows at once.
        let size = layer.descriptor.as_ref().map_or(diff.size, |descriptor| descriptor.size);
        fs::metadata(self.store.blob(blob)).ok().filter(|about| about.len() == size)?;
        let plain = || Descriptor::new(LAYER, blob, diff.size);
        Some(Loaded { descriptor: layer.descriptor.clone().unwrap_or_else(plain), diff })
    }
}

/// What a layer is called where its progress is shown.
fn shown(layer: &LayerSource, at: usize) -> String {
    let digest = layer.descriptor.as_ref().map(|descriptor| descriptor.digest).or(layer.diff_id);
    digest.map_or_else(|| format!("layer {}", at + 1), |digest| digest.short())
}

/// Whether a layer is what it is said to be.
fn check(layer: &LayerSource, blob: &(Digest, u64), diff: &Diff, doing: &str) -> Result<(), Failure> {
    if let Some(said) = &layer.descriptor
        && (said.digest, said.size) != *blob
    {
        let (digest, size) = (said.digest, said.size);
        let found = format!("it is not {digest} of {size} bytes, but {} of {}", blob.0, blob.1);
        return Err(Failure::because(doing, found));
    }
    match layer.diff_id {
        Some(said) if said != diff.diff_id => {
            let found = format!("its content is not {said}, as the configuration says, but {}", diff.diff_id);
            Err(Failure::because(doing, found))
        }
        _ => Ok(()),
    }
}

/// Where a layer goes.
struct Target<'a> {
    /// The blob as it came.
    copy: File,
    /// How long that can be at most.
    most: u64,
    /// Where it is unpacked.
    holder: &'a Path,
    below: &'a dyn Fn() -> Option<Vec<PathBuf>>,
    giving_up: &'a dyn Fn() -> bool,
}

/// Copies and unpacks a layer: digest and length as it came, and of what is in it.
fn unpack(input: impl Read + Send, target: Target<'_>, doing: &str) -> Result<((Digest, u64), Diff), Failure> {
    let Target { copy, most, holder, below, giving_up } = target;
    let (blob, mut read) = pieces();
    let (plain, received) = pieces();
    let spoilt = &AtomicBool::new(false);
    let (kept, plain, unpacked) = thread::scope(|scope| {
        let keeping = scope.spawn(move || keep(input, copy, most, &blob, spoilt));
        let decompressing = scope.spawn(move || {
            // `read` goes last: whoever finds that nobody receives any more sees why.
            let sent = compressed::plain(&mut read).and_then(|mut content| plain.send(&mut content));
            let sent = sent.inspect_err(|_| spoilt.store(true, Ordering::Relaxed));
            drop(read);
            sent
        });
        let mut plain = Digesting::new(received, io::sink(), u64::MAX);
        let unpacked = apply::unpack(&mut plain, holder, below, giving_up);
        let unpacked = unpacked.map_err(|error| not_unpacked(doing, &error)).and_then(|()| plain.finish().doing(doing));
        // When nobody receives any more, the others end.
        (keeping.join(), decompressing.join(), unpacked)
    });
    let defect = || Failure::because(doing, "reading it has a defect");
    // What cannot be read cannot be decompressed, and what cannot be decompressed cannot be unpacked: the first is the reason.
    let blob = kept.map_err(|_| defect())?.doing(doing)?;
    plain.map_err(|_| defect())?.doing(doing)?;
    let (diff_id, size) = unpacked?;
    Ok((blob.ok_or_else(defect)?, Diff { diff_id, size }))
}

fn not_unpacked(doing: &str, error: &ApplyError) -> Failure {
    let errno = error.errno().map(|errno| Errno::from_raw(errno.raw_os_error()));
    match errno.and_then(failure::no_room) {
        Some(errno) => failed(doing, errno),
        None => Failure::because(doing, error),
    }
}

/// Reads a layer to its end, keeps a copy, and sends it on. Nothing where it is `spoilt`, so that the rest does not count.
fn keep(
    input: impl Read,
    copy: File,
    most: u64,
    sender: &Sending,
    spoilt: &AtomicBool,
) -> io::Result<Option<(Digest, u64)>> {
    let mut blob = Digesting::new(input, BufWriter::with_capacity(PIECE, WithHoles::new(copy)), most);
    sender.send(&mut blob)?;
    // What follows the compressed content belongs to the blob, too.
    if spoilt.load(Ordering::Relaxed) { Ok(None) } else { blob.finish().map(Some) }
}

/// Has a layer written for `take` to read.
fn through_a_pipe<T: Send>(
    write: impl FnOnce(OwnedFd) -> Result<Vec<String>, NoLayer> + Send,
    take: impl FnOnce(PipeReader) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (input, output) = io::pipe().doing("make a pipe for a layer")?;
    let (written, taken) = thread::scope(|scope| {
        let writing = scope.spawn(move || write(output.into()));
        let taken = take(input);
        (writing.join(), taken)
    });
    match written.map_err(|_| Failure::new("writing a layer has a defect"))? {
        Ok(notes) => written::tell(&notes),
        // Where nobody takes it, the reason is there.
        Err(NoLayer::Unread) => {}
        // One that is not written to its end cannot be read to its end either.
        Err(NoLayer::Failed(failure)) => return Err(failure),
    }
    taken
}

/// How a blob is compressed, as media types end.
pub(super) fn compression(blob: &Path) -> io::Result<&'static str> {
    let mut start = Vec::new();
    File::open(blob)?.take(4).read_to_end(&mut start)?;
    Ok(match start.as_slice() {
        [0x1F, 0x8B, ..] => "+gzip",
        [0x28, 0xB5, 0x2F, 0xFD] => "+zstd",
        _ => "",
    })
}
