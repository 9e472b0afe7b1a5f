//! Where branches lie to each other (rule 40): apart, or one inside the other.
//!
//! There may be hundreds, so none is compared with every other: what they lie in is looked up.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::branch;
use crate::branch::ancestry::{Ancestors, Ancestry, Id};
use crate::mount::table::{self, DeviceNumber};

/// Where a directory lies.
#[derive(Debug)]
struct Site {
    /// The directory, until somebody takes it.
    dir: Option<OwnedFd>,
    ancestry: Ancestry,
    /// Its place within its file system, which a bind mount does not change; where all are seen in one mount,
    /// nobody asks for it.
    within: Option<(DeviceNumber, PathBuf)>,
}

/// How a directory lies to a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// They are one directory.
    Same,
    /// It is below the branch.
    Inside,
}

/// Where the branches of a union lie.
#[derive(Debug)]
pub(super) struct Places {
    branches: Vec<Site>,
    workdir: Option<Site>,
    /// Which branch a directory is.
    by_id: HashMap<Id, usize>,
    /// The same by its place in its file system.
    by_place: HashMap<DeviceNumber, HashMap<PathBuf, usize>>,
}

impl Places {
    /// Opens the branches, and the directory of the work area, where there is one.
    ///
    /// # Errors
    /// Which branch cannot be opened, and why.
    pub(super) fn of<'a>(
        branches: impl Iterator<Item = &'a Path>,
        workdir: Option<&'a Path>,
    ) -> Result<Places, (usize, Errno)> {
        let mut ancestors = Ancestors::default();
        let mut site = |path| {
            let dir = branch::open_place(path)?;
            let ancestry = ancestors.of(&dir)?;
            Ok(Site { dir: Some(dir), ancestry, within: None })
        };
        let paths: Vec<&Path> = branches.collect();
        let sites = paths.iter().enumerate().map(|(at, path)| site(path).map_err(|errno| (at, errno)));
        let mut branches = sites.collect::<Result<Vec<_>, _>>()?;
        // one that is missing is refused when it is used
        let mut below = workdir.and_then(|path| Some((path, site(path).ok()?)));
        let all = paths.into_iter().zip(&mut branches).chain(below.as_mut().map(|(path, site)| (*path, site)));
        tell_within(all.collect());
        let (mut by_id, mut by_place) = (HashMap::new(), HashMap::<_, HashMap<_, _>>::new());
        for (at, site) in branches.iter().enumerate() {
            if let Some(id) = site.ancestry.ids.first() {
                by_id.entry(*id).or_insert(at);
            }
            if let Some((device, place)) = &site.within {
                by_place.entry(*device).or_default().entry(place.clone()).or_insert(at);
            }
        }
        Ok(Places { branches, workdir: below.map(|(_, site)| site), by_id, by_place })
    }

    /// The other branches that a branch is, or lies in, the first of them first.
    pub(super) fn around(&self, branch: usize) -> Vec<(usize, Relation)> {
        let mut around = self.branches.get(branch).map(|site| self.around_site(site)).unwrap_or_default();
        around.retain(|(other, _)| *other != branch);
        around
    }

    /// The branches that the directory of the work area is, or lies in.
    pub(super) fn around_workdir(&self) -> Vec<(usize, Relation)> {
        self.workdir.as_ref().map(|site| self.around_site(site)).unwrap_or_default()
    }

    /// For each branch device and inode of those that lie inside.
    pub(super) fn covered(&self) -> Vec<Vec<Id>> {
        let mut covered = vec![Vec::new(); self.branches.len()];
        for (inner, site) in self.branches.iter().enumerate() {
            for (outer, _) in self.around(inner) {
                covered[outer].extend(site.ancestry.ids.first());
            }
        }
        covered
    }

    /// A branch as it was opened, once.
    pub(super) fn take(&mut self, branch: usize) -> Option<OwnedFd> {
        self.branches.get_mut(branch)?.dir.take()
    }

    fn around_site(&self, site: &Site) -> Vec<(usize, Relation)> {
        let by_id = site.ancestry.ids.iter().enumerate().filter_map(|(height, id)| {
            let relation = if height == 0 { Relation::Same } else { Relation::Inside };
            Some((*self.by_id.get(id)?, relation))
        });
        let places = site.within.as_ref().and_then(|(device, path)| Some((self.by_place.get(device)?, path)));
        let by_place = places
            .into_iter()
            .flat_map(|(known, path)| path.ancestors().filter_map(|path| Some((*known.get(path)?, Relation::Inside))));
        let mut around: Vec<(usize, Relation)> = by_id.chain(by_place).collect();
        // the first word on a branch counts
        around.sort_by_key(|(branch, _)| *branch);
        around.dedup_by_key(|(branch, _)| *branch);
        around
    }
}

/// Finds out where directories lie in their file systems, where they are seen in several mounts.
fn tell_within(sites: Vec<(&Path, &mut Site)>) {
    let mount = sites.first().and_then(|(_, site)| site.ancestry.mount);
    if mount.is_some() && sites.iter().all(|(_, site)| site.ancestry.mount == mount) {
        return;
    }
    // without /proc only bind mounts are not looked behind
    let mounts = table::read().unwrap_or_default();
    for (path, site) in sites {
        let within = table::within_file_system(&mounts, path);
        // spelled in one way only, so that it is found again
        site.within = within.map(|(device, path)| (device, path.components().collect()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_what_is_found_among_many() {
        let place = tempfile::tempdir().unwrap();
        let base = place.path();
        let mut paths: Vec<PathBuf> = (0..300).map(|number| base.join(format!("beside/{number}/diff"))).collect();
        paths.extend([base.join("a"), base.join("a/b/c"), base.join("a/bc"), base.join("a/b/c/d")]);
        for path in &paths {
            std::fs::create_dir_all(path).unwrap();
        }
        // once more, by a link
        std::os::unix::fs::symlink("a/bc", base.join("link")).unwrap();
        paths.push(base.join("link"));
        let workdir = base.join("a/b");
        let places = Places::of(paths.iter().map(|path| &**path), Some(&workdir)).unwrap();
        assert!((0..301).all(|branch| places.around(branch).is_empty()));
        assert_eq!(places.around(301), [(300, Relation::Inside)]);
        assert_eq!(places.around(303), [(300, Relation::Inside), (301, Relation::Inside)]);
        assert_eq!(places.around(304), [(300, Relation::Inside), (302, Relation::Same)]);
        assert_eq!(places.around_workdir(), [(300, Relation::Inside)]);
        let covered = places.covered();
        assert_eq!((covered[300].len(), covered[301].len(), covered[0].len()), (4, 1, 0));
        paths[7] = base.join("missing");
        assert!(matches!(Places::of(paths.iter().map(|path| &**path), None), Err((7, Errno::NOENT))));
    }
}
