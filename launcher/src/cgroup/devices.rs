//! Which devices may be opened: on v1 by a list in a file, on v2 by a program in the kernel's BPF, see `device_filter`.

use std::fmt;

use super::detect::{Controller, Version};
use super::setting::{Place, Setting};

/// A line of the kernel's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    /// Block or character devices.
    pub kind: DeviceKind,
    /// The major number; all where there is none.
    pub major: Option<u64>,
    /// The minor number; all where there is none.
    pub minor: Option<u64>,
    /// What may be done.
    pub access: DeviceAccess,
}

/// The two kinds of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Block devices.
    Block,
    /// Character devices.
    Character,
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceAccess {
    /// Read from it.
    pub read: bool,
    /// Write to it.
    pub write: bool,
    /// Make a node for it.
    pub make: bool,
}

impl DeviceAccess {
    /// Everything.
    pub const ALL: DeviceAccess = DeviceAccess { read: true, write: true, make: true };
    /// A node, which cannot be opened.
    const MAKE: DeviceAccess = DeviceAccess { read: false, write: false, make: true };
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == DeviceKind::Block { 'b' } else { 'c' };
        let number = |number: Option<u64>| number.map_or("*".to_owned(), |number| number.to_string());
        write!(formatter, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        let DeviceAccess { read, write, make } = self.access;
        let letters = [(read, "r"), (write, "w"), (make, "m")];
        letters.into_iter().filter(|(is_set, _)| *is_set).try_for_each(|(_, letter)| formatter.write_str(letter))
    }
}

/// What docker lets every container use.
pub(crate) const USUAL: [DeviceRule; 11] = [
    rule(DeviceKind::Character, None, None, DeviceAccess::MAKE),
    rule(DeviceKind::Block, None, None, DeviceAccess::MAKE),
    // null, zero, full, random, urandom
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    // tty, console, ptmx, and the terminals of devpts
    character(5, Some(0)),
    character(5, Some(1)),
    character(5, Some(2)),
    character(136, None),
];

const fn character(major: u64, minor: Option<u64>) -> DeviceRule {
    rule(DeviceKind::Character, Some(major), minor, DeviceAccess::ALL)
}

const fn rule(kind: DeviceKind, major: Option<u64>, minor: Option<u64>, access: DeviceAccess) -> DeviceRule {
    DeviceRule { kind, major, minor, access }
}

/// Everything is denied first, so this is written before anybody is in the cgroup.
pub(crate) fn settings(version: Version) -> Vec<Setting> {
    if version == Version::V2 {
        return Vec::new();
    }
    let deny = setting("devices.deny", "a".to_owned());
    std::iter::once(deny).chain(USUAL.iter().map(allow)).collect()
}

/// Whether a list, as the kernel tells it, has nothing that is not usual.
pub(crate) fn is_usual(list: &str) -> bool {
    let usual = USUAL.map(|rule| rule.to_string());
    list.lines().all(|line| usual.iter().any(|rule| rule == line))
}

/// One device more.
pub(crate) fn allow(rule: &DeviceRule) -> Setting {
    setting("devices.allow", rule.to_string())
}

fn setting(file: &'static str, value: String) -> Setting {
    Setting::new("--device", Controller::Devices, Place::Container, vec![(file, value)]).implied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_the_kernel_reads_them() {
        let read = DeviceAccess { read: true, write: false, make: false };
        for (rule, expected) in [
            (character(1, Some(3)), "c 1:3 rwm"),
            (character(136, None), "c 136:* rwm"),
            (rule(DeviceKind::Block, Some(8), Some(0), read), "b 8:0 r"),
            (rule(DeviceKind::Block, None, None, DeviceAccess::MAKE), "b *:* m"),
        ] {
            assert_eq!(rule.to_string(), expected);
        }
    }

    #[test]
    fn a_list_with_more_than_the_usual_devices_is_none() {
        assert!(is_usual("c *:* m\nc 1:3 rwm\nb *:* m\n") && is_usual(""));
        for list in ["a *:* rwm\n", "c 1:3 rwm\nb 8:0 r\n", "b *:* rwm\n", "c 10:229 rwm\n"] {
            assert!(!is_usual(list), "{list}");
        }
    }

    #[test]
    fn everything_is_denied_before_anything_is_allowed() {
        let settings = settings(Version::V1);
        assert_eq!(settings[0].files, [("devices.deny", "a".to_owned())]);
        assert!(settings[1..].iter().all(|setting| setting.files[0].0 == "devices.allow"));
        assert_eq!(super::settings(Version::V2), []);
    }
}
