//! One stage while it is built: its files, its configuration, and what each instruction does to them.

use std::path::PathBuf;

use serde_json::json;

use super::cache;
use super::command::Running;
use super::config::Config;
use super::copy::How;
use super::expand::Expansion;
use super::ignore::Ignored;
use super::instruction::{Command, Copied, Instruction, What, is_far};
use super::layer::{Top, unpacked};
use super::origin::Origin;
use super::plan::{BuildArguments, last};
use super::tree::{About, Node, Tree};
use crate::confine::{Account, Identity, parse_user};
use crate::failure::{Doing as _, Failure};
use crate::image::changes::{Change, ports, within};
use crate::image::digest::Digest;
use crate::image::load::Loaded;
use crate::image::store::Store;
use crate::image::time;
use crate::message::warn;
use crate::process::number::SignalNumber;

/// Arguments that need not be declared; what they say leaves no trace in the image. See docker's reference, "Predefined
/// ARGs".
pub(super) const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// What is the same for all stages.
pub(super) struct Build<'a> {
    pub(super) store: &'a Store,
    pub(super) escape: char,
    pub(super) arguments: &'a BuildArguments,
    pub(super) globals: &'a [(String, Option<String>)],
    pub(super) uses_cache: bool,
    /// The network of RUN, as `--net` takes it.
    pub(super) network: &'a str,
    pub(super) is_quiet: bool,
    /// How many descriptors RUN may have: two limits.
    pub(super) descriptors: (u64, u64),
    /// Whether there is nobody but root to whom a step could give files.
    pub(super) is_alone: bool,
}

impl Build<'_> {
    /// The key of a step behind another one. Who has nobody to give files to makes other layers of the same.
    fn key(&self, before: Digest, step: &[u8]) -> Digest {
        let owners = if self.is_alone { "alone" } else { "" };
        Digest::of(&[before.to_string().as_bytes(), owners.as_bytes(), step].concat())
    }
}

/// Where COPY takes files from.
pub(super) enum Source<'a> {
    /// The context, and what of it is left out.
    Context(&'a Tree, &'a Ignored),
    /// Layers of a stage or an image, the topmost first.
    Layers(Vec<PathBuf>),
}

/// A stage.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub(super) config: Config,
    /// The lowest first.
    pub(super) layers: Vec<Loaded>,
    /// Of all steps so far.
    key: Digest,
    arguments: Vec<(String, Option<String>)>,
    /// Whether this stage itself has said what is run.
    has_command: bool,
}

/// Whether what a step has made is what its key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    AsKeyed,
    /// Of something else: what it has read has changed meanwhile.
    Otherwise,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// It says something of the image only.
    Said,
    /// Files were changed now, or it was found that none are.
    Made(Option<Digest>),
    /// It was done before.
    Known(Option<Digest>),
}

impl Stage {
    pub(super) fn new(config: Config, layers: Vec<Loaded>) -> Stage {
        let mut text = String::from("base");
        layers.iter().for_each(|layer| text.push_str(&layer.diff.diff_id.to_string()));
        // With another date, layers have other times in them.
        text.push_str(&time::epoch().map_or(String::new(), |epoch| epoch.to_string()));
        let key = Digest::of(text.as_bytes());
        Stage { config, layers, key, arguments: Vec::new(), has_command: false }
    }

    /// The beginning of a stage on this one.
    pub(super) fn next(&self) -> Stage {
        Stage { arguments: Vec::new(), has_command: false, ..self.clone() }
    }

    /// Does what an instruction says; `source` is what COPY takes files from.
    pub(super) fn step(
        &mut self,
        build: &Build<'_>,
        instruction: &Instruction,
        source: Option<Source<'_>>,
    ) -> Result<Done, Failure> {
        let mut created_by = instruction.text.clone();
        let done = match (&instruction.what, source) {
            (What::Run { command, network }, _) => self.run(build, command, *network, &mut created_by)?,
            (What::Copy(copied), Some(source)) => self.copy(build, copied, source)?,
            (What::Workdir(text), _) => self.workdir(build, text)?,
            (what, _) => {
                self.say(build, what).map_err(Failure::new)?;
                Done::Said
            }
        };
        let layer = match done {
            Done::Said => None,
            Done::Made(layer) | Done::Known(layer) => layer,
        };
        self.config.add(&created_by, layer);
        Ok(done)
    }

    fn lookup(&self, build: &Build<'_>, name: &str) -> Option<String> {
        let given = || build.arguments.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.clone());
        let predefined = || PREDEFINED.contains(&name).then(given).flatten();
        self.config.variable(name).or_else(|| last(&self.arguments, name)).or_else(predefined)
    }

    fn expand(&self, build: &Build<'_>, text: &str) -> Result<String, String> {
        Expansion { escape: build.escape, lookup: &|name| self.lookup(build, name) }.word(text)
    }

    /// Instructions that change no file.
    fn say(&mut self, build: &Build<'_>, what: &What) -> Result<(), String> {
        let expand = |text: &String| self.expand(build, text);
        let pair = |(name, value): &(String, String)| Ok((expand(name)?, expand(value)?));
        let change = match what {
            What::Arg(all) => return self.declare(build, all),
            What::Maintainer(author) => {
                self.config.set_author(author);
                return Ok(());
            }
            What::Env(all) => {
                let all = all.iter().map(pair).collect::<Result<Vec<_>, String>>()?;
                if let Some((name, _)) = all.iter().find(|(name, value)| !is_assignable(name, value)) {
                    return Err(format!("{} is no name of a variable, or has no possible value", name.escape_debug()));
                }
                Change::variables("Env", all)
            }
            What::Label(all) => Change::pairs("Labels", all.iter().map(pair).collect::<Result<_, String>>()?),
            What::User(text) => {
                let user = expand(text)?;
                parse_user(&user)?;
                Change::is("User", json!(user))
            }
            What::StopSignal(text) => {
                let signal = expand(text)?;
                signal.parse::<SignalNumber>()?;
                Change::is("StopSignal", json!(signal))
            }
            What::Expose(text) => {
                let words = Expansion { escape: build.escape, lookup: &|name| self.lookup(build, name) }.words(text)?;
                let ports = words.iter().map(|word| ports(word)).collect::<Result<Vec<_>, _>>()?;
                Change::has("ExposedPorts", ports.concat())
            }
            What::Volume(all) => Change::has("Volumes", all.iter().map(expand).collect::<Result<_, _>>()?),
            What::Shell(words) => Change::is("Shell", json!(words)),
            What::Healthcheck(check) => Change::is("Healthcheck", check.clone()),
            What::Cmd(command) => {
                let change = Change::is("Cmd", json!(self.words(command)));
                self.has_command = true;
                change
            }
            What::Entrypoint(command) => {
                let change = Change::is("Entrypoint", json!(self.words(command)));
                if !self.has_command {
                    // What the base would run was for its own entry point.
                    self.config.change(&Change::is("Cmd", json!(null)));
                }
                change
            }
            What::From { .. } | What::Workdir(_) | What::Run { .. } | What::Copy(_) => return Ok(()),
        };
        self.config.change(&change);
        Ok(())
    }

    fn declare(&mut self, build: &Build<'_>, all: &[(String, Option<String>)]) -> Result<(), String> {
        for (name, default) in all {
            let given = build.arguments.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.clone());
            let value = match (given, default) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(build, default)?),
                (None, None) => last(build.globals, name),
            };
            self.arguments.push((name.clone(), value));
        }
        Ok(())
    }

    /// The words of a command, in the shell where it is for one.
    fn words(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => {
                let mut words = self.config.words("Shell");
                if words.is_empty() {
                    words = vec!["/bin/sh".into(), "-c".into()];
                }
                words.push(text.clone());
                words
            }
        }
    }

    /// A step that changes files: what was made of it before, or what `work` makes now.
    fn make(
        &mut self,
        build: &Build<'_>,
        key: &[u8],
        has_run: bool,
        work: impl FnOnce(&Stage, &Top<'_>) -> Result<Outcome, Failure>,
    ) -> Result<Done, Failure> {
        let mut key = build.key(self.key, key);
        let known = if build.uses_cache { cache::find(build.store, key) } else { None };
        let is_known = known.is_some();
        let layer = match known {
            Some(layer) => layer,
            None => {
                let top = Top::new(build.store, &self.layers)?;
                let outcome = work(self, &top)?;
                let layer = top.finish(has_run)?;
                match outcome {
                    Outcome::AsKeyed => cache::keep(build.store, key, layer.as_ref())?,
                    // What follows is done on what is there, and found again by nobody who asks for what was meant.
                    Outcome::Otherwise => key = of_made(key, layer.as_ref()),
                }
                layer
            }
        };
        self.key = key;
        let id = layer.as_ref().map(|layer| layer.diff.diff_id);
        self.layers.extend(layer);
        Ok(if is_known { Done::Known(id) } else { Done::Made(id) })
    }

    fn workdir(&mut self, build: &Build<'_>, text: &str) -> Result<Done, Failure> {
        let text = self.expand(build, text).map_err(Failure::new)?;
        let path = self.absolute(&text);
        self.config.change(&Change::is("WorkingDir", json!(path)));
        let key = format!("WORKDIR {path} {}", self.config.word("User"));
        self.make(build, key.as_bytes(), false, |stage, top| {
            let doing = format!("make {path}");
            let tree = Tree::over(&top.path, &top.layers)?;
            let spot = tree.walk(path.as_bytes()).map_err(std::io::Error::from).doing(&doing)?;
            if spot.node().is_some_and(Node::is_dir) {
                return Ok(Outcome::AsKeyed);
            }
            let user = stage.config.word("User");
            let owner = if user.is_empty() { (0, 0) } else { identity(&tree, user)? };
            let about = About { mode: 0o755, owner, mtime: None };
            tree.make_directories(spot, about).map_err(std::io::Error::from).doing(&doing)?;
            Ok(Outcome::AsKeyed)
        })
    }

    /// A path from the root; one that begins elsewhere begins in the working directory. A slash at its end stays.
    fn absolute(&self, text: &str) -> String {
        within(self.config.word("WorkingDir"), text)
    }

    fn run(
        &mut self,
        build: &Build<'_>,
        command: &Command,
        network: Option<&str>,
        created_by: &mut String,
    ) -> Result<Done, Failure> {
        let words = self.words(command);
        let mut variables = self.config.words("Env");
        let mut told = Vec::new();
        for (name, _) in &self.arguments {
            // A variable of the image counts before an argument.
            let value = last(&self.arguments, name).filter(|_| self.config.variable(name).is_none());
            if let Some(value) = value.map(|value| format!("{name}={value}")).filter(|text| !told.contains(text)) {
                told.push(value);
            }
        }
        variables.extend(told.iter().cloned());
        let network = network.unwrap_or(build.network).to_owned();
        let mut running = Running {
            words,
            variables,
            user: self.config.word("User").to_owned(),
            directory: self.absolute(""),
            network,
            is_quiet: build.is_quiet,
            descriptors: build.descriptors,
        };
        let mut key = b"RUN".to_vec();
        key.extend(running.key());
        let proxies = build.arguments.iter().filter(|(name, _)| {
            PREDEFINED.contains(&name.as_str())
                && self.config.variable(name).is_none()
                && last(&self.arguments, name).is_none()
        });
        running.variables.extend(proxies.map(|(name, value)| format!("{name}={value}")));
        let arguments = if told.is_empty() { String::new() } else { format!("|{} {} ", told.len(), told.join(" ")) };
        *created_by = format!("RUN {arguments}{}", running.words.join(" "));
        self.make(build, &key, true, |_, top| match running.run(top)? {
            0 => Ok(Outcome::AsKeyed),
            status => Err(Failure::new(format!("the command has ended with status {status}")).with_status(status)),
        })
    }

    fn copy(&mut self, build: &Build<'_>, copied: &Copied, source: Source<'_>) -> Result<Done, Failure> {
        let expand = |text: &String| self.expand(build, text).map_err(Failure::new);
        let sources = copied.sources.iter().map(expand).collect::<Result<Vec<_>, _>>()?;
        if let Some(far) = sources.iter().find(|source| copied.unpacks && is_far(source)) {
            return Err(Failure::new(format!(
                "ADD of {far}, which is not in the context, is not built here (use buildah)"
            )));
        }
        let target = expand(&copied.target)?;
        let owner = copied.owner.as_ref().map(expand).transpose()?;
        let is_directory = target.ends_with('/') || target.ends_with("/.") || target == ".";
        let target = format!("{}{}", self.absolute(&target), if is_directory { "/" } else { "" });
        let none = Ignored::default();
        let layers;
        let from = match source {
            Source::Context(tree, ignored) => Origin { tree, ignored, keeps_owners: false },
            Source::Layers(paths) => {
                layers = Tree::of_layers(&paths)?;
                Origin::all_of(&layers, &none)
            }
        };
        let how = format!("{}{:?}{:?}{target}", copied.unpacks, owner, copied.mode);
        let (found, key) = from.find_all(&sources, &how)?;
        self.make(build, &key, false, |_, top| {
            let tree = Tree::over(&top.path, &top.layers)?;
            let owner = owner.as_deref().map(|owner| owner_of(build, &tree, owner)).transpose()?;
            from.copy(&found, &tree, &target, How { owner, mode: copied.mode, unpacks: copied.unpacks })?;
            // Somebody may be at work in a context. What is gone by now was another one, too.
            if from.find_all(&sources, &how).is_ok_and(|(_, now)| now == key) {
                return Ok(Outcome::AsKeyed);
            }
            warn(format_args!("files have changed while they were copied; what they were is not remembered"));
            Ok(Outcome::Otherwise)
        })
    }

    /// Where its layers are unpacked, the topmost first.
    pub(super) fn unpacked(&self, store: &Store) -> Vec<PathBuf> {
        unpacked(store, &self.layers)
    }
}

/// The key of a step that is told by what it has made alone.
fn of_made(key: Digest, layer: Option<&Loaded>) -> Digest {
    let made = layer.map_or(String::new(), |layer| layer.diff.diff_id.to_string());
    Digest::of(format!("{key} made {made}").as_bytes())
}

/// Who a user of the image is, as USER means it.
fn identity(tree: &Tree, user: &str) -> Result<(u32, u32), Failure> {
    let wanted = parse_user(user).map_err(Failure::new)?;
    let found = Identity::look_up(&wanted, &tree.accounts("/etc/passwd")?, &tree.accounts("/etc/group")?);
    let missing = |_| Failure::new(format!("there is no user or group {} in the image", user.escape_debug()));
    found.map(|identity| (identity.user, identity.group)).map_err(missing)
}

/// The same as --chown means it: a number alone is that of the group, too.
fn owner_of(build: &Build<'_>, tree: &Tree, owner: &str) -> Result<(u32, u32), Failure> {
    let wanted = parse_user(owner).map_err(Failure::new)?;
    let found = match (&wanted.user, &wanted.group) {
        (Account::Id(id), None) => (*id, *id),
        (Account::Id(user), Some(Account::Id(group))) => (*user, *group),
        _ => identity(tree, owner)?,
    };
    if found != (0, 0) && build.is_alone {
        let failure = Failure::new("there is nobody but root to whom files can be given");
        return Err(failure.remedy("/etc/subuid and /etc/subgid give a user further ids"));
    }
    Ok(found)
}

/// Whether it can be put into an environment.
fn is_assignable(name: &str, value: &str) -> bool {
    !name.is_empty()
        && !name.contains(|one: char| one.is_whitespace() || one == '=')
        && ![name, value].concat().contains('\0')
}
