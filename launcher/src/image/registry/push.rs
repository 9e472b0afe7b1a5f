//! `rlaunch image push`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use ureq::http::{Method, StatusCode};

use super::address::{encode, with_query};
use super::blob::Losses;
use super::client::{Answer, Payload, STALLED, Trouble};
use super::compress::compressed;
use super::reference::{Reference, Version};
use super::repository::{Access, Ask, Repository};
use crate::failure::{Doing as _, Failure};
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, MANIFEST};
use crate::image::progress::{Bar, Progress};
use crate::image::store::{Image, Store};

const MOST_AT_A_TIME: usize = 4;
/// From so many other paths of the registry blobs are taken over.
const MOST_SOURCES: usize = 8;
/// A registry may look through all of a blob before it answers.
const THINKING: Duration = Duration::from_secs(600);

/// What is pushed.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PushOptions {
    #[command(flatten)]
    access: Access,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// The image, by name or id
    image: String,
    /// Where it goes: [HOST[:PORT]/]NAME[:TAG]; without it, where its name says
    destination: Option<String>,
}

/// Pushes; what is printed: where it is, by its digest.
pub(crate) fn run(options: &PushOptions) -> Result<String, Failure> {
    let store = Store::open()?;
    let found = store.find(&options.image)?;
    let reference = destination(&found, options)?;
    let doing = format!("push {} to {}", options.image, reference.name());
    let told = |failure: Failure| failure.within(&doing);
    let progress = Progress::new(options.quiet);
    let image = compressed(&store, found, &progress).map_err(told)?;
    if let Version::Digest(digest) = reference.version
        && digest != image.descriptor.digest
    {
        return Err(told(Failure::new(format!("its digest is {}", image.descriptor.digest))));
    }
    let sources = sources(&store, &image, &reference)?;
    let mut paths: Vec<String> = sources.values().cloned().collect();
    paths.sort();
    paths.dedup();
    let repository = Repository::open(&reference, &options.access, "pull,push", &paths).map_err(told)?;
    let push = Push { store: &store, repository: &repository, sources, failed: AtomicBool::new(false) };
    push.blobs(&image, &progress).map_err(told)?;
    push.manifest(&image, &reference).map_err(told)?;
    Ok(format!("{}@{}\n", reference.place(), image.descriptor.digest))
}

fn destination(image: &Image, options: &PushOptions) -> Result<Reference, Failure> {
    match (&options.destination, image.name()) {
        (Some(text), _) => Reference::parse(text),
        (None, Some(name)) => Reference::parse(name),
        (None, None) => {
            let failure = Failure::new(format!("the image {} has no name", options.image));
            Err(failure.remedy("say where it goes: rlaunch image push IMAGE HOST/NAME:TAG"))
        }
    }
}

/// Where the registry may have parts of the image already: in paths that images of the store are called by, most likely
/// because they came from there.
fn sources(store: &Store, image: &Image, reference: &Reference) -> Result<BTreeMap<Digest, String>, Failure> {
    let mut sources = BTreeMap::new();
    let mut paths: Vec<String> = Vec::new();
    for entry in store.entries()? {
        let named = entry.name().and_then(|name| Reference::parse(name).ok().filter(|found| found.name() == name));
        let Some(other) = named.filter(|other| other.host == reference.host && other.path != reference.path) else {
            continue;
        };
        // What cannot be read is no help, and no harm.
        let Ok(other_image) = store.read(entry) else { continue };
        let shared: Vec<Digest> = blobs(&other_image).filter(|blob| blobs(image).any(|own| own == *blob)).collect();
        let is_known = paths.contains(&other.path);
        if shared.is_empty() || (!is_known && paths.len() == MOST_SOURCES) {
            continue;
        }
        if !is_known {
            paths.push(other.path.clone());
        }
        for digest in shared {
            sources.entry(digest).or_insert_with(|| other.path.clone());
        }
    }
    Ok(sources)
}

/// The digests of all that an image consists of, but for its manifest.
fn blobs(image: &Image) -> impl Iterator<Item = Digest> {
    image.manifest.layers.iter().chain([&image.manifest.config]).map(|blob| blob.digest)
}

struct Push<'a> {
    store: &'a Store,
    repository: &'a Repository,
    sources: BTreeMap<Digest, String>,
    /// Whether one has failed, so that the others need not go on.
    failed: AtomicBool,
}

/// What comes of the wish to upload something.
enum Begun {
    /// The registry had it in another path.
    Mounted,
    /// It goes to this address.
    At(String),
}

impl Push<'_> {
    /// Uploads what the registry has not, several at a time.
    fn blobs(&self, image: &Image, progress: &Progress) -> Result<(), Failure> {
        let mut blobs: Vec<&Descriptor> = Vec::new();
        for blob in image.manifest.layers.iter().chain([&image.manifest.config]) {
            if !blobs.iter().any(|known| known.digest == blob.digest) {
                blobs.push(blob);
            }
        }
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        thread::scope(|scope| {
            for _ in 0..blobs.len().min(MOST_AT_A_TIME) {
                scope.spawn(|| {
                    while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed))
                        && !self.failed.load(Ordering::Relaxed)
                    {
                        if let Err(reason) = self.blob(blob, progress)
                            && !self.failed.swap(true, Ordering::Relaxed)
                            && let Ok(mut failure) = failure.lock()
                        {
                            *failure = Some(reason);
                        }
                    }
                });
            }
        });
        let defect = |_| Failure::new("uploading has a defect");
        failure.into_inner().map_err(defect)?.map_or(Ok(()), Err)
    }

    fn blob(&self, blob: &Descriptor, progress: &Progress) -> Result<(), Failure> {
        let doing = format!("read {} of the image store", blob.digest);
        let file = File::open(self.store.blob(blob.digest)).doing(&doing)?;
        if file.metadata().doing(&doing)?.len() != blob.size {
            return Err(Failure::because(&doing, "it is damaged").remedy("import the image again"));
        }
        let bar = progress.bar(&blob.digest.short(), Some(blob.size));
        let mut losses = Losses::default();
        loop {
            match self.try_blob(blob, &file, &bar) {
                Ok(()) => {
                    bar.finish();
                    return Ok(());
                }
                Err(trouble) => losses.add(0, trouble).map_err(|trouble| self.repository.told(trouble))?,
            }
        }
    }

    /// Uploads a blob from its beginning, where it is missing.
    fn try_blob(&self, blob: &Descriptor, file: &File, bar: &Bar) -> Result<(), Trouble> {
        if self.is_there(blob.digest)? {
            return Ok(());
        }
        let Begun::At(mut place) = self.begin(blob.digest)? else { return Ok(()) };
        let (mut at, mut losses) = (0, Losses::default());
        while at < blob.size {
            match self.piece(&place, file, at, blob.size, bar) {
                Ok(answer) => (place, at) = (self.repository.location(&place, &answer)?, blob.size),
                Err(trouble) => match self.state(&place, &trouble) {
                    Some((next, reached)) => {
                        losses.add(reached, trouble)?;
                        (place, at) = (next, reached.min(blob.size));
                    }
                    // Where nobody knows how far it had come, it has to begin anew.
                    None => return Err(trouble),
                },
            }
        }
        let mut ask = Ask::new(Method::PUT, with_query(&place, "digest", &blob.digest.to_string()));
        ask.patience = THINKING;
        self.repository.send(&ask, Payload::None).map(drop)
    }

    fn is_there(&self, digest: Digest) -> Result<bool, Trouble> {
        let ask = Ask::new(Method::HEAD, self.repository.address(&format!("blobs/{digest}")));
        match self.repository.ask(&ask) {
            Ok(_) => Ok(true),
            Err(trouble) if trouble.is(StatusCode::NOT_FOUND) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    fn begin(&self, digest: Digest) -> Result<Begun, Trouble> {
        let from = self
            .sources
            .get(&digest)
            .map(|path| format!("?mount={}&from={}", encode(&digest.to_string()), encode(path)));
        let target = self.repository.address(&format!("blobs/uploads/{}", from.unwrap_or_default()));
        let answer = self.repository.ask(&Ask::new(Method::POST, target.clone()))?;
        match answer.status() {
            StatusCode::CREATED => Ok(Begun::Mounted),
            _ => self.repository.location(&target, &answer).map(Begun::At),
        }
    }

    /// Sends what is left of a blob.
    fn piece(&self, place: &str, file: &File, at: u64, size: u64, bar: &Bar) -> Result<Answer, Trouble> {
        let mut ask = Ask::new(Method::PATCH, place.to_owned());
        ask.headers.push(("Content-Type", "application/octet-stream".to_owned()));
        if at > 0 {
            ask.headers.push(("Content-Range", format!("{at}-{}", size - 1)));
        }
        ask.patience = THINKING;
        let mut rest = Rest { file, at, size, bar, failed: &self.failed };
        self.repository.send(&ask, Payload::Stream(&mut rest, size - at))
    }

    /// How far an upload has come that was broken off, and where it goes on.
    fn state(&self, place: &str, trouble: &Trouble) -> Option<(String, u64)> {
        if !matches!(trouble, Trouble::Passing { .. }) || self.failed.load(Ordering::Relaxed) {
            return None;
        }
        let mut ask = Ask::new(Method::GET, place.to_owned());
        ask.patience = STALLED;
        let answer = self.repository.ask(&ask).ok()?;
        let range = answer.headers().get("Range")?.to_str().ok()?;
        let last: u64 = range.trim_start_matches("bytes=").split_once('-')?.1.trim().parse().ok()?;
        // Nothing at all is 0-0 as well, as registries write it; a single byte is sent again then.
        let reached = if last == 0 { 0 } else { last.checked_add(1)? };
        Some((self.repository.location(place, &answer).unwrap_or_else(|_| place.to_owned()), reached))
    }

    fn manifest(&self, image: &Image, reference: &Reference) -> Result<(), Failure> {
        let digest = image.descriptor.digest;
        let text = fs::read(self.store.blob(digest)).doing("read the manifest")?;
        let target = self.repository.address(&format!("manifests/{}", reference.version.word()));
        let mut ask = Ask { body: Some(&text), ..Ask::new(Method::PUT, target) };
        ask.headers.push(("Content-Type", MANIFEST.to_owned()));
        let answer = self.repository.ask(&ask).map_err(|trouble| self.repository.told(trouble))?;
        let said = answer.headers().get("Docker-Content-Digest").and_then(|value| value.to_str().ok());
        match said.and_then(|said| said.parse::<Digest>().ok()) {
            Some(said) if said != digest => {
                Err(Failure::new(format!("the registry keeps it as {said}, and it is {digest}")))
            }
            _ => Ok(()),
        }
    }
}

/// What is left of a blob to be sent.
struct Rest<'a> {
    file: &'a File,
    at: u64,
    size: u64,
    bar: &'a Bar,
    failed: &'a AtomicBool,
}

impl Read for Rest<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("another blob could not be uploaded"));
        }
        let wanted = usize::try_from(self.size - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        self.bar.reached(self.at);
        Ok(read)
    }
}
