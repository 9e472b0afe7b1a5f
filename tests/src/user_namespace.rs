//! A user namespace with a range of ids of its own, and commands that run in it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::mount::{finish, poll};

/// A user namespace in which 0 to 65535 are `first` and the following outside. It goes when this is dropped.
#[derive(Debug)]
pub struct UserNamespace {
    holder: Child,
}

impl UserNamespace {
    /// Makes one whose id 0 is `first` outside.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn new(first: u32) -> UserNamespace {
        let mut holder = Command::new("unshare");
        let holder = holder.args(["--user", "sleep", "600"]).stdin(Stdio::null()).spawn().expect("start unshare(1)");
        let namespace = UserNamespace { holder };
        let link = |process: &str| fs::read_link(format!("/proc/{process}/ns/user")).expect("look at a namespace");
        let own = link("self");
        let process = namespace.holder.id().to_string();
        let apart = poll(Duration::from_secs(20), || (link(&process) != own).then_some(()));
        apart.expect("unshare(1) makes a user namespace");
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{process}/{map}"), format!("0 {first} 65536")).expect("write a map of ids");
        }
        namespace
    }

    /// Runs a command with this user and group id of the namespace, and returns what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    #[track_caller]
    pub fn run(&self, id: u32, command: &[&str]) -> String {
        let (holder, id) = (self.holder.id().to_string(), id.to_string());
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--user", "--target", &holder, "--setuid", &id, "--setgid", &id]).args(command);
        let outcome = finish(&mut nsenter);
        assert_eq!(outcome.status, Some(0), "{nsenter:?}: {}", outcome.stderr);
        outcome.stdout
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        if let Err(error) = self.holder.kill().and_then(|()| self.holder.wait().map(drop)) {
            eprintln!("cannot end the holder of a user namespace: {error}");
        }
    }
}
