//! The top branch as a layer of an OCI image, and back (the image specification, "Image Layer
//! Filesystem Changeset").
//!
//! A branch *is* the content of a layer already. What is left to do is to write out what only
//! means something here: redirect records, the whiteouts of long names, the state in the middle of
//! a change. And to take a layer from a stranger without leaving the directory it goes to.
//!
//! | File | Question it answers |
//! |---|---|
//! | [`export`] | what of a branch goes into a layer, in which order |
//! | [`apply`] | how a layer becomes a branch, whole or not at all |
//! | `unpacking` | how the members of a layer become entries |
//! | `lent` | what a hard link to a layer below becomes |
//! | `member` | one entry of an archive as a value |
//! | `writing`, `reading` | the tar form of it |
//! | `sparse` | where the pieces of a file with holes go |
//! | [`holes`] | writing zeros without taking room for them |
//! | `pax` | what does not fit into a tar header |
//! | [`compressed`] | gzip and zstd, as they are found |

pub mod apply;
pub mod compressed;
pub mod export;
pub mod holes;
mod lent;
mod member;
mod pax;
mod reading;
mod sparse;
mod unpacking;
mod writing;

pub(crate) use reading::shown;
