//! Carries changes out on worlds that are values, the way the file system does it on disks: observe with `resolve`,
//! choose the branch with `policy`, decide with `plan`, then do one step after the other.

mod act;
mod plain;

pub(crate) use act::act;
use harness::world::{Dir, Entry, Name, Slot, World};
pub(crate) use plain::expected;
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
