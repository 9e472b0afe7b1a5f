//! What steps have made, so that none is done twice: `cache/KEY` of the image store.
//!
//! A key is a digest of all that a step depends on: what was there before, what the instruction says, and the content that
//! is copied. It goes with `rlaunch image gc`; until then, what it leads to is not removed.

use std::collections::HashSet;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::failure::{Doing as _, Failure};
use crate::image::digest::Digest;
use crate::image::load::Loaded;
use crate::image::manifest::Descriptor;
use crate::image::store::{Diff, Store};

/// What was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Made {
    /// By a step: a layer, or nothing, where it has changed no file.
    Step(Option<Layer>),
    /// By a whole build, and when.
    Image(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Layer {
    descriptor: Descriptor,
    diff: Diff,
}

/// What a step has made before, if all of it is still there.
pub(super) fn find(store: &Store, key: Digest) -> Option<Option<Loaded>> {
    match read(store, key)? {
        Made::Step(None) => Some(None),
        Made::Step(Some(Layer { descriptor, diff })) => {
            let is_there = store.has(descriptor.digest) == Some(diff);
            is_there.then_some(Some(Loaded { descriptor, diff }))
        }
        Made::Image(_) => None,
    }
}

/// When the same image was built before.
pub(super) fn time(store: &Store, key: Digest) -> Option<String> {
    match read(store, key)? {
        Made::Image(created) => Some(created),
        Made::Step(_) => None,
    }
}

fn read(store: &Store, key: Digest) -> Option<Made> {
    serde_json::from_slice(&fs::read(store.cache().join(key.hex())).ok()?).ok()
}

/// Remembers what a step has made.
pub(super) fn keep(store: &Store, key: Digest, layer: Option<&Loaded>) -> Result<(), Failure> {
    let layer = layer.map(|layer| Layer { descriptor: layer.descriptor.clone(), diff: layer.diff });
    write(store, key, &Made::Step(layer))
}

/// Remembers when an image was built.
pub(super) fn keep_time(store: &Store, key: Digest, created: &str) -> Result<(), Failure> {
    write(store, key, &Made::Image(created.to_owned()))
}

fn write(store: &Store, key: Digest, made: &Made) -> Result<(), Failure> {
    let doing = "remember what the step has made";
    let text = serde_json::to_vec(made).map_err(|error| Failure::because(doing, error))?;
    store.write(&format!("cache/{}", key.hex()), &text).doing(doing)
}

/// The blobs and layers that steps have made.
pub(crate) fn needed(store: &Store) -> io::Result<(HashSet<Digest>, HashSet<Digest>)> {
    let mut needed = (HashSet::new(), HashSet::new());
    for entry in fs::read_dir(store.cache())? {
        let text = fs::read(entry?.path())?;
        if let Ok(Made::Step(Some(layer))) = serde_json::from_slice(&text) {
            needed.0.insert(layer.descriptor.digest);
            needed.1.insert(layer.diff.diff_id);
        }
    }
    Ok(needed)
}

/// Forgets all steps but those whose layers are needed otherwise.
pub(crate) fn forget(store: &Store, layers: &HashSet<Digest>) -> io::Result<()> {
    for entry in fs::read_dir(store.cache())? {
        let path = entry?.path();
        let is_needed = match serde_json::from_slice(&fs::read(&path)?) {
            Ok(Made::Step(Some(layer))) => layers.contains(&layer.diff.diff_id),
            Ok(Made::Step(None) | Made::Image(_)) | Err(_) => false,
        };
        if !is_needed {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
