//! The command line as mount(8) writes it, completed to the one that is documented.
//!
//! `mount -t fuse.runionfs SOURCE DIR` runs `runionfs SOURCE DIR -o rw,…`, or
//! `mount.fuse.runionfs` and `mount.runionfs` where they exist, with flags of their own.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Names under which mount(8) calls its helpers.
const HELPERS: &[&str] = &["mount.runionfs", "mount.fuse.runionfs"];

/// Adds the subcommand where mount(8) leaves it out.
pub(super) fn complete(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.collect();
    if is_helper(words.first()) {
        words = of_helper(words);
    }
    let starts_with_source = words.get(1).is_some_and(|word| !word.as_bytes().starts_with(b"-") && is_source(word));
    if is_helper(words.first()) || starts_with_source {
        words.insert(1.min(words.len()), "mount".into());
    }
    words
}

/// The flags of mount(8) for its helpers ("EXTERNAL HELPERS" there) as those of the subcommand.
fn of_helper(words: Vec<OsString>) -> Vec<OsString> {
    let mut completed = Vec::with_capacity(words.len());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_bytes() {
            // no mtab; which mount namespace mount(8) is in already
            b"-n" => {}
            b"-N" | b"-t" => drop(words.next()),
            b"-f" => completed.push("--fake".into()),
            b"-s" => completed.push("--sloppy".into()),
            b"-o" => completed.extend([Some(word), words.next()].into_iter().flatten()),
            _ => completed.push(word),
        }
    }
    completed.insert(1.min(completed.len()), "--helper".into());
    completed
}

/// Whether mount(8) calls.
pub(super) fn is_helper(name: Option<&OsString>) -> bool {
    let name = name.and_then(|name| Path::new(name).file_name());
    name.is_some_and(|name| HELPERS.iter().any(|helper| name == *helper))
}

/// Whether a first word is the source of a mount: a path, a branch string, or a word that
/// stands for none. A mistyped subcommand is none of these.
fn is_source(word: &OsStr) -> bool {
    let is_path = word.as_bytes().iter().any(|byte| matches!(byte, b'/' | b':' | b'='));
    // no subcommand is any of them
    is_path || super::mount::NO_SOURCE.iter().any(|none| word == *none)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn no_subcommand_is_taken_for_a_source() {
        assert!(!super::super::Cli::command().get_subcommands().any(|command| is_source(command.get_name().as_ref())));
    }

    #[test]
    fn the_subcommand_is_added_where_mount_leaves_it_out() {
        for (line, expected) in [
            ("runionfs mount /a /m", "runionfs mount /a /m"),
            ("runionfs /a=rw:/b /m -o rw,dev,suid", "runionfs mount /a=rw:/b /m -o rw,dev,suid"),
            ("runionfs none /m -o br=/a", "runionfs mount none /m -o br=/a"),
            ("/sbin/mount.runionfs /a /m -n -o ro", "/sbin/mount.runionfs mount --helper /a /m -o ro"),
            ("mount.fuse.runionfs a /m -s -o ro", "mount.fuse.runionfs mount --helper a /m --sloppy -o ro"),
            ("mount.runionfs a /m -f -v -t runionfs.x -o -s", "mount.runionfs mount --helper a /m --fake -v -o -s"),
            ("runionfs frob /m", "runionfs frob /m"),
            ("runionfs --help", "runionfs --help"),
            ("runionfs show /m", "runionfs show /m"),
            ("runionfs", "runionfs"),
        ] {
            let words = complete(line.split(' ').map(OsString::from));
            let expected: Vec<_> = expected.split(' ').map(OsString::from).collect();
            assert_eq!(words, expected, "{line}");
        }
    }
}
