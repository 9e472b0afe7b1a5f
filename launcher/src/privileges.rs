//! What the first process of a container may do at most, for commands that are run in it later.

use std::fs;
use std::io;

use nix::errno::Errno;
use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// See capabilities(7) and proc_pid_status(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Privileges {
    bounding: CapabilitySet,
    no_new_privs: bool,
}

impl Privileges {
    /// Those of a process.
    pub(crate) fn of(pid: i32) -> io::Result<Privileges> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        parse(&status).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Gives up for good what the process may not do.
    pub(crate) fn take_over(&self) -> Result<(), Errno> {
        for number in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << number);
            match capability_is_in_bounding_set(one) {
                // The kernel knows no more than those before.
                Err(rustix::io::Errno::INVAL) => break,
                Ok(true) if !self.bounding.contains(one) => remove_capability_from_bounding_set(one).map_err(errno)?,
                result => drop(result.map_err(errno)?),
            }
        }
        let mut sets = capabilities(None).map_err(errno)?;
        sets.permitted &= self.bounding;
        sets.effective &= self.bounding;
        sets.inheritable = CapabilitySet::empty();
        set_capabilities(None, sets).map_err(errno)?;
        if self.no_new_privs { set_no_new_privs(true).map_err(errno) } else { Ok(()) }
    }
}

fn parse(status: &str) -> Option<Privileges> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let bounding = CapabilitySet::from_bits_retain(u64::from_str_radix(field("CapBnd:")?, 16).ok()?);
    // Before Linux 4.10 the kernel does not say, and then it is not known to be allowed.
    Some(Privileges { bounding, no_new_privs: field("NoNewPrivs:") != Some("0") })
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_read_from_the_status() {
        let status = "Name:\tsh\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\n";
        let bounding = CapabilitySet::from_bits_retain(0xa804_25fb);
        assert_eq!(parse(status), Some(Privileges { bounding, no_new_privs: true }));
        assert!(!parse("CapBnd:\t0\nNoNewPrivs:\t0\n").unwrap().no_new_privs);
        assert!(parse("CapBnd:\t0\n").unwrap().no_new_privs);
        assert_eq!(parse("Name:\tsh\n"), None);
    }
}
