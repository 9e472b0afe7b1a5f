//! What a plain directory says to a change.

use harness::world::{Name, Seen, View};
use unionfs::union::plan::Manner;

use super::{Change, DEVICE, Id, NEW, Refusal};

/// What a plain directory would look like after the change, or why it would refuse it.
pub(crate) fn expected(before: &View<Id>, change: &Change) -> Result<View<Id>, Refusal> {
    let mut after = before.clone();
    match change {
        Change::Create { at, dir } => {
            if seen(before, at).is_some() {
                return Err(Refusal::Exist);
            }
            let new = if *dir { Seen::Dir(NEW, View::new()) } else { Seen::Leaf(NEW) };
            put(&mut after, at, Some(new))?;
        }
        Change::Remove { at } => {
            if let Seen::Dir(_, inner) = seen_or(before, at)?
                && !inner.is_empty()
            {
                return Err(Refusal::NotEmpty);
            }
            put(&mut after, at, None)?;
        }
        Change::Rename { from, to, manner } => {
            let moved = seen_or(before, from)?.clone();
            match (&moved, seen(before, to)) {
                (Seen::Dir(..), _) if to.len() > from.len() && to.starts_with(from) => return Err(Refusal::Invalid),
                (Seen::Dir(..), Some(Seen::Leaf(_))) => return Err(Refusal::NotDir),
                (Seen::Dir(..), Some(Seen::Dir(_, inner))) if !inner.is_empty() => return Err(Refusal::NotEmpty),
                (Seen::Leaf(_), Some(Seen::Dir(..))) => return Err(Refusal::IsDir),
                _ => {}
            }
            put(&mut after, to, Some(moved))?;
            put(&mut after, from, matches!(manner, Manner::LeavingDevice).then_some(Seen::Leaf(DEVICE)))?;
        }
        Change::Exchange { one, other } => {
            let (first, second) = (seen_or(before, one)?.clone(), seen_or(before, other)?.clone());
            if one.starts_with(other) || other.starts_with(one) {
                return Err(Refusal::Invalid);
            }
            put(&mut after, one, Some(second))?;
            put(&mut after, other, Some(first))?;
        }
    }
    Ok(after)
}

fn seen_or<'a>(view: &'a View<Id>, path: &[Name]) -> Result<&'a Seen<Id>, Refusal> {
    seen(view, path).ok_or(Refusal::NoEnt)
}

fn put(view: &mut View<Id>, path: &[Name], entry: Option<Seen<Id>>) -> Result<(), Refusal> {
    let (name, dirs) = path.split_last().expect("a change names something");
    let mut dir = view;
    for step in dirs {
        dir = match dir.get_mut(step) {
            Some(Seen::Dir(_, inner)) => inner,
            Some(Seen::Leaf(_)) => return Err(Refusal::NotDir),
            None => return Err(Refusal::NoEnt),
        };
    }
    match entry {
        Some(entry) => dir.insert(name.clone(), entry),
        None => dir.remove(name),
    };
    Ok(())
}

pub(super) fn seen<'a>(view: &'a View<Id>, path: &[Name]) -> Option<&'a Seen<Id>> {
    let (name, dirs) = path.split_last()?;
    inside(view, dirs)?.get(name)
}

fn inside<'a>(view: &'a View<Id>, dirs: &[Name]) -> Option<&'a View<Id>> {
    dirs.iter().try_fold(view, |view, name| match view.get(name)? {
        Seen::Dir(_, inner) => Some(inner),
        Seen::Leaf(_) => None,
    })
}
