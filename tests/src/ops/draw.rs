//! Operations drawn at random.
//!
//! The strategies are boxed: a tree of values is as large as its largest alternative, and many of them on a stack are
//! more than the stack of a test holds.

use proptest::prelude::*;

use super::pick::{directory_picks, file_picks, picks, places};
use super::{Act, Allocate, HANDLES, HandleUse, Node, Op, OpenHow, RenameHow, Times, Who, Xattr, XattrHow};
use crate::tree::link_targets;

/// Whatever a caller may do.
pub fn acts() -> impl Strategy<Value = Act> {
    let id = prop_oneof![6 => Just(0), 1 => Just(1_000)];
    let umask = prop_oneof![4 => Just(0o022), 1 => Just(0o077), 1 => Just(0)];
    let op = prop_oneof![
        5 => file_ops(),
        5 => name_ops(),
        3 => attribute_ops(),
        3 => handle_ops(),
    ];
    (id, umask, op).prop_map(|(id, umask, op)| Act { who: Who { id, umask }, op })
}

/// As [`acts`], with remounts in the middle.
pub fn acts_and_remounts() -> impl Strategy<Value = Act> {
    prop_oneof![40 => acts(), 1 => Just(by_root(Op::Remount))]
}

/// As [`acts`], with remounts, flushes and new tops in the middle.
pub fn acts_over_layers() -> impl Strategy<Value = Act> {
    let between = prop::sample::select(vec![Op::Remount, Op::Flush, Op::Layer]);
    prop_oneof![20 => acts(), 1 => between.prop_map(by_root)]
}

fn by_root(op: Op) -> Act {
    Act { who: Who { id: 0, umask: 0o022 }, op }
}

/// Changes that are one request to the file system each, so that a crash leaves the state before or after it.
pub fn single_changes() -> impl Strategy<Value = Act> {
    // the kernel may send a write in two requests where it meets the end of a page
    let pages = prop::sample::select(vec![0, 4_096, 12_288, 81_920]);
    let within_a_page = (pages, 0..2_000_u64, 1..2_000usize).prop_map(|(page, offset, length)| (page + offset, length));
    let op = prop_oneof![
        2 => (file_picks(), within_a_page).prop_map(|(at, (offset, length))| Op::Write { at, offset, length }),
        1 => (file_picks(), offsets()).prop_map(|(at, length)| Op::Truncate { at, length }),
        // most of what takes several steps is about names
        16 => name_ops(),
        2 => attribute_ops(),
        1 => Just(Op::Flush),
    ];
    op.prop_map(by_root)
}

/// Changes of every kind, and now and then the fsync of a file or directory.
pub fn work_and_syncs() -> impl Strategy<Value = Act> {
    let sync = prop_oneof![1 => Just(".".to_owned()), 6 => picks(), 2 => file_picks()];
    let op = prop_oneof![
        4 => file_ops(),
        8 => name_ops(),
        2 => attribute_ops(),
        2 => sync.prop_map(|at| Op::Sync { at }),
    ];
    op.prop_map(by_root)
}

fn modes() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0o644, 0o600, 0o666, 0o755, 0o777, 0o000, 0o4755, 0o2755, 0o2770, 0o1777])
}

fn offsets() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![0, 1, 50, 4_095, 4_096, 10_000, 80_000])
}

fn lengths() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 10, 300, 4_096, 20_000])
}

fn seconds() -> impl Strategy<Value = i64> {
    1_100_000_000..1_200_000_000_i64
}

fn open_hows() -> impl Strategy<Value = OpenHow> {
    prop::sample::select(vec![
        OpenHow::Read,
        OpenHow::Write,
        OpenHow::ReadWrite,
        OpenHow::Create,
        OpenHow::CreateExclusive,
        OpenHow::CreateTruncate,
        OpenHow::WriteTruncate,
        OpenHow::ReadTruncate,
        OpenHow::Append,
    ])
}

fn file_ops() -> BoxedStrategy<Op> {
    let write = prop_oneof![1 => Just(0), 2 => lengths()];
    let manners = vec![Allocate::Plain, Allocate::KeepSize, Allocate::PunchHole, Allocate::ZeroRange];
    prop_oneof![
        4 => (prop_oneof![2 => file_picks(), 1 => places()], open_hows(), modes(), write).prop_map(|(at, how, mode, write)| Op::Open { at, how, mode, write }),
        3 => (file_picks(), offsets(), lengths()).prop_map(|(at, offset, length)| Op::Write { at, offset, length }),
        2 => (file_picks(), lengths()).prop_map(|(at, length)| Op::Append { at, length }),
        3 => file_picks().prop_map(|at| Op::Read { at }),
        2 => (file_picks(), offsets()).prop_map(|(at, length)| Op::Truncate { at, length }),
        1 => (file_picks(), prop::sample::select(manners), offsets(), 1..9_000_u64)
            .prop_map(|(at, manner, offset, length)| Op::Allocate { at, manner, offset, length }),
        1 => (file_picks(), file_picks(), offsets(), lengths())
            .prop_map(|(from, to, offset, length)| Op::Copy { from, to, offset, length }),
    ]
    .boxed()
}

fn name_ops() -> BoxedStrategy<Op> {
    let kinds = vec![Node::File, Node::Fifo, Node::Socket, Node::Null];
    prop_oneof![
        4 => (places(), modes()).prop_map(|(at, mode)| Op::Mkdir { at, mode }),
        3 => picks().prop_map(|at| Op::Rmdir { at }),
        5 => file_picks().prop_map(|at| Op::Unlink { at }),
        2 => (places(), link_targets()).prop_map(|(at, target)| Op::Symlink { at, target }),
        3 => (file_picks(), places()).prop_map(|(from, to)| Op::Link { from, to }),
        4 => (picks(), picks(), rename_hows()).prop_map(|(from, to, how)| Op::Rename { from, to, how }),
        4 => (picks(), places(), rename_hows()).prop_map(|(from, to, how)| Op::Rename { from, to, how }),
        6 => moves(),
        2 => (places(), prop::sample::select(kinds), modes()).prop_map(|(at, kind, mode)| Op::Mknod { at, kind, mode }),
        2 => prop_oneof![picks(), Just(".".to_owned())].prop_map(|at| Op::List { at }),
        1 => picks().prop_map(|at| Op::Readlink { at }),
    ]
    .boxed()
}

/// Directories move, with what is in them: to a free name, into another, over an empty one, in each other's place.
fn moves() -> BoxedStrategy<Op> {
    let to = prop_oneof![4 => places(), 2 => directory_picks()];
    (directory_picks(), to, rename_hows()).prop_map(|(from, to, how)| Op::Rename { from, to, how }).boxed()
}

fn rename_hows() -> impl Strategy<Value = RenameHow> {
    prop_oneof![4 => Just(RenameHow::Plain), 1 => Just(RenameHow::NoReplace), 2 => Just(RenameHow::Exchange)]
}

fn attribute_ops() -> BoxedStrategy<Op> {
    let times = || {
        prop_oneof![
            2 => seconds().prop_map(Times::Old),
            1 => seconds().prop_map(Times::OldModification),
            1 => Just(Times::Now),
        ]
    };
    let owner = || prop_oneof![2 => Just(None), 1 => Just(Some(0)), 1 => Just(Some(1_000)), 1 => Just(Some(7))];
    let hows = prop_oneof![3 => Just(XattrHow::Any), 1 => Just(XattrHow::Create), 1 => Just(XattrHow::Replace)];
    prop_oneof![
        2 => (picks(), any::<bool>()).prop_map(|(at, follow)| Op::Stat { at, follow }),
        3 => (picks(), modes()).prop_map(|(at, mode)| Op::Chmod { at, mode }),
        2 => (picks(), 0..8_u32, owner()).prop_map(|(at, uid, gid)| Op::Chown { at, uid: Some(uid % 2 * 1_000), gid }),
        2 => (picks(), times(), any::<bool>()).prop_map(|(at, times, follow)| Op::Times { at, times, follow }),
        2 => (picks(), xattrs(), any::<u8>(), 0..200usize, hows)
            .prop_map(|(at, name, value, length, how)| Op::SetXattr { at, name, value, length, how }),
        1 => (picks(), xattrs()).prop_map(|(at, name)| Op::GetXattr { at, name }),
        1 => (picks(), xattrs()).prop_map(|(at, name)| Op::RemoveXattr { at, name }),
    ]
    .boxed()
}

fn xattrs() -> impl Strategy<Value = Xattr> {
    prop::sample::select(vec![Xattr::UserA, Xattr::UserLook, Xattr::Trusted, Xattr::AccessAcl, Xattr::DefaultAcl])
}

fn handle_ops() -> BoxedStrategy<Op> {
    let what = prop_oneof![
        3 => (offsets(), lengths()).prop_map(|(offset, length)| HandleUse::Read { offset, length }),
        3 => (offsets(), lengths()).prop_map(|(offset, length)| HandleUse::Write { offset, length }),
        1 => offsets().prop_map(|length| HandleUse::Truncate { length }),
        2 => Just(HandleUse::Stat),
        1 => modes().prop_map(|mode| HandleUse::Chmod { mode }),
        1 => Just(HandleUse::Sync),
    ];
    prop_oneof![
        4 => (0..HANDLES, file_picks(), open_hows()).prop_map(|(handle, at, how)| Op::Hold { handle, at, how }),
        8 => (0..HANDLES, what).prop_map(|(handle, what)| Op::Use { handle, what }),
        1 => (0..HANDLES).prop_map(|handle| Op::Close { handle }),
    ]
    .boxed()
}
