//! `rlaunch commit`: what a container has written becomes a layer, and with those of its image a new image.
//!
//! The top alone is taken: what is the container's own, such as `/etc/hosts`, and volumes stay out. Of a container on
//! branches, each of those becomes a layer as well. One that runs stands still meanwhile.

use std::path::Path;

use clap::{ArgAction, Args};
use serde_json::{Map, Value, json};

use super::changes::{self, Change};
use super::load::{self, Loaded};
use super::manifest::{CONFIG, Descriptor, MANIFEST, Manifest, architecture};
use super::source::{LayerSource, Place};
use super::store::{Image, Made, Store, Workspace};
use super::{files::Files, name, time};
use crate::failure::{Doing as _, Failure};
use crate::lifecycle;
use crate::pausing::Paused;
use crate::state::{self, Record};
use crate::written::{self, BranchOf, Written};

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
    /// Let a container that runs stand still meanwhile
    #[arg(short, long, value_name = "BOOL", default_value_t = true, default_missing_value = "true")]
    #[arg(num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pause: bool,
    /// Let it go on, whatever is in the middle of being written; as --pause=false
    #[arg(long, overrides_with = "pause")]
    no_pause: bool,
    /// The container, which runs, or has ended and was kept
    container: String,
    /// What the image is called
    #[arg(value_name = "IMAGE[:TAG]")]
    image: Option<String>,
}

/// What an image is made on.
struct Below {
    layers: Vec<Descriptor>,
    config: Value,
}

pub(crate) fn run(options: &CommitOptions) -> Result<String, Failure> {
    time::check()?;
    let names: Vec<String> = options.image.as_deref().map(name::parse).transpose()?.into_iter().collect();
    let record = lifecycle::find(&options.container)?;
    let doing = format!("commit {}", record.name);
    if record.is_a_copy() {
        let failure = Failure::because(&doing, "it is a copy of this machine, and an image would be all of that");
        return Err(failure.remedy("see rlaunch diff for what it has written; start it with --image or --branches"));
    }
    let store = Store::open()?;
    let below = below(&store, &record)?;
    let written = Written::by(&record)?;
    let layers = match &record.image {
        Some(_) => written.branches().into_iter().take(1).collect(),
        None => written.branches(),
    };
    // Before there are threads, even such as have done their work.
    let wants_pause = !options.no_pause && options.pause;
    let mut paused = if wants_pause { ready_to_pause(&record)? } else { None };
    let workspaces = [store.workspace().doing(&doing)?, store.workspace().doing(&doing)?];
    let [workspace, workspace_of_top] = &workspaces;
    // What nobody writes is read first: from then on the container stands still, until the rest has been read.
    let (written_ones, others) =
        layers.split_at(layers.iter().rposition(BranchOf::is_written).map_or(0, |last| last + 1));
    let (mut loaded, mut made) = load(&store, workspace, others, &doing)?;
    paused.as_mut().map_or(Ok(()), |paused| pause(&record, paused))?;
    let _in_use = written.settle().map_err(|reason| Failure::because(&doing, reason))?;
    let (top, made_of_top) = load(&store, workspace_of_top, written_ones, &doing)?;
    drop(paused);
    loaded.extend(top);
    made.add(made_of_top);
    let steps = steps(&layers, &loaded, options);
    let config = config(below.config, steps, options)
        .and_then(|config| serde_json::to_vec(&config).map_err(|error| Failure::because(&doing, error)))?;
    let descriptors = below.layers.into_iter().chain(loaded.into_iter().map(|layer| layer.descriptor)).collect();
    let manifest = Manifest::new(Descriptor::of(CONFIG, &config), descriptors);
    let manifest = serde_json::to_vec(&manifest).map_err(|error| Failure::because(&doing, error))?;
    let id = made.blob(workspace, &config).doing(&doing)?;
    made.blob(workspace, &manifest).doing(&doing)?;
    store.publish(&made).doing(&doing)?;
    store.name(&Descriptor::of(MANIFEST, &manifest), &names)?;
    Ok(format!("{id}\n"))
}

/// A container that is going to stand still; nothing if it has ended.
fn ready_to_pause(record: &Record) -> Result<Option<Paused>, Failure> {
    if record.open_init().doing("look at the container")?.is_none() {
        return Ok(None);
    }
    let directory = state::running_directory(&record.name)?;
    Paused::ready(record, lifecycle::cgroups(record)?, &directory).map(Some)
}

/// Lets a container stand still.
fn pause(record: &Record, paused: &mut Paused) -> Result<(), Failure> {
    paused.stop().map_err(|failure| failure.remedy("or say --no-pause, and see to it that nobody writes"))?;
    // What it has written to files that are open starts on its way; the daemon waits for the rest of it. It is another
    // user's to root of a namespace of its own, and not looked at then.
    let Some(init) = record.init else { return Ok(()) };
    match written::sync(&Path::new("/proc").join(init.pid.to_string()).join("root")) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        result => result.doing("sync the container's files"),
    }
}

/// What the container is on: its image, or nothing where its branches are all there is.
fn below(store: &Store, record: &Record) -> Result<Below, Failure> {
    let Some(used) = &record.image else {
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [] },
            "history": [],
        });
        return Ok(Below { layers: Vec::new(), config });
    };
    let missing =
        |failure: Failure| Failure::new(format!("the image of the container {} is gone: {failure}", record.name));
    let Image { manifest, config_text, .. } = store.find(&used.id).map_err(missing)?;
    let config = serde_json::from_slice(&config_text);
    let config = config.map_err(|error| Failure::because("read the configuration of the image", error))?;
    Ok(Below { layers: manifest.layers, config })
}

/// Reads branches, the top one first, as layers, the lowest first.
fn load(
    store: &Store,
    workspace: &Workspace,
    branches: &[BranchOf],
    doing: &str,
) -> Result<(Vec<Loaded>, Made), Failure> {
    let source =
        |branch: &BranchOf| LayerSource { from: Place::Written(branch.clone()), descriptor: None, diff_id: None };
    let sources: Vec<_> = branches.iter().rev().map(source).collect();
    load::load(store, workspace, &Files::Directory("".into()), &sources).map_err(|failure| failure.within(doing))
}

/// A step of the history for each layer, the lowest first, and the layer's digest.
fn steps(branches: &[BranchOf], loaded: &[Loaded], options: &CommitOptions) -> Vec<(Value, String)> {
    let now = time::now();
    let mut steps: Vec<(Value, String)> = Vec::new();
    for (branch, layer) in branches.iter().rev().zip(loaded) {
        let created_by = format!("rlaunch commit: {}", branch.path().display());
        steps.push((json!({ "created": now, "created_by": created_by }), layer.diff.diff_id.to_string()));
    }
    if let Some((top, _)) = steps.last_mut() {
        top["created_by"] = json!("rlaunch commit");
        for (key, text) in [("comment", &options.message), ("author", &options.author)] {
            if let Some(text) = text {
                top[key] = json!(text);
            }
        }
    }
    steps
}

/// A configuration with more layers, each with its step of the history and its digest, and its changes.
fn config(mut config: Value, steps: Vec<(Value, String)>, options: &CommitOptions) -> Result<Value, Failure> {
    let doing = "read the configuration of the image";
    let object = config.as_object_mut().ok_or_else(|| Failure::because(doing, "it is no object"))?;
    object.insert("created".into(), json!(time::now()));
    if let Some(author) = &options.author {
        object.insert("author".into(), json!(author));
    }
    // Where the history does not tell of all layers, the new step would be that of another one.
    for _ in told(object)..layers(object) {
        push(object, "history", json!({ "created_by": "unknown" }));
    }
    for (step, diff_id) in steps {
        push(object, "history", step);
        if let Some(rootfs) = object.get_mut("rootfs").and_then(Value::as_object_mut) {
            push(rootfs, "diff_ids", json!(diff_id));
        }
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

/// How many layers the history tells of.
fn told(object: &Map<String, Value>) -> usize {
    let steps = object.get("history").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    steps.iter().filter(|step| step.get("empty_layer").and_then(Value::as_bool) != Some(true)).count()
}

/// How many layers there are.
fn layers(object: &Map<String, Value>) -> usize {
    let digests = object.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids")).and_then(Value::as_array);
    digests.map_or(0, Vec::len)
}

/// Appends to a list, which may be null or missing.
fn push(object: &mut Map<String, Value>, key: &str, value: Value) {
    match object.get_mut(key) {
        Some(Value::Array(list)) => list.push(value),
        _ => drop(object.insert(key.into(), json!([value]))),
    }
}
