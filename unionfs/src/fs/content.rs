//! Small files come with their open: their content is put into the kernel's page cache before the
//! reply to OPEN, so that the read that follows is no request.
//!
//! What is put there must not be older than what is there. So it is only done
//! - for files of branches that are not written: each change of those begins with a copy-up, which waits for the
//!   gate that is held here;
//! - with the first handle ever, while the way to the content is chosen: the kernel has no page of the file
//!   yet, and nobody who could make one or hold its lock.

use std::cell::RefCell;
use std::sync::OnceLock;

use parking_lot::MutexGuard;
use rustix::fs::OFlags;

use super::Union;
use super::file::writes;
use crate::branch::stat::Stat;
use crate::handle::OpenFile;
use crate::inode::Inode;

/// Up to this size it costs less to copy a file than to ask once more.
const SMALL: usize = 32 << 10;

thread_local! {
    static CONTENT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Who takes the content of files.
#[derive(Default)]
pub(super) struct Taker(OnceLock<Box<TakeContent>>);

type TakeContent = dyn Fn(u64, &[u8]) + Send + Sync;

impl std::fmt::Debug for Taker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Taker")
    }
}

/// A file that nobody has opened before and nobody changes meanwhile.
pub(super) struct Untouched<'a> {
    taker: &'a TakeContent,
    _gate: MutexGuard<'a, ()>,
}

impl Union {
    /// Sets who takes the content of small files, told by inode number, before the reply to their
    /// first open. Only the first call counts.
    pub fn on_content(&self, take: impl Fn(u64, &[u8]) + Send + Sync + 'static) {
        if self.taker.0.set(Box::new(take)).is_err() {
            tracing::debug!("somebody takes the content of files already");
        }
    }

    /// Keeps the content of a file as it is, if it may come with this open.
    pub(super) fn untouched<'a>(&'a self, inode: &'a Inode, flags: OFlags) -> Option<Untouched<'a>> {
        let opened_before = inode.with(|state| std::mem::replace(&mut state.opened, true));
        if opened_before || writes(flags) || flags.contains(OFlags::DIRECT) || self.revalidates() {
            return None;
        }
        let taker = self.taker.0.get()?;
        let gate = inode.gate.try_lock()?;
        // asked under the gate: a copy-up may just have ended
        (!self.in_place(inode)).then_some(Untouched { taker, _gate: gate })
    }
}

impl Untouched<'_> {
    /// Hands the content over, if the file is small. An error is met again by who reads.
    pub(super) fn give(&self, open: &OpenFile) {
        let real = open.real();
        let size = Stat::of_file(&real.file).map_or(0, |stat| stat.size);
        let Some(size) = usize::try_from(size).ok().filter(|size| (1..=SMALL).contains(size)) else { return };
        CONTENT.with_borrow_mut(|content| {
            content.resize(SMALL, 0);
            if rustix::io::pread(&real.file, &mut content[..size], 0) == Ok(size) {
                (self.taker)(open.inode.ino, &content[..size]);
            }
        });
    }
}
