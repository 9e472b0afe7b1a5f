//! A store with a base image, and contexts to build from.

// Every test file uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use harness::mount::{Outcome, finish};

use crate::images::Images;
use crate::launch::{RLAUNCH, printed, sh};

/// The accounts of the base image.
const ACCOUNTS: &str = "echo 'web:x:33:34::/home/web:/bin/sh' >> etc/passwd; echo 'web:x:34:' >> etc/group; echo 'ops:x:40:' >> etc/group; chmod 1777 .";

/// A store with `base:1`, which is busybox, and an empty context.
pub(crate) struct Building {
    pub(crate) images: Images,
}

impl Building {
    /// `None` where the test is skipped.
    pub(crate) fn new() -> Option<Building> {
        let images = Images::new()?;
        sh(&format!("cd {}; {ACCOUNTS}; chmod 755 .", images.tree.path("").display()));
        images.docker("base", r#"{"Cmd":["sh"],"Env":["OLD=1"],"Labels":{"of":"base"}}"#, &[images.base()]);
        images.print(&["import", "base"]);
        fs::create_dir(images.tree.beside("context")).expect("make a context");
        Some(Building { images })
    }

    /// A path in the context.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.images.tree.beside("context").join(name)
    }

    /// Writes the Dockerfile.
    pub(crate) fn says(&self, text: &str) {
        fs::write(self.path("Dockerfile"), text).expect("write the Dockerfile");
    }

    /// Runs a script of the host in the context.
    pub(crate) fn prepare(&self, script: &str) {
        sh(&format!("cd {}; {script}", self.path("").display()));
    }

    /// The command that builds, where the contexts are.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(RLAUNCH);
        command.args(["image", "build"]).args(words).current_dir(self.images.tree.beside(""));
        command
    }

    /// Builds the context with these options.
    pub(crate) fn build(&self, words: &[&str]) -> Outcome {
        finish(self.command(words).arg("context"))
    }

    /// Builds what a Dockerfile says as `made`; what is printed.
    #[track_caller]
    pub(crate) fn made(&self, text: &str) -> String {
        self.says(text);
        let outcome = self.build(&["-t", "made"]);
        assert_eq!(outcome.status, Some(0), "{text}\n{outcome:?}");
        outcome.stdout
    }

    /// What a script prints in the image `made`.
    #[track_caller]
    pub(crate) fn look(&self, script: &str) -> String {
        let mut command = Command::new(RLAUNCH);
        printed(finish(command.args([
            "run",
            "--entrypoint",
            "sh",
            "-u",
            "0",
            "-w",
            "/",
            "--image",
            "made",
            "--",
            "-c",
            script,
        ])))
    }

    /// Builds what must be refused, and leave nothing behind; what is said.
    #[track_caller]
    pub(crate) fn refused(&self, text: &str) -> String {
        self.says(text);
        let before = self.images.print(&["ls"]);
        let outcome = self.build(&["-t", "refused"]);
        assert!(outcome.status.is_some_and(|status| status != 0), "{text}\n{outcome:?}");
        assert_eq!(self.images.print(&["ls"]), before, "{text}");
        outcome.stderr
    }
}
