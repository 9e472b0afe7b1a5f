//! What a kernel of an older version would offer, for `RUNIONFS_FUSE_MINOR`: the version is capped, and with it all
//! that came later, so that a new kernel is served as an old one is.
//!
//! What the kernel *can* do is never told by its version, for vendors bring features to old kernels: each is asked for
//! where it is offered. This table only takes away.

use std::io;

use super::abi::{InitIn, OLDEST_MINOR, init, op};

/// Caps the minor version.
const VARIABLE: &str = "RUNIONFS_FUSE_MINOR";

/// In which version flags of INIT came (`linux/fuse.h`, its list of changes).
const FLAGS: [(u32, u64); 11] = [
    (23, init::WRITEBACK_CACHE | init::NO_OPEN_SUPPORT),
    (25, init::PARALLEL_DIROPS),
    (26, init::HANDLE_KILLPRIV | init::POSIX_ACL),
    (27, init::ABORT_ERROR),
    (28, init::MAX_PAGES | init::CACHE_SYMLINKS),
    (29, init::NO_OPENDIR_SUPPORT),
    (30, init::EXPLICIT_INVAL_DATA),
    (31, init::MAP_ALIGNMENT),
    (32, init::SUBMOUNTS),
    (33, init::HANDLE_KILLPRIV_V2 | init::SETXATTR_EXT),
    (36, init::INIT_EXT),
];
/// The same for those that count with `INIT_EXT` only.
const EXTENDED_FLAGS: [(u32, u64); 6] = [
    (36, init::SECURITY_CTX | init::HAS_INODE_DAX),
    (38, init::CREATE_SUPP_GROUP | init::HAS_EXPIRE_ONLY),
    (39, init::DIRECT_IO_ALLOW_MMAP),
    (40, init::PASSTHROUGH | init::NO_EXPORT_SUPPORT | init::HAS_RESEND),
    (41, init::ALLOW_IDMAP),
    (42, init::OVER_IO_URING),
];
/// In which version requests came.
const REQUESTS: [(u32, u32); 7] = [
    (23, op::RENAME2),
    (24, op::LSEEK),
    (28, op::COPY_FILE_RANGE),
    (34, op::SYNCFS),
    (37, op::TMPFILE),
    (39, op::STATX),
    (45, op::COPY_FILE_RANGE_64),
];

/// The version up to which a kernel is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cap(Option<u32>);

impl Cap {
    /// What the environment says.
    ///
    /// # Errors
    /// EINVAL for what is no version that is served.
    pub(super) fn from_environment() -> io::Result<Cap> {
        std::env::var_os(VARIABLE).filter(|text| !text.is_empty()).map_or(Ok(Cap(None)), |text| {
            let minor = text.to_str().and_then(|text| text.parse().ok()).filter(|minor| *minor >= OLDEST_MINOR);
            let wrong = || io::Error::other(format!("{VARIABLE} is no version of FUSE from {OLDEST_MINOR} on"));
            minor.map(|minor| Cap(Some(minor))).ok_or_else(wrong)
        })
    }

    /// The kernel's first request as one of that version would make it.
    pub(super) fn lowered(self, asked: &InitIn) -> InitIn {
        let Some(minor) = self.0.filter(|minor| *minor < asked.minor) else { return *asked };
        let later = |table: &[(u32, u64)]| {
            table.iter().filter(|(since, _)| *since > minor).fold(0, |all, (_, flag)| all | flag)
        };
        let (mut flags, mut extended) = (u64::from(asked.flags), u64::from(asked.flags2) << 32);
        flags &= !later(&FLAGS);
        extended &= !later(&EXTENDED_FLAGS);
        if flags & init::INIT_EXT == 0 {
            extended = 0;
        }
        InitIn { minor, flags: flags as u32, flags2: (extended >> 32) as u32, ..*asked }
    }

    /// Whether a kernel of that version would make such a request.
    pub(super) fn knows(self, opcode: u32) -> bool {
        let since = REQUESTS.iter().find(|(_, request)| *request == opcode).map_or(0, |(since, _)| *since);
        self.0.is_none_or(|minor| minor >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: InitIn =
        InitIn { major: 7, minor: 45, max_readahead: 1, flags: u32::MAX, flags2: u32::MAX, unused: [0; 11] };

    #[test]
    fn an_older_kernel_offers_nothing_that_came_later() {
        let offered = |minor| {
            let lowered = Cap(Some(minor)).lowered(&NEW);
            assert_eq!((lowered.minor, lowered.max_readahead), (minor, 1));
            u64::from(lowered.flags) | u64::from(lowered.flags2) << 32
        };
        for (before, flag) in FLAGS.iter().chain(&EXTENDED_FLAGS).map(|(since, flag)| (since - 1, *flag)) {
            assert_eq!(offered(before) & flag, 0, "{flag:#x} in 7.{before}");
            assert_eq!(offered(before + 1) & flag, flag, "{flag:#x} in 7.{}", before + 1);
        }
        assert_eq!(offered(35) >> 32, 0);
        assert_eq!(offered(22) & init::ASYNC_DIO, init::ASYNC_DIO);
    }

    #[test]
    fn without_a_cap_and_with_one_that_is_newer_all_stays() {
        for cap in [Cap(None), Cap(Some(45)), Cap(Some(99))] {
            let same = cap.lowered(&NEW);
            assert_eq!((same.minor, same.flags, same.flags2), (45, u32::MAX, u32::MAX));
            assert!(cap.knows(op::COPY_FILE_RANGE_64));
        }
        assert!(!Cap(Some(23)).knows(op::LSEEK));
        assert!(Cap(Some(23)).knows(op::RENAME2) && Cap(Some(22)).knows(op::READDIRPLUS));
    }
}
