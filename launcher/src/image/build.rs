//! `rlaunch image build`: an image as a Dockerfile says; see <https://docs.docker.com/reference/dockerfile/>.
//!
//! ```text
//! text ─ lines ─> instructions ─ plan ─> stages ─ stage ─> layers and a configuration
//! ```
//!
//! Each step that changes files writes to an empty top over the layers that are there, as a container does, and the top
//! becomes one more layer, as by `rlaunch commit`. What is half-made lies in a workspace of the store, and goes with it.
//!
//! | File | Question |
//! |---|---|
//! | `lines`, `expand`, `instruction` | what the Dockerfile says |
//! | `plan` | which stages there are, and which are needed |
//! | `stage`, `config` | what an instruction does |
//! | `tree`, `origin`, `copy`, `archive`, `ignore` | files: how they are found, and copied |
//! | `command` | how a command is run |
//! | `layer`, `cache` | what a step has made, and whether it was made before |

mod archive;
mod cache;
mod command;
mod config;
mod copy;
mod expand;
#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
mod ignore;
mod instruction;
mod layer;
mod lines;
mod origin;
mod plan;
mod stage;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum as _};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

pub(super) use cache::{forget, needed};
pub(super) use ignore::Ignored;
pub(super) use origin::Origin;
pub(super) use tree::Tree;

use self::config::Config;
use self::instruction::{Instruction, What};
use self::lines::Wrong;
use self::plan::{Base, Plan, Planned};
use self::stage::{Build, Done, PREDEFINED, Source, Stage};
use super::digest::Digest;
use super::load::Loaded;
use super::manifest::{CONFIG, Descriptor, MANIFEST, Manifest};
use super::name;
use super::store::{Image, Made, Store};
use super::time;
use crate::confine::is_alone;
pub(super) use ignore::clean;

use crate::failure::{Doing as _, Failure};
use crate::message::warn;
use crate::namespace::Network;

/// A Dockerfile that is longer is none.
const LONGEST: u64 = 4 << 20;
const IGNORE_FILE: &str = ".dockerignore";
/// What is looked for in the context where no file is named.
const FILES: [&str; 2] = ["Dockerfile", "Containerfile"];

/// What is built.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct BuildOptions {
    /// What the image is called; may be repeated
    #[arg(short, long, value_name = "NAME[:TAG]")]
    tag: Vec<String>,
    /// The Dockerfile, or - for standard input; without it, Dockerfile or Containerfile in the context
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The value of an argument of the Dockerfile; that of the variable, where there is none
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = argument)]
    build_arg: Vec<(String, String)>,
    /// Build this stage, by name or number, and not the last one
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do all steps, also those that were done before
    #[arg(long)]
    no_cache: bool,
    /// Print the id only, and what a command has said only where it has failed
    #[arg(short, long)]
    quiet: bool,
    /// Which network commands have: the host's, none, or their own with a way out by pasta(1)
    #[arg(long, visible_alias = "network", value_name = "WHICH", default_value = "host")]
    net: Network,
    /// The directory that files are copied from
    context: PathBuf,
}

fn argument(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (text, std::env::var(text).unwrap_or_default()),
    };
    if instruction::is_variable(name) { Ok((name.to_owned(), value)) } else { Err("NAME=VALUE is expected".into()) }
}

/// Builds; what is printed at the end.
pub(crate) fn run(options: &BuildOptions) -> Result<String, Failure> {
    time::check()?;
    let names = options.tag.iter().map(|tag| name::parse(tag)).collect::<Result<Vec<_>, _>>()?;
    let context = Context::open(options)?;
    let told = |wrong: Wrong| context.wrong(wrong.line, &wrong.why);
    let lines = lines::read(&context.text).map_err(told)?;
    let instructions = instruction::parse(&lines).map_err(told)?;
    let plan = plan::plan(instructions, lines.escape, &options.build_arg, options.target.as_deref()).map_err(told)?;
    for (name, _) in &options.build_arg {
        if !plan.declares(name) && !PREDEFINED.contains(&name.as_str()) {
            warn(format_args!("nothing in {} asks for the argument {name}", context.name));
        }
    }
    let descriptors = all_descriptors()?;
    // What commands make is the same whoever builds, and may be found again by another one: as docker has it.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let store = Store::open()?;
    let network = options.net.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
    let build = Build {
        store: &store,
        escape: lines.escape,
        arguments: &options.build_arg,
        globals: &plan.globals,
        uses_cache: !options.no_cache,
        network: &network,
        is_quiet: options.quiet,
        descriptors,
        is_alone: is_alone("self").doing("look at the user namespace")?,
    };
    let mut builder = Builder { build, plan: &plan, context: &context, built: BTreeMap::new(), step: 0 };
    let stage = builder.all()?;
    let id = finish(&builder.build, stage, &names)?;
    if options.quiet {
        return Ok(format!("{id}\n"));
    }
    let tagged: String = names.iter().map(|name| format!("Successfully tagged {name}\n")).collect();
    Ok(format!("Successfully built {id}\n{tagged}"))
}

/// Takes all the descriptors that this process may have: what was read of a branch may keep some to the end. The limits that
/// were there.
fn all_descriptors() -> Result<(u64, u64), Failure> {
    let doing = "look at the limit of descriptors";
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).doing(doing)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).doing(doing)?;
    Ok((soft, hard))
}

/// The context and the Dockerfile.
struct Context {
    tree: Tree,
    ignored: Ignored,
    /// What the Dockerfile is called in messages.
    name: String,
    text: String,
}

impl Context {
    fn open(options: &BuildOptions) -> Result<Context, Failure> {
        let path = &options.context;
        let doing = format!("use the context {}", path.display());
        if path.as_os_str() == "-" {
            return Err(Failure::because(&doing, "a context is not read from standard input here (use buildah)"));
        }
        let real = path.canonicalize().doing(&doing)?;
        if !real.is_dir() {
            return Err(Failure::because(&doing, "it is not a directory"));
        }
        let (name, text) = dockerfile(options)?;
        let ignored = ignored(path, Path::new(&name))?;
        let tree = Tree::of_directory(&real)?;
        Ok(Context { tree, ignored, name, text })
    }

    /// What is wrong in a line.
    fn wrong(&self, line: usize, why: &str) -> Failure {
        Failure::new(why).at(&self.place(line))
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.name)
    }
}

/// The name of the Dockerfile, and what it says.
fn dockerfile(options: &BuildOptions) -> Result<(String, String), Failure> {
    let path = match &options.file {
        Some(path) => path.clone(),
        None => {
            let found = FILES.iter().map(|name| options.context.join(name)).find(|path| path.exists());
            found.unwrap_or_else(|| options.context.join(FILES[0]))
        }
    };
    let doing = format!("read {}", path.display());
    let mut bytes = Vec::new();
    match path.as_os_str() == "-" {
        true => std::io::stdin().take(LONGEST + 1).read_to_end(&mut bytes).doing("read standard input")?,
        false => fs::File::open(&path).doing(&doing)?.take(LONGEST + 1).read_to_end(&mut bytes).doing(&doing)?,
    };
    if bytes.len() as u64 > LONGEST {
        return Err(Failure::because(&doing, "it is too long"));
    }
    let text = String::from_utf8(bytes).map_err(|_| Failure::because(&doing, "it is no text in UTF-8"))?;
    Ok((path.display().to_string(), text))
}

/// What of the context is left out: a file beside the Dockerfile says so, or one in the context.
fn ignored(context: &Path, dockerfile: &Path) -> Result<Ignored, Failure> {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(IGNORE_FILE);
    for path in [PathBuf::from(own), context.join(IGNORE_FILE)] {
        let doing = format!("read {}", path.display());
        match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => {
                let text = result.doing(&doing)?;
                return Ignored::read(&text).map_err(|why| Failure::because(&doing, why));
            }
        }
    }
    Ok(Ignored::default())
}

/// A build on its way.
struct Builder<'a> {
    build: Build<'a>,
    plan: &'a Plan,
    context: &'a Context,
    built: BTreeMap<usize, Stage>,
    step: usize,
}

impl Builder<'_> {
    /// Builds all that is needed; the stage that becomes the image.
    fn all(&mut self) -> Result<Stage, Failure> {
        let mut last = None;
        for number in &self.plan.wanted {
            let Some(planned) = self.plan.stages.get(*number) else { continue };
            let stage = self.stage(*number, planned)?;
            self.built.insert(*number, stage);
            last = Some(*number);
        }
        let missing = || Failure::new("there is nothing to build");
        last.and_then(|last| self.built.remove(&last)).ok_or_else(missing)
    }

    fn stage(&mut self, number: usize, planned: &Planned) -> Result<Stage, Failure> {
        self.tell(&planned.text)?;
        let located = |failure: Failure| failure.at(&self.context.place(planned.line));
        let mut stage = match &planned.base {
            Base::Scratch => Stage::new(Config::new(), Vec::new()),
            Base::Stage(earlier) => self.built.get(earlier).map(Stage::next).ok_or_else(|| located(defect()))?,
            Base::Image(name) => on_image(self.build.store, name).map_err(located)?,
        };
        for instruction in &planned.instructions {
            self.tell(&instruction.text)?;
            let located =
                |failure: Failure| failure.at(&shown(&instruction.text)).at(&self.context.place(instruction.line));
            let source = self.source(number, instruction).map_err(located)?;
            let done = stage.step(&self.build, instruction, source).map_err(located)?;
            self.tell_of(done)?;
        }
        Ok(stage)
    }

    /// Where an instruction takes files from, if it does.
    fn source(&self, number: usize, instruction: &Instruction) -> Result<Option<Source<'_>>, Failure> {
        let What::Copy(copied) = &instruction.what else { return Ok(None) };
        let Some(from) = &copied.from else {
            return Ok(Some(Source::Context(&self.context.tree, &self.context.ignored)));
        };
        let store = self.build.store;
        let layers = match self.plan.source(from, number).map_err(Failure::new)? {
            Base::Scratch => Vec::new(),
            Base::Stage(earlier) => self.built.get(&earlier).ok_or_else(defect)?.unpacked(store),
            Base::Image(name) => on_image(store, &name)?.unpacked(store),
        };
        match layers.is_empty() {
            true => Err(Failure::new(format!("there are no files in {}", from.escape_debug()))),
            false => Ok(Some(Source::Layers(layers))),
        }
    }

    fn tell(&mut self, text: &str) -> Result<(), Failure> {
        self.step += 1;
        let line = format!("Step {}/{} : {}", self.step, self.plan.steps(), shown(text));
        self.print(&line)
    }

    fn tell_of(&self, done: Done) -> Result<(), Failure> {
        let layer = match done {
            Done::Said => return Ok(()),
            Done::Known(layer) => {
                self.print(" ---> Using cache")?;
                layer
            }
            Done::Made(layer) => layer,
        };
        layer.map_or(Ok(()), |layer| self.print(&format!(" ---> {}", layer.short())))
    }

    fn print(&self, line: &str) -> Result<(), Failure> {
        if self.build.is_quiet {
            return Ok(());
        }
        writeln!(std::io::stdout(), "{line}").doing("print")
    }
}

/// An instruction as one line that a terminal shows and does not obey.
fn shown(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { ' ' } else { one }).collect()
}

fn defect() -> Failure {
    Failure::new("a stage that is needed was not built")
}

/// A stage that begins with an image of the store.
fn on_image(store: &Store, name: &str) -> Result<Stage, Failure> {
    let image: Image = store.find_or_pull(name)?;
    let missing = || Failure::new(format!("a layer of the image {name} is missing")).remedy("import it again");
    let layer = |(descriptor, diff_id): (&Descriptor, &Digest)| {
        let diff = store.has(descriptor.digest).filter(|diff| diff.diff_id == *diff_id).ok_or_else(missing)?;
        Ok(Loaded { descriptor: descriptor.clone(), diff })
    };
    let layers = image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids).map(layer);
    let layers = layers.collect::<Result<Vec<_>, Failure>>()?;
    Ok(Stage::new(Config::of(&image.config_text, layers.len())?, layers))
}

/// Writes the image, and names it; its id.
fn finish(build: &Build<'_>, stage: Stage, names: &[String]) -> Result<Digest, Failure> {
    let (store, doing) = (build.store, "write the image");
    let workspace = store.workspace().doing(doing)?;
    let document = |created: &str| stage.config.document(created).map_err(|error| Failure::because(doing, error));
    // What was built before is the same image, and was made then.
    let key = Digest::of(&document("")?);
    let before = if build.uses_cache && time::epoch().is_none() { cache::time(store, key) } else { None };
    let created = before.unwrap_or_else(time::now);
    let config = document(&created)?;
    let layers = stage.layers.into_iter().map(|layer| layer.descriptor).collect();
    let manifest = Manifest::new(Descriptor::of(CONFIG, &config), layers);
    let manifest = serde_json::to_vec(&manifest).map_err(|error| Failure::because(doing, error))?;
    let mut made = Made::default();
    let id = made.blob(&workspace, &config).doing(doing)?;
    made.blob(&workspace, &manifest).doing(doing)?;
    store.publish(&made).doing(doing)?;
    store.name(&Descriptor::of(MANIFEST, &manifest), names)?;
    cache::keep_time(store, key, &created)?;
    Ok(id)
}
