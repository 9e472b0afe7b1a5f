//! Branches as values, and the reference view: what a union of them must show.
//!
//! The view is worked out in the opposite direction from the file system's own rules: not by asking the branches from
//! the top what hides what, but by laying one branch over the other from the bottom, as a container runtime unpacks
//! image layers (OCI image specification, "Applying Changesets"). Whatever both ways agree on is not a slip of one.

use std::collections::BTreeMap;
use std::fmt;

/// A file name.
pub type Name = Vec<u8>;

/// A stack of branches, top first. `T` is what an entry is, apart from being a directory or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World<T> {
    /// The branches, top first.
    pub branches: Vec<Branch<T>>,
}

/// One branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch<T> {
    /// What may be done with it.
    pub access: Access,
    /// Its root directory.
    pub root: Dir<T>,
}

/// What may be done with a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// `rw`: written, whiteouts count.
    Writable,
    /// `ro+wh`: not written, whiteouts count.
    Whiteouts,
    /// `ro`: not written, whiteouts hide nothing.
    Plain,
}

/// A directory of a branch.
#[derive(Clone, PartialEq, Eq)]
pub struct Dir<T> {
    /// Whether it holds the opaque mark.
    pub opaque: bool,
    /// Its record: where in the union of the branches below the directory lies that merges with it.
    pub record: Option<Vec<Name>>,
    /// What it holds under each name.
    pub slots: BTreeMap<Name, Slot<T>>,
}

/// What a directory of a branch holds under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot<T> {
    /// Whether there is a whiteout of the name.
    pub whiteout: bool,
    /// The entry of the name.
    pub entry: Option<Entry<T>>,
}

/// An entry of a branch.
#[derive(Clone, PartialEq, Eq)]
pub enum Entry<T> {
    /// Not a directory.
    Leaf(T),
    /// A directory.
    Dir(T, Dir<T>),
}

/// A tree as a caller sees it.
pub type View<T> = BTreeMap<Name, Seen<T>>;

/// One entry of a [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// Not a directory.
    Leaf(T),
    /// A directory.
    Dir(T, View<T>),
}

impl Access {
    /// Whether whiteouts and opaque marks are looked at.
    pub fn heeds_whiteouts(self) -> bool {
        self != Access::Plain
    }
}

impl<T: fmt::Debug> fmt::Debug for Dir<T> {
    /// As `ls` would list it, with `.wh.` names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        if self.opaque {
            map.entry(&format_args!(".wh..wh..opq"), &format_args!("opaque"));
        }
        if let Some(record) = &self.record {
            let path = record.iter().map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>().join("/");
            map.entry(&format_args!(".wh..wh.redirect"), &format_args!("{path}"));
        }
        for (name, slot) in &self.slots {
            let name = name.escape_ascii();
            if slot.whiteout {
                map.entry(&format_args!(".wh.{name}"), &format_args!("whiteout"));
            }
            if let Some(entry) = &slot.entry {
                map.entry(&format_args!("{name}"), entry);
            }
        }
        map.finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Leaf(about) => write!(f, "leaf {about:?}"),
            Entry::Dir(about, inner) => {
                write!(f, "dir {about:?} ")?;
                inner.fmt(f)
            }
        }
    }
}

impl<T> Default for Dir<T> {
    fn default() -> Self {
        Dir { opaque: false, record: None, slots: BTreeMap::new() }
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Slot { whiteout: false, entry: None }
    }
}

impl<T> Dir<T> {
    /// The directory at a path below this one.
    pub fn at(&self, path: &[Name]) -> Option<&Dir<T>> {
        path.iter().try_fold(self, |dir, name| match dir.slots.get(name)?.entry.as_ref()? {
            Entry::Dir(_, inner) => Some(inner),
            Entry::Leaf(_) => None,
        })
    }

    /// The directory at a path below this one, to change it.
    pub fn at_mut(&mut self, path: &[Name]) -> Option<&mut Dir<T>> {
        path.iter().try_fold(self, |dir, name| match dir.slots.get_mut(name)?.entry.as_mut()? {
            Entry::Dir(_, inner) => Some(inner),
            Entry::Leaf(_) => None,
        })
    }
}

impl<T: Clone> World<T> {
    /// What a union of these branches shows.
    pub fn view(&self) -> View<T> {
        let mut view = View::new();
        for branch in self.branches.iter().rev() {
            let below = view.clone();
            lay_over(&mut view, &branch.root, branch.access.heeds_whiteouts(), &below);
        }
        view
    }
}

/// Lays a directory of one branch over what the branches below it show there. `below` is all that they show.
fn lay_over<T: Clone>(view: &mut View<T>, dir: &Dir<T>, heeds_whiteouts: bool, below: &View<T>) {
    if dir.opaque && heeds_whiteouts {
        view.clear();
    }
    for (name, slot) in &dir.slots {
        if slot.whiteout && heeds_whiteouts {
            view.remove(name);
        }
        match &slot.entry {
            None => {}
            Some(Entry::Leaf(about)) => {
                view.insert(name.clone(), Seen::Leaf(about.clone()));
            }
            Some(Entry::Dir(about, inner)) => {
                let there = view.remove(name);
                let mut merged = match &inner.record {
                    Some(path) if heeds_whiteouts => at_path(below, path),
                    _ => content(there),
                };
                lay_over(&mut merged, inner, heeds_whiteouts, below);
                view.insert(name.clone(), Seen::Dir(about.clone(), merged));
            }
        }
    }
}

fn content<T>(seen: Option<Seen<T>>) -> View<T> {
    match seen {
        Some(Seen::Dir(_, inner)) => inner,
        Some(Seen::Leaf(_)) | None => View::new(),
    }
}

fn at_path<T: Clone>(view: &View<T>, path: &[Name]) -> View<T> {
    let mut view = view;
    for name in path {
        match view.get(name) {
            Some(Seen::Dir(_, inner)) => view = inner,
            Some(Seen::Leaf(_)) | None => return View::new(),
        }
    }
    view.clone()
}
