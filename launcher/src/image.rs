//! Images: a stack of layers that a container is started from, and what is said of how to run it.
//!
//! A layer in the form of the OCI image specification is a branch as it is, so an image is `layerN=ro+wh:…:layer1=ro+wh`.
//! Nothing here is in the way of a start without `--image`: the subcommand is found by its first word, and these commands,
//! unlike the launcher, have threads.
//!
//! | File | Question |
//! |---|---|
//! | `store` | where images are kept, and what a killed process leaves |
//! | `name`, `digest`, `manifest` | what they are called, and their documents |
//! | `import`, `source`, `files`, `load` | how one gets there, from which form, and how layers are read |
//! | `registry`, `progress` | images in registries, and how far something has come |
//! | `export`, `show`, `collect` | how one gets out, what is printed of it, how it goes |
//! | `commit`, `changes` | how a container becomes one |
//! | `build` | how a Dockerfile becomes one |
//! | `launch`, `volumes` | what a container takes from an image |
//! | `time` | dates in documents |

mod build;
mod changes;
mod collect;
mod commit;
pub(crate) mod digest;
mod export;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod import;
pub(crate) mod launch;
mod load;
pub(crate) mod manifest;
mod name;
mod pieces;
mod progress;
pub mod registry;
mod show;
mod source;
pub(crate) mod store;
mod time;
pub(crate) mod volumes;

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use clap::{Parser, Subcommand};

pub use build::BuildOptions;
pub use changes::Change;
pub use commit::CommitOptions;
pub use export::{ExportForm, ExportOptions};
pub use import::ImportOptions;
pub use registry::{LoginOptions, LogoutOptions, PullOptions, PushOptions};
pub use source::Form;

use crate::failure::{Doing as _, Failure};
use crate::rootless;
use collect::{Cache, Removed};
use store::Store;

/// The first word that means this.
pub(crate) const WORD: &str = "image";
/// The program that speaks with registries.
const REGISTRY_PROGRAM: &str = "rlaunch-registry";
/// The first word that means one of these commands as well.
pub(crate) const COMMIT: &str = "commit";

#[derive(Debug, Parser)]
#[command(name = "rlaunch image", bin_name = "rlaunch image", disable_help_subcommand = true)]
struct Words {
    #[command(subcommand)]
    what: Images,
}

/// What is done to images.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Images {
    /// Take an image or a root file system into the store
    Import(ImportOptions),
    /// Get an image from a registry
    Pull(PullOptions),
    /// Put an image into a registry
    Push(PushOptions),
    /// Keep a name and a password for a registry, where podman and skopeo find them too
    Login(LoginOptions),
    /// Forget them
    Logout(LogoutOptions),
    /// Write an image for others
    Export(ExportOptions),
    /// Make an image of what a container on an image has written; also rlaunch commit
    Commit(CommitOptions),
    /// Make an image as a Dockerfile says
    Build(BuildOptions),
    /// List images
    #[command(alias = "list")]
    Ls {
        /// Print ids only
        #[arg(short, long, conflicts_with = "json")]
        quiet: bool,
        /// Print a list in JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Print what is known of images, as JSON
    Inspect {
        /// The images, by name or id
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Print what an image was made by, the last step first
    History {
        /// The image, by name or id
        image: String,
    },
    /// Give an image one more name, which another one loses
    Tag {
        /// The image, by name or id
        image: String,
        /// The name
        #[arg(value_name = "NAME[:TAG]")]
        name: String,
    },
    /// Take names away, and remove what no name leads to any more
    Rm {
        /// Also images with several names, and those that a container uses, whose layers go later
        #[arg(short, long)]
        force: bool,
        /// The images, by name or id
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove what no image needs: what builds have made on the way, what was left by who was killed
    Gc,
}

/// Reads the words behind `image`.
///
/// # Errors
/// Where they are not understood, or ask for help.
pub(crate) fn parse(words: &[OsString]) -> Result<Images, clap::Error> {
    let program = OsString::from("rlaunch image");
    Words::try_parse_from([program].iter().chain(words)).map(|words| words.what)
}

/// Does it; the exit status.
pub(crate) fn run(what: &Images) -> Result<u8, Failure> {
    if let Images::Pull(_) | Images::Push(_) | Images::Login(_) | Images::Logout(_) = what {
        return execute_registry();
    }
    rootless::enter(None)?;
    print(&done(what).map_err(|failure| with_room(failure, what))?)
}

/// What is printed of it.
fn done(what: &Images) -> Result<String, Failure> {
    Ok(match what {
        Images::Import(options) => import::run(options)?,
        Images::Export(options) => export::run(options)?,
        Images::Commit(options) => commit::run(options)?,
        Images::Build(options) => build::run(options)?,
        Images::Ls { quiet: true, .. } => show::ids(&Store::open()?)?,
        Images::Ls { json: true, .. } => show::list_in_json(&Store::open()?)?,
        Images::Ls { .. } => show::list(&Store::open()?)?,
        Images::Inspect { images } => show::inspect(&Store::open()?, images)?,
        Images::History { image } => show::history(&Store::open()?, image)?,
        Images::Tag { image, name } => collect::tag(&Store::open()?, image, name).map(|()| String::new())?,
        Images::Rm { force, images } => {
            let store = Store::open_alone()?;
            collect::forget(&store, images, *force)?;
            collect::collect(&store, Cache::Stays).map(|_| String::new())?
        }
        Images::Gc => told(&collect::collect(&Store::open_alone()?, Cache::Goes)?),
        Images::Pull(_) | Images::Push(_) | Images::Login(_) | Images::Logout(_) => String::new(),
    })
}

/// Adds what to do where there is no room on a disk: that of the store, but for an export.
fn with_room(failure: Failure, what: &Images) -> Failure {
    match (failure.no_room, what, store::place()) {
        (None, ..) | (Some(_), _, Err(_)) => failure,
        (Some(_), Images::Export(_), _) => failure.remedy("make room there, or write it to another disk with -o"),
        (Some(_), _, Ok(store)) => failure.remedy(&format!(
            "make room on the disk of {}: rlaunch image rm and rlaunch image gc remove what is not needed",
            store.display()
        )),
    }
}

fn print(text: &str) -> Result<u8, Failure> {
    std::io::stdout().write_all(text.as_bytes()).doing("print")?;
    Ok(0)
}

/// Goes on as the program that lies beside this one, with the same words.
fn execute_registry() -> Result<u8, Failure> {
    let doing = format!("run {REGISTRY_PROGRAM}");
    let program = std::env::current_exe().doing(&doing)?.with_file_name(REGISTRY_PROGRAM);
    let error = Command::new(&program).args(std::env::args_os().skip(1)).exec();
    let failure = Err(error).doing(&format!("run {}", program.display()));
    failure.map_err(|failure: Failure| failure.remedy("it is installed beside rlaunch, and speaks with registries"))
}

/// Does what is about registries, in the program that is there for it.
pub(crate) fn run_registry(what: &Images) -> Result<u8, Failure> {
    rootless::enter(None)?;
    let done = match what {
        Images::Pull(options) => registry::pull(options),
        Images::Push(options) => registry::push(options),
        Images::Login(options) => registry::login(options),
        Images::Logout(options) => registry::logout(options),
        _ => Err(Failure::new("this program does pull, push, login and logout").remedy("see rlaunch image --help")),
    };
    print(&done.map_err(|failure| with_room(failure, what))?)
}

fn told(removed: &Removed) -> String {
    let Removed { layers, blobs, bytes, in_use } = removed;
    let kept = if *in_use > 0 { format!("; {in_use} more layers are in use") } else { String::new() };
    format!("removed {layers} layers and {blobs} blobs of {}{kept}\n", show::size(*bytes))
}
