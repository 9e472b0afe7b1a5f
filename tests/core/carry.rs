//! Carries changes out on worlds that are values, the way the file system does it on disks: observe with `resolve`,
//! choose the branch with `policy`, decide with `plan`, then do one step after the other.

use harness::world::{Dir, Entry, Name, Seen, Slot, View, World};
use unionfs::union::plan::{self, Manner, Step, Which};
use unionfs::union::policy::{self, Candidate};
use unionfs::union::{Below, BranchIndex, Found, Resolved, resolve};

/// An entry is a number: equal numbers are the same object.
pub(crate) type Id = u32;
/// The object that a change creates.
pub(crate) const NEW: Id = 9_000;
/// The character device that a `RENAME_WHITEOUT` leaves behind.
pub(crate) const DEVICE: Id = 9_001;

/// A path below the root of the union, never empty.
pub(crate) type Path = Vec<Name>;

/// A change that a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Create { at: Path, dir: bool },
    Remove { at: Path },
    Rename { from: Path, to: Path, manner: Manner },
    Exchange { one: Path, other: Path },
}

/// Why a change is refused; the errno of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Exist,
    NoEnt,
    NotDir,
    IsDir,
    NotEmpty,
    Invalid,
    /// No writable branch may carry it.
    ReadOnly,
    /// A directory with content below.
    CrossDevice,
}

/// One step on the carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Copies the directories above a name up.
    Parents(Which),
    /// Copies the entry, which is not a directory, up.
    CopyUp(Which),
    /// A step of the plan.
    Planned(Step),
}

/// A change made ready: where and in which steps.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) carrier: usize,
    pub(crate) source: Path,
    pub(crate) target: Path,
    /// What `Step::Install` puts in place: a directory?
    pub(crate) dir: bool,
    pub(crate) acts: Vec<Act>,
}

/// How the carrier is found.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Carrier {
    /// As the policy chooses.
    Policy,
    /// This branch, if it is writable, whatever the policy says.
    Forced(usize),
}

/// A union directory: the branches that make it, and the lowest one on which a new entry in it would be seen.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) stack: Vec<usize>,
    lowest: Option<usize>,
}

fn branch_index(branch: usize) -> BranchIndex {
    BranchIndex(u16::try_from(branch).expect("few branches"))
}

/// One branch's word on a name in a directory of it.
pub(crate) fn word(dir: &Dir<Id>, name: &Name, heeds_whiteouts: bool) -> Found {
    let Some(slot) = dir.slots.get(name) else { return Found::Nothing };
    let entry = match &slot.entry {
        None => Found::Nothing,
        Some(Entry::Leaf(_)) => Found::Leaf,
        Some(Entry::Dir(_, inner)) => Found::Dir(below(inner.opaque && heeds_whiteouts)),
    };
    if slot.whiteout && heeds_whiteouts { entry.with_whiteout() } else { entry }
}

fn below(opaque: bool) -> Below {
    if opaque { Below::Hidden } else { Below::Merges }
}

fn infallible(words: impl Iterator<Item = (BranchIndex, Found)>) -> Resolved {
    resolve(words.map(Ok::<_, std::convert::Infallible>)).unwrap_or_else(|never| match never {})
}

/// Looks a name up in the directory `dir` of the branches `stack`.
pub(crate) fn look_up(world: &World<Id>, stack: &[usize], dir: &[Name], name: &Name) -> Resolved {
    infallible(stack.iter().map(|&branch| {
        let of = &world.branches[branch];
        let found = of.root.at(dir).map_or(Found::Nothing, |body| word(body, name, of.access.heeds_whiteouts()));
        (branch_index(branch), found)
    }))
}

/// The union directory at a path.
pub(crate) fn place(world: &World<Id>, dir: &[Name]) -> Result<Place, Refusal> {
    let root =
        infallible(world.branches.iter().enumerate().map(|(branch, of)| {
            (branch_index(branch), Found::Dir(below(of.root.opaque && of.access.heeds_whiteouts())))
        }));
    let mut here = narrowed(Some(world.branches.len() - 1), root)?;
    for depth in 0..dir.len() {
        let found = look_up(world, &here.stack, &dir[..depth], &dir[depth]);
        here = narrowed(here.lowest, found)?;
    }
    Ok(here)
}

fn narrowed(lowest: Option<usize>, dir: Resolved) -> Result<Place, Refusal> {
    match dir {
        Resolved::Missing { .. } => Err(Refusal::NoEnt),
        Resolved::Leaf(_) => Err(Refusal::NotDir),
        Resolved::Dir { stack, cut } => {
            let lowest = match cut {
                None => lowest,
                Some(cut) => lowest.min(cut.lowest_seen().map(BranchIndex::get)),
            };
            Ok(Place { stack: stack.into_iter().map(BranchIndex::get).collect(), lowest })
        }
    }
}

/// One of the names of a change, looked up.
struct Looked<'a> {
    world: &'a World<Id>,
    path: &'a [Name],
    place: Place,
    found: Resolved,
}

impl<'a> Looked<'a> {
    fn at(world: &'a World<Id>, path: &'a [Name]) -> Result<Self, Refusal> {
        let (name, dir) = path.split_last().expect("a change names something");
        let place = place(world, dir)?;
        let found = look_up(world, &place.stack, dir, name);
        Ok(Looked { world, path, place, found })
    }

    fn name(&self) -> &'a Name {
        self.path.last().expect("a change names something")
    }

    fn parent(&self) -> &'a [Name] {
        &self.path[..self.path.len() - 1]
    }

    /// The branches of the directory that are below the carrier.
    fn below(&self, carrier: usize) -> Resolved {
        let stack: Vec<usize> = self.place.stack.iter().copied().filter(|branch| *branch > carrier).collect();
        look_up(self.world, &stack, self.parent(), self.name())
    }

    fn something_below(&self, carrier: usize) -> bool {
        self.below(carrier).topmost().is_some()
    }

    fn slot(&self, carrier: usize) -> Option<&'a Slot<Id>> {
        self.world.branches[carrier].root.at(self.parent())?.slots.get(self.name())
    }

    fn whiteout(&self, carrier: usize) -> bool {
        self.slot(carrier).is_some_and(|slot| slot.whiteout)
    }

    /// The lowest branch on which something under this name is seen, with what is there now.
    fn lowest(&self) -> Option<usize> {
        match &self.found {
            Resolved::Missing { cut: None } => self.place.lowest,
            Resolved::Missing { cut: Some(cut) } => self.place.lowest.min(cut.lowest_seen().map(BranchIndex::get)),
            found => found.topmost().map(BranchIndex::get),
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let branches = self.world.branches.iter().enumerate();
        branches
            .map(|(branch, of)| Candidate {
                branch: branch_index(branch),
                writable: of.access == harness::world::Access::Writable,
                has_parent: self.place.stack.contains(&branch),
            })
            .collect()
    }

    /// Directories merge: is this one made of the carrier's alone?
    fn only_on(&self, carrier: usize) -> bool {
        matches!(&self.found, Resolved::Dir { stack, .. } if *stack == [branch_index(carrier)])
    }

    fn is_dir(&self) -> bool {
        matches!(self.found, Resolved::Dir { .. })
    }

    fn bring_up(&self, which: Which, carrier: usize, acts: &mut Vec<Act>) {
        acts.push(Act::Parents(which));
        if matches!(self.found, Resolved::Leaf(branch) if branch.get() != carrier) {
            acts.push(Act::CopyUp(which));
        }
    }
}

type Choice = fn(&[Candidate], BranchIndex) -> Option<BranchIndex>;

/// The carrier of a change that must not lie below `lowest`.
fn choose(how: Carrier, rule: Choice, candidates: &[Candidate], lowest: Option<usize>) -> Result<usize, Refusal> {
    match how {
        Carrier::Forced(branch) => Ok(branch),
        Carrier::Policy => {
            let lowest = lowest.ok_or(Refusal::ReadOnly)?;
            rule(candidates, branch_index(lowest)).map(BranchIndex::get).ok_or(Refusal::ReadOnly)
        }
    }
}

/// Makes a change ready, or refuses it.
pub(crate) fn prepare(world: &World<Id>, change: &Change, how: Carrier) -> Result<Prepared, Refusal> {
    expected(&world.view(), change)?;
    match change {
        Change::Create { at, dir } => prepare_create(world, at, *dir, how),
        Change::Remove { at } => prepare_remove(world, at, how),
        Change::Rename { from, to, manner } => prepare_rename(world, from, to, *manner, how),
        Change::Exchange { one, other } => prepare_exchange(world, one, other, how),
    }
}

fn prepare_create(world: &World<Id>, at: &Path, dir: bool, how: Carrier) -> Result<Prepared, Refusal> {
    let target = Looked::at(world, at)?;
    let carrier = choose(how, policy::top_down_parent, &target.candidates(), target.lowest())?;
    let mut acts = vec![Act::Parents(Which::Target)];
    let steps = plan::create(plan::Create { dir, whiteout: target.whiteout(carrier) });
    acts.extend(steps.into_iter().map(Act::Planned));
    Ok(Prepared { carrier, source: at.clone(), target: at.clone(), dir, acts })
}

fn prepare_remove(world: &World<Id>, at: &Path, how: Carrier) -> Result<Prepared, Refusal> {
    let target = Looked::at(world, at)?;
    let topmost = target.found.topmost().ok_or(Refusal::NoEnt)?;
    let in_place: Choice = |_, branch| Some(branch);
    let writable = world.branches[topmost.get()].access == harness::world::Access::Writable;
    let rule = if writable { in_place } else { policy::top_down_parent };
    let carrier = choose(how, rule, &target.candidates(), Some(topmost.get()))?;
    let mut acts = vec![Act::Parents(Which::Target)];
    let steps = plan::remove(plan::Remove {
        dir: target.is_dir(),
        on_carrier: topmost.get() == carrier,
        below: target.something_below(carrier),
    });
    acts.extend(steps.into_iter().map(Act::Planned));
    Ok(Prepared { carrier, source: at.clone(), target: at.clone(), dir: false, acts })
}

fn prepare_rename(
    world: &World<Id>,
    from: &Path,
    to: &Path,
    manner: Manner,
    how: Carrier,
) -> Result<Prepared, Refusal> {
    let (source, target) = (Looked::at(world, from)?, Looked::at(world, to)?);
    let carrier = choose(how, policy::carrier, &source.candidates(), source.lowest().min(target.lowest()))?;
    if source.is_dir() && !source.only_on(carrier) {
        return Err(Refusal::CrossDevice);
    }
    let target_dir = matches!(target.slot(carrier), Some(Slot { entry: Some(Entry::Dir(..)), .. }));
    let mut acts = Vec::new();
    source.bring_up(Which::Source, carrier, &mut acts);
    acts.push(Act::Parents(Which::Target));
    let steps = plan::rename(plan::Rename {
        dir: source.is_dir(),
        source_below: source.something_below(carrier),
        target_dir,
        target_whiteout: target.whiteout(carrier),
        target_below: target.something_below(carrier),
        manner,
    });
    // what is seen below the copy is the entry it was copied from
    acts.extend(steps.into_iter().map(Act::Planned));
    Ok(Prepared { carrier, source: from.clone(), target: to.clone(), dir: false, acts })
}

fn prepare_exchange(world: &World<Id>, one: &Path, other: &Path, how: Carrier) -> Result<Prepared, Refusal> {
    let (source, target) = (Looked::at(world, one)?, Looked::at(world, other)?);
    let carrier = choose(how, policy::carrier, &source.candidates(), source.lowest().min(target.lowest()))?;
    if [&source, &target].iter().any(|side| side.is_dir() && !side.only_on(carrier)) {
        return Err(Refusal::CrossDevice);
    }
    let mut acts = Vec::new();
    source.bring_up(Which::Source, carrier, &mut acts);
    target.bring_up(Which::Target, carrier, &mut acts);
    let side = |looked: &Looked<'_>| plan::Side {
        dir: looked.is_dir(),
        whiteout: looked.whiteout(carrier),
        below: looked.something_below(carrier),
    };
    acts.extend(plan::exchange(side(&source), side(&target)).into_iter().map(Act::Planned));
    Ok(Prepared { carrier, source: one.clone(), target: other.clone(), dir: false, acts })
}

/// Does one step, as strictly as a disk would: whatever a system call would refuse is an error.
pub(crate) fn act(world: &mut World<Id>, prepared: &Prepared, act: Act) -> Result<(), String> {
    match act {
        Act::Parents(which) => bring_parents_up(world, prepared.carrier, parent(prepared, which)),
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

fn parent(prepared: &Prepared, which: Which) -> &[Name] {
    let path = path(prepared, which);
    &path[..path.len() - 1]
}

fn seen<'a>(view: &'a View<Id>, path: &[Name]) -> Option<&'a Seen<Id>> {
    let (name, dirs) = path.split_last()?;
    inside(view, dirs)?.get(name)
}

fn inside<'a>(view: &'a View<Id>, dirs: &[Name]) -> Option<&'a View<Id>> {
    dirs.iter().try_fold(view, |view, name| match view.get(name)? {
        Seen::Dir(_, inner) => Some(inner),
        Seen::Leaf(_) => None,
    })
}

fn bring_parents_up(world: &mut World<Id>, carrier: usize, dir: &[Name]) -> Result<(), String> {
    if dir.is_empty() {
        return Ok(());
    }
    let view = world.view();
    for depth in 1..=dir.len() {
        let Some(Seen::Dir(id, _)) = seen(&view, &dir[..depth]) else { return Err("no parent".into()) };
        let above = world.branches[carrier].root.at_mut(&dir[..depth - 1]).ok_or("ENOTDIR: above a parent")?;
        let slot = above.slots.entry(dir[depth - 1].clone()).or_default();
        match slot.entry {
            None => slot.entry = Some(Entry::Dir(*id, Dir::default())),
            Some(Entry::Dir(..)) => {}
            Some(Entry::Leaf(_)) => return Err("ENOTDIR: a parent's place on the carrier".into()),
        }
    }
    Ok(())
}

fn copy_up(world: &mut World<Id>, prepared: &Prepared, which: Which) -> Result<(), String> {
    let Some(Seen::Leaf(id)) = seen(&world.view(), path(prepared, which)).cloned() else {
        return Err("only what is seen and not a directory is copied up".into());
    };
    put_new(slot_mut(world, prepared, which)?, Entry::Leaf(id))
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
        Step::ClearMarks(which) => {
            let body = body_mut(world, prepared, which)?;
            body.opaque = false;
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
            if body.opaque || body.slots.values().any(|slot| slot.whiteout || slot.entry.is_some()) =>
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
