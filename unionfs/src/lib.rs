//! A union file system in user space: directories ("branches") stacked into one view, with the
//! semantics of AuFS and an on-disk form that is that of OCI image layers.
//!
//! ```text
//!   /mnt                a, b, c                                the union
//!   ────────────────────────────────────────────────────────
//!   branch 0  top=rw    a'           .wh.x                     takes every change
//!   branch 1  img=ro+wh      b            .wh.y                never changes
//!   branch 2  base=ro+wh a   b    c   x   y                    never changes
//! ```
//!
//! # Words
//!
//! A **branch** is one directory of the stack; branch 0 is the **top**, and *below* means a larger
//! index. An **entry** is what one branch holds under a **name**. A **whiteout** `.wh.NAME` hides
//! NAME in the branches below; a directory with the mark `.wh..wh..opq` is **opaque** and hides
//! everything below it. A directory that was renamed with what is below it has a **record** of where
//! that lies. What the branches say of a name is **found**; where the name lives is
//! **resolved**. The **stack** of an inode are the branches behind it. **Copy-up** brings an entry
//! to a writable branch before it is changed. A **plan** is a list of **steps** on one branch, the
//! **carrier**. An **inode** is an identity with a number, a **dentry** a name in a directory, a
//! **handle** an open file or directory of a caller.
//!
//! # Invariants
//!
//! - A read-only branch is never written, for anything. Its mount is cut off and made read-only.
//! - *What hides what* is stated once, in [`mod@union::resolve`]; lookup and listings both use it.
//!   What a record leads to is, too, in [`mod@union::redirect`].
//! - On disk: whiteout, act, clean up. An entry beats the whiteout beside it, so a daemon killed
//!   at any system call leaves the state before a change or after it. On a branch in the form of
//!   overlayfs ([`union::plan::overlay`]) the two take each other's place instead.
//! - Change disk first, memory last; all state is on disk when an operation returns.
//! - One object has one number ([`identity`]), the same for all its names, over copy-up, rename,
//!   hard links below ([`links`]) and remounts.
//! - One inode has one real file: a copy-up switches it for all handles at once ([`handle`]).
//! - Branches are reached by open directories and single names, never by paths, and no symbolic
//!   link in a branch is followed ([`branch::dir`]).
//! - A panic inside a request is EIO for that request ([`fuse`]).
//!
//! # Map
//!
//! Arrows point downwards only: `fuse → fs → handle → inode → branch → branch::dir`, and all of
//! them use [`union`], which uses nothing.
//!
//! | File | Question it answers |
//! |---|---|
//! | [`options`] | what did the user ask for: branch strings and `-o` words as values |
//! | [`process`] | a copy of this process, which becomes the daemon |
//! | [`mod@proc`] | where `/proc` is, for a daemon that outlives its root directory |
//! | [`mount`] | `/dev/fuse`, mount(2), and unmounting what is ours only |
//! | [`control`] | asking a running daemon: `runionfs show` |
//! | [`doctor`] | what this kernel and this user can do |
//! | [`diff`] | what the writable branches changed, from the branches alone |
//! | [`layer`] | the top as a layer of an OCI image, and back |
//! | [`init_branch`] | what a container has of its own between its top and its image |
//! | [`check`] | what is wrong in the bookkeeping of the writable branches |
//! | [`completions`] | what a shell completes of a command line |
//! | [`fuse`] | the transport and the adapter: the only module that knows the protocol, and the only one that replies |
//! | [`fs`] | the state, the lock order, and one file for each family of operations |
//! | [`handle`], [`inode`] | open files and directories; identity, names, lookup counts |
//! | [`backing`] | files that the kernel reads and writes itself |
//! | [`identity`], [`links`] | inode numbers; hard links that outlive a copy-up |
//! | [`branch`] | one branch, its work area, and calls that cannot leave a directory |
//! | [`acl`] | what a new entry inherits from a default ACL |
//! | [`union`] | the pure core: names, what hides what, plans, policy. No I/O |

#![deny(unsafe_code)]

pub mod acl;
pub mod backing;
pub mod branch;
mod caller;
pub mod check;
pub mod completions;
pub mod control;
mod cpus;
pub mod diff;
pub mod doctor;
pub mod fs;
pub mod fuse;
pub mod handle;
pub mod identity;
pub mod init_branch;
pub mod inode;
mod interrupt;
pub mod layer;
pub mod links;
pub mod mount;
mod mount_id;
pub mod options;
mod pool;
pub mod proc;
pub mod process;
mod sys;
pub mod union;
