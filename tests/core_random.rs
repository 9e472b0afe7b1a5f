//! The core on larger worlds: up to six branches, three names, three levels, and whole histories of changes, some of
//! them cut off after a random step, as a crash leaves a branch; what is left is the start of the next change.

#[path = "core/carry.rs"]
mod carry;
#[path = "core/check.rs"]
mod check;

use carry::{Carrier, Change, Path, act, prepare};
use check::{assert_change_is_right, assert_seen_as_the_reference_says};
use harness::world::{Access, Branch, Dir, Entry, Name, World};
use proptest::prelude::*;
use unionfs::union::plan::Manner;

/// One thing that a branch holds from the start.
#[derive(Debug, Clone)]
struct Held {
    branch: usize,
    at: Path,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Leaf,
    Dir,
    Opaque,
    Whiteout,
    /// A directory whose record says this.
    Moved(Path),
}

/// A change, and after which step the machine dies, if it does.
#[derive(Debug, Clone)]
struct Event {
    change: Change,
    dies_after: Option<usize>,
}

fn names() -> Vec<Name> {
    [b"a", b"b", b"c"].map(|name| name.to_vec()).to_vec()
}

fn path() -> impl Strategy<Value = Path> {
    prop::collection::vec(prop::sample::select(names()), 1..=3)
}

fn held() -> impl Strategy<Value = Vec<Held>> {
    let what = prop_oneof![
        3 => Just(What::Leaf),
        3 => Just(What::Dir),
        1 => Just(What::Opaque),
        2 => Just(What::Whiteout),
        1 => path().prop_map(What::Moved),
    ];
    let one = (0..6usize, path(), what).prop_map(|(branch, at, what)| Held { branch, at, what });
    prop::collection::vec(one, 0..40)
}

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let access = prop_oneof![3 => Just(Access::Writable), 2 => Just(Access::Whiteouts), 1 => Just(Access::Plain)];
    prop::collection::vec(access, 1..=6)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let manner = prop_oneof![4 => Just(Manner::Plain), 1 => Just(Manner::LeavingDevice)];
    let change = prop_oneof![
        2 => (path(), any::<bool>()).prop_map(|(at, dir)| Change::Create { at, dir }),
        3 => path().prop_map(|at| Change::Remove { at }),
        3 => (path(), path(), manner).prop_map(|(from, to, manner)| Change::Rename { from, to, manner }),
        1 => (path(), path()).prop_map(|(one, other)| Change::Exchange { one, other }),
    ];
    // the kernel answers a move of a name to itself without asking
    let change = change.prop_filter("moves to itself", |change| match change {
        Change::Rename { from, to, .. } => from != to,
        Change::Exchange { one, other } => one != other,
        Change::Create { .. } | Change::Remove { .. } => true,
    });
    let event = (change, prop::option::weighted(0.2, 0..5usize));
    prop::collection::vec(event.prop_map(|(change, dies_after)| Event { change, dies_after }), 0..30)
}

fn world(accesses: &[Access], held: &[Held]) -> World<u32> {
    let branches = accesses.iter().map(|access| Branch { access: *access, root: Dir::default() });
    let mut world = World { branches: branches.collect() };
    for (id, thing) in (0..).zip(held) {
        let branch = thing.branch % accesses.len();
        let what = match &thing.what {
            // a directory that is seen at two places must be one that nobody changes
            What::Moved(_) if accesses[branch + 1..].contains(&Access::Writable) => &What::Dir,
            what => what,
        };
        hold(&mut world.branches[branch].root, &thing.at, what, id * 10);
    }
    world
}

/// Puts a thing and the directories above it into a branch, where no file is in the way.
fn hold(root: &mut Dir<u32>, at: &[Name], what: &What, id: u32) {
    let (name, parents) = at.split_last().expect("a path");
    let mut dir = root;
    for (depth, parent) in (1..).zip(parents) {
        let slot = dir.slots.entry(parent.clone()).or_default();
        dir = match slot.entry.get_or_insert_with(|| Entry::Dir(id + depth, Dir::default())) {
            Entry::Dir(_, inner) => inner,
            Entry::Leaf(_) => return,
        };
    }
    let slot = dir.slots.entry(name.clone()).or_default();
    match what {
        What::Whiteout => slot.whiteout = true,
        What::Leaf => drop(slot.entry.get_or_insert(Entry::Leaf(id))),
        What::Dir | What::Opaque | What::Moved(_) => {
            if let Entry::Dir(_, inner) = slot.entry.get_or_insert(Entry::Dir(id, Dir::default())) {
                inner.opaque |= matches!(what, What::Opaque);
                if let What::Moved(record) = what {
                    inner.record = Some(record.clone());
                }
            }
        }
    }
}

/// The world after an event; the same one where the change is refused.
fn after(world: &World<u32>, event: &Event) -> World<u32> {
    let mut now = world.clone();
    if let Ok(prepared) = prepare(world, &event.change, Carrier::Policy) {
        let steps = event.dies_after.unwrap_or(usize::MAX);
        for step in prepared.acts.iter().take(steps) {
            act(&mut now, &prepared, *step).expect("checked before");
        }
    }
    now
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn larger_worlds_are_seen_as_the_reference_says(accesses in accesses(), held in held()) {
        assert_seen_as_the_reference_says(&world(&accesses, &held), &names());
    }

    #[test]
    fn histories_with_crashes_are_right_at_every_step(accesses in accesses(), held in held(), events in events()) {
        let mut now = world(&accesses, &held);
        for event in &events {
            // what a change refuses is part of what is checked
            let (Ok(()) | Err(_)) = assert_change_is_right(&now, &now.view(), &event.change);
            now = after(&now, event);
            assert_seen_as_the_reference_says(&now, &names());
        }
    }
}
