//! What `rlaunch run --image` takes from the store: the layers, and what the image says where the options are silent.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::manifest::Execution;
use super::store::{Image, LayerPlace, Store};
use crate::confine::{self, WantedUser};
use crate::failure::{Doing as _, Failure};
use crate::host::ImageRoot;
use crate::lock::{Kind, Lock, lock};
use crate::message::{say, warn};
use crate::namespace::Network;
use crate::network::publish::Published;
use crate::options::Options;
use crate::process::number::SignalNumber;
use crate::state::{ImageUsed, Record};
use crate::volume;

/// An image that a container runs on. Its layers are not removed as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    /// What it is called, or its id.
    name: String,
    id: Digest,
    /// The unpacked layers, the topmost first.
    layers: Vec<PathBuf>,
    execution: Execution,
    _locks: Vec<Lock>,
}

impl Held {
    /// Finds an image by its name or id.
    ///
    /// # Errors
    /// Where there is none, or not all of it.
    pub(crate) fn find(word: &str) -> Result<Held, Failure> {
        let store = Store::open()?;
        let image = store.find_or_pull(word)?;
        let name = image.name().map_or_else(|| image.id().short(), str::to_owned);
        let layers = layers(&store, &image);
        if layers.is_empty() {
            return Err(Failure::new(format!("the image {name} has no layers, and so no files")));
        }
        let hold = |layer: &LayerPlace| -> Result<Lock, Failure> {
            let lock = lock(&layer.held, Kind::Shared).doing(&format!("use {}", layer.held.display()))?;
            let missing = || Failure::new(format!("a layer of the image {name} is missing"));
            lock.ok_or_else(|| missing().remedy("import it again"))
        };
        let locks = layers.iter().map(hold).collect::<Result<_, _>>()?;
        let layers = layers.into_iter().map(|layer| layer.branch).collect();
        Ok(Held { name, id: image.id(), layers, execution: image.config.config.unwrap_or_default(), _locks: locks })
    }

    /// Says what the options leave open.
    ///
    /// # Errors
    /// Where there is no command, or what the image says cannot be followed.
    pub(crate) fn fill(&self, options: &mut Options) -> Result<(), Failure> {
        let said = &self.execution;
        let words = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
        match options.confine.entrypoint.take() {
            // What the image would run is not what is asked for. An empty word takes it away and puts nothing there.
            Some(program) => options.confine.entrypoint = Some(program).filter(|program| !program.is_empty()),
            None => {
                let given = std::mem::take(&mut options.command);
                let command = if given.is_empty() { words(&said.cmd) } else { given };
                options.command = [words(&said.entrypoint), command].concat();
            }
        }
        if options.command.is_empty() && options.confine.entrypoint.is_none() {
            return Err(
                Failure::new(format!("the image {} does not say what to run", self.name)).remedy("give a command")
            );
        }
        if options.confine.user.is_none() && !said.user.is_empty() {
            options.confine.user = Some(self.user()?);
        }
        if options.confine.workdir.is_none() && !said.working_dir.is_empty() {
            // As docker: one that does not begin with a slash begins at the root.
            options.confine.workdir = Some(Path::new("/").join(&said.working_dir));
        }
        if options.network.publish_all && options.namespaces.net == Network::Pasta {
            options.network.publish.extend(self.published()?);
        }
        Ok(())
    }

    /// A port of this machine for each that it exposes, told on the way.
    fn published(&self) -> Result<Vec<Published>, Failure> {
        let doing = format!("publish the ports of the image {}", self.name);
        let mut all = Vec::new();
        for port in self.execution.exposed_ports.keys() {
            let found = Published::anywhere(port).map_err(|why| Failure::because(&doing, why))?;
            found.iter().for_each(|one| say(format_args!("note: {port} is published: {one}")));
            all.extend(found);
        }
        Ok(all)
    }

    fn user(&self) -> Result<WantedUser, Failure> {
        let doing = format!("run as the user of the image {}", self.name);
        confine::parse_user(&self.execution.user).map_err(|error| Failure::because(&doing, error))
    }

    /// The variables that it sets.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (OsString, OsString)> {
        let pairs = self.execution.env.iter().filter_map(|text| text.split_once('='));
        pairs.filter(|(name, _)| !name.is_empty()).map(|(name, value)| (name.into(), value.into()))
    }

    /// Says in a container's record what it is on, and how it is asked to end.
    pub(crate) fn tell(&self, record: &mut Record) {
        record.root = format!("image {}", self.name);
        record.image = Some(ImageUsed { name: self.name.clone(), id: self.id.to_string() });
        let said = &self.execution.stop_signal;
        if said.is_empty() {
            return;
        }
        match said.parse::<SignalNumber>() {
            Ok(signal) => record.stop_signal = Some(signal.number()),
            Err(_) => warn(format_args!("the image {} asks to be stopped by {said}, which is not known", self.name)),
        }
    }

    /// What the container is made of.
    pub(crate) fn root(&self) -> ImageRoot {
        let last = self.name.rsplit('/').next().unwrap_or(&self.name);
        ImageRoot {
            layers: self.layers.clone(),
            short_name: last.split([':', '@']).next().unwrap_or(last).into(),
            volumes: self.volumes(),
        }
    }

    /// Where it wants volumes, as far as there can be one.
    fn volumes(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for text in self.execution.volumes.keys() {
            match volume::target_of(text.as_bytes()) {
                Ok(target) if !found.contains(&target) => found.push(target),
                Ok(_) => {}
                Err(why) => warn(format_args!("the image {} asks for a volume that cannot be: {why}", self.name)),
            }
        }
        found
    }
}

/// The layers as branches. Where an image has one more than once, the topmost shows all of it, and hides all that the
/// others hide.
pub(super) fn layers(store: &Store, image: &Image) -> Vec<LayerPlace> {
    let mut found: Vec<LayerPlace> = Vec::new();
    for path in image.config.rootfs.diff_ids.iter().rev().map(|diff_id| store.layer(*diff_id)) {
        if !found.contains(&path) {
            found.push(path);
        }
    }
    found
}
