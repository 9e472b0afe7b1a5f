//! `pjdfstest` as an ordinary user: what a plain directory gives in the same place, case by case.
//!
//! Outside of a namespace the suite skips what needs root; as root of a namespace with ranges of ids it does all, and
//! what the kernel refuses there (devices, for one) it refuses on a plain directory, too.

#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use harness::fixture::Branches;
use harness::rootless::{Way, again};
use harness::sandbox::{self, Medium};

const RUNIONFS: &str = env!("CARGO_BIN_EXE_runionfs");
const CONFIGURATION: &str = include_str!("suites/pjdfstest.toml");
/// It makes 65,000 links where the C library knows that so many are the most, as on the plain directory; `suite_pjdfstest`
/// does it on a union.
const LEFT_OUT: &str = "link::link_count_max";

/// The cases and how they ended, sorted; and how many passed.
fn cases(program: &Path, home: &Path, directory: &Path) -> (Vec<String>, usize) {
    let mut command = Command::new("timeout");
    command.args(["300".as_ref(), program.as_os_str()]).arg("-c").arg(home.join("pjdfstest.toml"));
    command.args(["-s", "/dev/shm", "-p"]).arg(directory).env_remove("RUST_BACKTRACE");
    let output = command.output().expect("start pjdfstest");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ended =
        |line: &&str| ["ok", "FAILED", "skipped"].iter().any(|word| line.ends_with(word)) && line.contains("::");
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines: Vec<String> = text.lines().filter(ended).map(line).collect();
    lines.retain(|line| !line.starts_with(LEFT_OUT));
    lines.sort();
    let passed = lines.iter().filter(|line| line.ends_with("ok")).count();
    (lines, passed)
}

fn compare(at_least: usize) {
    let Some(program) = tools::find("pjdfstest") else { return };
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, Duration::from_secs(600)) else { return };
    let home = sandbox.path().to_owned();
    fs::write(home.join("pjdfstest.toml"), CONFIGURATION).expect("write the configuration");
    let branches = Branches::inside(sandbox, RUNIONFS, &["rw", "ro+wh"]);
    branches.file("1/deep/work/below", "below");
    fs::create_dir(home.join("plain")).expect("a plain directory");
    let union = branches.mount();
    // both at once: most of the time goes by in waiting for clocks
    let plain = || cases(&program, &home, &home.join("plain"));
    let ((plain, _), (shown, passed)) = thread::scope(|scope| {
        let plain = scope.spawn(plain);
        let shown = cases(&program, &home, &union.path("deep/work"));
        (plain.join().expect("the plain directory's cases"), shown)
    });
    let differ: Vec<_> = shown.iter().filter(|case| !plain.contains(case)).collect();
    assert!(differ.is_empty() && plain.len() == shown.len(), "not as a plain directory: {differ:#?}");
    assert!(passed >= at_least, "only {passed} of {} passed", shown.len());
}

#[test]
fn the_unprivileged_part_passes_outside_of_a_namespace() {
    if again(Way::Fusermount, "the_unprivileged_part_passes_outside_of_a_namespace") {
        compare(200);
    }
}

#[test]
fn all_cases_are_as_on_a_plain_directory_with_ranges_of_ids() {
    if again(Way::Ranges, "all_cases_are_as_on_a_plain_directory_with_ranges_of_ids") {
        compare(280);
    }
}
