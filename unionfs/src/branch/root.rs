//! What the root of a branch says of all of it by its extended attributes, read in one call: a union may have
//! hundreds of branches.

use rustix::io::Errno;

use super::dir::Dir;

/// The names of the extended attributes of a branch's root.
#[derive(Debug, Default)]
pub struct RootNames(Vec<u8>);

impl RootNames {
    /// Reads them; none of a root that has none, or is not ours to read.
    ///
    /// # Errors
    /// Those of listxattr(2).
    pub fn of(root: &Dir) -> Result<RootNames, Errno> {
        match root.at(b"").xattr_names() {
            Err(Errno::OPNOTSUPP | Errno::ACCESS) => Ok(RootNames::default()),
            names => names.map(RootNames),
        }
    }

    /// Whether one of these is there.
    pub fn has_one_of(&self, wanted: &[&[u8]]) -> bool {
        self.0.split(|byte| *byte == 0).any(|name| wanted.contains(&name))
    }
}
