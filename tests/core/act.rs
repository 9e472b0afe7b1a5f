//! The steps of a change, done on worlds as strictly as a disk would: whatever a system call would refuse is an error.

use harness::world::{Dir, Entry, Name, Seen, Slot, World};
use unionfs::union::plan::{Step, Which};

use super::plain::seen;
use super::{Act, DEVICE, Id, NEW, Prepared, place};

/// Does one step.
pub(crate) fn act(world: &mut World<Id>, prepared: &Prepared, act: Act) -> Result<(), String> {
    match act {
        Act::Parents(which) => bring_parents_up(world, prepared.carrier, path(prepared, which)),
        Act::CopyUp(which) => copy_up(world, prepared, which),
        Act::Planned(step) => do_step(world, prepared, step),
    }
}

fn path(prepared: &Prepared, which: Which) -> &[Name] {
    match which {
        Which::Source => &prepared.source,
        Which::Target => &prepared.target,
    }
}

/// Where the parent lies on the carrier.
fn parent(prepared: &Prepared, which: Which) -> &[Name] {
    &prepared.parents[usize::from(which == Which::Target)]
}

/// Brings the directories above a name up, each under its name in the one above it.
fn bring_parents_up(world: &mut World<Id>, carrier: usize, path: &[Name]) -> Result<(), String> {
    let view = world.view();
    let on_carrier = |world: &World<Id>, depth: usize| {
        let dir = place(world, &path[..depth]).map_err(|error| format!("{error:?}"))?;
        Ok::<_, String>(dir.on(carrier).cloned())
    };
    let mut missing = path.len() - 1;
    while missing > 0 && on_carrier(world, missing)?.is_none() {
        missing -= 1;
    }
    for depth in missing + 1..path.len() {
        let Some(Seen::Dir(id, _)) = seen(&view, &path[..depth]) else { return Err("no parent".into()) };
        let above = on_carrier(world, depth - 1)?.ok_or("ENOENT: above a parent")?;
        let above = world.branches[carrier].root.at_mut(&above).ok_or("ENOTDIR: above a parent")?;
        put_new(above.slots.entry(path[depth - 1].clone()).or_default(), Entry::Dir(*id, Dir::default()))?;
    }
    Ok(())
}

/// Copies a file up whole, a directory without what is in it.
fn copy_up(world: &mut World<Id>, prepared: &Prepared, which: Which) -> Result<(), String> {
    let entry = match seen(&world.view(), path(prepared, which)).cloned() {
        Some(Seen::Leaf(id)) => Entry::Leaf(id),
        Some(Seen::Dir(id, _)) => Entry::Dir(id, Dir::default()),
        None => return Err("only what is seen is copied up".into()),
    };
    put_new(slot_mut(world, prepared, which)?, entry)
}

fn put_new(slot: &mut Slot<Id>, entry: Entry<Id>) -> Result<(), String> {
    match slot.entry.replace(entry) {
        None => Ok(()),
        Some(there) => Err(format!("EEXIST: {there:?}")),
    }
}

fn slot_mut<'a>(world: &'a mut World<Id>, prepared: &Prepared, which: Which) -> Result<&'a mut Slot<Id>, String> {
    let dir = world.branches[prepared.carrier].root.at_mut(parent(prepared, which)).ok_or("ENOENT: the parent")?;
    let name = path(prepared, which).last().ok_or("no name")?;
    Ok(dir.slots.entry(name.clone()).or_default())
}

fn body_mut<'a>(world: &'a mut World<Id>, prepared: &Prepared, which: Which) -> Result<&'a mut Dir<Id>, String> {
    match &mut slot_mut(world, prepared, which)?.entry {
        Some(Entry::Dir(_, body)) => Ok(body),
        other => Err(format!("ENOTDIR: {other:?}")),
    }
}

fn do_step(world: &mut World<Id>, prepared: &Prepared, step: Step) -> Result<(), String> {
    match step {
        Step::Install { opaque } => {
            let body = Dir { opaque, ..Dir::default() };
            let new = if prepared.dir { Entry::Dir(NEW, body) } else { Entry::Leaf(NEW) };
            put_new(slot_mut(world, prepared, Which::Target)?, new)?;
        }
        Step::Whiteout(which) => slot_mut(world, prepared, which)?.whiteout = true,
        Step::DropWhiteout(which) => {
            if !std::mem::replace(&mut slot_mut(world, prepared, which)?.whiteout, false) {
                return Err("ENOENT: the whiteout".into());
            }
        }
        Step::MarkOpaque(which) => body_mut(world, prepared, which)?.opaque = true,
        Step::Record(which) => {
            let record = prepared.records[usize::from(which == Which::Target)].clone().ok_or("no record is known")?;
            body_mut(world, prepared, which)?.record = Some(record);
        }
        Step::ClearMarks(which) => {
            let body = body_mut(world, prepared, which)?;
            body.opaque = false;
            body.record = None;
            body.slots.values_mut().for_each(|slot| slot.whiteout = false);
        }
        Step::Unlink(which) => match slot_mut(world, prepared, which)?.entry.take() {
            Some(Entry::Leaf(_)) => {}
            other => return Err(format!("EISDIR or ENOENT: {other:?}")),
        },
        Step::Retire(which) => match slot_mut(world, prepared, which)?.entry.take() {
            Some(Entry::Dir(_, body)) if body.slots.values().all(|slot| slot.entry.is_none()) => {}
            other => return Err(format!("ENOTDIR or entries in it: {other:?}")),
        },
        Step::Move => move_entry(world, prepared, None)?,
        Step::MoveLeavingDevice => move_entry(world, prepared, Some(Entry::Leaf(DEVICE)))?,
        Step::Exchange => exchange_entries(world, prepared)?,
    }
    Ok(())
}

/// rename(2) on one branch.
fn move_entry(world: &mut World<Id>, prepared: &Prepared, left: Option<Entry<Id>>) -> Result<(), String> {
    let moved = std::mem::replace(&mut slot_mut(world, prepared, Which::Source)?.entry, left);
    let target = &mut slot_mut(world, prepared, Which::Target)?.entry;
    match (&moved, &*target) {
        (Some(Entry::Dir(..)), Some(Entry::Leaf(_))) => return Err("ENOTDIR".into()),
        (Some(Entry::Leaf(_)), Some(Entry::Dir(..))) => return Err("EISDIR".into()),
        (Some(Entry::Dir(..)), Some(Entry::Dir(_, body)))
            if body.opaque
                || body.record.is_some()
                || body.slots.values().any(|slot| slot.whiteout || slot.entry.is_some()) =>
        {
            return Err(format!("ENOTEMPTY: {body:?}"));
        }
        (None, _) => return Err("ENOENT".into()),
        (Some(_), _) => *target = moved,
    }
    Ok(())
}

fn exchange_entries(world: &mut World<Id>, prepared: &Prepared) -> Result<(), String> {
    let one = slot_mut(world, prepared, Which::Source)?.entry.take().ok_or("ENOENT")?;
    let other = slot_mut(world, prepared, Which::Target)?.entry.replace(one).ok_or("ENOENT")?;
    slot_mut(world, prepared, Which::Source)?.entry = Some(other);
    Ok(())
}
