//! Who lists directories, and whether they look at what is in them.
//!
//! The kernel asks for the first part of every listing with attributes (READDIRPLUS), since it
//! cannot know who will ask for them. They cost a system call and an inode for each entry, which is most of the
//! time of a `find` that only wants names. So a task that nothing is known of gets the
//! attributes of directories alone, which it needs to go down; the first file that it looks up in a directory
//! that it has just listed shows that it wants more (`ls -l`, `tar`, `rsync`), and it gets all of them from then on.
//!
//! What is remembered is a hint: it may be lost or wrong, and costs time then.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::fs::Detail;

/// Tasks are told apart by their number in so many places.
const PLACES: usize = 256;

/// A task that has listed a directory.
#[derive(Debug, Default)]
struct Walker {
    /// Its number, shifted by one, and whether it looks files up.
    task: AtomicU64,
    /// The directory that it listed last.
    dir: AtomicU64,
}

/// The tasks that have listed directories lately.
#[derive(Debug)]
pub(super) struct Walkers {
    places: Box<[Walker; PLACES]>,
}

impl Walkers {
    pub(super) fn new() -> Walkers {
        Walkers { places: Box::new(std::array::from_fn(|_| Walker::default())) }
    }

    /// What a task wants to know of the files in a directory that it begins to list, or goes on listing.
    pub(super) fn lists(&self, task: u32, dir: u64, offset: u64) -> Detail {
        // in the middle of a directory the kernel asks so only after lookups in it
        if offset > 0 {
            return Detail::All;
        }
        let walker = self.place(task);
        walker.dir.store(dir, Ordering::Relaxed);
        let known = walker.task.load(Ordering::Relaxed);
        if known == looks(task) {
            return Detail::All;
        }
        walker.task.store(lists(task), Ordering::Relaxed);
        Detail::Directories
    }

    /// A task has looked a file up.
    pub(super) fn looks_up(&self, task: u32, dir: u64) {
        let walker = self.place(task);
        if walker.dir.load(Ordering::Relaxed) == dir && walker.task.load(Ordering::Relaxed) == lists(task) {
            walker.task.store(looks(task), Ordering::Relaxed);
        }
    }

    fn place(&self, task: u32) -> &Walker {
        &self.places[task as usize % PLACES]
    }
}

fn lists(task: u32) -> u64 {
    u64::from(task) << 1
}

fn looks(task: u32) -> u64 {
    lists(task) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_up_what_it_has_listed_gets_attributes_from_then_on() {
        let walkers = Walkers::new();
        assert_eq!(walkers.lists(7, 1, 0), Detail::Directories);
        assert_eq!(walkers.lists(7, 2, 0), Detail::Directories);
        // not in the directory that it has just listed
        walkers.looks_up(7, 1);
        assert_eq!(walkers.lists(7, 2, 0), Detail::Directories);
        walkers.looks_up(7, 2);
        assert_eq!(walkers.lists(7, 3, 0), Detail::All);
        assert_eq!(walkers.lists(7, 4, 0), Detail::All);
    }

    #[test]
    fn tasks_are_told_apart() {
        let walkers = Walkers::new();
        let same_place = 7 + PLACES as u32;
        assert_eq!(walkers.lists(7, 1, 0), Detail::Directories);
        walkers.looks_up(8, 1);
        walkers.looks_up(same_place, 1);
        assert_eq!(walkers.lists(7, 1, 0), Detail::Directories);
        walkers.looks_up(7, 1);
        assert_eq!(walkers.lists(same_place, 1, 0), Detail::Directories);
        assert_eq!(walkers.lists(7, 1, 0), Detail::Directories);
    }

    #[test]
    fn the_rest_of_a_directory_in_which_files_were_looked_up_comes_with_attributes() {
        assert_eq!(Walkers::new().lists(7, 1, 99), Detail::All);
    }
}
