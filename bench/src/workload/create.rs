//! Making, renaming and removing entries: in the writable branch, and what lies below it; 100 to a directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Job, Place, Workload};
use crate::tree::{self, Tree};

const FAMILY: &str = "create";

pub(super) const WORKLOADS: &[Workload] = &[
    Workload::timed("create-4k", "create 5,000 files and write 4 KiB each", Tree::Empty, create_4k)
        .creates()
        .of(FAMILY),
    Workload::timed("create-empty", "create 5,000 empty files", Tree::Empty, create_empty).creates().of(FAMILY),
    Workload::timed("unlink", "remove 5,000 files", Tree::Empty, unlink).creates().of(FAMILY),
    Workload::timed("mkdir", "make 5,000 directories", Tree::Empty, mkdir).creates().of(FAMILY),
    Workload::timed("rmdir", "remove 5,000 directories", Tree::Empty, rmdir).creates().of(FAMILY),
    Workload::timed("rename", "rename 5,000 files in their directory", Tree::Empty, rename).creates().of(FAMILY),
    Workload::timed("symlink", "make 5,000 symbolic links", Tree::Empty, make_links).creates().of(FAMILY),
    Workload::timed("link", "make 5,000 hard links", Tree::Empty, hard_links).creates().of(FAMILY),
    Workload::timed("create-lower", "create 5,000 empty files in directories from below", Tree::Files, create_lower)
        .changes()
        .of(FAMILY),
    Workload::timed("unlink-lower", "remove 5,000 lower files", Tree::Files, unlink_lower).changes().of(FAMILY),
    Workload::timed("rename-lower", "rename 5,000 lower files of 4 KiB", Tree::Files, rename_lower)
        .changes()
        .of(FAMILY),
    Workload::timed("rmdir-lower", "remove 5,000 lower directories", Tree::Folders, rmdir_lower).changes().of(FAMILY),
];

/// Makes the directories and says what the entries in them are to be called.
fn names(place: &Place<'_>) -> io::Result<Vec<PathBuf>> {
    let count = place.scale.of(5000, 300);
    for directory in 0..count.div_ceil(100) {
        fs::create_dir(place.root.join(format!("c{directory:02}")))?;
    }
    Ok((0..count).map(|index| place.root.join(format!("c{:02}/e{index:04}", index / 100))).collect())
}

/// A job that does the same to each entry.
fn each(paths: Vec<PathBuf>, act: impl Fn(&Path) -> io::Result<()> + 'static) -> Job<()> {
    Box::new(move || paths.iter().try_for_each(|path| act(path)))
}

fn create_4k(place: &Place<'_>) -> io::Result<Job<()>> {
    Ok(each(names(place)?, |path| fs::write(path, [b'x'; 4096])))
}

fn create_empty(place: &Place<'_>) -> io::Result<Job<()>> {
    Ok(each(names(place)?, |path| File::create_new(path).map(drop)))
}

fn unlink(place: &Place<'_>) -> io::Result<Job<()>> {
    let paths = names(place)?;
    create(&paths)?;
    Ok(each(paths, |path| fs::remove_file(path)))
}

fn create(paths: &[PathBuf]) -> io::Result<()> {
    paths.iter().try_for_each(|path| File::create_new(path).map(drop))
}

fn mkdir(place: &Place<'_>) -> io::Result<Job<()>> {
    Ok(each(names(place)?, |path| fs::create_dir(path)))
}

fn rmdir(place: &Place<'_>) -> io::Result<Job<()>> {
    let paths = names(place)?;
    paths.iter().try_for_each(fs::create_dir)?;
    Ok(each(paths, |path| fs::remove_dir(path)))
}

fn rename(place: &Place<'_>) -> io::Result<Job<()>> {
    let paths = names(place)?;
    create(&paths)?;
    Ok(renames(paths))
}

fn renames(paths: Vec<PathBuf>) -> Job<()> {
    let pairs: Vec<(PathBuf, PathBuf)> =
        paths.into_iter().map(|path| (path.clone(), path.with_extension("new"))).collect();
    Box::new(move || pairs.iter().try_for_each(|(from, to)| fs::rename(from, to)))
}

fn make_links(place: &Place<'_>) -> io::Result<Job<()>> {
    Ok(each(names(place)?, |path| symlink("../target", path)))
}

fn hard_links(place: &Place<'_>) -> io::Result<Job<()>> {
    let paths = names(place)?;
    let target = place.root.join("target");
    fs::write(&target, b"x")?;
    Ok(each(paths, move |path| fs::hard_link(&target, path)))
}

/// Entries of the branch below; `names` are all there are.
fn lower(place: &Place<'_>, names: Vec<PathBuf>) -> Vec<PathBuf> {
    names.into_iter().take(place.scale.of(5000, 300)).map(|name| place.root.join(name)).collect()
}

fn create_lower(place: &Place<'_>) -> io::Result<Job<()>> {
    let paths = lower(place, tree::file_names(place.scale));
    Ok(each(paths, |path| File::create_new(path.with_extension("new")).map(drop)))
}

fn unlink_lower(place: &Place<'_>) -> io::Result<Job<()>> {
    Ok(each(lower(place, tree::file_names(place.scale)), |path| fs::remove_file(path)))
}

fn rename_lower(place: &Place<'_>) -> io::Result<Job<()>> {
    Ok(renames(lower(place, tree::file_names(place.scale))))
}

fn rmdir_lower(place: &Place<'_>) -> io::Result<Job<()>> {
    Ok(each(lower(place, tree::folder_names(place.scale)), |path| fs::remove_dir(path)))
}
