//! `rlaunch commit`: what a container on an image has written becomes a layer, and with those of the image a new image.
//!
//! The top alone is taken: what is the container's own, such as `/etc/hosts`, and volumes stay out.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};
use unionfs::branch::work;
use unionfs::fs::Union;
use unionfs::options::{Access, BranchSpec, Options};

use super::changes::{self, Change};
use super::load;
use super::manifest::{CONFIG, Descriptor, MANIFEST, Manifest};
use super::source::{LayerSource, Place};
use super::store::{Image, Store};
use super::{files::Files, launch, name, time};
use crate::failure::{Doing as _, Failure};
use crate::init_branch::{self, Contents};
use crate::lock::{Kind, lock};
use crate::state::{self, Record};

/// What becomes an image.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CommitOptions {
    /// Change what the image says of how it is run, as a line of a Dockerfile does: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL,
    /// STOPSIGNAL, USER, VOLUME or WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION", value_parser = changes::parse)]
    change: Vec<Change>,
    /// What the history says of it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Who has made it
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
    /// The container, which has ended and was kept
    container: String,
    /// What the image is called
    #[arg(value_name = "IMAGE[:TAG]")]
    image: Option<String>,
}

pub(crate) fn run(options: &CommitOptions) -> Result<String, Failure> {
    let names: Vec<String> = options.image.as_deref().map(name::parse).transpose()?.into_iter().collect();
    let container = &options.container;
    let record = state::find(container)?.ok_or_else(|| Failure::no_container(container))?;
    let files = place(&record)?;
    let doing = format!("commit {container}");
    let used = || Failure::because(&doing, "it runs").remedy(&format!("rlaunch stop {container} first"));
    let _held = lock(&files, Kind::Exclusive).doing(&doing)?.ok_or_else(used)?;
    let store = Store::open()?;
    let below = parent(&store, &record)?;
    let workspace = store.workspace().doing(&doing)?;
    let own = workspace.path().join("own");
    std::fs::create_dir(&own).doing(&doing)?;
    let branches = branches(&store, &below, &files, own)?;
    settle(&branches).map_err(|reason| Failure::because(&doing, reason))?;
    let source = LayerSource { from: Place::Branches(branches), descriptor: None, diff_id: None };
    let (layers, mut made) = load::load(&store, &workspace, &Files::Directory(PathBuf::new()), &[source])?;
    let [layer] = layers.as_slice() else { return Err(Failure::because(&doing, "there is no layer")) };
    let config = config(&below, &layer.diff.diff_id.to_string(), options)
        .and_then(|config| serde_json::to_vec(&config).map_err(|error| Failure::because(&doing, error)))?;
    let descriptors = below.manifest.layers.iter().chain([&layer.descriptor]).cloned().collect();
    let manifest = Manifest::new(Descriptor::of(CONFIG, &config), descriptors);
    let manifest = serde_json::to_vec(&manifest).map_err(|error| Failure::because(&doing, error))?;
    let id = made.blob(&workspace, &config).doing(&doing)?;
    made.blob(&workspace, &manifest).doing(&doing)?;
    store.publish(&made).doing(&doing)?;
    store.name(&Descriptor::of(MANIFEST, &manifest), &names)?;
    Ok(format!("{id}\n"))
}

/// Where a container keeps what it has written.
fn place(record: &Record) -> Result<PathBuf, Failure> {
    if record.image.is_none() {
        let failure = Failure::new(format!("the container {} is not on an image", record.name));
        return Err(failure.remedy("start it with --image; runionfs export makes a layer of any branch"));
    }
    let kept = record.files.as_ref().map(|files| files.path());
    kept.ok_or_else(|| {
        let failure = Failure::new(format!("what the container {} has written is not kept by it", record.name));
        failure.remedy("start it with --name or --detach, and without --rm, --keep and --tmpfs-top")
    })
}

/// The image that a container is on.
fn parent(store: &Store, record: &Record) -> Result<Image, Failure> {
    let used = record.image.as_ref();
    let missing =
        |failure: Failure| Failure::new(format!("the image of the container {} is gone: {failure}", record.name));
    store.find(used.map_or("", |image| &image.id)).map_err(missing)
}

/// What the container had as its root: its top, what is its own, and the image.
fn branches(store: &Store, image: &Image, files: &Path, own: PathBuf) -> Result<Vec<BranchSpec>, Failure> {
    let branch = |path: PathBuf, access, whiteouts| BranchSpec {
        path,
        access,
        whiteouts,
        overlay: false,
        init: false,
        nolwh: false,
    };
    let layers: Vec<PathBuf> = launch::layers(store, image).into_iter().map(|layer| layer.branch).collect();
    let topmost = layers.first().ok_or_else(|| Failure::new("the image has no layers"))?;
    let top = crate::scratch::top_in(files, topmost);
    let layers = layers.iter().map(|layer| branch(layer.clone(), Access::ReadOnly, true));
    let branches: Vec<_> = [branch(top, Access::ReadWrite, false)].into_iter().chain(layers).collect();
    let branches = init_branch::add(&branches, own);
    init_branch::fill(&branches, &Contents::usual())?;
    Ok(branches)
}

/// Makes the top stand alone: hard links that are only noted become real.
pub(super) fn settle(branches: &[BranchSpec]) -> Result<(), String> {
    let top = branches.first().map(|branch| branch.path.as_path()).unwrap_or(Path::new(""));
    let failed = |errno: rustix::io::Errno| std::io::Error::from(errno).to_string();
    if work::is_left_volatile(top).map_err(failed)? {
        return Err("it was killed while it did not wait for the disk: nobody knows what is whole".into());
    }
    if !work::has_links(top).map_err(failed)? {
        return Ok(());
    }
    let union = Union::open(branches, &Options::default()).map_err(|error| error.to_string())?;
    match union.flush_links().map_err(failed)?.pending {
        0 => Ok(()),
        count => Err(format!("{count} hard-linked files have names below that could not be brought up")),
    }
}

/// The configuration of the image below with one more layer and its changes.
fn config(below: &Image, diff_id: &str, options: &CommitOptions) -> Result<Value, Failure> {
    let doing = "read the configuration of the image";
    let mut config: Value =
        serde_json::from_slice(&below.config_text).map_err(|error| Failure::because(doing, error))?;
    let now = time::now();
    let mut step = json!({ "created": now, "created_by": "rlaunch commit" });
    for (key, text) in [("comment", &options.message), ("author", &options.author)] {
        if let Some(text) = text {
            step[key] = json!(text);
        }
    }
    let object = config.as_object_mut().ok_or_else(|| Failure::because(doing, "it is no object"))?;
    object.insert("created".into(), json!(now));
    if let Some(author) = &options.author {
        object.insert("author".into(), json!(author));
    }
    // Where the history does not tell of all layers, the new step would be that of another one.
    let told = below.config.history.iter().filter(|step| !step.empty_layer).count();
    for _ in told..below.config.rootfs.diff_ids.len() {
        push(object, "history", json!({ "created_by": "unknown" }));
    }
    push(object, "history", step);
    if let Some(rootfs) = object.get_mut("rootfs").and_then(Value::as_object_mut) {
        push(rootfs, "diff_ids", json!(diff_id));
    }
    let execution = object.entry("config").or_insert_with(|| json!({}));
    if !execution.is_object() {
        *execution = json!({});
    }
    if let Some(execution) = execution.as_object_mut() {
        options.change.iter().for_each(|change| change.make(execution));
    }
    Ok(config)
}

/// Appends to a list, which may be null or missing.
fn push(object: &mut Map<String, Value>, key: &str, value: Value) {
    match object.get_mut(key) {
        Some(Value::Array(list)) => list.push(value),
        _ => drop(object.insert(key.into(), json!([value]))),
    }
}
