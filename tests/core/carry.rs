//! Carries changes out on worlds that are values, the way the file system does it on disks: observe with `resolve`,
//! choose the branch with `policy`, decide with `plan`, then do one step after the other.

use harness::world::{Dir, Entry, Name, Seen, Slot, View, World};
use unionfs::union::plan::{self, Manner, Merging, Moved, Step, Which};
use unionfs::union::policy::{self, Candidate};
use unionfs::union::redirect::{self, Branches, Place as Spot, Places};
use unionfs::union::{Below, BranchIndex, Cut, Found, Name as UnionName, Redirect, Resolved, resolve};

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

impl Change {
    /// The names that get another object.
    pub(crate) fn targets(&self) -> Vec<&Path> {
        match self {
            Change::Create { at, .. } => vec![at],
            Change::Remove { .. } => vec![],
            Change::Rename { to, .. } => vec![to],
            Change::Exchange { one, other } => vec![one, other],
        }
    }
}

/// Where a directory without content below would lie on the carrier, if under this name it had to be opaque.
pub(crate) fn must_be_opaque(before: &World<Id>, target: &Path, carrier: usize) -> Option<Path> {
    let looked = Looked::at(before, target).ok()?;
    let hidden = looked.whiteout(carrier) || looked.something_below(carrier);
    hidden.then(|| [looked.parent_on(carrier), vec![looked.name().clone()]].concat())
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
    /// Where the parents of both lie on the carrier, once they are there.
    pub(crate) parents: [Path; 2],
    /// What the records of both say.
    pub(crate) records: [Option<Path>; 2],
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

/// A union directory: the directories of branches that make it, the lowest branch on which a new entry in it would
/// be seen, and the lowest one to which it can be brought up under its name.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) places: Places<Path>,
    lowest: Option<usize>,
    named: usize,
}

fn branch_index(branch: usize) -> BranchIndex {
    BranchIndex(u16::try_from(branch).expect("few branches"))
}

fn below(opaque: bool) -> Below {
    if opaque { Below::Hidden } else { Below::Merges }
}

/// One branch's word on a name in a directory of it.
pub(crate) fn word(dir: &Dir<Id>, name: &Name, heeds_whiteouts: bool) -> Found {
    let Some(slot) = dir.slots.get(name) else { return Found::Nothing };
    let entry = match &slot.entry {
        None => Found::Nothing,
        Some(Entry::Leaf(_)) => Found::Leaf,
        Some(Entry::Dir(_, inner)) if inner.record.is_some() && !inner.opaque && heeds_whiteouts => {
            Found::Dir(Below::Elsewhere)
        }
        Some(Entry::Dir(_, inner)) => Found::Dir(below(inner.opaque && heeds_whiteouts)),
    };
    if slot.whiteout && heeds_whiteouts { entry.with_whiteout() } else { entry }
}

fn record_of(dir: &Dir<Id>, name: &Name) -> Option<Redirect> {
    match &dir.slots.get(name)?.entry {
        Some(Entry::Dir(_, inner)) => Redirect::path(&inner.record.as_ref()?.join(&b'/')),
        _ => None,
    }
}

/// A world whose records are followed; a directory of a branch is its path there.
struct Reader<'a>(&'a World<Id>);

impl Branches for Reader<'_> {
    type Dir = Path;
    type Error = std::convert::Infallible;

    fn roots_below(&self, branch: BranchIndex) -> Result<Vec<(BranchIndex, Path)>, Self::Error> {
        Ok(roots(self.0, branch.get() + 1).into_iter().map(|index| (branch_index(index), Path::new())).collect())
    }

    fn word(
        &self,
        branch: BranchIndex,
        dir: &Path,
        name: UnionName<'_>,
    ) -> Result<(Found, Option<Redirect>), Self::Error> {
        let of = &self.0.branches[branch.get()];
        let body = of.root.at(dir).expect("a directory of the stack");
        let name = name.as_bytes().to_vec();
        Ok((word(body, &name, of.access.heeds_whiteouts()), record_of(body, &name)))
    }

    fn endless(&self) -> Self::Error {
        unreachable!("worlds are small")
    }

    fn open(&self, _branch: BranchIndex, dir: &Path, name: UnionName<'_>) -> Result<Path, Self::Error> {
        Ok([dir.as_slice(), &[name.as_bytes().to_vec()]].concat())
    }
}

/// The branches from one on, down to the first whose root is opaque.
fn roots(world: &World<Id>, first: usize) -> Vec<usize> {
    let opaque = |branch: &usize| {
        let of = &world.branches[*branch];
        of.root.opaque && of.access.heeds_whiteouts()
    };
    let mut roots: Vec<usize> = (first..world.branches.len()).collect();
    if let Some(last) = roots.iter().position(opaque) {
        roots.truncate(last + 1);
    }
    roots
}

fn infallible<T>(result: Result<T, std::convert::Infallible>) -> T {
    result.unwrap_or_else(|never| match never {})
}

fn union_name(name: &Name) -> UnionName<'_> {
    UnionName::new(name).expect("worlds have good names")
}

/// Looks a name up in a directory; of a directory that is found, the branches that are not behind a record.
pub(crate) fn look_up(world: &World<Id>, places: &Places<Path>, name: &Name) -> Resolved {
    let reader = Reader(world);
    infallible(resolve(places.stack.iter().map(|place| {
        let (found, _) = reader.word(place.branch, &place.dir, union_name(name))?;
        Ok((place.branch, found))
    })))
}

/// The directory of a name in a directory.
fn enter(world: &World<Id>, here: &Place, name: &Name) -> Result<Place, Refusal> {
    let cut = match look_up(world, &here.places, name) {
        Resolved::Missing { .. } => return Err(Refusal::NoEnt),
        Resolved::Leaf(_) => return Err(Refusal::NotDir),
        Resolved::Dir { cut, .. } => cut,
    };
    let places = infallible(redirect::step(&Reader(world), &here.places, union_name(name)));
    let (lowest, named) = match cut {
        None => (here.lowest, here.named),
        // what is behind the record is seen wherever it is
        Some(Cut::Elsewhere(branch)) if places.stack.iter().any(|place| place.branch > branch) => {
            (Some(places.lowest_seen.get()), here.named.min(branch.get()))
        }
        Some(Cut::Elsewhere(branch)) => (here.lowest.min(Some(branch.get())), here.named.min(branch.get())),
        Some(cut) => (here.lowest.min(cut.lowest_seen().map(BranchIndex::get)), here.named),
    };
    Ok(Place { places, lowest, named })
}

/// The union directory at a path.
pub(crate) fn place(world: &World<Id>, dir: &[Name]) -> Result<Place, Refusal> {
    let spot = |branch| Spot { branch: branch_index(branch), dir: Path::new(), path: Vec::new() };
    let roots = roots(world, 0);
    let last = *roots.last().expect("a world has branches");
    // without an opaque mark, what is made on any branch is seen
    let places = Places { stack: roots.into_iter().map(spot).collect(), lowest_seen: branch_index(last) };
    let mut here = Place { places, lowest: Some(last), named: world.branches.len() - 1 };
    for name in dir {
        here = enter(world, &here, name)?;
    }
    Ok(here)
}

impl Place {
    fn on(&self, branch: usize) -> Option<&Path> {
        self.places.stack.iter().find(|place| place.branch.get() == branch).map(|place| &place.dir)
    }

    /// Whether the directory is on a branch, or can be brought up to it under its name.
    fn reaches(&self, branch: usize) -> bool {
        self.on(branch).is_some() || branch <= self.named
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
        let found = look_up(world, &place.places, name);
        Ok(Looked { world, path, place, found })
    }

    fn name(&self) -> &'a Name {
        self.path.last().expect("a change names something")
    }

    fn parent(&self) -> &'a [Name] {
        &self.path[..self.path.len() - 1]
    }

    /// Where the directory lies on the carrier, now or once it was brought up.
    fn parent_on(&self, carrier: usize) -> Path {
        self.place.on(carrier).cloned().unwrap_or_else(|| self.parent().to_vec())
    }

    fn something_below(&self, carrier: usize) -> bool {
        look_up(self.world, &self.place.places.below(branch_index(carrier)), self.name()).topmost().is_some()
    }

    fn slot(&self, carrier: usize) -> Option<&'a Slot<Id>> {
        self.world.branches[carrier].root.at(self.place.on(carrier)?)?.slots.get(self.name())
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
                writable: of.access == harness::world::Access::Writable && self.place.reaches(branch),
                has_parent: self.place.on(branch).is_some(),
            })
            .collect()
    }

    /// Candidates that can hold this name and another one.
    fn candidates_with(&self, other: &Looked<'_>) -> Vec<Candidate> {
        let mut candidates = self.candidates();
        candidates.iter_mut().for_each(|candidate| candidate.writable &= other.place.reaches(candidate.branch.get()));
        candidates
    }

    /// What this is to a rename on the carrier, where it will have been brought up.
    fn moved(&self, carrier: usize) -> Moved {
        let Resolved::Dir { cut, .. } = &self.found else { return Moved::Leaf };
        if *cut == Some(Cut::Elsewhere(branch_index(carrier))) {
            return Moved::Dir(Merging::ByRecord);
        }
        let dir = enter(self.world, &self.place, self.name()).expect("it is a directory");
        let merges = dir.places.stack.iter().any(|place| place.branch.get() > carrier);
        Moved::Dir(if merges { Merging::ByName } else { Merging::Nothing })
    }

    /// Its place in the union of the branches below the carrier.
    fn place_below(&self, carrier: usize) -> Path {
        let root = &self.world.branches[carrier].root;
        let real = [self.parent_on(carrier), vec![self.name().clone()]].concat();
        let mut place = Path::new();
        for (depth, name) in real.iter().enumerate() {
            place.push(name.clone());
            let body = if depth + 1 < real.len() { root.at(&real[..=depth]) } else { None };
            if let Some(record) = body.filter(|body| !body.opaque).and_then(|body| body.record.clone()) {
                place = record;
            }
        }
        place
    }

    fn is_dir(&self) -> bool {
        matches!(self.found, Resolved::Dir { .. })
    }

    fn bring_up(&self, which: Which, carrier: usize, acts: &mut Vec<Act>) {
        acts.push(Act::Parents(which));
        match &self.found {
            Resolved::Leaf(branch) if branch.get() != carrier => acts.push(Act::CopyUp(which)),
            Resolved::Dir { stack, .. } if stack[0].get() != carrier => acts.push(Act::CopyUp(which)),
            _ => {}
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
    Ok(prepared(carrier, (&target, None), (&target, None), dir, acts))
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
    Ok(prepared(carrier, (&target, None), (&target, None), false, acts))
}

fn prepare_rename(
    world: &World<Id>,
    from: &Path,
    to: &Path,
    manner: Manner,
    how: Carrier,
) -> Result<Prepared, Refusal> {
    let (source, target) = (Looked::at(world, from)?, Looked::at(world, to)?);
    let carrier = choose(how, policy::carrier, &source.candidates_with(&target), source.lowest().min(target.lowest()))?;
    reachable(&[&source, &target], carrier)?;
    let moved = source.moved(carrier);
    let cut = match target.found {
        Resolved::Dir { cut, .. } => cut,
        Resolved::Leaf(_) | Resolved::Missing { .. } => None,
    };
    let target_dir = matches!(target.slot(carrier), Some(Slot { entry: Some(Entry::Dir(..)), .. }));
    let mut acts = Vec::new();
    source.bring_up(Which::Source, carrier, &mut acts);
    acts.push(Act::Parents(Which::Target));
    let steps = plan::rename(plan::Rename {
        source: moved,
        source_below: source.something_below(carrier),
        target_dir,
        target_record: cut == Some(Cut::Elsewhere(branch_index(carrier))),
        target_whiteout: target.whiteout(carrier),
        target_below: target.something_below(carrier),
        manner,
    });
    // what is seen below the copy is the entry it was copied from
    acts.extend(steps.into_iter().map(Act::Planned));
    Ok(prepared(carrier, (&source, Some(moved)), (&target, None), false, acts))
}

fn prepare_exchange(world: &World<Id>, one: &Path, other: &Path, how: Carrier) -> Result<Prepared, Refusal> {
    let (source, target) = (Looked::at(world, one)?, Looked::at(world, other)?);
    let carrier = choose(how, policy::carrier, &source.candidates_with(&target), source.lowest().min(target.lowest()))?;
    reachable(&[&source, &target], carrier)?;
    let both = [source.moved(carrier), target.moved(carrier)];
    let mut acts = Vec::new();
    source.bring_up(Which::Source, carrier, &mut acts);
    target.bring_up(Which::Target, carrier, &mut acts);
    let side = |looked: &Looked<'_>, moved: Moved| plan::Side {
        moved,
        whiteout: looked.whiteout(carrier),
        below: looked.something_below(carrier),
    };
    acts.extend(plan::exchange(side(&source, both[0]), side(&target, both[1])).into_iter().map(Act::Planned));
    Ok(prepared(carrier, (&source, Some(both[0])), (&target, Some(both[1])), false, acts))
}

/// A carrier that was forced on a change may be one to which its directories cannot be brought up.
fn reachable(names: &[&Looked<'_>], carrier: usize) -> Result<(), Refusal> {
    if names.iter().all(|name| name.place.reaches(carrier)) { Ok(()) } else { Err(Refusal::ReadOnly) }
}

fn prepared(
    carrier: usize,
    source: (&Looked<'_>, Option<Moved>),
    target: (&Looked<'_>, Option<Moved>),
    dir: bool,
    acts: Vec<Act>,
) -> Prepared {
    let record = |(looked, moved): (&Looked<'_>, Option<Moved>)| {
        (moved == Some(Moved::Dir(Merging::ByName))).then(|| looked.place_below(carrier))
    };
    Prepared {
        carrier,
        source: source.0.path.to_vec(),
        target: target.0.path.to_vec(),
        parents: [source.0.parent_on(carrier), target.0.parent_on(carrier)],
        records: [record(source), record(target)],
        dir,
        acts,
    }
}

/// Does one step, as strictly as a disk would: whatever a system call would refuse is an error.
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
