//! Where an image comes from, and what is known of it before its layers are read.
//!
//! | Form | It is one if |
//! |---|---|
//! | `oci` | there are `oci-layout` and `index.json` |
//! | `docker-archive` | `manifest.json` is a list, as `docker save` and `podman save` write it |
//! | `dir` | `manifest.json` is a manifest, and its blobs lie beside it, as `skopeo copy … dir:` writes it |
//! | `rootfs` | it is none of these: a root file system, one layer |

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;
use unionfs::layer::compressed;
use unionfs::options::{Access, BranchSpec};

use super::digest::Digest;
use super::files::{self, Files};
use super::manifest::{Config, Descriptor, Index, MOST_LAYERS, Manifest};
use super::name;
use crate::failure::{Doing as _, Failure};
use crate::written::BranchOf;

const DOCKER_MANIFEST: &str = "manifest.json";
/// How long the documents of all images of a source may be in sum, and how many images it may hold.
const MOST_DOCUMENTS: u64 = 32 << 20;
const MOST_IMAGES: usize = 1000;

/// In which form an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// An OCI image layout, a directory or an archive.
    Oci,
    /// What docker save and podman save write.
    DockerArchive,
    /// A directory with a manifest and blobs.
    Dir,
    /// A root file system.
    Rootfs,
}

/// An image that is going to be read.
pub(crate) struct Source {
    pub(crate) files: Files,
    pub(crate) images: Vec<Parts>,
}

/// What is known of one image.
pub(crate) struct Parts {
    /// What it calls itself.
    pub(crate) names: Vec<String>,
    /// Its manifest, where it has one that is kept.
    pub(crate) manifest: Option<Vec<u8>>,
    /// Its configuration; made for root file systems.
    pub(crate) config: Option<Vec<u8>>,
    /// The lowest first.
    pub(crate) layers: Vec<LayerSource>,
}

/// One layer before it is read.
pub(crate) struct LayerSource {
    pub(crate) from: Place,
    /// What it is said to be, where anybody says so.
    pub(crate) descriptor: Option<Descriptor>,
    pub(crate) diff_id: Option<Digest>,
}

/// Where the content of a layer is.
pub(crate) enum Place {
    /// A file of the source.
    Named(String),
    /// The source itself is the layer: an archive.
    Whole(PathBuf),
    /// A directory that is to become a layer, or the top of a union with what lies below.
    Branches(Vec<BranchSpec>),
    /// What a container has written.
    Written(BranchOf),
}

/// An entry of docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What every manifest says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnyManifest {
    #[serde(rename = "schemaVersion")]
    _schema_version: u32,
}

/// Looks at what there is at a path; archives that are compressed are first written out in `workspace`.
pub(crate) fn look(path: &Path, doing: &str, form: Option<Form>, workspace: &Path) -> Result<Source, Failure> {
    let about = fs::metadata(path).doing(doing)?;
    let files = if about.is_dir() {
        (form != Some(Form::Rootfs)).then(|| Files::Directory(path.to_owned()))
    } else {
        archive(path, form, workspace).doing(doing)?
    };
    let found = files.as_ref().and_then(form_of);
    let wanted = form.or(found).unwrap_or(Form::Rootfs);
    let mut images = match (wanted, &files) {
        (Form::Rootfs, _) => vec![rootfs(path, about.is_dir())],
        (_, Some(files)) if found == form || form.is_none() || found.is_some() => match wanted {
            Form::Oci => layout(files, path, doing)?,
            Form::DockerArchive => docker(files, doing)?,
            _ => vec![directory(files, doing)?],
        },
        _ => return Err(Failure::because(doing, "it is not in the form that --format names")),
    };
    if images.is_empty() {
        return Err(Failure::because(doing, "there is no image for this machine in it"));
    }
    if let [only] = images.as_mut_slice()
        && only.names.is_empty()
    {
        only.names.extend(name::of_place(path));
    }
    let files = files.unwrap_or_else(|| Files::Directory(path.to_owned()));
    Ok(Source { files, images })
}

/// The members of an archive; nothing where it is a root file system.
fn archive(path: &Path, form: Option<Form>, workspace: &Path) -> io::Result<Option<Files>> {
    if form == Some(Form::Rootfs) {
        return Ok(None);
    }
    let mut file = File::open(path)?;
    let beginning = start(&file)?;
    file.seek(SeekFrom::Start(0))?;
    let plain = start(compressed::plain(&file)?)?;
    file.seek(SeekFrom::Start(0))?;
    let first = files::first_name(&plain)?;
    if form.is_none() && !first.is_some_and(|name| is_part_of_an_image(&name)) {
        return Ok(None);
    }
    if beginning != plain {
        let spool = workspace.join("archive");
        io::copy(&mut compressed::plain(file)?, &mut File::create(&spool)?)?;
        file = File::open(spool)?;
    }
    Files::of_archive(file).map(Some)
}

/// The first block of an archive.
fn start(input: impl Read) -> io::Result<Vec<u8>> {
    let mut block = Vec::new();
    input.take(512).read_to_end(&mut block)?;
    Ok(block)
}

/// Whether an archive that begins like this holds an image and not a root file system.
fn is_part_of_an_image(first: &Path) -> bool {
    let Some(word) = first.iter().next().and_then(|word| word.to_str()) else { return false };
    let digits = word.strip_suffix(".tar").or_else(|| word.strip_suffix(".json")).unwrap_or(word);
    matches!(word, "blobs" | "oci-layout" | "index.json" | DOCKER_MANIFEST | "repositories" | "version")
        || Digest::from_hex(digits).is_some()
}

fn form_of(files: &Files) -> Option<Form> {
    if files.has("oci-layout") && files.has("index.json") {
        return Some(Form::Oci);
    }
    let text = if files.has(DOCKER_MANIFEST) { files.read(DOCKER_MANIFEST).ok()? } else { return None };
    // Only looked at: of a list that holds anything, much memory could be made.
    match text.trim_ascii_start().first()? {
        b'[' => Some(Form::DockerArchive),
        b'{' => serde_json::from_slice::<AnyManifest>(&text).ok().map(|_| Form::Dir),
        _ => None,
    }
}

fn rootfs(path: &Path, is_directory: bool) -> Parts {
    let from = match is_directory {
        true => {
            let (access, whiteouts, overlay, init, nolwh) = (Access::ReadOnly, false, false, false, false);
            Place::Branches(vec![BranchSpec { path: path.to_owned(), access, whiteouts, overlay, init, nolwh }])
        }
        false => Place::Whole(path.to_owned()),
    };
    Parts {
        names: Vec::new(),
        manifest: None,
        config: None,
        layers: vec![LayerSource { from, descriptor: None, diff_id: None }],
    }
}

fn layout(files: &Files, path: &Path, doing: &str) -> Result<Vec<Parts>, Failure> {
    let index: Index = document(files, "index.json", doing)?.0;
    let blob = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
    let mut images = Vec::new();
    for entry in &index.manifests {
        let mut manifest = entry.clone();
        if entry.is_index() {
            let inner: Index = verified(files, &blob(entry.digest), entry, doing)?.0;
            match inner.here() {
                Some(found) => manifest = found.clone(),
                None => continue,
            }
        }
        let names = entry.name().and_then(|name| name::found_at(path, name)).into_iter().collect();
        let parts = with_manifest(files, &manifest, blob, doing)?;
        images.push(Parts { names, ..parts });
        check_room(&images, doing)?;
    }
    Ok(images)
}

fn directory(files: &Files, doing: &str) -> Result<Parts, Failure> {
    let text = files.read(DOCKER_MANIFEST).doing(doing)?;
    with_manifest(files, &Descriptor::of("", &text), |digest| named_blob(files, digest), doing)
}

/// The blob's own name, or the manifest's where it is that.
fn named_blob(files: &Files, digest: Digest) -> String {
    let hex = digest.hex();
    if files.has(&hex) { hex } else { DOCKER_MANIFEST.to_owned() }
}

fn with_manifest(
    files: &Files,
    descriptor: &Descriptor,
    blob: impl Fn(Digest) -> String,
    doing: &str,
) -> Result<Parts, Failure> {
    let (manifest, text): (Manifest, _) = verified(files, &blob(descriptor.digest), descriptor, doing)?;
    of_manifest(files, manifest, text, blob, doing)
}

/// What belongs to a manifest that has been verified.
pub(crate) fn of_manifest(
    files: &Files,
    manifest: Manifest,
    text: Vec<u8>,
    blob: impl Fn(Digest) -> String,
    doing: &str,
) -> Result<Parts, Failure> {
    let (config, config_text): (Config, _) = verified(files, &blob(manifest.config.digest), &manifest.config, doing)?;
    let (manifest, text) = match manifest.translated() {
        Some(oci) => {
            let text = serde_json::to_vec(&oci).map_err(|error| Failure::because(doing, error))?;
            (oci, text)
        }
        None => (manifest, text),
    };
    let diff_ids = &config.rootfs.diff_ids;
    check_layers(manifest.layers.len(), diff_ids.len(), doing)?;
    let layer = |(layer, diff_id): (&Descriptor, &Digest)| LayerSource {
        from: Place::Named(blob(layer.digest)),
        descriptor: Some(layer.clone()),
        diff_id: Some(*diff_id),
    };
    let layers = manifest.layers.iter().zip(diff_ids).map(layer).collect();
    Ok(Parts { names: Vec::new(), manifest: Some(text), config: Some(config_text), layers })
}

fn docker(files: &Files, doing: &str) -> Result<Vec<Parts>, Failure> {
    let list: Vec<DockerImage> = document(files, DOCKER_MANIFEST, doing)?.0;
    let mut images = Vec::new();
    for image in list {
        images.push(docker_image(files, image, doing)?);
        check_room(&images, doing)?;
    }
    Ok(images)
}

/// The documents of all images are in memory; many may be the same blob.
fn check_room(images: &[Parts], doing: &str) -> Result<(), Failure> {
    let length = |text: &Option<Vec<u8>>| text.as_ref().map_or(0, |text| text.len() as u64);
    let sum: u64 = images.iter().map(|parts| length(&parts.manifest) + length(&parts.config)).sum();
    match sum > MOST_DOCUMENTS || images.len() > MOST_IMAGES {
        true => Err(Failure::because(doing, "it holds more images than can be told apart")
            .remedy("take one at a time, with skopeo copy")),
        false => Ok(()),
    }
}

/// Refuses what nobody can run, and what would take for ever to compare.
fn check_layers(layers: usize, diff_ids: usize, doing: &str) -> Result<(), Failure> {
    if layers != diff_ids {
        let found = format!("its manifest has {layers} layers, its configuration {diff_ids}");
        return Err(Failure::because(doing, found));
    }
    match layers > MOST_LAYERS {
        true => Err(Failure::because(doing, format!("it has {layers} layers, more than {MOST_LAYERS}"))),
        false => Ok(()),
    }
}

fn docker_image(files: &Files, image: DockerImage, doing: &str) -> Result<Parts, Failure> {
    let (config, text): (Config, _) = document(files, &image.config, doing)?;
    check_layers(image.layers.len(), config.rootfs.diff_ids.len(), doing)?;
    let layer = |(file, diff_id)| LayerSource { from: Place::Named(file), descriptor: None, diff_id: Some(diff_id) };
    let layers = image.layers.into_iter().zip(config.rootfs.diff_ids).map(layer).collect();
    let tags = image.repo_tags.unwrap_or_default();
    let names = tags.iter().filter_map(|tag| name::parse(tag).ok()).collect();
    Ok(Parts { names, manifest: None, config: Some(text), layers })
}

fn document<T: serde::de::DeserializeOwned>(files: &Files, name: &str, doing: &str) -> Result<(T, Vec<u8>), Failure> {
    let doing = format!("{doing}: read {}", name.escape_debug());
    let text = files.read(name).doing(&doing)?;
    Ok((serde_json::from_slice(&text).map_err(|error| Failure::because(&doing, error))?, text))
}

/// A document that is what its descriptor says.
fn verified<T: serde::de::DeserializeOwned>(
    files: &Files,
    name: &str,
    descriptor: &Descriptor,
    doing: &str,
) -> Result<(T, Vec<u8>), Failure> {
    let doing = format!("{doing}: read {name}");
    let text = files.read(name).doing(&doing)?;
    if Digest::of(&text) != descriptor.digest || text.len() as u64 != descriptor.size {
        return Err(Failure::because(&doing, format!("it is not {}", descriptor.digest)));
    }
    Ok((serde_json::from_slice(&text).map_err(|error| Failure::because(&doing, error))?, text))
}
