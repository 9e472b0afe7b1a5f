//! `fsx` on a union: random reads, writes, mappings and truncations, every byte compared with what it must be.
//! `RUNIONFS_FSX_OPERATIONS` says how many for each seed.

#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::fixture::{Branches, Union};
use harness::sandbox::{self, Medium};
use harness::trial::number;

const RUNIONFS: &str = env!("CARGO_BIN_EXE_runionfs");
const CONFIGURATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/suites");
const OPERATIONS: u32 = 50_000;
const LIMIT: Duration = Duration::from_secs(900);
/// The size that the configurations name.
const LENGTH: usize = 262_144;

/// Runs fsx on `file` of a union that `fill` prepares, with one seed after the other.
fn torture(medium: Medium, configuration: &str, seeds: std::ops::RangeInclusive<u32>, fill: impl Fn(&Branches, &str)) {
    let Some(program) = tools::find("fsx") else { return };
    let Some(sandbox) = sandbox::enter_for(medium, LIMIT) else { return };
    let artifacts = sandbox.path().join("artifacts");
    fs::create_dir(&artifacts).expect("a directory for what fsx leaves");
    let branches = Branches::inside(sandbox, RUNIONFS, &["rw", "ro+wh"]);
    for seed in seeds.clone() {
        fill(&branches, &format!("file{seed}"));
    }
    let union = branches.mount();
    let operations = number("RUNIONFS_FSX_OPERATIONS", OPERATIONS).to_string();
    for seed in seeds {
        let file = format!("file{seed}");
        let mut command = Command::new(&program);
        command.args(["-q", "-N", &operations, "-S", &seed.to_string(), "-f"]);
        command.arg(Path::new(CONFIGURATIONS).join(configuration)).arg("-P").arg(&artifacts).arg(union.path(&file));
        let output = command.output().expect("start fsx");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
        assert!(text.contains("All operations completed A-OK!"), "{command:?}: {text}");
        assert_in_top(&union, &file);
    }
}

/// What the union shows is what lies in the top.
#[track_caller]
fn assert_in_top(union: &Union, file: &str) {
    let shown = fs::read(union.path(file)).expect("read through the union");
    let on_disk = fs::read(union.at(format!("0/{file}"))).expect("read in the top");
    assert!(shown == on_disk, "{file}: the union shows {} bytes, the top has {}", shown.len(), on_disk.len());
}

/// Bytes that are not zero and differ from block to block.
fn old_content() -> Vec<u8> {
    (0..LENGTH).map(|index| (index / 1000 % 255) as u8 + 1).collect()
}

// In memory where the file changes its size: fsync and truncation on a disk take most of the time there.

#[test]
fn a_file_of_the_top_has_every_byte_that_was_written() {
    torture(Medium::Tmpfs, "fsx.toml", 1..=5, |_, _| ());
}

#[test]
fn a_file_from_below_that_is_truncated_first_has_every_byte_that_was_written() {
    torture(Medium::Tmpfs, "fsx.toml", 6..=8, |branches, file| {
        branches.file(format!("1/{file}"), old_content());
    });
}

#[test]
fn a_file_from_below_that_keeps_its_size_has_every_byte_that_was_written() {
    torture(Medium::Disk, "fsx-keep.toml", 9..=11, |branches, file| {
        branches.file(format!("1/{file}"), old_content());
    });
}
