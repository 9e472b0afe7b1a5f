//! `rlaunch image import`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::files::Files;
use super::load::{self, Loaded};
use super::manifest::{CONFIG, Descriptor, MANIFEST, Manifest, architecture};
use super::name;
use super::progress::Progress;
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
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// An image or a root file system, as a directory or an archive, which may be compressed; - for standard input
    path: PathBuf,
}

/// The path that means standard input, and nothing else.
const STANDARD_INPUT: &str = "-";

/// Imports; what is printed: a line for each name.
pub(crate) fn run(options: &ImportOptions) -> Result<String, Failure> {
    time::check()?;
    let name = options.name.as_deref().map(name::parse).transpose()?;
    let store = Store::open()?;
    let spool = store.workspace().doing("make a directory in the image store")?;
    let (path, doing) = match options.path.as_os_str() == STANDARD_INPUT {
        true => (spooled(spool.path())?, "import standard input".to_owned()),
        false => (options.path.clone(), format!("import {}", options.path.display())),
    };
    let source = source::look(&path, &doing, options.format, spool.path())?;
    let chosen = choose(&source, options, name.is_some())?;
    let progress = Progress::new(options.quiet);
    let mut lines = String::new();
    for parts in chosen {
        let names = name.clone().map_or_else(|| parts.names.clone(), |name| vec![name]);
        lines.push_str(&one(&store, &source.files, parts, &names, &doing, &progress)?);
    }
    Ok(lines)
}

/// Keeps what comes on standard input: an archive is read more than once.
fn spooled(spool: &Path) -> Result<PathBuf, Failure> {
    let doing = "read standard input";
    let mut input = std::io::stdin().lock();
    if input.is_terminal() {
        return Err(Failure::because(doing, "it is a terminal").remedy("an archive is expected, by < or |"));
    }
    // Its name is none of an image.
    let path = spool.join(STANDARD_INPUT);
    let copied = std::fs::File::create(&path).and_then(|mut file| std::io::copy(&mut input, &mut file));
    match copied.doing("keep what comes on standard input")? {
        0 => Err(Failure::because(doing, "nothing comes")),
        _ => Ok(path),
    }
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

/// Takes one image into the store; what is printed of it.
pub(super) fn one(
    store: &Store,
    files: &Files,
    parts: &Parts,
    names: &[String],
    doing: &str,
    progress: &Progress,
) -> Result<String, Failure> {
    let workspace = store.workspace().doing(doing)?;
    let (layers, mut made) =
        load::load_seen(store, &workspace, files, &parts.layers, progress).map_err(|failure| failure.within(doing))?;
    let (descriptor, id) = documents(parts, &layers, &workspace, &mut made).doing(doing)?;
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
