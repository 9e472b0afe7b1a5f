//! Whatever stands after `-o`: no panic, and never something else mounted than what was asked for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use harness::mount::finish;
use harness::sandbox::{self, mounts_below};
use nix::mount::{MntFlags, umount2};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use unionfs::options::{Overlay, Words, branches};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// What separates, what takes its meaning away, and what is known.
const FRAGMENTS: &[&str] = &[
    ",",
    ":",
    "\\",
    "\"",
    "=",
    "/",
    "..",
    "a",
    " ",
    "\u{fc}",
    "lowerdir=",
    "upperdir=",
    "workdir=",
    "lowerdir",
    "uidmapping=",
    "gidmapping=",
    "0:0:1",
    "4294967295",
    "squash_to_root",
    "squash_to_uid=",
    "whiteout=",
    "overlay",
    "xattr_permissions=",
    "context=",
    "timeout=",
    "NaN",
    "threads=",
    "br=",
    "br:",
    "append:",
    "x-y=",
    "ro",
    "rw",
    "fsname=",
    "subtype=",
    "remount",
    "volatile",
    "fsync=0",
    "-1",
];

/// Words after `-o` that are mostly near to what is meant.
fn near() -> impl Strategy<Value = OsString> {
    let fragment = prop_oneof![
        9 => prop::sample::select(FRAGMENTS).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(1_u8.., 1..4),
    ];
    prop::collection::vec(fragment, 0..16).prop_map(|parts| OsString::from_vec(parts.concat()))
}

/// A path of bytes that need care.
fn path() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => prop::sample::select(&b",:\\\"=/ a."[..]), 1 => 1_u8..];
    prop::collection::vec(byte, 1..12)
}

/// A path with everything escaped that can be.
fn escaped(path: &[u8]) -> Vec<u8> {
    let escape = |byte: &u8| matches!(byte, b',' | b':' | b'\\' | b'"').then_some(b'\\');
    path.iter().flat_map(|byte| escape(byte).into_iter().chain([*byte])).collect()
}

proptest! {
    #![proptest_config(Config { cases: 2000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn no_words_make_it_panic(arguments in prop::collection::vec(near(), 1..4)) {
        let (mut overlay, mut words) = (Overlay::default(), Words::default());
        for argument in &arguments {
            if overlay.add(argument).is_ok() && overlay.check().is_ok() {
                prop_assert!(!overlay.lower.is_empty());
            }
            drop(words.add(argument));
            drop(branches::parse(argument));
        }
        drop(overlay.options(Default::default()));
    }

    #[test]
    fn paths_come_out_as_they_went_in(
        lower in prop::collection::vec(path(), 1..5),
        upper in path(),
        work in path(),
        quoted in any::<bool>(),
    ) {
        let lowers: Vec<Vec<u8>> = lower.iter().map(|path| escaped(path)).collect();
        let quote: &[u8] = if quoted { b"\"" } else { b"" };
        let argument = [
            b"ro,unheard=of,lowerdir=", quote, &lowers.join(&b':'), quote, b",upperdir=", &escaped(&upper),
            b",volatile,workdir=", &escaped(&work), b",nodev",
        ].concat();
        let mut read = Overlay::default();
        read.add(OsStr::from_bytes(&argument)).unwrap();
        let to_path = |bytes: &Vec<u8>| PathBuf::from(OsStr::from_bytes(bytes));
        prop_assert_eq!(read.lower, lower.iter().map(to_path).collect::<Vec<_>>());
        prop_assert_eq!(read.upper, Some(to_path(&upper)));
        prop_assert_eq!(read.words.options.workdir, Some(to_path(&work)));
        prop_assert!(read.words.options.volatile);
        prop_assert_eq!(read.unknown, ["unheard"]);
    }
}

/// Names of directories that are there, each with a file of its number in it.
const DIRECTORIES: &[&str] = &["a", "b", "a:b", "a,b", "\"a", "a\"", "a\\", "a=b", "a,lowerdir=b", "u"];

#[test]
fn nothing_else_is_mounted_than_what_was_asked_for() {
    let Some(sandbox) = sandbox::enter() else { return };
    let root = sandbox.path();
    symlink(BIN, root.join("fuse-overlayfs")).unwrap();
    for (number, name) in DIRECTORIES.iter().enumerate() {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join(number.to_string()), "").unwrap();
    }
    fs::create_dir(root.join("m")).unwrap();
    fs::create_dir(root.join("w")).unwrap();
    let word = prop_oneof![
        prop::sample::select(&["ro", "bogus", "volatile", "squash_to_root", "whiteout=wh", "nodev", ""][..])
            .prop_map(str::to_owned),
        Just("upperdir=u,workdir=w".to_owned()),
    ];
    let asked = (
        prop::sample::subsequence((0..DIRECTORIES.len() - 1).collect::<Vec<_>>(), 1..5),
        prop::collection::vec(word, 0..3),
    );
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    runner
        .run(&(asked, any::<bool>()), |((directories, words), first)| {
            let lower: Vec<Vec<u8>> = directories.iter().map(|at| escaped(DIRECTORIES[*at].as_bytes())).collect();
            let lower = [b"lowerdir=".to_vec(), lower.join(&b':')].concat();
            let mut all: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
            all.insert(if first { 0 } else { all.len() }, lower);
            let options = OsString::from_vec(all.join(&b','));
            let outcome =
                finish(Command::new(root.join("fuse-overlayfs")).arg("-o").arg(&options).arg("m").current_dir(root));
            prop_assert_eq!(outcome.status, Some(0), "{:?}: {}", options, outcome.stderr);
            let shown: BTreeSet<OsString> =
                fs::read_dir(root.join("m")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            let upper = words.iter().any(|word| word.starts_with("upperdir")).then_some(DIRECTORIES.len() - 1);
            let expected: BTreeSet<OsString> =
                directories.iter().copied().chain(upper).map(|number| number.to_string().into()).collect();
            // lazily: a test beside this one may be starting a process, which has our files open until it runs
            umount2(&root.join("m"), MntFlags::MNT_DETACH).unwrap();
            prop_assert_eq!(shown, expected, "{:?}", options);
            Ok(())
        })
        .unwrap();
}

#[test]
fn no_command_line_makes_it_panic_or_leaves_something_mounted() {
    let Some(sandbox) = sandbox::enter() else { return };
    let root = sandbox.path();
    for name in ["fuse-overlayfs", "mount.fuse.runionfs", "mount.fuse-overlayfs", "runionfs"] {
        symlink(BIN, root.join(name)).unwrap();
    }
    let flags =
        &["-o", "-f", "-d", "-s", "-n", "-v", "-t", "--", "-oro", "-h", "-V", "--wrong", "-", "", "m", "none"][..];
    let word = prop_oneof![2 => prop::sample::select(flags).prop_map(OsString::from), 1 => near()];
    let name = prop::sample::select(&["fuse-overlayfs", "mount.fuse.runionfs", "mount.fuse-overlayfs", "runionfs"][..]);
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    runner
        .run(&(name, prop::collection::vec(word, 0..6)), |(name, words)| {
            // there is no directory here that could be mounted or mounted on
            let outcome = finish(Command::new(root.join(name)).args(&words).current_dir(root));
            let status = outcome.status;
            prop_assert!(matches!(status, Some(0 | 1 | 2 | 32)), "{words:?}: {status:?}: {}", outcome.stderr);
            prop_assert!(!outcome.stderr.contains("panicked"), "{words:?}: {}", outcome.stderr);
            prop_assert!(mounts_below(root).is_empty(), "{words:?}");
            Ok(())
        })
        .unwrap();
}
