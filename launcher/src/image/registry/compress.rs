//! Layers that lie plain in the store go to a registry compressed, as those of other tools do. From then on the store has
//! them so as well: what is pushed, what is pulled and what is listed is the same image, and the next push has nothing to
//! compress.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};

use flate2::Compression;
use flate2::read::GzEncoder;

use crate::failure::{Doing as _, Failure};
use crate::image::digest::{Digest, Digesting};
use crate::image::load::compression;
use crate::image::manifest::{Descriptor, LAYER};
use crate::image::progress::Progress;
use crate::image::store::{Diff, Image, Made, Named, Store, Workspace};

const GZIP: &str = "+gzip";
const PIECE: usize = 256 * 1024;

/// The image with compressed layers, which has taken the place of the one with plain ones.
pub(super) fn compressed(store: &Store, image: Image, progress: &Progress) -> Result<Image, Failure> {
    let plain: Vec<&Descriptor> = image.manifest.layers.iter().filter(|layer| layer.media_type == LAYER).collect();
    if plain.is_empty() {
        return Ok(image);
    }
    let doing = "compress the layers of the image";
    let workspace = store.workspace().doing(doing)?;
    let known = known(store).doing(doing)?;
    let mut made = Made::default();
    let mut found: BTreeMap<Digest, Descriptor> = BTreeMap::new();
    for layer in plain {
        if found.contains_key(&layer.digest) {
            continue;
        }
        let missing = || Failure::because(doing, "one is missing").remedy("import the image again");
        let diff = store.diff(layer.digest).ok_or_else(missing)?;
        let one = match known.get(&diff.diff_id) {
            Some(known) => known.clone(),
            None => compress(store, &workspace, layer, diff, progress, &mut made).doing(doing)?,
        };
        found.insert(layer.digest, one);
    }
    let layers = image.manifest.layers.iter().map(|layer| found.get(&layer.digest).unwrap_or(layer).clone()).collect();
    replace(store, &workspace, image, layers, made)
}

/// Compressed layers of the store, by their diff_ids.
fn known(store: &Store) -> io::Result<BTreeMap<Digest, Descriptor>> {
    let mut known = BTreeMap::new();
    for (blob, _) in store.listed(Named::Diffs)? {
        let Some(diff) = store.has(blob) else { continue };
        let path = store.blob(blob);
        if compression(&path)? == GZIP {
            let size = fs::metadata(path)?.len();
            known.insert(diff.diff_id, Descriptor::new(&format!("{LAYER}{GZIP}"), blob, size));
        }
    }
    Ok(known)
}

/// Compresses one, which is what its digest says.
fn compress(
    store: &Store,
    workspace: &Workspace,
    layer: &Descriptor,
    diff: Diff,
    progress: &Progress,
    made: &mut Made,
) -> io::Result<Descriptor> {
    let place = |kind: &str| workspace.path().join(format!("{kind}-{}", layer.digest.hex()));
    let (path, record) = (place("gzip"), place("diff"));
    let input = progress.bar("compressing", Some(layer.size)).count(File::open(store.blob(layer.digest))?);
    let mut plain = Digesting::new(input, io::sink(), layer.size);
    // Neither a name nor a time is written, so the same layer gives the same bytes.
    let out = BufWriter::with_capacity(PIECE, File::create(&path)?);
    let (digest, size) = Digesting::new(GzEncoder::new(&mut plain, Compression::default()), out, u64::MAX).finish()?;
    if plain.finish()? != (diff.diff_id, diff.size) {
        return Err(io::Error::other(format!("{} is damaged in the image store", layer.digest)));
    }
    fs::write(&record, serde_json::to_vec(&diff)?)?;
    made.blobs.push((path, digest));
    made.diffs.push((record, digest));
    Ok(Descriptor::new(&format!("{LAYER}{GZIP}"), digest, size))
}

/// Puts an image with these layers where the one without was, under all of its names.
fn replace(
    store: &Store,
    workspace: &Workspace,
    image: Image,
    layers: Vec<Descriptor>,
    mut made: Made,
) -> Result<Image, Failure> {
    let doing = "write the image with compressed layers";
    let manifest = image.manifest.clone().with_layers(layers);
    let text = serde_json::to_vec(&manifest).map_err(|error| Failure::because(doing, error))?;
    let (digest, size) = (made.blob(workspace, &text).doing(doing)?, text.len() as u64);
    store.publish(&made).doing(doing)?;
    store.change(|entries| {
        for entry in entries.iter_mut().filter(|entry| entry.digest == image.descriptor.digest) {
            (entry.digest, entry.size) = (digest, size);
        }
        Ok(())
    })?;
    Ok(Image { descriptor: Descriptor { digest, size, ..image.descriptor }, manifest, ..image })
}
