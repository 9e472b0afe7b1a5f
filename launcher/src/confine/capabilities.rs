//! Sets of capabilities: their names, docker's default, and what a process is left with.

use std::fmt;

use nix::errno::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities,
};
use serde::{Deserialize, Serialize};

/// In the order of their numbers; see capabilities(7).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What docker leaves to a container.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Kernels keep a set in 64 bits.
const LIMIT: u32 = 64;

/// A set of capabilities.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None at all.
    pub const NONE: Capabilities = Capabilities(0);
    /// All, also those that this program has no name for.
    pub const ALL: Capabilities = Capabilities(u64::MAX);

    /// docker's default.
    #[must_use]
    pub fn docker() -> Capabilities {
        DEFAULT.into_iter().fold(Capabilities::NONE, |set, name| set.with(Capabilities::named(name)))
    }

    /// The set of one name, with or without `CAP_`, or of `ALL`; empty for a name that is none.
    #[must_use]
    pub fn named(name: &str) -> Capabilities {
        let name = name.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        if name == "ALL" {
            return Capabilities::ALL;
        }
        NAMES.iter().position(|known| *known == name).map_or(Capabilities::NONE, |number| Capabilities(1 << number))
    }

    /// As /proc/PID/status writes it.
    pub(crate) fn from_hexadecimal(text: &str) -> Option<Capabilities> {
        u64::from_str_radix(text, 16).ok().map(Capabilities)
    }

    /// What this process may use now.
    pub(crate) fn of_this_process() -> Result<Capabilities, Errno> {
        let sets = rustix::thread::capabilities(None).map_err(errno)?;
        Ok(Capabilities(sets.permitted.bits()))
    }

    /// The union of two sets.
    #[must_use]
    pub fn with(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }

    /// What is in this set and not in the other.
    #[must_use]
    pub fn without(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & !other.0)
    }

    /// What is in both sets.
    #[must_use]
    pub fn and(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & other.0)
    }

    /// Whether all of the other set is in this one.
    #[must_use]
    pub fn contains(self, other: Capabilities) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether there is none in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn each(self) -> impl Iterator<Item = CapabilitySet> {
        (0..LIMIT).map(|number| 1 << number).filter(move |bit| self.0 & bit != 0).map(CapabilitySet::from_bits_retain)
    }

    /// Makes this set the most that this process can ever have, and what it runs.
    pub(crate) fn bound(self) -> Result<(), Errno> {
        for capability in Capabilities::ALL.without(self).each() {
            match remove_capability_from_bounding_set(capability) {
                // The kernel knows no capability of this number, nor of a higher one.
                Err(rustix::io::Errno::INVAL) => break,
                result => result.map_err(errno)?,
            }
        }
        Ok(())
    }

    /// Makes this set what this process may use, and `ambient` what a program without any of its own is given.
    pub(crate) fn take(self, ambient: Capabilities) -> Result<(), Errno> {
        let (set, kept) = (CapabilitySet::from_bits_retain(self.0), CapabilitySet::from_bits_retain(ambient.0));
        let sets = CapabilitySets { effective: set, permitted: set, inheritable: kept };
        match clear_ambient_capability_set() {
            // Linux before 4.3 has none.
            Err(rustix::io::Errno::INVAL) if ambient.is_empty() => {}
            result => result.map_err(errno)?,
        }
        set_capabilities(None, sets).map_err(errno)?;
        ambient.each().try_for_each(|one| configure_capability_in_ambient_set(one, true).map_err(errno))
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

impl fmt::Display for Capabilities {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = NAMES.iter().enumerate().filter(|(number, _)| self.0 & (1 << number) != 0);
        let names: Vec<String> = names.map(|(_, name)| format!("CAP_{name}")).collect();
        formatter.write_str(&names.join(", "))
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Capabilities({:#x})", self.0)
    }
}

/// A set as the command line names it.
///
/// # Errors
/// For a name that is not one of a capability.
pub(super) fn parse(name: &str) -> Result<Capabilities, String> {
    let set = Capabilities::named(name);
    if set.is_empty() { Err("it is not the name of a capability; see capabilities(7)".into()) } else { Ok(set) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        for (name, number) in [("CHOWN", 0), ("cap_sys_admin", 21), ("CAP_MKNOD", 27), ("checkpoint_restore", 40)] {
            assert_eq!(Capabilities::named(name), Capabilities(1 << number), "{name}");
        }
        assert_eq!(parse("all"), Ok(Capabilities::ALL));
        assert!(parse("CAP_").is_err());
        assert!(parse("SYS_ADMIN ").is_err());
    }

    #[test]
    fn the_default_is_dockers() {
        assert_eq!(Capabilities::docker(), Capabilities(0xa804_25fb));
    }

    #[test]
    fn a_set_is_printed_by_name() {
        let set = Capabilities::named("SYS_TIME").with(Capabilities::named("CHOWN"));
        assert_eq!(set.to_string(), "CAP_CHOWN, CAP_SYS_TIME");
    }
}
