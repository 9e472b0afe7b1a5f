//! Plans for a branch in the form of overlayfs, tried on every small world: a carrier with two names over what the
//! branches below show. Cut off after every step, the union shows what it did before the change or what it must after;
//! each step is one that system calls can do; and no whiteout is left that hides nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use unionfs::union::plan::Which;
use unionfs::union::plan::overlay::{self, Held, Slot, Step};

/// What the carrier holds under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Whiteout,
    Leaf(u32),
    Dir(u32, Dir),
}

/// A directory of the carrier.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Dir {
    opaque: bool,
    /// Whether an attribute names a directory below that is not there: nothing merges with it by name.
    redirected: bool,
    entries: BTreeMap<&'static str, Entry>,
    /// Files `.wh.NAME`.
    marks: BTreeMap<&'static str, ()>,
}

/// What is seen of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Leaf(u32),
    Dir(u32, View),
}

type View = BTreeMap<&'static str, Seen>;

/// The carrier over what is below it.
#[derive(Debug, Clone)]
struct World {
    carrier: Dir,
    below: View,
}

/// The object that is created, and the carrier's copy of one from below has the number of that one.
const NEW: u32 = 900;

/// Lays a directory of the carrier over what is below it, from the bottom, as overlayfs is told to work.
fn lay_over(dir: &Dir, below: &View) -> View {
    let mut view = if dir.opaque || dir.redirected { View::new() } else { below.clone() };
    for name in dir.marks.keys() {
        view.remove(name);
    }
    for (name, entry) in &dir.entries {
        let under = view.remove(name);
        match (entry, under) {
            (Entry::Whiteout, _) => {}
            (Entry::Leaf(id), _) => drop(view.insert(name, Seen::Leaf(*id))),
            (Entry::Dir(id, inner), Some(Seen::Dir(_, below))) => {
                view.insert(name, Seen::Dir(*id, lay_over(inner, &below)));
            }
            (Entry::Dir(id, inner), _) => drop(view.insert(name, Seen::Dir(*id, lay_over(inner, &View::new())))),
        }
    }
    view
}

impl World {
    fn view(&self) -> View {
        lay_over(&self.carrier, &self.below)
    }

    fn slot(&self, name: &str) -> Slot {
        let held = match self.carrier.entries.get(name) {
            None => Held::Nothing,
            Some(Entry::Whiteout) => Held::Whiteout,
            Some(Entry::Leaf(_)) => Held::Leaf,
            Some(Entry::Dir(..)) => Held::Dir,
        };
        let below = self.below.contains_key(name);
        Slot { held, marked: self.carrier.marks.contains_key(name), below }
    }

    fn dir_mut(&mut self, name: &str) -> Result<&mut Dir, String> {
        match self.carrier.entries.get_mut(name) {
            Some(Entry::Dir(_, dir)) => Ok(dir),
            other => Err(format!("ENOTDIR: {name} is {other:?}")),
        }
    }

    fn redirected(&self, name: &str) -> bool {
        matches!(self.carrier.entries.get(name), Some(Entry::Dir(_, dir)) if dir.redirected && !dir.opaque)
    }

    /// Whether a directory of the carrier merges with one below, so that it is not moved.
    fn merges(&self, name: &str) -> bool {
        let by_name = match self.carrier.entries.get(name) {
            Some(Entry::Dir(_, dir)) => !dir.opaque && !dir.redirected && !self.carrier.marks.contains_key(name),
            Some(_) => false,
            None => !self.carrier.marks.contains_key(name),
        };
        by_name && matches!(self.below.get(name), Some(Seen::Dir(..)))
    }

    /// Copies what is not a directory up.
    fn bring_up(&mut self, name: &'static str) {
        if let (None, Some(Seen::Leaf(id))) = (self.carrier.entries.get(name), self.view().get(name)) {
            self.carrier.entries.insert(name, Entry::Leaf(*id));
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Create { dir: bool },
    Remove,
    Rename,
    Exchange,
}

const SOURCE: &str = "a";
const TARGET: &str = "b";

/// What a plain directory shows after the change; nothing if it would be refused.
fn expected(view: &View, change: Change) -> Option<View> {
    let mut after = view.clone();
    let target = after.remove(TARGET);
    match change {
        Change::Create { dir } => {
            let new = if dir { Seen::Dir(NEW, View::new()) } else { Seen::Leaf(NEW) };
            after.insert(TARGET, new);
            target.is_none().then_some(after)
        }
        Change::Remove => match target? {
            Seen::Dir(_, inner) if !inner.is_empty() => None,
            _ => Some(after),
        },
        Change::Rename => {
            let source = after.remove(SOURCE)?;
            match (&source, &target) {
                (_, None) | (Seen::Leaf(_), Some(Seen::Leaf(_))) => {}
                (Seen::Dir(..), Some(Seen::Dir(_, inner))) if inner.is_empty() => {}
                _ => return None,
            }
            after.insert(TARGET, source);
            Some(after)
        }
        Change::Exchange => {
            let source = after.remove(SOURCE)?;
            after.insert(SOURCE, target?);
            after.insert(TARGET, source);
            Some(after)
        }
    }
}

/// The world made ready, and the plan; nothing where directories merge.
fn plan(world: &World, change: Change) -> Option<(World, Vec<Step>)> {
    let mut ready = world.clone();
    let moved = match change {
        Change::Create { .. } | Change::Remove => &[][..],
        Change::Rename => &[SOURCE],
        Change::Exchange => &[SOURCE, TARGET],
    };
    if moved.iter().any(|name| world.merges(name)) {
        return None;
    }
    moved.iter().for_each(|name| ready.bring_up(name));
    let (source, target) = (ready.slot(SOURCE), ready.slot(TARGET));
    let redirected = |name| ready.redirected(name);
    let steps = match change {
        Change::Create { dir } => overlay::create(dir, target),
        Change::Remove => overlay::remove(target),
        Change::Rename => overlay::rename(source, target, redirected(SOURCE)),
        Change::Exchange => overlay::exchange((source, redirected(SOURCE)), (target, redirected(TARGET))),
    };
    Some((ready, steps))
}

fn name(which: Which) -> &'static str {
    match which {
        Which::Source => SOURCE,
        Which::Target => TARGET,
    }
}

/// Does one step, as strictly as a disk would.
fn act(world: &mut World, step: Step, change: Change) -> Result<(), String> {
    match step {
        Step::Install { opaque, over_whiteout } => {
            let there = world.carrier.entries.get(TARGET);
            if over_whiteout != (there == Some(&Entry::Whiteout)) || !over_whiteout && there.is_some() {
                return Err(format!("EEXIST: {there:?}"));
            }
            let new = match change {
                Change::Create { dir: true } => Entry::Dir(NEW, Dir { opaque, ..Dir::default() }),
                _ => Entry::Leaf(NEW),
            };
            world.carrier.entries.insert(TARGET, new);
        }
        Step::Cover { which, held } => {
            if world.slot(name(which)).held != held {
                return Err(format!("another entry than {held:?}"));
            }
            world.carrier.entries.insert(name(which), Entry::Whiteout);
        }
        Step::Uncover(which) => match world.carrier.entries.remove(name(which)) {
            Some(Entry::Whiteout) => {}
            other => return Err(format!("no whiteout but {other:?}")),
        },
        Step::DropMark(which) => drop(world.carrier.marks.remove(name(which))),
        Step::MarkOpaque(which) => world.dir_mut(name(which))?.opaque = true,
        Step::Clear(which) => {
            let dir = world.dir_mut(name(which))?;
            if dir.entries.values().any(|entry| *entry != Entry::Whiteout) {
                return Err("ENOTEMPTY: not only whiteouts".into());
            }
            dir.entries.clear();
            dir.marks.clear();
        }
        Step::Unlink(which) => match world.carrier.entries.remove(name(which)) {
            Some(Entry::Leaf(_)) => {}
            other => return Err(format!("no leaf but {other:?}")),
        },
        Step::Retire(which) => match world.carrier.entries.remove(name(which)) {
            Some(Entry::Dir(..)) => {}
            other => return Err(format!("no directory but {other:?}")),
        },
        Step::Move => move_over(world)?,
        Step::MoveLeavingWhiteout => {
            move_over(world)?;
            world.carrier.entries.insert(SOURCE, Entry::Whiteout);
        }
        Step::Exchange => {
            let entries = &mut world.carrier.entries;
            let both = (entries.remove(SOURCE).ok_or("ENOENT")?, entries.remove(TARGET).ok_or("ENOENT")?);
            entries.extend([(TARGET, both.0), (SOURCE, both.1)]);
        }
    }
    Ok(())
}

/// rename(2).
fn move_over(world: &mut World) -> Result<(), String> {
    let entries = &mut world.carrier.entries;
    let source = entries.remove(SOURCE).ok_or("ENOENT")?;
    let is_dir = |entry: &Entry| matches!(entry, Entry::Dir(..));
    match entries.insert(TARGET, source.clone()) {
        None => Ok(()),
        Some(Entry::Dir(_, dir)) if !dir.entries.is_empty() || !dir.marks.is_empty() => Err("ENOTEMPTY".into()),
        Some(there) if is_dir(&there) != is_dir(&source) => Err(format!("ENOTDIR or EISDIR: {there:?}")),
        Some(_) => Ok(()),
    }
}

fn assert_right(world: &World, change: Change) -> bool {
    let before = world.view();
    let Some(after) = expected(&before, change) else { return false };
    let Some((mut now, steps)) = plan(world, change) else { return false };
    assert_eq!(now.view(), before, "brought up in {world:#?}");
    for (number, step) in steps.iter().enumerate() {
        act(&mut now, *step, change).unwrap_or_else(|why| panic!("{step:?} of {steps:?}: {why}\n{world:#?}"));
        let view = now.view();
        let is_last = number + 1 == steps.len();
        assert!(
            view == after || view == before && !is_last,
            "{change:?} after {:?}: shown is {view:?}, and not {after:?} in {world:#?}",
            &steps[..=number]
        );
    }
    assert_eq!(now.view(), after, "{change:?} in {world:#?}");
    assert_no_garbage(world, &now, change);
    true
}

/// A whiteout of a name that was changed hides something, and stands in no opaque directory.
fn assert_no_garbage(before: &World, after: &World, change: Change) {
    for name in [SOURCE, TARGET] {
        let touched = !matches!((change, name), (Change::Create { .. } | Change::Remove, SOURCE));
        let needless = after.carrier.entries.get(name) == Some(&Entry::Whiteout) && !after.below.contains_key(name);
        assert!(!touched || !needless, "{change:?} leaves a whiteout of {name}: {before:#?} {after:#?}");
        assert!(!touched || !after.carrier.marks.contains_key(name), "{change:?} leaves .wh.{name}: {before:#?}");
    }
    if let Some(Entry::Dir(NEW, dir)) = after.carrier.entries.get(TARGET) {
        assert!(!dir.opaque || before.slot(TARGET) != Slot { held: Held::Nothing, marked: false, below: false });
    }
}

/// Every state of one name of the carrier, with and without a file `.wh.NAME`.
fn states(id: u32) -> Vec<(Option<Entry>, bool)> {
    let children = [None, Some(Entry::Whiteout), Some(Entry::Leaf(id + 2))];
    let mut entries = vec![None, Some(Entry::Whiteout), Some(Entry::Leaf(id))];
    for child in children {
        for (opaque, redirected) in [(false, false), (true, false), (false, true)] {
            let inner = child.iter().map(|child| ("x", child.clone())).collect();
            entries.push(Some(Entry::Dir(id + 1, Dir { opaque, redirected, entries: inner, ..Dir::default() })));
        }
    }
    entries.into_iter().flat_map(|entry| [(entry.clone(), false), (entry, true)]).collect()
}

/// Every state of one name below.
fn states_below(id: u32) -> Vec<Option<Seen>> {
    let child = View::from([("x", Seen::Leaf(id + 2))]);
    vec![None, Some(Seen::Leaf(id)), Some(Seen::Dir(id + 1, View::new())), Some(Seen::Dir(id + 1, child))]
}

fn each_name(name: &'static str, id: u32) -> Vec<(World, &'static str)> {
    let mut worlds = Vec::new();
    for (entry, marked) in states(id) {
        for below in states_below(id + 500) {
            let carrier = Dir {
                entries: entry.iter().map(|entry| (name, entry.clone())).collect(),
                marks: marked.then_some((name, ())).into_iter().collect(),
                ..Dir::default()
            };
            worlds.push((World { carrier, below: below.into_iter().map(|seen| (name, seen)).collect() }, name));
        }
    }
    worlds
}

#[test]
fn every_plan_shows_before_or_after_at_every_step() {
    let changes =
        [Change::Create { dir: false }, Change::Create { dir: true }, Change::Remove, Change::Rename, Change::Exchange];
    let mut done = [0; 5];
    for (one, _) in each_name(SOURCE, 10) {
        for (other, _) in each_name(TARGET, 20) {
            let mut world = one.clone();
            world.carrier.entries.extend(other.carrier.entries);
            world.carrier.marks.extend(other.carrier.marks);
            world.below.extend(other.below);
            for (change, done) in changes.into_iter().zip(&mut done) {
                *done += u32::from(assert_right(&world, change));
            }
        }
    }
    assert!(done.iter().all(|done| *done > 500), "too little was tried: {done:?}");
}
