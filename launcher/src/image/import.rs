//! `rlaunch image import`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::load::{self, Loaded};
use super::manifest::{CONFIG, Descriptor, MANIFEST, Manifest, architecture};
use super::name;
use super::source::{self, Form, Parts, Source};
use super::store::{Made, Store, Workspace};
use super::time;
use crate::failure::{Doing as _, Failure};

/// What is imported.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ImportOptions {
    /// What the image is to be called; without it, what it calls itself
    #[arg(long, value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// Of several images, the one that calls itself so
    #[arg(long = "ref", value_name = "NAME")]
    reference: Option<String>,
    /// In which form it is; without it, that is found out
    #[arg(long, value_name = "FORM")]
    format: Option<Form>,
    /// An image or a root file system, as a directory or an archive, which may be compressed
    path: PathBuf,
}

/// Imports; what is printed: a line for each name.
pub(crate) fn run(options: &ImportOptions) -> Result<String, Failure> {
    let name = options.name.as_deref().map(name::parse).transpose()?;
    let store = Store::open()?;
    let spool = store.workspace().doing("make a directory in the image store")?;
    let source = source::look(&options.path, options.format, spool.path())?;
    let chosen = choose(&source, options, name.is_some())?;
    let mut lines = String::new();
    for parts in chosen {
        let names = name.clone().map_or_else(|| parts.names.clone(), |name| vec![name]);
        lines.push_str(&one(&store, &source, parts, &names, &options.path)?);
    }
    Ok(lines)
}

/// The images of a source that are wanted.
fn choose<'a>(source: &'a Source, options: &ImportOptions, is_named: bool) -> Result<Vec<&'a Parts>, Failure> {
    let known = || source.images.iter().flat_map(|parts| &parts.names).map(String::as_str).collect::<Vec<_>>();
    let path = options.path.display();
    if let Some(wanted) = &options.reference {
        let candidates = name::candidates(wanted);
        let at_place = name::found_at(&options.path, wanted);
        let means = |name: &String| candidates.contains(name) || at_place.as_ref() == Some(name);
        let found = source.images.iter().find(|parts| parts.names.iter().any(means));
        let missing = || Failure::new(format!("there is no {wanted} in {path}")).remedy(&known().join(", "));
        return found.map(|parts| vec![parts]).ok_or_else(missing);
    }
    if is_named && source.images.len() > 1 {
        let failure = Failure::new(format!("there are several images in {path}"));
        return Err(failure.remedy(&format!("give the one that is meant with --ref: {}", known().join(", "))));
    }
    Ok(source.images.iter().collect())
}

fn one(store: &Store, source: &Source, parts: &Parts, names: &[String], path: &Path) -> Result<String, Failure> {
    let doing = format!("import {}", path.display());
    let workspace = store.workspace().doing(&doing)?;
    let (layers, mut made) = load::load(store, &workspace, &source.files, &parts.layers)
        .map_err(|failure| Failure::new(format!("cannot {doing}: {failure}")))?;
    let (descriptor, id) = documents(parts, &layers, &workspace, &mut made).doing(&doing)?;
    store.publish(&made).doing(&format!("{doing}: write to the image store"))?;
    store.name(&descriptor, names)?;
    Ok(match names {
        [] => format!("{id}\n"),
        names => names.iter().map(|name| format!("{name} {id}\n")).collect(),
    })
}

/// Writes the manifest and the configuration: those that came, or new ones. What the index says of it, and the id.
fn documents(
    parts: &Parts,
    layers: &[Loaded],
    workspace: &Workspace,
    made: &mut Made,
) -> std::io::Result<(Descriptor, super::digest::Digest)> {
    let config = match &parts.config {
        Some(config) => config.clone(),
        None => serde_json::to_vec(&new_config(layers))?,
    };
    let manifest = match &parts.manifest {
        Some(manifest) => manifest.clone(),
        None => {
            let descriptors = layers.iter().map(|layer| layer.descriptor.clone()).collect();
            serde_json::to_vec(&Manifest::new(Descriptor::of(CONFIG, &config), descriptors))?
        }
    };
    let id = made.blob(workspace, &config)?;
    made.blob(workspace, &manifest)?;
    Ok((Descriptor::of(MANIFEST, &manifest), id))
}

/// The configuration of a root file system.
fn new_config(layers: &[Loaded]) -> serde_json::Value {
    let now = time::now();
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff.diff_id).collect();
    json!({
        "created": now,
        "architecture": architecture(),
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [{ "created": now, "created_by": "rlaunch image import" }],
    })
}
