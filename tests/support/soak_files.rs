//! Lower files that come up one after another while others read them: what each of them is before and after.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

/// How many there are, and which of them are large.
pub(crate) const COUNT: usize = 1_200;
const LARGE_EVERY: usize = 150;
const LARGE: usize = 12 << 20;

/// The change that brings a file up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Write,
    Append,
    Cut,
    Empty,
    Chmod,
    Xattr,
    Rename,
    Link,
}

const CHANGES: [Change; 8] = [
    Change::Write,
    Change::Chmod,
    Change::Append,
    Change::Cut,
    Change::Rename,
    Change::Xattr,
    Change::Empty,
    Change::Link,
];

/// One of the files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lower(pub(crate) usize);

impl Lower {
    fn change(self) -> Change {
        CHANGES[self.0 % CHANGES.len()]
    }

    /// Its name below.
    pub(crate) fn name(self) -> String {
        format!("file{}", self.0)
    }

    /// The name it has, or has as well, afterwards.
    fn new_name(self) -> String {
        format!("new{}", self.0)
    }

    fn length(self) -> usize {
        match self.0 % LARGE_EVERY {
            0 => LARGE + self.0,
            _ => self.0 * 7_919 % 100_000,
        }
    }

    /// What it holds below.
    pub(crate) fn content(self) -> Vec<u8> {
        let page: Vec<u8> = (0..4096usize).map(|at| (at * 31 + at / 256 + self.0) as u8).collect();
        let mut bytes = page.repeat(self.length().div_ceil(page.len()));
        for (number, page) in (0u32..).zip(bytes.chunks_mut(page.len())) {
            page[..4].copy_from_slice(&number.to_le_bytes());
        }
        bytes.truncate(self.length());
        bytes
    }

    /// What it holds after its change.
    fn changed(self) -> Vec<u8> {
        let mut bytes = self.content();
        match self.change() {
            Change::Write if bytes.is_empty() => bytes.push(b'!'),
            Change::Write => bytes[self.length() / 2] ^= 0xFF,
            Change::Append => bytes.extend_from_slice(b"the end"),
            Change::Cut => bytes.truncate(self.length() / 3),
            Change::Empty => bytes.clear(),
            _ => {}
        }
        bytes
    }

    /// Changes it in a union.
    ///
    /// # Errors
    /// The system call that fails.
    pub(crate) fn act(self, root: &Path) -> io::Result<()> {
        let path = root.join(self.name());
        match self.change() {
            Change::Write => {
                let at = (self.length() / 2) as u64;
                let byte = self.changed()[self.length() / 2];
                File::options().write(true).open(path)?.write_all_at(&[byte], at)
            }
            Change::Append => File::options().append(true).open(path)?.write_all(b"the end"),
            Change::Cut => Ok(nix::unistd::truncate(&path, (self.length() / 3) as i64)?),
            Change::Empty => File::options().write(true).truncate(true).open(path).map(drop),
            Change::Chmod => fs::set_permissions(path, fs::Permissions::from_mode(0o640)),
            Change::Xattr => Ok(rustix::fs::setxattr(path, "user.soak", b"1", XattrFlags::empty())?),
            Change::Rename => fs::rename(path, root.join(self.new_name())),
            Change::Link => fs::hard_link(path, root.join(self.new_name())),
        }
    }

    /// Says what is wrong with it, if it was changed, or was not, or may be at this moment (`None`).
    pub(crate) fn check(self, root: &Path, changed: Option<bool>) -> Result<(), String> {
        let read = |name: String| match fs::read(root.join(&name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{name}: {error}")),
        };
        let (before, after) = (self.content(), self.changed());
        // who reads while a file is cut may come to its end early, and see the rest of a page go
        let cut = changed.is_none() && after.len() < before.len();
        let is = |bytes: &[u8]| match changed {
            Some(false) => bytes == before,
            Some(true) => bytes == after,
            None if cut => bytes.starts_with(&after) && bytes.len() <= before.len(),
            None => bytes == before || bytes == after,
        };
        let says = |name: &str, bytes: &[u8]| match is(bytes) {
            true => Ok(()),
            false => Err(format!("{name} ({:?}, changed: {changed:?}) has {} other bytes", self.change(), bytes.len())),
        };
        let gone = self.change() == Change::Rename && changed != Some(false);
        match read(self.name())? {
            Some(bytes) => says(&self.name(), &bytes)?,
            None if gone => {}
            None => return Err(format!("{} ({:?}, changed: {changed:?}) is not there", self.name(), self.change())),
        }
        if changed == Some(true) && matches!(self.change(), Change::Rename | Change::Link) {
            let bytes = read(self.new_name())?.ok_or_else(|| format!("{} is not there", self.new_name()))?;
            says(&self.new_name(), &bytes)?;
        }
        if changed == Some(true) { self.check_attributes(root) } else { Ok(()) }
    }

    fn check_attributes(self, root: &Path) -> Result<(), String> {
        let path = root.join(self.name());
        match self.change() {
            Change::Chmod => {
                let mode = fs::metadata(path).map_err(|error| error.to_string())?.permissions().mode() & 0o7777;
                if mode == 0o640 { Ok(()) } else { Err(format!("{} has mode {mode:o}", self.name())) }
            }
            Change::Xattr => {
                let mut value = [0; 8];
                match rustix::fs::getxattr(path, "user.soak", &mut value) {
                    Ok(1) if value[0] == b'1' => Ok(()),
                    found => Err(format!("{} has an attribute of {found:?}", self.name())),
                }
            }
            _ => Ok(()),
        }
    }
}

/// Writes all of them into one of two branches each.
///
/// # Panics
/// When that fails.
pub(crate) fn write(branches: [PathBuf; 2]) {
    for number in 0..COUNT {
        let lower = Lower(number);
        fs::write(branches[number / 3 % 2].join(lower.name()), lower.content()).expect("write a lower file");
    }
}

/// Lists the directory, and says which names are doubled or missing that nobody takes away.
pub(crate) fn check_listing(root: &Path) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(root).map_err(|error| error.to_string())? {
        let name = entry.map_err(|error| error.to_string())?.file_name().to_string_lossy().into_owned();
        if !seen.insert(name.clone()) {
            return Err(format!("{name} is listed twice"));
        }
    }
    let stay = (0..COUNT).map(Lower).filter(|lower| lower.change() != Change::Rename);
    let missing: Vec<_> = stay.map(Lower::name).filter(|name| !seen.contains(name)).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("not listed: {missing:?}")) }
}
