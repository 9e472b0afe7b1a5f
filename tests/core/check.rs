//! What must hold of every view and of every change of a world.

use std::collections::{BTreeMap, BTreeSet};

use harness::world::{Access, Dir, Entry, Name, Seen, View, World};
use unionfs::union::merge::{Listed, merge};
use unionfs::union::redirect::Places;
use unionfs::union::{Found, Resolved};

use crate::carry::{
    Act, Carrier, Change, Id, Path, Prepared, Refusal, act, expected, look_up, must_be_opaque, place, prepare, word,
};

/// Asserts that `resolve` and `merge` show what the reference shows, in every directory.
pub(crate) fn assert_seen_as_the_reference_says(world: &World<Id>, names: &[Name]) {
    assert_directory(world, names, &mut Path::new(), &world.view());
}

fn assert_directory(world: &World<Id>, names: &[Name], dir: &mut Path, view: &View<Id>) {
    let here = place(world, dir).unwrap_or_else(|error| panic!("{dir:?} is not found: {error:?}\n{world:?}"));
    let mut found = BTreeMap::new();
    for name in names {
        let resolved = look_up(world, &here.places, name);
        let shown = resolved.topmost().map(|branch| about(world, branch.get(), &here.places, name));
        let expected = view.get(name).map(|seen| match seen {
            Seen::Leaf(id) => (*id, false),
            Seen::Dir(id, _) => (*id, true),
        });
        let is_dir = matches!(resolved, Resolved::Dir { .. });
        assert_eq!(shown.map(|id| (id, is_dir)), expected, "{dir:?} {name:?} is {resolved:?}\n{world:?}");
        if let Some(branch) = resolved.topmost() {
            found.insert(name.clone(), branch.get());
        }
    }
    assert_eq!(listed(world, &here.places), found, "the listing of {dir:?}\n{world:?}");
    for (name, seen) in view {
        if let Seen::Dir(_, inner) = seen {
            dir.push(name.clone());
            assert_directory(world, names, dir, inner);
            dir.pop();
        }
    }
}

fn about(world: &World<Id>, branch: usize, places: &Places<Path>, name: &Name) -> Id {
    let place = places.stack.iter().find(|place| place.branch.get() == branch).expect("a branch of the stack");
    let slot = world.branches[branch].root.at(&place.dir).and_then(|body| body.slots.get(name));
    match slot.and_then(|slot| slot.entry.as_ref()) {
        Some(Entry::Leaf(id) | Entry::Dir(id, _)) => *id,
        None => panic!("branch {branch} has no {name:?} in {:?}\n{world:?}", place.dir),
    }
}

/// The merged listing: each name with the branch of its topmost entry.
fn listed(world: &World<Id>, places: &Places<Path>) -> BTreeMap<Name, usize> {
    let mut words = Vec::new();
    for place in &places.stack {
        let branch = place.branch.get();
        let of = &world.branches[branch];
        let body = of.root.at(&place.dir).expect("a directory of the stack");
        words.extend(body.slots.keys().map(|name| (name, word(body, name, of.access.heeds_whiteouts()), branch)));
    }
    // one that many names share
    let hash = |name: &Name| name.iter().map(|byte| u64::from(*byte)).sum::<u64>() % 2;
    words.sort_by_key(|(name, ..)| hash(name));
    merge(&mut words, |(name, found, _)| Listed { hash: hash(name), name, found: *found });
    let names: BTreeMap<Name, usize> = words.iter().map(|(name, _, branch)| ((*name).clone(), *branch)).collect();
    assert_eq!(names.len(), words.len(), "a name is listed twice in {places:?}\n{world:?}");
    assert!(words.iter().all(|(_, found, _)| !matches!(found, Found::Nothing | Found::Whiteout)));
    names
}

/// Asserts everything that the rules promise of one change of one world, which shows `before`. Says whether it was
/// carried out.
pub(crate) fn assert_change_is_right(world: &World<Id>, before: &View<Id>, change: &Change) -> Result<(), Refusal> {
    let outcome = prepare(world, change, Carrier::Policy);
    match &outcome {
        Ok(prepared) => {
            if let Err(flaw) = flaw_of(world, before, change, prepared) {
                panic!("{change:?}\nof {world:?}\nby {prepared:?}\n{flaw}");
            }
        }
        Err(Refusal::ReadOnly) => {
            if let Some(branch) = carrier_that_works(world, before, change) {
                panic!("{change:?}\nof {world:?}\nis refused with EROFS, but branch {branch} can carry it");
            }
        }
        Err(refusal) => {
            let plain = expected(before, change).err();
            assert_eq!(plain, Some(*refusal), "{change:?}\nof {world:?}");
        }
    }
    outcome.map(|_| ())
}

/// A writable branch on which the change comes out right, found by trying.
fn carrier_that_works(world: &World<Id>, before: &View<Id>, change: &Change) -> Option<usize> {
    let writable = |branch: &usize| world.branches[*branch].access == Access::Writable;
    (0..world.branches.len()).filter(writable).find(|branch| {
        let prepared = prepare(world, change, Carrier::Forced(*branch));
        prepared.is_ok_and(|prepared| flaw_of(world, before, change, &prepared).is_ok())
    })
}

/// Carries a change out, looking at the view after every step; says what is wrong.
fn flaw_of(world: &World<Id>, before: &View<Id>, change: &Change, prepared: &Prepared) -> Result<(), String> {
    let after = expected(before, change).map_err(|refusal| format!("a plain directory says {refusal:?}"))?;
    if world.branches[prepared.carrier].access != Access::Writable {
        return Err("the carrier is read-only".into());
    }
    let (mut now, mut view) = (world.clone(), None);
    for step in &prepared.acts {
        act(&mut now, prepared, *step).map_err(|error| format!("{step:?} fails with {error}\nin {now:?}"))?;
        let view = view.insert(now.view());
        if view != before && *view != after {
            return Err(format!("killed after {step:?}, a remount shows {view:?}\nwhich is neither before nor after"));
        }
        if view != before && matches!(step, Act::Parents(_) | Act::CopyUp(_)) {
            return Err(format!("{step:?} changes the view to {view:?}"));
        }
    }
    let view = view.as_ref().unwrap_or(before);
    if *view != after {
        return Err(format!("ends as {view:?}\nand not as {after:?}"));
    }
    others_are_untouched(world, &now, prepared.carrier)?;
    marks_are_needed(world, &now, view, change, prepared)
}

fn others_are_untouched(before: &World<Id>, after: &World<Id>, carrier: usize) -> Result<(), String> {
    let mut pairs = before.branches.iter().zip(&after.branches).enumerate();
    match pairs.find(|(branch, (was, is))| *branch != carrier && was != is) {
        Some((branch, _)) => Err(format!("branch {branch} is changed, which is not the carrier")),
        None => Ok(()),
    }
}

/// Rule 18: no garbage whiteouts, none in opaque directories; rule 16: a fresh name needs no opaque mark. `view` is what
/// is shown afterwards.
fn marks_are_needed(
    before: &World<Id>,
    after: &World<Id>,
    view: &View<Id>,
    change: &Change,
    prepared: &Prepared,
) -> Result<(), String> {
    let carrier = prepared.carrier;
    let (had, has) = (Marks::of(before, carrier).with_moved(change, prepared), Marks::of(after, carrier));
    for path in has.whiteouts.difference(&had.whiteouts) {
        let (name, dir) = path.split_last().ok_or("a whiteout of the root")?;
        let mut without = after.clone();
        let body = without.branches[carrier].root.at_mut(dir).ok_or("no directory")?;
        if body.opaque {
            return Err(format!("the whiteout of {path:?} lies in an opaque directory"));
        }
        body.slots.entry(name.clone()).or_default().whiteout = false;
        if without.view() == *view {
            return Err(format!("the whiteout of {path:?} hides nothing"));
        }
    }
    for path in has.opaque.difference(&had.opaque) {
        if !change.targets().iter().any(|target| must_be_opaque(before, target, carrier).as_ref() == Some(path)) {
            return Err(format!("{path:?} is opaque, although nothing of that name is below"));
        }
    }
    Ok(())
}

/// The whiteouts and opaque directories of one branch.
#[derive(Default)]
struct Marks {
    whiteouts: BTreeSet<Path>,
    opaque: BTreeSet<Path>,
}

impl Marks {
    /// Adds the places to which the change moves marks along with the directories that hold them: on the carrier,
    /// where a directory may lie under another name than in the union.
    fn with_moved(mut self, change: &Change, prepared: &Prepared) -> Self {
        let [above_source, above_target] = &prepared.parents;
        let on_carrier = |above: &Path, path: &Path| -> Path { above.iter().chain(path.last()).cloned().collect() };
        let (from, to) = (on_carrier(above_source, &prepared.source), on_carrier(above_target, &prepared.target));
        let moves = match change {
            Change::Create { .. } | Change::Remove { .. } => vec![],
            Change::Rename { .. } => vec![(from, to)],
            Change::Exchange { .. } => vec![(from.clone(), to.clone()), (to, from)],
        };
        for marks in [&mut self.whiteouts, &mut self.opaque] {
            let places = marks.iter().flat_map(|path| {
                let moved = moves
                    .iter()
                    .filter_map(|(from, to)| Some([to.as_slice(), path.strip_prefix(from.as_slice())?].concat()));
                moved.collect::<Vec<_>>()
            });
            let places: Vec<Path> = places.collect();
            marks.extend(places);
        }
        self
    }

    fn of(world: &World<Id>, branch: usize) -> Self {
        let mut marks = Marks::default();
        marks.collect(&world.branches[branch].root, &mut Path::new());
        marks
    }

    fn collect(&mut self, dir: &Dir<Id>, path: &mut Path) {
        for (name, slot) in &dir.slots {
            path.push(name.clone());
            if slot.whiteout {
                self.whiteouts.insert(path.clone());
            }
            if let Some(Entry::Dir(_, inner)) = &slot.entry {
                if inner.opaque {
                    self.opaque.insert(path.clone());
                }
                self.collect(inner, path);
            }
            path.pop();
        }
    }
}
