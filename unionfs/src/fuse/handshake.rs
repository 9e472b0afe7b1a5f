//! The first request: which version is spoken, and what the kernel is asked to do.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{
    InitIn, InitOut, LONG_INIT_OUT_MINOR, MAJOR, MIN_READ_BUFFER, MINOR, OLDEST_MINOR, SHORT_INIT_OUT, init, op,
};
use super::device::{Device, Reply};
use super::message::split;
use super::version::Cap;

/// Largest write request, in bytes.
pub(super) const MAX_WRITE: u32 = 1 << 20;
const MAX_BACKGROUND: u16 = 64;
const PAGE: u32 = 4096;
/// The same where the kernel cannot be told a number of pages: so many take all that there are.
const SMALL_WRITE: u32 = 32 * PAGE;

/// What we would like the kernel to do, where it can.
///
/// Not FUSE_ATOMIC_O_TRUNC: with it `open(O_RDONLY | O_TRUNC)` of a running program truncates it
/// before the kernel says ETXTBSY. Without it the truncation comes as a request of its own, only
/// for a file that is there already.
const WANTED: [(u64, &str); 10] = [
    (init::ASYNC_READ, "async_read"),
    (init::BIG_WRITES, "big_writes"),
    (init::PARALLEL_DIROPS, "parallel_dirops"),
    (init::DO_READDIRPLUS, "readdirplus"),
    (init::READDIRPLUS_AUTO, "readdirplus_auto"),
    (init::DONT_MASK, "dont_mask"),
    (init::POSIX_ACL, "posix_acl"),
    (init::ASYNC_DIO, "async_dio"),
    (init::MAX_PAGES, "max_pages"),
    (init::HANDLE_KILLPRIV_V2, "handle_killpriv_v2"),
];

/// What a union would like to be.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wishes {
    /// Branches may change on their own.
    pub(super) revalidates: bool,
    /// The kernel is given files, and so many file systems may be stacked below this one.
    pub(super) passthrough_depth: Option<u32>,
    /// The kernel gathers writes where it is given no files.
    pub(super) writeback: bool,
    /// Files are opened without a request.
    pub(super) no_open: bool,
}

/// What came of it.
#[derive(Debug, Clone)]
pub(super) struct Agreed {
    /// The kernel's version, and the names of the features that are on.
    pub(super) features: Vec<String>,
    pub(super) open_dir: OpenDir,
    /// Whether the kernel takes files.
    pub(super) passthrough: bool,
    /// Whether the kernel gathers writes.
    pub(super) writeback: bool,
    /// Whether the kernel heeds POSIX ACLs.
    pub(super) acls: bool,
    /// Whether opens are answered with ENOSYS, so that the kernel asks no more.
    pub(super) no_open: bool,
}

/// What the kernel is told when a directory is opened. No handle is needed to read one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenDir {
    /// Not to ask; from then on it keeps listings by itself.
    Never,
    /// To keep listings, where it has to ask each time.
    Cached,
    /// To read listings anew: branches change directly, or the kernel keeps none.
    Fresh,
}

/// Answers the kernel's first request.
///
/// # Errors
/// That the kernel is too old, and what reading the device answers.
pub(super) fn shake_hands(device: &Arc<Device>, wishes: Wishes, cap: Cap) -> io::Result<Agreed> {
    let (unique, asked) = first_request(device)?;
    let reply = Reply::new(device, unique);
    if asked.major != MAJOR || asked.minor < OLDEST_MINOR {
        drop(reply.error(Errno::PROTO));
        let (major, minor) = (asked.major, asked.minor);
        return Err(io::Error::other(format!("its FUSE protocol is {major}.{minor}, and 7.{OLDEST_MINOR} is needed")));
    }
    let (answer, agreed) = agree(&cap.lowered(&asked), wishes);
    let length = if answer.minor < LONG_INIT_OUT_MINOR { SHORT_INIT_OUT } else { size_of::<InitOut>() };
    drop(reply.parts(&[&answer.as_bytes()[..length]]));
    Ok(agreed)
}

/// Reads the kernel's first request, and who asks it.
///
/// # Errors
/// What reading the device answers.
pub(super) fn first_request(device: &Arc<Device>) -> io::Result<(u64, InitIn)> {
    let mut buffer = vec![0; MIN_READ_BUFFER];
    loop {
        let length = match device.read(&mut buffer) {
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => {
                device.wait(None);
                continue;
            }
            length => length?,
        };
        let Some((header, arguments)) = split(&buffer[..length]) else { continue };
        if header.opcode == op::INIT {
            return Ok((header.unique, arguments.take_short::<InitIn>()));
        }
        drop(Reply::new(device, header.unique));
    }
}

fn agree(asked: &InitIn, wishes: Wishes) -> (InitOut, Agreed) {
    let offered = u64::from(asked.flags) | u64::from(asked.flags2) << 32;
    let mut features = vec![format!("protocol={}.{}", asked.major, asked.minor)];
    let mut flags = 0;
    let extra: &[_] = match wishes.revalidates {
        true => &[(init::AUTO_INVAL_DATA, "auto_inval_data")],
        false => &[(init::CACHE_SYMLINKS, "cache_symlinks"), (init::NO_OPENDIR_SUPPORT, "no_opendir")],
    };
    let open_dir = match wishes.revalidates {
        true => OpenDir::Fresh,
        false if offered & init::NO_OPENDIR_SUPPORT != 0 => OpenDir::Never,
        // it came with the flag for links, and has none
        false if offered & init::CACHE_SYMLINKS != 0 => OpenDir::Cached,
        false => OpenDir::Fresh,
    };
    for &(flag, name) in WANTED.iter().chain(extra) {
        if offered & flag != 0 {
            flags |= flag;
            features.push(name.to_owned());
        }
    }
    let depth = wishes.passthrough_depth.filter(|_| offered & init::PASSTHROUGH != 0);
    if depth.is_some() {
        flags |= init::PASSTHROUGH;
        features.push("passthrough".to_owned());
    }
    // the kernel does one or the other
    let writeback = wishes.writeback && depth.is_none() && offered & init::WRITEBACK_CACHE != 0;
    if writeback {
        flags |= init::WRITEBACK_CACHE;
        features.push("writeback_cache".to_owned());
    }
    let no_open = wishes.no_open && offered & init::NO_OPEN_SUPPORT != 0;
    if no_open {
        features.push("no_open".to_owned());
    }
    if offered & init::INIT_EXT != 0 {
        flags |= init::INIT_EXT;
    }
    let max_write = if offered & init::MAX_PAGES == 0 { SMALL_WRITE } else { MAX_WRITE };
    let answer = InitOut {
        major: MAJOR,
        minor: MINOR.min(asked.minor),
        max_readahead: asked.max_readahead,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write,
        time_gran: 1,
        max_pages: if offered & init::MAX_PAGES == 0 { 0 } else { (max_write / PAGE) as u16 },
        max_stack_depth: depth.unwrap_or_default(),
        ..InitOut::default()
    };
    let (passthrough, acls) = (depth.is_some(), flags & init::POSIX_ACL != 0);
    (answer, Agreed { features, open_dir, passthrough, writeback, acls, no_open })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_that_the_kernel_cannot_do() {
        let old = InitIn { major: 7, minor: 23, flags: init::ASYNC_READ as u32, ..InitIn::default() };
        let (answer, agreed) = agree(&old, Wishes { passthrough_depth: Some(1), ..Wishes::default() });
        assert_eq!((answer.minor, answer.flags, answer.flags2), (23, init::ASYNC_READ as u32, 0));
        assert_eq!(agreed.features, ["protocol=7.23", "async_read"]);
        assert_eq!((agreed.open_dir, agreed.passthrough, answer.max_stack_depth), (OpenDir::Fresh, false, 0));
        assert_eq!((answer.max_write, answer.max_pages), (SMALL_WRITE, 0));
        let newer = InitIn { minor: 28, flags: (init::CACHE_SYMLINKS | init::MAX_PAGES) as u32, ..old };
        let (answer, agreed) = agree(&newer, Wishes::default());
        assert_eq!((agreed.open_dir, answer.max_write, answer.max_pages), (OpenDir::Cached, MAX_WRITE, 256));
        let new = InitIn { major: 7, minor: 99, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
        let (answer, agreed) = agree(&new, Wishes { revalidates: true, ..Wishes::default() });
        assert_eq!(answer.minor, MINOR);
        assert_eq!(u64::from(answer.flags) & init::CACHE_SYMLINKS, 0);
        assert!(agreed.features.iter().any(|feature| feature == "auto_inval_data"));
        assert_eq!(agreed.open_dir, OpenDir::Fresh);
        assert_eq!(agree(&new, Wishes::default()).1.open_dir, OpenDir::Never);
    }

    #[test]
    fn the_kernel_writes_files_itself_or_gathers_writes() {
        let new = InitIn { major: 7, minor: 99, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
        let both = Wishes { passthrough_depth: Some(2), writeback: true, ..Wishes::default() };
        let (answer, agreed) = agree(&new, both);
        assert_eq!((agreed.passthrough, agreed.writeback, answer.max_stack_depth), (true, false, 2));
        let (_, agreed) = agree(&new, Wishes { passthrough_depth: None, ..both });
        assert_eq!((agreed.passthrough, agreed.writeback), (false, true));
    }
}
