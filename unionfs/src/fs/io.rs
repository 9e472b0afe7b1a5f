//! How the kernel gets at the content of files: by asking us, with what it remembers, or by itself
//! (passthrough).
//!
//! The kernel lets the handles of one inode be of one kind only, and of one real file. So the way is
//! chosen with an inode's first handle, and stays until its last is closed:
//!
//! - A file of the topmost writable branch is given to the kernel. It stays on that branch for good,
//!   for nothing is copied up from there.
//! - So is every file of a union that nobody writes, if mounts are to share its pages (`share=on`).
//! - A file of any other branch is read and written through us. When it is copied up while it is
//!   open, it stays so: all handles have one real file from then on (rule 31).
//! - A file with set-id bits is written through us, who know whether the writer may keep them. Bits
//!   that appear while the kernel has a file go with the next write of a handle that is older than
//!   they are, root's, too: see [`Backings`].
//!
//! What the kernel writes itself, it does not always notice: a mapping moves the times of the real
//! file only. So attributes of such a file are not to be remembered ([`State::written`]), until it is
//! known that nobody has it open for writing or mapped.
//!
//! [`State::written`]: crate::inode::State::written

use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::file::{Opened, writes};
use super::names::is_ours;
use super::{Stale, Union};
use crate::backing::Backings;
use crate::branch::dir::open_again;
use crate::branch::kept::Kept;
use crate::branch::rights::rights;
use crate::branch::stat::{Kind, Stat};
use crate::branch::{Branch, is_stacked};
use crate::handle::{FileHandle, OpenFile, Real, Way, Writer};
use crate::inode::Inode;
use crate::options::{Opens, Options, Share, Wish};
use crate::sys::has_no_writer;
use crate::union::BranchIndex;

/// Files that are given to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Given {
    #[default]
    None,
    /// Those of the topmost writable branch.
    Of(BranchIndex),
    /// All, of a union that nobody writes.
    All,
}

impl Given {
    fn has(self, branch: BranchIndex) -> bool {
        match self {
            Given::None => false,
            Given::Of(given) => given == branch,
            Given::All => true,
        }
    }
}

/// What the kernel gets at by itself.
#[derive(Debug, Default)]
pub(super) struct Data {
    /// The files that it is given.
    given: Given,
    /// Whether they may be those of yet another file system.
    stacked: bool,
    backings: OnceLock<Arc<Backings>>,
    /// The kernel gathers writes.
    writeback: AtomicBool,
    /// The kernel lets nobody open a file for writing.
    read_only: AtomicBool,
    /// The kernel looks at modes only, before Linux 4.9.
    ignores_acls: AtomicBool,
    /// Counts opens that let the kernel write by itself.
    opens: AtomicU32,
}

impl Data {
    /// What can be given to the kernel of these branches; fails with the branch that cannot be asked.
    pub(super) fn of(branches: &[Branch], options: &Options) -> Result<Data, (usize, Errno)> {
        let top = branches.iter().position(|branch| branch.work.is_some());
        let shares = match options.share {
            Share::On => true,
            Share::Auto => options.open == Opens::Message,
            Share::Off => false,
        };
        let (given, range) = match top {
            _ if options.passthrough == Wish::Off => return Ok(Data::default()),
            Some(top) => (Given::Of(BranchIndex(u16::try_from(top).unwrap_or(u16::MAX))), top..top + 1),
            None if shares && !branches.iter().any(Branch::in_place) => (Given::All, 0..branches.len()),
            None => return Ok(Data::default()),
        };
        let mut stacked = false;
        for at in range {
            stacked |= is_stacked(&branches[at].root).map_err(|errno| (at, errno))?;
        }
        Ok(Data { given, stacked, ..Data::default() })
    }

    /// What tells an open from others; never the same twice but after 2^32 of them.
    fn next_open(&self) -> NonZeroU32 {
        NonZeroU32::new(self.opens.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU32::MAX)
    }
}

impl Union {
    /// How many file systems may be stacked below this one for the kernel to be given files
    /// (`max_stack_depth` of FUSE_INIT); nothing if it is to be given none.
    pub fn passthrough_depth(&self) -> Option<u32> {
        let wanted = self.data.given != Given::None && Backings::are_permitted();
        wanted.then_some(if self.data.stacked { 2 } else { 1 })
    }

    /// From now on files are given to the kernel by these. Only the first call counts.
    pub fn use_backings(&self, backings: Arc<Backings>) {
        if self.data.backings.set(backings).is_err() {
            tracing::debug!("files are given to the kernel already");
        }
    }

    /// Whether the kernel shall gather writes. Not where branches change directly: it would believe
    /// in its own size and times of a file.
    pub fn wants_writeback(&self) -> bool {
        self.options.writeback == Wish::Auto && !self.revalidates() && self.writable().next().is_some()
    }

    /// The mount is read-only, so that nobody opens a file for writing. Said before it is served.
    pub fn is_mounted_read_only(&self) {
        self.data.read_only.store(true, Ordering::Relaxed);
    }

    /// Whether files are to be opened without a request: of a union that nobody writes, now or later,
    /// whose files we can open whenever they are read.
    pub fn wants_no_open(&self) -> bool {
        let asked = match self.options.open {
            Opens::Message => false,
            Opens::None => true,
            Opens::Auto => self.passthrough_depth().is_none(),
        };
        let unwritten = !self.branches.iter().any(Branch::in_place) && !self.revalidates();
        let (read_only, rights) = (self.data.read_only.load(Ordering::Relaxed), rights());
        asked && unwritten && read_only && (rights.all || rights.opens_all)
    }

    /// The kernel looks at modes only. Said before it is served.
    pub fn acls_are_ignored(&self) {
        self.data.ignores_acls.store(true, Ordering::Relaxed);
    }

    /// Whether the kernel looks at modes only.
    pub(super) fn kernel_ignores_acls(&self) -> bool {
        self.data.ignores_acls.load(Ordering::Relaxed)
    }

    /// The kernel gathers writes from now on.
    pub fn use_writeback(&self) {
        self.data.writeback.store(true, Ordering::Relaxed);
    }

    /// Whether the kernel gathers writes.
    pub(super) fn gathers_writes(&self) -> bool {
        self.data.writeback.load(Ordering::Relaxed)
    }

    /// Whether the kernel may have gathered writes to the file of a handle.
    pub fn may_have_gathered(&self, handle: u64) -> bool {
        self.gathers_writes() && self.handles.file(handle).is_ok_and(|handle| handle.open.has_writers())
    }

    /// Makes the kernel write what it has gathered of the file of a handle, where only the real one can
    /// be asked. It waits until we have done that.
    pub fn fetch_gathered(&self, handle: u64) {
        if let Ok(handle) = self.handles.file(handle) {
            self.tell(handle.open.inode.ino, Stale::Content);
        }
    }

    /// Adds a handle to an open file; `made` are the attributes of one that was made for it just now.
    pub(super) fn add_handle(&self, open: Arc<OpenFile>, flags: OFlags, made: Option<&Stat>) -> Result<Opened, Errno> {
        let mut first = false;
        let inode = Arc::clone(&open.inode);
        let untouched = self.untouched(&inode, flags);
        let way = open.way(|way| {
            first = way.is_none();
            let chosen = self.choose_way(way, &open, flags, made)?;
            if let (true, Way::Cached, Some(untouched)) = (first, &chosen, &untouched) {
                untouched.give(&open);
            }
            Ok(chosen)
        })?;
        drop(untouched);
        let writes = writes(flags);
        let (handle, opened) = match way {
            Way::Cached => {
                let keep_cache = self.may_keep_cache(&open)?;
                let writer = (writes && self.gathers_writes()).then(|| Writer::new(&open));
                (FileHandle { open, writes, writer }, Opened { keep_cache, ..Opened::default() })
            }
            Way::Passthrough(backing) => {
                let writer = writes.then(|| self.note_writer(&open, made.is_some()));
                // the bits are younger than the first handle; whether they may stay is known to us alone
                let direct = writes && !first && has_set_id(&open.real());
                let opened = Opened { backing: Some(backing.number()), direct, ..Opened::default() };
                (FileHandle { open, writes, writer }, opened)
            }
        };
        let handle = self.handles.add_file(handle);
        if writes && self.gives_way.load(Ordering::SeqCst) {
            self.handles.remove_file(handle);
            return Err(Errno::ROFS);
        }
        Ok(Opened { handle, ..opened })
    }

    fn choose_way(
        &self,
        chosen: Option<&Way>,
        open: &OpenFile,
        flags: OFlags,
        made: Option<&Stat>,
    ) -> Result<Way, Errno> {
        let real = open.real();
        // the kernel would fail with EIO where the branch cannot do it
        let direct = || !flags.contains(OFlags::DIRECT) || takes_direct(&real);
        match chosen {
            Some(Way::Passthrough(_)) if !direct() => Err(Errno::INVAL),
            Some(way) => Ok(way.clone()),
            None => {
                let backings = self.data.backings.get().filter(|backings| !backings.are_refused());
                let guarded = || made.map_or_else(|| is_guarded(&real), has_set_id_bits);
                let for_kernel = || self.is_for_kernel(&open.inode, &real) && !guarded() && direct();
                let Some(backings) = backings.filter(|_| for_kernel()) else {
                    return Ok(Way::Cached);
                };
                Ok(backings.open(real.file.as_fd()).map_or_else(
                    |errno| {
                        tracing::debug!(%errno, ino = open.inode.ino, "the kernel does not take a file");
                        Way::Cached
                    },
                    |backing| Way::Passthrough(Arc::new(backing)),
                ))
            }
        }
    }

    fn is_for_kernel(&self, inode: &Inode, real: &Real) -> bool {
        // of bits that were kept in the place of real ones the kernel knows nothing
        let plain = inode.kind == Kind::File && !real.form.kept.is_some_and(Kept::is_marked);
        plain && real.branch.is_some_and(|branch| self.data.given.has(branch))
    }

    /// The kernel writes to an open file by itself from now on; it forgets what it knew of it. Of one
    /// that was `made` just now it knows nothing, unless somebody has found it meanwhile.
    fn note_writer(&self, open: &Arc<OpenFile>, made: bool) -> Writer {
        let gate = open.inode.gate.lock();
        let writer = Writer::new(open);
        let number = self.data.next_open();
        let before = open.inode.with(|state| state.written.replace(number));
        drop(gate);
        if before.is_none() && !(made && open.inode.is_looked_up_once()) {
            self.tell_stale(open.inode.ino);
        }
        writer
    }

    /// Lets the kernel remember attributes again, if nobody can change them unseen any more.
    pub(super) fn settle_written(&self, inode: &Arc<Inode>) {
        let Some(number) = inode.with(|state| state.written) else { return };
        match self.is_unwritten(inode) {
            // an open in this moment has another number
            Ok(true) => inode.with(|state| state.written = state.written.filter(|now| *now != number)),
            Ok(false) => {}
            // they are asked for each time
            Err(errno) => tracing::debug!(%errno, ino = inode.ino, "asking who writes to a file"),
        }
    }

    /// Whether nobody has the real file open for writing, or mapped so.
    fn is_unwritten(&self, inode: &Arc<Inode>) -> Result<bool, Errno> {
        // the kernel opens the real file after our answer to an open, and fails with EAGAIN if it is not
        // to wait and the file is leased in that moment: so no open is noted before the lease has ended
        let Some(_gate) = inode.gate.try_lock() else { return Ok(false) };
        let open = inode.open_file();
        if self.data.stacked || open.as_ref().is_some_and(|open| open.has_writers()) {
            return Ok(false);
        }
        match open.map(|open| open.real()) {
            // by ourselves, until it is closed
            Some(real) if real.writable => Ok(false),
            Some(real) => has_no_writer(real.file.as_fd()),
            None => {
                let file = self.by_name(inode, |dir, name| {
                    let file = dir.open_file(name, OFlags::RDONLY)?;
                    Ok(is_ours(inode, Stat::of_file(&file)?.id).then_some(file))
                });
                // without a name and closed, or changed directly
                let Ok(file) = file else { return Ok(false) };
                has_no_writer(file.as_fd())
            }
        }
    }

    /// Cached pages may stay, unless somebody changed the file behind our back.
    fn may_keep_cache(&self, open: &OpenFile) -> Result<bool, Errno> {
        if open.inode.with(|state| state.written.is_some()) {
            // a mapping of the time when the kernel had the file
            return Ok(false);
        }
        if !self.revalidates() {
            return Ok(true);
        }
        let stat = Stat::of_file(&open.real().file)?;
        let mut seen = stat.size.wrapping_mul(31);
        for time in [stat.mtime, stat.ctime] {
            seen = seen.wrapping_mul(1_000_003).wrapping_add(time.sec as u64);
            seen = seen.wrapping_mul(1_000_003).wrapping_add(time.nsec.into());
        }
        Ok(open.inode.with(|state| std::mem::replace(&mut state.seen, seen)) == seen)
    }
}

/// Whether a real file has set-id bits.
fn has_set_id(real: &Real) -> bool {
    Stat::of_file(&real.file).as_ref().map_or(true, has_set_id_bits)
}

/// Whether writes to a file must come to us: to take set-id bits away, or since a mapping that the kernel
/// makes of an append-only file could be stored to.
fn is_guarded(real: &Real) -> bool {
    Stat::of_file(&real.file).map_or(true, |stat| has_set_id_bits(&stat) || stat.guard.append_only)
}

fn has_set_id_bits(stat: &Stat) -> bool {
    stat.mode & 0o6000 != 0
}

/// Whether a real file can be read and written without the page cache.
fn takes_direct(real: &Real) -> bool {
    open_again(real.file.as_fd(), OFlags::RDONLY | OFlags::DIRECT).is_ok()
}
