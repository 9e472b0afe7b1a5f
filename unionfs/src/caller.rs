//! What a caller is entitled to, where the kernel leaves that question to the file system.

use crate::fs::Caller;

/// Bit of CAP_FSETID in the capability sets of proc_pid_status(5).
const CAP_FSETID: u32 = 4;

impl Caller {
    /// Whether set-id bits survive this caller's change of a file (CAP_FSETID).
    pub fn may_keep_set_id(self) -> bool {
        self.status("CapEff").map_or(self.uid == 0, |caps| {
            u64::from_str_radix(caps.trim(), 16).is_ok_and(|bits| bits >> CAP_FSETID & 1 == 1)
        })
    }

    /// Whether the caller is in a group.
    pub fn is_in_group(self, gid: u32) -> bool {
        self.gid == gid
            || self.status("Groups").is_some_and(|groups| groups.split_whitespace().any(|g| g.parse() == Ok(gid)))
    }

    /// A field of the caller's status; nothing if it is in a pid namespace that we do not see.
    fn status(self, field: &str) -> Option<String> {
        if self.pid == 0 {
            return None;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        Some(line.to_owned())
    }
}
