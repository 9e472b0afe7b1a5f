//! Where images are: an OCI image layout, so that others can read it (`skopeo inspect oci:…`), and the layers unpacked
//! beside it.
//!
//! ```text
//! oci-layout, index.json    which images there are, and what they are called
//! blobs/sha256/HEX          manifests, configurations and layers, as they came
//! diffs/HEX                 what the layer HEX is unpacked: its diff_id and its length
//! layers/HEX/layer/         the layer with the diff_id HEX, unpacked: a branch as it is
//! cache/KEY                 what a step of a build has made
//! tmp/                      what is being made
//! lock, index.lock
//! reserve                   room in which something can be removed where the disk is full
//! ```
//!
//! Everything is made in `tmp`, reaches the disk, and is renamed to its place: layers and blobs first, `index.json` last.
//! So whoever is killed at any moment leaves what is whole and perhaps not needed, which [`collect`](super::collect)
//! removes. `lock` is held shared by those who rely on what no name leads to yet, and alone by who removes it. Who runs a
//! layer holds `layers/HEX`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use unionfs::layer::apply::UNPACKED;

use super::digest::Digest;
use super::manifest::{Config, Descriptor, Index, LONGEST, Manifest};
use super::name;
use crate::failure::{self, Doing as _, Failure};
use crate::folders;
use crate::lock::{Kind, Lock, lock};
use crate::message::warn;
use crate::scratch;

const INDEX: &str = "index.json";
const LAYOUT: &str = "oci-layout";
pub(crate) const LAYOUT_TEXT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const BLOBS: &str = "blobs/sha256";
const DIFFS: &str = "diffs";
const LAYERS: &str = "layers";
const CACHE: &str = "cache";
const TEMPORARY: &str = "tmp";
const RESERVE: &str = "reserve";
/// What a list of images may need, and a directory.
const RESERVED: usize = 256 * 1024;
const OPENING: &str = "open the image store";
const ATTEMPTS: usize = 100;
/// As many digits of an id are enough to mean it.
const SHORTEST_ID: usize = 4;

/// The store, open.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    _lock: Flock<File>,
}

/// Where a layer is unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerPlace {
    /// The branch.
    pub(crate) branch: PathBuf,
    /// The directory in which it lies, which those hold who use the branch.
    pub(crate) held: PathBuf,
}

/// What a layer is once it is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Diff {
    /// The digest of the plain archive.
    pub(crate) diff_id: Digest,
    /// Its length in bytes.
    pub(crate) size: u64,
}

/// An image of the store.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// As the index has it.
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Manifest,
    pub(crate) config: Config,
    /// The configuration itself.
    pub(crate) config_text: Vec<u8>,
}

impl Image {
    pub(crate) fn name(&self) -> Option<&str> {
        self.descriptor.name()
    }

    /// The image's id is the digest of its configuration.
    pub(crate) fn id(&self) -> Digest {
        self.manifest.config.digest
    }
}

impl Store {
    /// Opens the store of this user, which is made where it is missing, for those who read and add.
    pub(crate) fn open() -> Result<Store, Failure> {
        Store::open_as(FlockArg::LockShared)
    }

    /// Opens it for who removes something; waits until all others are done.
    pub(crate) fn open_alone() -> Result<Store, Failure> {
        let store = Store::open_as(FlockArg::LockExclusive)?;
        store.keep_reserve();
        Ok(store)
    }

    fn open_as(kind: FlockArg) -> Result<Store, Failure> {
        let root = place()?;
        let doing = format!("{OPENING} {}", root.display());
        make(&root).doing(&doing)?;
        let lock = lock_file(&root.join("lock"), kind).doing(&doing)?;
        let store = Store { root, _lock: lock };
        store.remove_leftovers();
        if !store.path(LAYOUT).exists() {
            store.write(LAYOUT, LAYOUT_TEXT).doing(&doing)?;
            store.keep_reserve();
        }
        Ok(store)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn blob(&self, digest: Digest) -> PathBuf {
        self.path(BLOBS).join(digest.hex())
    }

    /// Where it is remembered what steps of builds have made.
    pub(super) fn cache(&self) -> PathBuf {
        self.path(CACHE)
    }

    /// Where a layer is unpacked.
    pub(crate) fn layer(&self, diff_id: Digest) -> LayerPlace {
        let held = self.path(LAYERS).join(diff_id.hex());
        LayerPlace { branch: held.join(UNPACKED), held }
    }

    /// What a layer that is there is unpacked.
    pub(crate) fn diff(&self, blob: Digest) -> Option<Diff> {
        let text = fs::read(self.path(DIFFS).join(blob.hex())).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// What a layer is unpacked, if it is there in both forms.
    pub(crate) fn has(&self, blob: Digest) -> Option<Diff> {
        self.diff(blob).filter(|diff| self.blob(blob).exists() && self.layer(diff.diff_id).branch.exists())
    }

    /// What the index has.
    pub(crate) fn entries(&self) -> Result<Vec<Descriptor>, Failure> {
        let doing = "read the list of images";
        let text = match fs::read(self.path(INDEX)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.doing(doing)?,
        };
        let index: Index = serde_json::from_slice(&text).map_err(|error| Failure::because(doing, error))?;
        Ok(index.manifests)
    }

    /// Changes what the index has, one process at a time.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut Vec<Descriptor>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let doing = "write the list of images";
        let _lock = lock_file(&self.path("index.lock"), FlockArg::LockExclusive).doing(doing)?;
        let mut entries = self.entries()?;
        let result = change(&mut entries)?;
        let text = serde_json::to_vec(&Index::new(entries)).map_err(|error| Failure::because(doing, error))?;
        self.write(INDEX, &text).doing(doing)?;
        Ok(result)
    }

    /// The same for who removes something, which must not fail for want of room.
    pub(crate) fn change_for_less(&self, change: impl Fn(&mut Vec<Descriptor>)) -> Result<(), Failure> {
        let changed = |entries: &mut Vec<Descriptor>| {
            change(entries);
            Ok(())
        };
        match self.change(changed) {
            Err(failure) if failure.no_room.is_some() => {
                // Where there is none either, the disk has been full since the store was made.
                fs::remove_file(self.path(RESERVE)).map_err(|_| failure)?;
                self.change(changed)
            }
            result => result,
        }
    }

    /// Keeps some room back.
    fn keep_reserve(&self) {
        if self.path(RESERVE).exists() {
            return;
        }
        match self.write(RESERVE, &vec![1; RESERVED]) {
            Err(error) if failure::told(&error).no_room.is_none() => warn(format_args!("cannot keep room: {error}")),
            // What is full already has none to keep, and is told to whoever writes.
            _ => {}
        }
    }

    /// Gives an image names; those that others have are theirs no more. One without a name is kept as it is.
    pub(crate) fn name(&self, descriptor: &Descriptor, names: &[String]) -> Result<(), Failure> {
        self.change(|entries| {
            let lost: Vec<Descriptor> = take_names(entries, names);
            entries.extend(names.iter().map(|name| descriptor.clone().named(name)));
            for one in lost.iter().chain([descriptor]) {
                keep_without_name(entries, one);
            }
            Ok(())
        })
    }

    /// All images, in the order of the index.
    pub(crate) fn images(&self) -> Result<Vec<Image>, Failure> {
        let read = |descriptor: Descriptor| {
            let name = descriptor.name().map_or_else(|| descriptor.digest.to_string(), str::to_owned);
            self.read(descriptor).map_err(|failure| failure.at(&format!("the image {name}")))
        };
        self.entries()?.into_iter().map(read).collect()
    }

    /// The image with this name or id.
    pub(crate) fn find(&self, word: &str) -> Result<Image, Failure> {
        self.find_or(word, "see rlaunch image ls")
    }

    /// The same for who goes on with it, and may want one that is elsewhere.
    pub(crate) fn find_or_pull(&self, word: &str) -> Result<Image, Failure> {
        self.find_or(word, &format!("rlaunch image pull {word} gets it"))
    }

    /// The same, with what to do where there is none.
    fn find_or(&self, word: &str, remedy: &str) -> Result<Image, Failure> {
        let entries = self.entries()?;
        let named = |name: &String| entries.iter().find(|entry| entry.name() == Some(name));
        if let Some(entry) = name::candidates(word).iter().find_map(named) {
            return self.read(entry.clone());
        }
        if let Some(entry) = pinned(&entries, word) {
            return self.read(entry.clone());
        }
        let missing = || Failure::new(format!("there is no image {word}")).remedy(remedy);
        let digits = word.strip_prefix("sha256:").unwrap_or(word);
        let is_id = digits.len() >= SHORTEST_ID && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_id {
            return Err(missing());
        }
        let images = self.images()?;
        let means = |image: &&Image| {
            [image.id(), image.descriptor.digest].iter().any(|digest| digest.hex().starts_with(digits))
        };
        let mut found = images.iter().filter(means);
        let first = found.next().ok_or_else(missing)?;
        if found.any(|other| other.id() != first.id()) {
            return Err(Failure::new(format!("{word} is the beginning of several ids")).remedy("give more of it"));
        }
        Ok(first.clone())
    }

    /// Reads the documents of an image.
    pub(crate) fn read(&self, descriptor: Descriptor) -> Result<Image, Failure> {
        let manifest: Manifest = self.document(descriptor.digest)?.0;
        let (config, config_text) = self.document(manifest.config.digest)?;
        Ok(Image { descriptor, manifest, config, config_text })
    }

    fn document<T: serde::de::DeserializeOwned>(&self, digest: Digest) -> Result<(T, Vec<u8>), Failure> {
        let doing = format!("read {digest} of the image store");
        let path = self.blob(digest);
        if fs::metadata(&path).doing(&doing)?.len() > LONGEST {
            return Err(Failure::because(&doing, "it is too long"));
        }
        let text = fs::read(path).doing(&doing)?;
        if Digest::of(&text) != digest {
            return Err(Failure::because(&doing, "it is damaged")
                .remedy("import or pull the image again, or remove it by its name"));
        }
        Ok((serde_json::from_slice(&text).map_err(|error| Failure::because(&doing, error))?, text))
    }

    /// A directory for what is being made.
    pub(crate) fn workspace(&self) -> io::Result<Workspace> {
        for _ in 0..ATTEMPTS {
            let path = tempfile::tempdir_in(self.path(TEMPORARY))?.keep();
            // Somebody who cleans up may have come between.
            if let Some(lock) = lock(&path, Kind::Shared)? {
                return Ok(Workspace { path, _lock: lock });
            }
        }
        Err(io::Error::other("somebody keeps removing the directories that are made there"))
    }

    /// Writes a file of the store, whole or not at all.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let workspace = self.workspace()?;
        let path = workspace.path().join("file");
        let mut file = File::create(&path)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(path, self.path(name))?;
        sync_directory(&self.root)
    }

    /// Makes everything durable that was made in a workspace, and puts it into its place.
    pub(crate) fn publish(&self, made: &Made) -> io::Result<()> {
        rustix::fs::syncfs(File::open(&self.root)?.as_fd())?;
        for (from, diff_id) in &made.layers {
            put(from, &self.layer(*diff_id).held)?;
        }
        // What is there already is the same, or has been damaged.
        for (from, digest) in &made.blobs {
            fs::rename(from, self.blob(*digest))?;
        }
        for (from, blob) in &made.diffs {
            fs::rename(from, self.path(DIFFS).join(blob.hex()))?;
        }
        [BLOBS, DIFFS, LAYERS].iter().try_for_each(|name| sync_directory(&self.path(name)))
    }

    /// What lies in one of the directories, by the digests that are the names.
    pub(super) fn listed(&self, kind: Named) -> io::Result<Vec<(Digest, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path(kind.directory()))? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(Digest::from_hex);
            found.extend(digest.map(|digest| (digest, entry.path())));
        }
        Ok(found)
    }

    /// Removes a directory, so that it is there whole or not at all.
    pub(super) fn remove_layer(&self, path: &Path) -> io::Result<()> {
        let workspace = self.workspace()?;
        fs::rename(path, workspace.path().join("layer"))
    }

    /// Removes what processes left that were killed.
    fn remove_leftovers(&self) {
        // A directory that cannot be read shows when it is to be used.
        let entries = fs::read_dir(self.path(TEMPORARY)).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let result = lock(&path, Kind::Exclusive).and_then(|lock| match lock {
                Some(_held) => scratch::remove(&path),
                None => Ok(()),
            });
            if let Err(error) = result {
                warn(format_args!("cannot remove what was left in {}: {error}", path.display()));
            }
        }
    }
}

/// The directories whose entries are called by digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Blobs,
    Diffs,
    Layers,
}

impl Named {
    fn directory(self) -> &'static str {
        match self {
            Named::Blobs => BLOBS,
            Named::Diffs => DIFFS,
            Named::Layers => LAYERS,
        }
    }
}

/// What was made in a workspace, and where it belongs.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) layers: Vec<(PathBuf, Digest)>,
    pub(crate) blobs: Vec<(PathBuf, Digest)>,
    pub(crate) diffs: Vec<(PathBuf, Digest)>,
}

impl Made {
    pub(crate) fn add(&mut self, other: Made) {
        self.layers.extend(other.layers);
        self.blobs.extend(other.blobs);
        self.diffs.extend(other.diffs);
    }

    /// Writes a blob that is in memory.
    pub(crate) fn blob(&mut self, workspace: &Workspace, content: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(content);
        let path = workspace.path().join(format!("document-{}", digest.hex()));
        fs::write(&path, content)?;
        self.blobs.push((path, digest));
        Ok(digest)
    }
}

/// A directory for what is being made; removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Workspace {
    path: PathBuf,
    _lock: Lock,
}

impl Workspace {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = scratch::remove(&self.path) {
            warn(format_args!("cannot remove {}: {error}", self.path.display()));
        }
    }
}

/// The image with this digest in its name, as it was pulled, or of its manifest.
fn pinned<'a>(entries: &'a [Descriptor], word: &str) -> Option<&'a Descriptor> {
    let (repositories, digest) = name::pinned(word)?;
    let suffix = format!("@{digest}");
    let is_it = |entry: &&Descriptor| {
        let is_named = |name: &str| {
            (entry.digest == digest || name.ends_with(&suffix))
                && repositories.iter().any(|one| one == name::repository(name))
        };
        entry.name().is_some_and(is_named)
    };
    entries.iter().find(is_it)
}

/// Takes names away from whoever has them; those who had them.
fn take_names(entries: &mut Vec<Descriptor>, names: &[String]) -> Vec<Descriptor> {
    let is_taken = |entry: &Descriptor| entry.name().is_some_and(|name| names.iter().any(|taken| taken == name));
    let (lost, kept) = std::mem::take(entries).into_iter().partition(|entry| is_taken(entry));
    *entries = kept;
    lost
}

/// An image that has lost its last name is one without a name; one that has some needs no entry without.
fn keep_without_name(entries: &mut Vec<Descriptor>, descriptor: &Descriptor) {
    let is_same = |entry: &Descriptor| entry.digest == descriptor.digest;
    if entries.iter().any(|entry| is_same(entry) && entry.name().is_some()) {
        entries.retain(|entry| !is_same(entry) || entry.name().is_some());
    } else if !entries.iter().any(is_same) {
        entries.push(Descriptor { annotations: std::collections::BTreeMap::new(), ..descriptor.clone() });
    }
}

/// Where the store of this user is.
pub(super) fn place() -> Result<PathBuf, Failure> {
    let stays = folders::for_what_stays();
    Ok(stays.ok_or_else(|| Failure::because(OPENING, "there is neither XDG_DATA_HOME nor HOME"))?.join("images"))
}

/// Layers hold set-id programs: nobody else gets in.
fn make(root: &Path) -> io::Result<()> {
    let names = ["", "blobs", BLOBS, DIFFS, LAYERS, CACHE, TEMPORARY];
    names.iter().try_for_each(|name| folders::make_private(&root.join(name)))
}

fn lock_file(path: &Path, kind: FlockArg) -> io::Result<Flock<File>> {
    let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Flock::lock(file, kind).map_err(|(_, errno)| errno.into())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Moves something to its place, unless the same is there already.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        return Ok(());
    }
    match fs::rename(from, to) {
        // Somebody else was faster.
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => Ok(()),
        result => result,
    }
}
