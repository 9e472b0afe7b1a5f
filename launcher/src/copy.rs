//! `rlaunch cp`: files to and from a container that runs.
//!
//! A process of ours enters the container's mounts and its root, so that no link in there leads out of it, and with hardly
//! any right that its own root has not. It passes a tar stream through a pipe to or from this one, which works outside:
//!
//! ```text
//! cp SRC NAME:DST     outside: pack ── pipe ──> unpack :inside
//! cp NAME:SRC DST     inside:  pack ── pipe ──> unpack :outside
//! cp - NAME:DST       standard input ─────────> unpack :inside
//! cp NAME:SRC -       inside:  pack ──────────> standard output
//! ```
//!
//! What comes from a container is whatever it likes: the side that unpacks follows no link either (`unpack`).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::confine::{Capabilities, seal};
use crate::failure::{Doing as _, Failure, OWN_FAILURE};
use crate::message::say;
use crate::namespace::Target;
use crate::process::{self, init::ends};
use crate::state::{self, Record};

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod pack;
mod unpack;

use self::pack::Packed;
use self::unpack::Unpacked;

/// What is copied, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CopyOptions {
    /// Keep owners, and set-id bits; without it, copies belong to root in the container, and to the caller outside
    #[arg(short, long)]
    archive: bool,
    /// Where SOURCE is a symbolic link, copy what it points to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// A path, NAME:PATH in a container, or - for a tar stream
    source: Place,
    /// A path, NAME:PATH in a container, or - for a tar stream
    target: Place,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A path outside.
    Here(PathBuf),
    /// A path in a container.
    In(String, PathBuf),
    /// Standard input or output.
    Stream,
}

impl FromStr for Place {
    type Err = String;

    /// A path with a colon in its first component is named with `./` before it.
    fn from_str(text: &str) -> Result<Place, String> {
        match text.split_once(':') {
            _ if text == "-" => Ok(Place::Stream),
            Some((name, path)) if !name.contains('/') => match (state::is_name(name), path.is_empty()) {
                (_, true) => Err("there is no path behind the colon".into()),
                (false, _) => Err(format!("'{name}' is no name of a container; a file with a colon is ./{text}")),
                (true, false) => Ok(Place::In(name.to_owned(), Path::new("/").join(path))),
            },
            _ if text.is_empty() => Err("the path is empty".into()),
            _ => Ok(Place::Here(text.into())),
        }
    }
}

/// Copies.
pub(crate) fn run(options: CopyOptions) -> Result<u8, Failure> {
    process::close_all_descriptors().doing("close what was left open for this program")?;
    seal::ensure()?;
    let CopyOptions { archive, follow_link, source, target } = options;
    let (name, inside, outside) = match (&source, &target) {
        (Place::In(..), Place::In(..)) => {
            let failure = Failure::new("one end has to be outside of containers");
            return Err(failure.remedy("copy through a stream: rlaunch cp ONE:PATH - | rlaunch cp - OTHER:PATH"));
        }
        (Place::In(name, _), place) => {
            (name, Side::of_source(&source, follow_link), Side::of_target(place, &source, archive))
        }
        (place, Place::In(name, _)) => {
            (name, Side::of_target(&target, place, archive), Side::of_source(place, follow_link))
        }
        _ => return Err(Failure::new("one end has to be in a container, as NAME:PATH")),
    };
    if target == Place::Stream && std::io::stdout().is_terminal() {
        return Err(Failure::new("a tar stream is not for a terminal").remedy("redirect the output"));
    }
    let record = state::find(name)?.ok_or_else(|| Failure::no_container(name))?;
    between(&open(&record)?, inside, outside)
}

/// The container to be entered.
fn open(record: &Record) -> Result<Target, Failure> {
    let doing = format!("look at the container {}", record.name);
    let descriptor = record.open_init().doing(&doing)?;
    let (init, descriptor) = record.init.zip(descriptor).ok_or_else(|| {
        let failure = Failure::new(format!("the container {} does not run, so its files are not there", record.name));
        failure.remedy(&format!("start it first: rlaunch start {}", record.name))
    })?;
    Target::open(&init, descriptor).doing(&doing)
}

/// What one of the two processes does.
enum Side {
    Pack(Packed),
    Unpack(Unpacked),
    /// The caller's stream is the other end.
    Nothing,
}

impl Side {
    fn of_source(source: &Place, follows: bool) -> Side {
        match source {
            Place::Here(path) | Place::In(_, path) => Side::Pack(Packed { path: path.clone(), follows, prefix: None }),
            Place::Stream => Side::Nothing,
        }
    }

    fn of_target(target: &Place, source: &Place, archive: bool) -> Side {
        let (path, source) = match (target, source) {
            (Place::Here(path) | Place::In(_, path), source) => (path.clone(), source),
            (Place::Stream, _) => return Side::Nothing,
        };
        let name = match source {
            Place::Here(path) | Place::In(_, path) => last_name(path),
            Place::Stream => None,
        };
        // Who makes a stream says whose the files are.
        let keeps_owners = archive || *source == Place::Stream;
        Side::Unpack(Unpacked { path, name, is_stream: *source == Place::Stream, keeps_owners })
    }
}

/// The name that a copy has; none where the content of a directory is meant: `.`, `dir/.`, `/`.
fn last_name(path: &Path) -> Option<OsString> {
    let bytes = path.as_os_str().as_bytes();
    let bytes = &bytes[..bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1)];
    let name = bytes.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    (!matches!(name, b"" | b"." | b"..")).then(|| OsStr::from_bytes(name).to_owned())
}

/// Runs both sides; the exit status.
fn between(target: &Target, inside: Side, outside: Side) -> Result<u8, Failure> {
    let doing = "start a process in the container";
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).doing(doing)?;
    let (inner_end, outer_end) = match inside {
        Side::Pack(_) => (writer, reader),
        Side::Unpack(_) | Side::Nothing => (reader, writer),
    };
    let (mut inner_end, mut outer_end) = (Some(inner_end), Some(outer_end));
    let is_stream = matches!(outside, Side::Nothing);
    let child = process::fork(|| {
        drop(outer_end.take());
        let result = enter(target).and_then(|()| match (inside, inner_end.take()) {
            (Side::Pack(packed), _) if is_stream => packed.with_its_name().write(std::io::stdout().lock()),
            (Side::Unpack(unpacked), _) if is_stream => unpacked.read(std::io::stdin().lock()),
            (side, end) => work(side, end),
        });
        result.map_or_else(|failure| tell(&failure), |()| 0)
    })
    .doing(doing)?;
    drop(inner_end.take());
    let result = work(outside, outer_end.take());
    let status = ends(child).doing("wait for the process in the container")?;
    match (status, result) {
        (Some(0), result) => result.map(|()| 0),
        // It has said why, and that is why this side could not go on.
        (status, _) => Ok(status.unwrap_or(OWN_FAILURE)),
    }
}

fn work(side: Side, end: Option<OwnedFd>) -> Result<(), Failure> {
    match (side, end) {
        (Side::Pack(packed), Some(end)) => packed.write(File::from(end)),
        (Side::Unpack(unpacked), Some(end)) => unpacked.read(File::from(end)),
        (Side::Nothing, _) | (_, None) => Ok(()),
    }
}

fn tell(failure: &Failure) -> u8 {
    say(failure);
    failure.status
}

/// Enters the container, and keeps what it takes to read and write files of all users there.
fn enter(target: &Target) -> Result<(), Failure> {
    let doing = "enter the container";
    target.enter().doing(doing)?;
    let needed = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"];
    let needed = needed.iter().fold(Capabilities::NONE, |all, name| all.with(Capabilities::named(name)));
    let own = Capabilities::of_this_process().doing(doing)?;
    own.and(needed).take(Capabilities::NONE).doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let inside = |name: &str, path: &str| Ok(Place::In(name.into(), path.into()));
        assert_eq!("web:/etc".parse(), inside("web", "/etc"));
        assert_eq!("web:etc/".parse(), inside("web", "/etc/"));
        assert_eq!("web:/a:b".parse(), inside("web", "/a:b"));
        assert_eq!("-".parse(), Ok(Place::Stream));
        for path in ["/a:b", "./a:b", "a/b:c", "a", "-x"] {
            assert_eq!(path.parse(), Ok(Place::Here(path.into())));
        }
        for text in ["", "web:", ":/x", "-x:/y", "a b:/c"] {
            assert!(Place::from_str(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_copy_has_the_last_name_unless_the_content_is_meant() {
        for (path, name) in [
            ("/etc/passwd", Some("passwd")),
            ("dir/", Some("dir")),
            ("dir//", Some("dir")),
            ("dir/.", None),
            (".", None),
            ("/", None),
            ("..", None),
            ("a/../b", Some("b")),
        ] {
            assert_eq!(last_name(Path::new(path)).as_deref(), name.map(OsStr::new), "{path}");
        }
    }
}
