//! What a caller is entitled to, where the kernel leaves that question to the file system.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

use crate::branch::rights::{has_capability, in_first_namespace};
use crate::fs::Caller;
use crate::proc;

/// Bit of CAP_FSETID in the capability sets of proc_pid_status(5).
const CAP_FSETID: u32 = 4;

impl Caller {
    /// Whether set-id bits survive this caller's change of a file's content. The kernel asks for
    /// CAP_FSETID in the first user namespace, see setattr_should_drop_suidgid.
    pub fn may_keep_set_id(self) -> bool {
        in_first_namespace() && self.may_set_id()
    }

    /// Whether this caller may give a file the setgid bit of a group that it is not in: by CAP_FSETID
    /// over the file.
    ///
    /// Capabilities count only in our own user namespace: in a namespace of their own, everybody
    /// has all.
    pub fn may_set_id(self) -> bool {
        self.is_in_our_namespace() && self.status().is_some_and(|status| has_capability(&status, CAP_FSETID))
    }

    fn is_in_our_namespace(self) -> bool {
        let namespace =
            |of: &str| std::fs::metadata(proc::path(&format!("{of}/ns/user"))).map(|at| (at.dev(), at.ino()));
        let theirs = self.pid.to_string();
        match (self.pid, namespace("self"), namespace(&theirs)) {
            (0, ..) | (_, Err(_), _) => false,
            (_, Ok(ours), Ok(theirs)) => ours == theirs,
            // not shown to an ordinary user, of processes of others
            (_, Ok(_), Err(error)) if error.kind() == ErrorKind::PermissionDenied => knows_the_same_ids(&theirs),
            _ => false,
        }
    }

    /// Whether the caller is in a group.
    pub fn is_in_group(self, gid: u32) -> bool {
        let has = |groups: &str| groups.split_whitespace().any(|group| group.parse() == Ok(gid));
        let listed = |status: String| status.lines().find_map(|line| line.strip_prefix("Groups:")).is_some_and(has);
        self.gid == gid || self.status().is_some_and(listed)
    }

    /// The caller's status; nothing if it is in a pid namespace that we do not see.
    fn status(self) -> Option<String> {
        if self.pid == 0 {
            return None;
        }
        std::fs::read_to_string(proc::path(&format!("{}/status", self.pid))).ok()
    }
}

/// Whether a process is in a user namespace with the same ids as ours. Who has capabilities in such
/// a one has them over the same files, and could set the bits that this is about.
fn knows_the_same_ids(pid: &str) -> bool {
    ["uid_map", "gid_map"].into_iter().all(|map| {
        let read = |of: &str| std::fs::read_to_string(proc::path(&format!("{of}/{map}"))).ok();
        read("self").is_some_and(|ours| read(pid).is_some_and(|theirs| theirs == ours))
    })
}
