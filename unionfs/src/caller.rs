//! What a caller is entitled to, where the kernel leaves that question to the file system.

use std::os::unix::fs::MetadataExt;

use crate::fs::Caller;

/// Bit of CAP_FSETID in the capability sets of proc_pid_status(5).
const CAP_FSETID: u32 = 4;

impl Caller {
    /// Whether set-id bits survive this caller's change of a file (CAP_FSETID).
    ///
    /// Capabilities count only in our own user namespace: in a namespace of their own, everybody
    /// has all.
    pub fn may_keep_set_id(self) -> bool {
        let capable = |caps: String| u64::from_str_radix(caps.trim(), 16).is_ok_and(|bits| bits >> CAP_FSETID & 1 == 1);
        self.is_in_our_namespace() && self.status("CapEff").is_some_and(capable)
    }

    fn is_in_our_namespace(self) -> bool {
        let id = |path: String| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        let ours = id("/proc/self/ns/user".to_owned());
        self.pid != 0 && ours.is_some() && ours == id(format!("/proc/{}/ns/user", self.pid))
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
