//! The pure core: the rules of the union on plain values.
//!
//! Nothing here reads a disk, takes a lock or knows of FUSE; the standard library is all it
//! uses. Everything that decides *what hides what* ([`mod@resolve`], [`mod@merge`]), *in which order a
//! change is written* ([`plan`]) and *which branch takes it* ([`policy`]) stands here and nowhere
//! else, so that it can be tested by trying out every small world.
//!
//! The words: branch 0 is the **top**; *below* means a larger [`BranchIndex`]. A **whiteout**
//! `.wh.NAME` hides NAME in the branches below it, never in its own (the OCI rule); an **opaque**
//! mark `.wh..wh..opq` in a directory hides everything below that directory.

pub mod merge;
pub mod name;
pub mod plan;
pub mod policy;
pub mod redirect;
pub mod resolve;

pub use merge::merge;
pub use name::{Name, NameBuf, NameError, RawName};
pub use redirect::Redirect;
pub use resolve::{Below, BranchIndex, Cut, Found, Resolved, Scan, resolve};
