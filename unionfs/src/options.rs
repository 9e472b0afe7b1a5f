//! Branch strings and mount options as typed values.
//!
//! Pure: bytes go in, values or one clear error come out. [`branches`] reads and prints
//! `br1=rw:br2=ro+wh`, [`words`] reads what follows `-o`, [`overlay`] the same in the words of overlayfs
//! and fuse-overlayfs, and [`ids`] what these say of owners.

pub mod branches;
pub mod ids;
pub mod overlay;
pub mod words;

use std::ffi::OsString;
use std::path::PathBuf;

pub use branches::BranchesError;
pub use ids::IdMap;
pub use overlay::{Overlay, OverlayError};
pub use words::{Words, WordsError};

/// How a branch may be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `rw`: changes are written here.
    ReadWrite,
    /// `ro`: never written.
    ReadOnly,
    /// `rr`: never written, and nobody else can change it either.
    RealReadOnly,
}

/// One branch as the user names it: `PATH=ACCESS[+ATTRIBUTE…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchSpec {
    /// The directory; relative paths are relative to the working directory.
    pub path: PathBuf,
    /// How it may be accessed.
    pub access: Access,
    /// `+wh`: whiteouts and opaque marks are looked at on this read-only branch.
    pub whiteouts: bool,
    /// `+ovl`: the marks of overlayfs count, too. On a read-only branch it implies `whiteouts`; a writable
    /// one is then written in this form, and has it by `-o whiteout=overlay` only.
    pub overlay: bool,
    /// `+init`: takes writes in place to entries whose topmost entry lies here, nothing else.
    pub init: bool,
    /// `+nolwh`: accepted for AuFS's sake; whiteouts are never hard links here.
    pub nolwh: bool,
}

/// How direct changes to the branches under a mount are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Udba {
    /// They are not: timeouts without end. The default and the fastest.
    #[default]
    None,
    /// Looked at again after a second, and at every open.
    Reval,
}

/// What becomes of a rename of a directory that merges with directories of branches below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dirren {
    /// It leaves a record. The default.
    #[default]
    On,
    /// EXDEV, so that callers copy it.
    Off,
}

/// In which form whiteouts and opaque marks are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Whiteout {
    /// As AuFS and OCI image layers have them: files `.wh.NAME` and `.wh..wh..opq`. The default.
    #[default]
    Wh,
    /// As overlayfs has them: character devices 0:0 and extended attributes.
    Overlay,
}

/// Whether something is used where it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// Where it can be, and where it is of use. The default.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Whether files of a union without a writable branch are opened without a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Opens {
    /// Where it can be, unless pages are shared. The default.
    #[default]
    Auto,
    /// Every open is a request.
    Message,
    /// Where it can be.
    None,
}

/// Whether the kernel reads files of a union without a writable branch itself, so that mounts share
/// their pages with each other and with the branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Share {
    /// Where opens are requests all the same. The default.
    #[default]
    Auto,
    /// Where it can be.
    On,
    /// Never.
    Off,
}

/// Which owners, modes and types are kept in the attribute `user.containers.override_stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keeping {
    /// Those that the kernel refuses. The default.
    #[default]
    Refused,
    /// Every owner that is not the daemon's own, and the mode with it: none is ever changed for real. The
    /// attribute counts on every branch.
    Owners,
    /// The same, in an attribute that only root can write.
    Privileged,
}

/// What shapes the union, apart from its branches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// How direct changes to branches are noticed.
    pub udba: Udba,
    /// Whether no access time changes, as the flag of the mount says it.
    pub noatime: bool,
    /// Whether directories with content on branches below are renamed.
    pub dirren: Dirren,
    /// In which form whiteouts are written.
    pub whiteout: Whiteout,
    /// No fsync at all; refuses reuse after a crash.
    pub volatile: bool,
    /// Where the work area of the topmost writable branch lies, if not at the branch's root.
    pub workdir: Option<PathBuf>,
    /// Number of event loops; the number of CPUs, but 2 at least, where not given.
    pub threads: Option<usize>,
    /// Whether the kernel reads and writes files of the top itself.
    pub passthrough: Wish,
    /// Whether writes are gathered by the kernel where it does not write files itself.
    pub writeback: Wish,
    /// How files are opened in a union without a writable branch.
    pub open: Opens,
    /// Whether mounts without a writable branch share pages.
    pub share: Share,
    /// What `/proc/mounts` shows as the source; the branches where not given.
    pub fsname: Option<OsString>,
    /// What it shows after `fuse.` as the type, and plain `fuse` where that is empty; runionfs where not given.
    pub subtype: Option<OsString>,
    /// Which owners are shown in the place of those in the branches.
    pub ids: IdMap,
    /// What is kept in an attribute in the place of what is real.
    pub keeping: Keeping,
}
