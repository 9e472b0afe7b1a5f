//! Removing images: names first, then what no name leads to any more.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use super::build;
use super::digest::Digest;
use super::manifest::Descriptor;
use super::store::{Image, Named, Store};
use crate::failure::{Doing as _, Failure};
use crate::lock::{Kind, lock};
use crate::state;

/// What images need.
#[derive(Default)]
struct Needed {
    blobs: HashSet<Digest>,
    layers: HashSet<Digest>,
}

/// What was removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) layers: usize,
    pub(crate) blobs: usize,
    /// The length of all blobs.
    pub(crate) bytes: u64,
    /// Layers that are not needed, but which a container uses.
    pub(crate) in_use: usize,
}

impl Needed {
    fn of(images: &[Image]) -> Needed {
        let mut needed = Needed::default();
        for image in images {
            needed.blobs.extend([image.descriptor.digest, image.id()]);
            needed.blobs.extend(image.manifest.layers.iter().map(|layer| layer.digest));
            needed.layers.extend(image.config.rootfs.diff_ids.iter().copied());
        }
        needed
    }
}

/// What becomes of what steps of builds have made, and no image needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    Stays,
    Goes,
}

/// Removes what no image needs and nobody uses.
pub(crate) fn collect(store: &Store, cache: Cache) -> Result<Removed, Failure> {
    // Where one image cannot be read, it is not known what it needs: nothing is removed then.
    let mut needed = Needed::of(&store.images()?);
    let doing = "look at what builds have made";
    match cache {
        Cache::Goes => build::forget(store, &needed.layers).doing(doing)?,
        Cache::Stays => {
            let (blobs, layers) = build::needed(store).doing(doing)?;
            needed.blobs.extend(blobs);
            needed.layers.extend(layers);
        }
    }
    remove(store, &needed).doing("remove what no image needs")
}

fn remove(store: &Store, needed: &Needed) -> io::Result<Removed> {
    let mut removed = Removed::default();
    // In the order in which nothing is left that leads to what is gone.
    for (blob, path) in store.listed(Named::Diffs)? {
        if !needed.blobs.contains(&blob) {
            fs::remove_file(path)?;
        }
    }
    for (_, path) in store.listed(Named::Blobs)?.iter().filter(|(digest, _)| !needed.blobs.contains(digest)) {
        removed.bytes += fs::symlink_metadata(path)?.len();
        fs::remove_file(path)?;
        removed.blobs += 1;
    }
    for (_, path) in store.listed(Named::Layers)?.iter().filter(|(digest, _)| !needed.layers.contains(digest)) {
        match lock(path, Kind::Exclusive)? {
            Some(_held) => {
                store.remove_layer(path)?;
                removed.layers += 1;
            }
            None => removed.in_use += 1,
        }
    }
    Ok(removed)
}

/// What is to be removed.
enum Found {
    Whole(Box<Image>),
    /// It cannot be read, so nobody knows more of it than its entry. No container can be started on it.
    Damaged(Descriptor),
}

fn find(store: &Store, word: &str) -> Result<Found, Failure> {
    store.find(word).map(|image| Found::Whole(Box::new(image))).or_else(|failure| {
        let named = super::name::candidates(word);
        let entries = store.entries()?;
        let entry =
            entries.into_iter().find(|entry| entry.name().is_some_and(|name| named.iter().any(|one| one == name)));
        entry.map(Found::Damaged).ok_or(failure)
    })
}

/// Takes names away. An image without a name goes, unless a container uses it and `force` does not say so.
pub(crate) fn forget(store: &Store, words: &[String], force: bool) -> Result<(), Failure> {
    // All of them first: a word that means nothing takes nothing away.
    let found = words.iter().map(|word| find(store, word)).collect::<Result<Vec<_>, _>>()?;
    for (word, found) in words.iter().zip(found) {
        let image = match found {
            Found::Whole(image) => image,
            Found::Damaged(entry) => {
                store.change_for_less(|entries| entries.retain(|other| *other != entry))?;
                continue;
            }
        };
        let is_by_name = image.name().is_some_and(|name| super::name::candidates(word).iter().any(|one| one == name));
        let names = names_of(store, &image)?;
        if !is_by_name && names.len() > 1 && !force {
            let failure = Failure::new(format!("the image {word} has several names"));
            return Err(failure.remedy(&format!("remove those, {}, or say --force", names.join(", "))));
        }
        let is_last = !is_by_name || names.len() < 2;
        if is_last && !force && is_in_use(store, &image)? {
            let failure = Failure::new(format!("a container uses the image {word}"));
            return Err(failure.remedy("end it first, or say --force"));
        }
        store.change_for_less(|entries| {
            entries.retain(|entry| entry.digest != image.descriptor.digest || !is_meant(entry, &image, is_by_name));
        })?;
    }
    Ok(())
}

fn is_meant(entry: &Descriptor, image: &Image, is_by_name: bool) -> bool {
    !is_by_name || entry.name() == image.name()
}

fn names_of(store: &Store, image: &Image) -> Result<Vec<String>, Failure> {
    let entries = store.entries()?;
    let same = entries.iter().filter(|entry| entry.digest == image.descriptor.digest);
    Ok(same.filter_map(|entry| entry.name()).map(str::to_owned).collect())
}

/// Whether a container runs on it, which could not be committed without it, or uses a layer that no other image has.
fn is_in_use(store: &Store, image: &Image) -> Result<bool, Failure> {
    let id = image.id().to_string();
    for record in state::all()?.iter().filter(|record| record.image.as_ref().is_some_and(|used| used.id == id)) {
        if record.open_init().doing("look at the containers")?.is_some() {
            return Ok(true);
        }
    }
    let others: Vec<Image> =
        store.images()?.into_iter().filter(|other| other.descriptor.digest != image.descriptor.digest).collect();
    let shared = Needed::of(&others).layers;
    let own = image.config.rootfs.diff_ids.iter().filter(|diff_id| !shared.contains(diff_id));
    let is_used = |path: &Path| -> Result<bool, Failure> {
        let held = lock(path, Kind::Exclusive).doing("look at the layers of the image")?;
        Ok(held.is_none() && path.exists())
    };
    for diff_id in own {
        if is_used(&store.layer(*diff_id).held)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives an image one more name.
pub(crate) fn tag(store: &Store, word: &str, name: &str) -> Result<(), Failure> {
    let image = store.find(word)?;
    let name = super::name::parse(name)?;
    store.name(&image.descriptor, &[name])
}
