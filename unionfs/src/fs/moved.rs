//! Directories that were renamed with what is below (rule 25): where they really lie, and what
//! their records say.

use std::sync::Arc;

use rustix::io::Errno;
use smallvec::SmallVec;

use super::{Level, Sight, Union, name};
use crate::branch::dir::Dir;
use crate::branch::stat::{RealId, Stat};
use crate::inode::{Inode, Redirected, Stack};
use crate::union::redirect::{self, Branches, Place, Places};
use crate::union::{BranchIndex, Cut, Found, Name, Redirect, Resolved};

/// A symbolic link's target is no longer than this, so neither is the path in a record (`PATH_MAX`
/// without its zero byte).
const LONGEST: usize = 4095;

impl Branches for Union {
    type Dir = Arc<Dir>;
    type Error = Errno;

    fn roots_below(&self, branch: BranchIndex) -> Result<Vec<(BranchIndex, Arc<Dir>)>, Errno> {
        let mut roots = Vec::new();
        for (index, below) in (0..).map(BranchIndex).zip(&self.branches).filter(|(index, _)| *index > branch) {
            roots.push((index, Arc::clone(&below.root)));
            if below.honours_whiteouts() && below.root.is_opaque()? {
                break;
            }
        }
        Ok(roots)
    }

    fn word(&self, branch: BranchIndex, dir: &Arc<Dir>, name: Name<'_>) -> Result<(Found, Option<Redirect>), Errno> {
        let word = dir.word(name, self.branch(branch).heed(true))?;
        Ok((word.found, word.redirect))
    }

    fn endless(&self) -> Errno {
        Errno::LOOP
    }

    fn open(&self, branch: BranchIndex, dir: &Arc<Dir>, name: Name<'_>) -> Result<Arc<Dir>, Errno> {
        self.open_below(dir, branch, name.as_bytes())
    }
}

impl Union {
    /// The stack of a directory that was found in another, and what its records added to the
    /// identities of the directories behind it.
    pub(super) fn stack_of(&self, parent: &Arc<Inode>, sight: &Sight) -> Result<(Stack, u64), Errno> {
        let Resolved::Dir { stack, cut } = &sight.resolved else { return Err(Errno::NOTDIR) };
        let lowest = parent.stack()?.lowest_seen;
        let seen = cut.map_or(Some(lowest), Cut::lowest_seen).ok_or(Errno::IO)?;
        let branches = SmallVec::from_slice(stack);
        let mut found = Stack { branches, lowest_seen: seen.min(lowest), redirect: None };
        let (Some(Cut::Elsewhere(branch)), Some(record)) = (cut, &sight.redirect) else {
            return Ok((found, sight.dirs));
        };
        let rest = self.behind_record(parent, *branch, record)?;
        let mut dirs = sight.dirs;
        for place in &rest.stack {
            found.branches.push(place.branch);
            dirs = self.mix(dirs, &place.dir.stat()?);
        }
        if !rest.stack.is_empty() {
            found.lowest_seen = rest.lowest_seen;
        }
        let places = rest.stack.into_iter().map(|place| (place.branch, place.path.into())).collect();
        found.redirect = Some(Box::new(Redirected { branch: *branch, places }));
        Ok((found, dirs))
    }

    /// Adds a directory to the identities of those behind a name.
    pub(super) fn mix(&self, dirs: u64, stat: &Stat) -> u64 {
        dirs.wrapping_mul(0x100_0000_01b3) ^ self.numbers.natural(stat.id)
    }

    fn behind_record(
        &self,
        parent: &Arc<Inode>,
        branch: BranchIndex,
        record: &Redirect,
    ) -> Result<Places<Arc<Dir>>, Errno> {
        let here = match record {
            // found from the roots
            Redirect::Path(_) => Places { stack: Vec::new(), lowest_seen: branch },
            Redirect::Sibling(_) => self.places(parent)?,
        };
        redirect::follow(self, &here, branch, record)
    }

    /// A directory on each of its branches, with its paths there.
    fn places(&self, dir: &Arc<Inode>) -> Result<Places<Arc<Dir>>, Errno> {
        let level = self.level(dir)?;
        let _still = self.tree.read();
        let place = |(branch, open): (BranchIndex, Arc<Dir>)| Place { branch, dir: open, path: real_path(dir, branch) };
        let stack = level.into_iter().map(place).collect();
        Ok(Places { stack, lowest_seen: dir.stack()?.lowest_seen })
    }

    /// The topmost entry of a path of the union, found without inodes.
    pub(super) fn resolve_path(&self, path: &[u8]) -> Result<Option<Leaf>, Errno> {
        let (parents, last) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (Some(&path[..slash]), &path[slash + 1..]),
            None => (None, path),
        };
        let mut here = self.places(&self.root)?;
        for component in parents.iter().flat_map(|parents| parents.split(|byte| *byte == b'/')) {
            here = redirect::step(self, &here, name(component)?)?;
        }
        let level: Level = here.stack.into_iter().map(|place| (place.branch, place.dir)).collect();
        let sight = self.look_in(&level, name(last)?)?;
        let Some((branch, stat)) = sight.resolved.topmost().zip(sight.stat) else { return Ok(None) };
        let (_, dir) = level.iter().find(|(index, _)| *index == branch).ok_or(Errno::IO)?;
        Ok(Some(Leaf { branch, dir: dir.stat()?.id, stat }))
    }

    /// Whether a directory can be brought up to a branch and is seen there: by its name and those of
    /// its parents, none of which lies elsewhere or is hidden there. Each of them is asked, for a
    /// parent may have become opaque since the directory was looked up.
    pub(super) fn reaches(&self, dir: &Inode, branch: BranchIndex) -> Result<bool, Errno> {
        let mut parent: Option<Arc<Inode>> = None;
        loop {
            let at = parent.as_deref().unwrap_or(dir);
            let stack = at.stack()?;
            if stack.branches.contains(&branch) {
                return Ok(true);
            }
            if !stack.takes(branch) {
                return Ok(false);
            }
            match at.dentry() {
                Some(dentry) => parent = Some(dentry.parent),
                None => return Ok(false),
            }
        }
    }

    /// For a directory of a branch that is about to be renamed with what merges with it from below:
    /// what its record says, and where all of it lies afterwards. What is above it may be renamed
    /// in the meantime; that changes neither.
    ///
    /// # Errors
    /// EXDEV for a path that is too long for a record.
    pub(super) fn record(
        &self,
        dir: &Arc<Inode>,
        stack: &Stack,
        branch: BranchIndex,
    ) -> Result<(Vec<u8>, Stack), Errno> {
        let _still = self.tree.read();
        Ok((self.place_below(dir, branch)?, staying(dir, stack, branch)))
    }

    /// What a record of a directory says that lies on a branch and merges with what is below it:
    /// its place in the union of the branches below that one.
    ///
    /// # Errors
    /// EXDEV for a path that is too long for a record.
    fn place_below(&self, dir: &Arc<Inode>, branch: BranchIndex) -> Result<Vec<u8>, Errno> {
        let path = real_path(dir, branch);
        let mut place: Vec<u8> = Vec::new();
        let mut open = Arc::clone(&self.branch(branch).root);
        let mut names = path.split(|byte| *byte == b'/').peekable();
        while let Some(component) = names.next() {
            place = redirect::join(&place, name(component)?);
            if names.peek().is_none() {
                break;
            }
            // what is below a renamed directory lies below its record's place
            if let (_, Some(Redirect::Path(record))) = self.word(branch, &open, name(component)?)? {
                place = record.iter().fold(Vec::new(), |path, name| redirect::join(&path, name.as_name()));
            }
            open = self.open_below(&open, branch, component)?;
        }
        if place.len() > LONGEST { Err(Errno::XDEV) } else { Ok(place) }
    }
}

/// What a path leads to.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) branch: BranchIndex,
    /// The directory on that branch in which it lies.
    pub(super) dir: RealId,
    pub(super) stat: Stat,
}

/// The stack that a directory keeps when it gets another name with what is below `record`'s branch:
/// what is there stays where it is.
fn staying(dir: &Arc<Inode>, stack: &Stack, record: BranchIndex) -> Stack {
    let below = stack.branches.iter().filter(|branch| **branch > record);
    let places = below.map(|branch| (*branch, real_path(dir, *branch).into())).collect();
    Stack { redirect: Some(Box::new(Redirected { branch: record, places })), ..stack.clone() }
}

/// The path of a directory in a branch where it lies, without a slash at its start. The tree does
/// not change meanwhile, or the directory's name is held.
pub(super) fn real_path(dir: &Arc<Inode>, branch: BranchIndex) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = Arc::clone(dir);
    let mut path = loop {
        if let Ok(stack) = at.stack()
            && let Some(path) = stack.elsewhere(branch)
        {
            break path.to_vec();
        }
        let Some(dentry) = at.dentry() else { break Vec::new() };
        names.push(dentry.name);
        at = dentry.parent;
    };
    for name in names.iter().rev() {
        path = redirect::join(&path, name.as_name());
    }
    path
}
