//! `pjdfstest` on a union: 398 cases of what POSIX asks of a file system.
//!
//! The expectation is what plain ext4 gives with the same configuration, and one test makes sure that it still does:
//! a difference is then the union's own.

#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::fixture::Branches;
use harness::sandbox::{self, Medium, Sandbox};
use nix::mount::{MsFlags, mount};

const RUNIONFS: &str = env!("CARGO_BIN_EXE_runionfs");
const CONFIGURATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/suites/pjdfstest.toml");
const REMOUNTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/suites/pjdfstest-remount.toml");
const LINK_MAX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/suites/link_max.c");
const EXPECTED: &str = "Summary: 0 failed, 13 skipped, 385 passed, 0 expected failures, 398 total";
/// The cases that those skip.
const EXPECTED_REMOUNTS: &str = "Summary: 0 failed, 0 skipped, 13 passed, 0 expected failures, 13 total";
const LIMIT: Duration = Duration::from_secs(600);

/// The suite, a sandbox, and in it the second file system that the EXDEV cases need.
struct Suite {
    program: PathBuf,
    sandbox: Sandbox,
    second: PathBuf,
}

impl Suite {
    /// `None` where the test is skipped.
    fn prepare() -> Option<Suite> {
        let program = tools::find("pjdfstest")?;
        let sandbox = sandbox::enter_for(Medium::Disk, LIMIT)?;
        let second = sandbox.path().join("second");
        fs::create_dir(&second).expect("a mount point");
        mount(Some("tmpfs"), &second, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount a tmpfs");
        Some(Suite { program, sandbox, second })
    }

    /// The command that runs all cases in `directory` of a union.
    fn on_union(&self, directory: &str) -> Command {
        let library = self.sandbox.path().join("link_max.so");
        sandbox::run(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(LINK_MAX));
        let mut command = self.command(&self.sandbox.path().join("mnt").join(directory));
        command.env("LD_PRELOAD", library).env("LINK_MAX_OF", self.sandbox.path());
        command
    }

    /// The command that runs the cases which remount the union, in `directory` of it.
    fn remounting_union(&self, directory: &str) -> Command {
        install_helper(&self.sandbox);
        let mut command = Command::new(&self.program);
        command.args(["-c", REMOUNTS, "-p"]).arg(self.sandbox.path().join("mnt").join(directory)).arg("erofs");
        command
    }

    /// The command that runs all cases in `directory`.
    fn command(&self, directory: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["-c", CONFIGURATION, "-s"])
            .arg(&self.second)
            .arg("-p")
            .arg(directory)
            .env_remove("RUST_BACKTRACE");
        command
    }
}

/// Lays our binary into `/sbin` as the helper of mount(8), which runs one whenever there is `mount.fuse`. The test's
/// mount namespace alone sees it.
fn install_helper(sandbox: &Sandbox) {
    let sbin = fs::canonicalize("/sbin").expect("resolve /sbin");
    let [real, ours] = ["real-sbin", "sbin"].map(|name| sandbox.path().join(name));
    for directory in [&real, &ours] {
        fs::create_dir(directory).expect("make a directory");
    }
    let bind = |from: &Path, to: &Path| mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    bind(&sbin, &real).expect("bind /sbin");
    for entry in fs::read_dir(&real).expect("list /sbin") {
        let name = entry.expect("an entry").file_name();
        symlink(real.join(&name), ours.join(name)).expect("make a symlink");
    }
    symlink(RUNIONFS, ours.join("mount.fuse.runionfs")).expect("make a symlink");
    bind(&ours, &sbin).expect("lay it over /sbin");
}

#[track_caller]
fn assert_as_ext4(command: Command) {
    assert_summary(command, EXPECTED);
}

/// Runs the cases and compares the suite's own count.
#[track_caller]
fn assert_summary(mut command: Command, expected: &str) {
    let output = command.output().expect("start pjdfstest");
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = text.lines().rev().find(|line| line.starts_with("Summary:"));
    assert_eq!(summary, Some(expected), "\n{}\n{}", not_passed(&text), String::from_utf8_lossy(&output.stderr));
}

/// The cases that failed or were skipped, each with its reason.
fn not_passed(text: &str) -> String {
    let mut told = String::new();
    let mut told_of = false;
    for line in text.lines() {
        let starts = line.ends_with("FAILED") || line.ends_with("skipped");
        told_of = starts || (told_of && line.starts_with('\t'));
        if told_of {
            told.push_str(line);
            told.push('\n');
        }
    }
    told
}

#[test]
fn plain_ext4_gives_what_is_expected_of_a_union() {
    let Some(suite) = Suite::prepare() else { return };
    let directory = suite.sandbox.small_ext4("ext4", 64, &[]);
    assert_as_ext4(suite.command(&directory));
}

#[test]
fn all_cases_pass_in_a_directory_of_the_top() {
    let Some(suite) = Suite::prepare() else { return };
    let command = suite.on_union("work");
    let branches = Branches::inside(suite.sandbox, RUNIONFS, &["rw", "ro+wh"]);
    branches.file("1/below", "below");
    let union = branches.mount();
    fs::create_dir(union.path("work")).expect("a directory in the top");
    assert!(union.at("0/work").is_dir());
    assert_as_ext4(command);
}

#[test]
fn all_cases_pass_in_a_directory_that_lies_below() {
    let Some(suite) = Suite::prepare() else { return };
    let command = suite.on_union("deep/work");
    let branches = Branches::inside(suite.sandbox, RUNIONFS, &["rw", "ro+wh"]);
    branches.file("1/deep/work/below", "below");
    let union = branches.mount();
    assert!(!union.at("0/deep").exists());
    assert_as_ext4(command);
}

#[test]
fn a_union_that_is_remounted_read_only_is_erofs_for_every_change() {
    let Some(suite) = Suite::prepare() else { return };
    let command = suite.remounting_union("deep/work");
    let branches = Branches::inside(suite.sandbox, RUNIONFS, &["rw", "ro+wh"]);
    branches.file("1/deep/work/below", "below");
    let union = branches.mount();
    assert_summary(command, EXPECTED_REMOUNTS);
    union.write("deep/work/below", "writable again");
}
