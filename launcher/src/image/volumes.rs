//! The volumes that an image asks for: each is a directory of the container's own, which holds at first what the image has
//! there. They lie beside the top and go with it, but are no part of it, and so of no commit.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::pipe2;

use super::build::{Ignored, Origin, Tree};
use crate::failure::{Failure, OWN_FAILURE};
use crate::process;
use crate::scratch::{self, Scratch};
use crate::volume::{Volume, VolumeOptions};

/// What is being made.
const NEW: &str = "new";
/// What a volume holds while it is made, and where the work is done beside it.
const PARTS: [&str; 2] = ["content", "work"];

/// The volumes that were asked for, and those of an image at all other places; what a directory that stays has of them
/// from an earlier start is used again.
///
/// # Errors
/// Where one cannot be made.
pub(crate) fn add(
    given: &VolumeOptions,
    targets: &[PathBuf],
    layers: &[PathBuf],
    scratch: &Scratch,
) -> Result<VolumeOptions, Failure> {
    let mut all = given.clone();
    let is_given = |target: &Path| {
        let mut others =
            given.volume.iter().map(|volume| &volume.target).chain(given.tmpfs.iter().map(|one| &one.target));
        others.any(|other| other == target)
    };
    let mut first = 0;
    for target in targets.iter().filter(|target| !is_given(target)) {
        let place = scratch.volume(target);
        if !place.exists() {
            let doing = format!("make the volume {} of the image", target.display());
            make(&place, target, layers, scratch.path()).map_err(|why| Failure::because(&doing, why))?;
        }
        let volume = Volume::new(place, target.clone());
        // Each is mounted behind what it lies in, the volumes of an image in the order of their names.
        match given.volume.iter().any(|other| target.starts_with(&other.target)) {
            true => all.volume.push(volume),
            false => {
                all.volume.insert(first, volume);
                first += 1;
            }
        }
    }
    all.check()?;
    Ok(all)
}

/// Makes one, whole or not at all.
fn make(place: &Path, target: &Path, layers: &[PathBuf], around: &Path) -> Result<(), String> {
    let new = around.join(NEW);
    let fail = |error: io::Error| error.to_string();
    // A launcher that was killed may have left one.
    scratch::remove(&new).map_err(fail)?;
    fs::DirBuilder::new().mode(0o700).create(&new).map_err(fail)?;
    let [content, work] = PARTS.map(|part| new.join(part));
    fs::DirBuilder::new().mode(0o755).create(&content).map_err(fail)?;
    fs::create_dir(&work).map_err(fail)?;
    apart(|| fill(&content, &work, target, layers).map_err(|failure| failure.to_string()))?;
    fs::rename(&content, place).map_err(fail)?;
    scratch::remove(&new).map_err(fail)
}

fn fill(content: &Path, work: &Path, target: &Path, layers: &[PathBuf]) -> Result<(), Failure> {
    umask(Mode::empty());
    let (from, to) = (Tree::of_layers(layers)?, Tree::to_fill(content, work)?);
    Origin::all_of(&from, &Ignored::default()).copy_all(target.as_os_str().as_bytes(), &to)
}

/// Does something in a process of its own: what reads a union keeps descriptors, and may have threads.
fn apart(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let fail = |errno: nix::errno::Errno| errno.desc().to_owned();
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(fail)?;
    let mut writer = Some(writer);
    let child = process::fork(|| match (work(), writer.take()) {
        (Ok(()), _) => 0,
        (Err(why), Some(writer)) => File::from(writer).write_all(why.as_bytes()).map_or(OWN_FAILURE, |()| OWN_FAILURE),
        (Err(_), None) => OWN_FAILURE,
    })
    .map_err(fail)?;
    drop(writer.take());
    let mut why = String::new();
    File::from(reader).read_to_string(&mut why).map_err(|error| error.to_string())?;
    match waitpid(child, None).map_err(fail)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        _ if why.is_empty() => Err("the process that does it has ended".into()),
        _ => Err(why),
    }
}
