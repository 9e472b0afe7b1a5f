//! O_DIRECT, and what a frozen branch does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use harness::fixture::{Branches, Union};
use harness::mapping::{Mapping, Sharing};
use harness::mount::finish;
use harness::sandbox::{self, Medium};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// What O_DIRECT may want.
const BLOCK: usize = 4096;

/// A buffer as O_DIRECT wants it on any file system.
#[repr(align(4096))]
#[derive(Clone)]
struct Aligned([u8; 4 * BLOCK]);

fn direct(path: &Path) -> File {
    File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 7 + seed * 131) >> 3) as u8 ^ seed as u8).collect()
}

/// A file of 16 blocks and a half in each place.
fn files(medium: Medium) -> Option<Union> {
    let branches = Branches::on(medium, BIN, &["rw", "ro+wh"])?;
    for path in ["0/top", "1/low", "1/low2"] {
        branches.file(path, pattern(1, 16 * BLOCK + 100));
    }
    Some(branches.mount())
}

#[test]
fn direct_reads_and_writes_go_with_all_others() {
    for medium in [Medium::Disk, Medium::Tmpfs] {
        let Some(mut u) = files(medium) else { return };
        for name in ["top", "low"] {
            let mut expected = pattern(1, 16 * BLOCK + 100);
            let (file, buffered) =
                (direct(&u.path(name)), File::options().read(true).write(true).open(u.path(name)).unwrap());
            let check = |expected: &[u8], what: &str| {
                let mut seen = Aligned([0; 4 * BLOCK]);
                let mut at = 0;
                while at < expected.len() {
                    let read = file.read_at(&mut seen.0, at as u64).unwrap();
                    assert!(read > 0 && seen.0[..read] == expected[at..at + read], "{what}: direct at {at} of {name}");
                    at += read;
                }
                assert_eq!(fs::read(u.path(name)).unwrap(), expected, "{what}: {name}");
            };
            check(&expected, "before");
            let map = Mapping::new(&buffered, 8 * BLOCK, Sharing::Shared).unwrap();
            assert_eq!(map.read(BLOCK, 5), expected[BLOCK..BLOCK + 5], "{name}: it is in the page cache");
            // the first one copies the file up; the second and third are not aligned
            for (seed, at, length) in [(2, BLOCK, 2 * BLOCK), (3, 4 * BLOCK + 3, 1000), (4, 16 * BLOCK, 333)] {
                let mut bytes = Aligned([0; 4 * BLOCK]);
                bytes.0[..length].copy_from_slice(&pattern(seed, length));
                match file.write_at(&bytes.0[..length], at as u64) {
                    // the kernel has given it to the branch's own file system, which wants whole blocks
                    Err(error)
                        if error.raw_os_error() == Some(libc::EINVAL) && name == "top" && length % BLOCK != 0 =>
                    {
                        continue;
                    }
                    written => assert_eq!(written.unwrap(), length),
                }
                expected.resize(expected.len().max(at + length), 0);
                expected[at..at + length].copy_from_slice(&bytes.0[..length]);
                check(&expected, "after a direct write");
                let shown = map.read(BLOCK, 4 * BLOCK);
                assert_eq!(shown, expected[BLOCK..5 * BLOCK], "{name}: the mapping shows it");
            }
            map.write(6 * BLOCK + 1, b"mapped");
            map.sync().unwrap();
            expected[6 * BLOCK + 1..6 * BLOCK + 7].copy_from_slice(b"mapped");
            buffered.write_all_at(b"buffered", 7 * BLOCK as u64 - 4).unwrap();
            expected[7 * BLOCK - 4..7 * BLOCK + 4].copy_from_slice(b"buffered");
            check(&expected, "after a mapped and a buffered write");
            file.set_len(3 * BLOCK as u64 + 1).unwrap();
            expected.truncate(3 * BLOCK + 1);
            check(&expected, "after a truncation");
            drop((file, buffered, map));
            assert_eq!(fs::read(u.at("0").join(name)).unwrap(), expected, "{name} in the top");
        }
        u.remount_and_compare();
    }
}

#[test]
fn a_direct_read_copies_nothing_up() {
    let Some(u) = files(Medium::Disk) else { return };
    let file = direct(&u.path("low"));
    let mut bytes = Aligned([0; 4 * BLOCK]);
    assert_eq!(file.read_at(&mut bytes.0, 2 * BLOCK as u64).unwrap(), 4 * BLOCK);
    assert_eq!(bytes.0[..], pattern(1, 6 * BLOCK)[2 * BLOCK..]);
    assert_eq!(file.read_at(&mut bytes.0, 17 * BLOCK as u64).unwrap(), 0, "beyond the end");
    assert_eq!(u.on_disk("0"), ["top"]);
}

#[test]
fn the_mount_itself_cannot_be_frozen() {
    let Some(u) = files(Medium::Disk) else { return };
    let outcome = finish(Command::new("fsfreeze").arg("--freeze").arg(u.path("")));
    assert!(outcome.status == Some(1) && outcome.stderr.contains("not supported"), "{outcome:?}");
    u.write("low", "it works as before");
}

/// While the file system of the top is frozen, reading goes on, and writing waits for the thaw.
#[test]
fn a_frozen_top_delays_writers_and_loses_nothing() {
    let Some(sandbox) = sandbox::enter() else { return };
    let top = sandbox.small_ext4("0", 16, &[]);
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    branches.file("0/top", "top").file("1/low", "low").file("1/d/e", "e");
    let mut u = branches.mount();
    let freeze = |what: &str| finish(Command::new("fsfreeze").arg(what).arg(&top)).status;
    assert_eq!(freeze("--freeze"), Some(0));
    assert_eq!((u.read("top"), u.read("low"), u.read("d/e")), ("top".into(), "low".into(), "e".into()));
    assert_eq!(u.list(""), ["d", "low", "top"]);
    assert!(u.stat("d").is_dir());
    let (sender, finished) = mpsc::channel();
    thread::scope(|scope| {
        let u = &u;
        scope.spawn(move || {
            let written: io::Result<()> =
                File::options().append(true).open(u.path("low")).and_then(|mut f| f.write_all(b"+"));
            sender.send(written.map_err(|error| error.to_string())).unwrap();
        });
        // a copy-up on a frozen file system cannot be done
        assert_eq!(finished.recv_timeout(Duration::from_millis(200)), Err(mpsc::RecvTimeoutError::Timeout));
        assert_eq!(freeze("--unfreeze"), Some(0));
        assert_eq!(finished.recv(), Ok(Ok(())));
    });
    assert_eq!(u.read("low"), "low+");
    u.remount_and_compare();
}
