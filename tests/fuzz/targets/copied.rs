//! A stream that `rlaunch cp` unpacks, whoever has packed it, touches nothing outside of where it goes.
#![no_main]

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use fuzz::{archive, ground, seeds};
use harness::snapshot::{Exactness, Snapshot};
use launcher::fuzzing::unpack;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

#[path = "../../support/archives.rs"]
mod archives;

use archives::{file, member, pax};

fuzz_target!(init: begin(), |bytes: &[u8]| {
    let target = GROUND.0.join("in/target");
    for name in [None, Some("name"), Some("there")] {
        fs::create_dir_all(target.join("there")).expect("make the target");
        // What is there may be a trap as well.
        std::os::unix::fs::symlink("../..", target.join("link")).expect("make the target");
        drop(unpack(bytes, &target, name.map(OsStr::new)));
        fs::remove_dir_all(&target).expect("remove the target");
        GROUND.1.assert_same(&Snapshot::take(&GROUND.0), Exactness::EqualButTimes, "outside of the target");
    }
});
fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| { archive::mutate(data, size, most, seed) });

static GROUND: LazyLock<(PathBuf, Snapshot)> = LazyLock::new(|| {
    let around = ground::enter();
    fs::create_dir(around.join("in")).expect("make the ground");
    for name in ["victim", "a", "b"] {
        fs::write(around.join(name), "untouched").expect("make the ground");
    }
    let before = Snapshot::take(&around);
    (around, before)
});

fn begin() {
    LazyLock::force(&GROUND);
    let outside = GROUND.0.join("victim").display().to_string();
    let all = [
        archives::archive(&[file("name", "content")]),
        archives::archive(&[
            member("name/", b'5', b"", ""),
            file("name/f", "x"),
            member("name/h", b'1', b"", "name/f"),
        ]),
        archives::archive(&[file("link/new", ""), file("../victim", ""), file("there", "no directory")]),
        archives::archive(&[member("l", b'2', b"", &outside), file("l", "x"), member("h", b'1', b"", "l")]),
        archives::archive(&[member("there/", b'5', b"", ""), member("p", b'6', b"", ""), member("c", b'3', b"", "")]),
        archives::archive(&[pax(&[("path", b"a/b"), ("uid", b"70000"), ("size", b"3")]), file("x", "abc")]),
        archives::archive(&[member("././@LongLink", b'L', b"long/../../name\0", ""), file("cut", "x")]),
    ];
    seeds::write("copied", all.iter().map(Vec::as_slice));
}
