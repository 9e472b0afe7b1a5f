//! What is large, and how content gets up: shared blocks, ranges, pipes and holes; and that nobody but who asked for it
//! has a part in it (rules 19, 29 and 30).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use harness::fixture::{Branches, as_user};
use harness::kill_at::kill_at;
use harness::mount::{Mounted, poll};
use harness::sandbox::{self, Medium, Sandbox, run};
use harness::snapshot::xattrs;
use nix::mount::{MntFlags, umount2};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const MEBIBYTE: usize = 1 << 20;

/// Bytes of which no two pages are the same.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let words = (1..=512u64).map(|at| at.wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ seed << 17));
    let page: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let mut bytes = page.repeat(length.div_ceil(page.len()));
    for (number, page) in (0u64..).zip(bytes.chunks_mut(page.len())) {
        page[100..108].copy_from_slice(&number.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn chmod(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn free(path: &Path) -> u64 {
    let found = rustix::fs::statvfs(path).unwrap();
    found.f_bfree * found.f_frsize
}

fn sync(path: &Path) {
    rustix::fs::syncfs(File::open(path).unwrap()).unwrap();
}

/// A union of `0` and `1` in a directory, mounted at `mnt` in the sandbox.
fn mount(sandbox: &Sandbox, top: &Path, below: &Path) -> Mounted {
    let target = sandbox.path().join("mnt");
    fs::create_dir_all(&target).unwrap();
    Mounted::mount(BIN, format!("{}=rw:{}=ro+wh", top.display(), below.display()), &target, &[])
}

#[test]
fn copies_share_their_blocks_where_the_file_system_can() {
    let Some(sandbox) = sandbox::enter() else { return };
    for (kind, mkfs) in [("btrfs", &[][..]), ("xfs", &["-m", "reflink=1"])] {
        let root = sandbox.file_system(kind, kind, 400, mkfs);
        let (top, below) = (root.join("0"), root.join("1"));
        [&top, &below].iter().for_each(|branch| fs::create_dir(branch).unwrap());
        let bytes = pattern(48 * MEBIBYTE, 1);
        for name in ["chmod", "write", "cut", "odd"] {
            fs::write(below.join(name), &bytes).unwrap();
        }
        sync(&root);
        let before = free(&root);
        let mounted = mount(&sandbox, &top, &below);
        let at = |name: &str| mounted.target().join(name);
        chmod(&at("chmod"));
        File::options().write(true).open(at("write")).unwrap().write_all_at(b"new", 5_000_000).unwrap();
        nix::unistd::truncate(&at("cut"), 20 << 20).unwrap();
        nix::unistd::truncate(&at("odd"), (33 << 20) + 4321).unwrap();
        assert_eq!(fs::read(at("chmod")).unwrap(), bytes, "{kind}");
        assert_eq!(fs::read(at("cut")).unwrap(), bytes[..20 << 20], "{kind}");
        assert_eq!(fs::read(at("odd")).unwrap(), bytes[..(33 << 20) + 4321], "{kind}");
        let written = fs::read(at("write")).unwrap();
        assert!(written[..5_000_000] == bytes[..5_000_000] && written[5_000_003..] == bytes[5_000_003..], "{kind}");
        assert_eq!(&written[5_000_000..5_000_003], b"new");
        sync(&root);
        let taken = before.saturating_sub(free(&root));
        assert!(taken < 8 << 20, "four copies of 48 MiB take {taken} bytes on {kind}");
        for name in ["chmod", "cut"] {
            let output = Command::new("filefrag").arg("-v").arg(top.join(name)).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let extents: Vec<_> = text.lines().filter(|line| line.contains("..")).collect();
            assert!(!extents.is_empty() && extents.iter().all(|line| line.contains("shared")), "{kind}: {text}");
        }
        drop(mounted);
        umount2(&root, MntFlags::empty()).unwrap();
    }
}

/// A file with holes: name, length, and where there is data.
type Sparse = (&'static str, u64, Vec<(u64, usize)>);

fn holes() -> Vec<Sparse> {
    const M: u64 = 1 << 20;
    vec![
        ("full", 20 * M + 77, vec![(0, 20 * MEBIBYTE + 77)]),
        ("small", 3, vec![(0, 3)]),
        ("empty", 0, vec![]),
        ("hole", 3 * M + 5, vec![]),
        ("hole-first", 30 * M, vec![(12 * M, MEBIBYTE)]),
        ("hole-last", 30 * M, vec![(0, 9 * MEBIBYTE)]),
        ("many", 64 * M, (0..16).map(|at| (at * 4 * M, 70_000)).collect()),
        ("small-hole", 65_536, vec![(0, 4096), (61_440, 4096)]),
        ("odd", 10 * M + 1, vec![(M + 13, 100), (5 * M + 4097, 9000), (10 * M, 1)]),
    ]
}

fn write_sparse(path: &Path, length: u64, data: &[(u64, usize)]) {
    let file = File::create(path).unwrap();
    file.set_len(length).unwrap();
    for (at, size) in data {
        file.write_all_at(&pattern(*size, *at + 3), *at).unwrap();
    }
    file.sync_all().unwrap();
}

fn assert_copied(path: &Path, below: &Path, length: u64) {
    let (copy, original) = (fs::read(path).unwrap(), fs::read(below).unwrap());
    assert_eq!(copy.len() as u64, length, "{}", path.display());
    let kept = copy.len().min(original.len());
    assert!(copy[..kept] == original[..kept], "{} differs", path.display());
    assert!(copy[kept..].iter().all(|byte| *byte == 0), "{} ends in something", path.display());
    let data = [path, below].map(data_of);
    assert!(data[0] <= data[1] + 131_072, "{}: {} bytes of data became {}", path.display(), data[1], data[0]);
}

/// How much of a file is not a hole.
fn data_of(path: &Path) -> u64 {
    use rustix::fs::{SeekFrom, seek};
    let file = File::open(path).unwrap();
    let (mut at, mut sum) = (0, 0);
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        sum += at - start;
    }
    sum
}

#[test]
fn content_and_holes_come_up_from_every_file_system_to_every_other() {
    let Some(sandbox) = sandbox::enter_on(Medium::Tmpfs) else { return };
    let mut roots = vec![sandbox.path().join("tmpfs")];
    fs::create_dir(&roots[0]).unwrap();
    roots.push(sandbox.file_system("ext4", "ext4", 200, &[]));
    roots.push(sandbox.file_system("xfs", "xfs", 300, &[]));
    roots.push(sandbox.file_system("btrfs", "btrfs", 300, &[]));
    for root in &roots {
        fs::create_dir(root.join("below")).unwrap();
        for (name, length, data) in holes() {
            write_sparse(&root.join("below").join(name), length, &data);
        }
    }
    for (from, to) in roots.iter().flat_map(|from| roots.iter().map(move |to| (from, to))) {
        let (below, top) = (from.join("below"), to.join("top"));
        for cut in [None, Some(2_000_000), Some(40)] {
            fs::create_dir(&top).unwrap();
            let mut mounted = mount(&sandbox, &top, &below);
            for (name, length, _) in holes() {
                let path = mounted.target().join(name);
                match cut {
                    None => chmod(&path),
                    Some(cut) => nix::unistd::truncate(&path, cut).unwrap(),
                }
                assert_eq!(fs::metadata(&path).unwrap().len(), cut.map_or(length, |cut| cut as u64));
                assert_copied(&top.join(name), &below.join(name), cut.map_or(length, |cut| cut as u64));
            }
            mounted.umount();
            fs::remove_dir_all(&top).unwrap();
        }
    }
}

#[test]
fn a_default_acl_of_the_branch_is_not_for_copies() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/secret", "nobody else's").owner("1/d/secret", 7, 7).mode("1/d/secret", 0o640);
    run(Command::new("setfacl").args(["-m", "d:u:1234:rwx"]).arg(branches.at("0")));
    let mut u = branches.mount();
    for _ in 0..2 {
        chmod(&u.path("d/secret"));
        fs::set_permissions(u.path("d/secret"), fs::Permissions::from_mode(0o640)).unwrap();
        for path in ["d", "d/secret"] {
            let found = xattrs(&u.at("0").join(path)).unwrap();
            assert!(found.keys().all(|name| !name.to_string_lossy().contains("posix_acl")), "{path}: {found:?}");
        }
        let path = u.path("d/secret");
        as_user(1234, 1234, || assert!(fs::read(&path).is_err(), "an ACL of the branch lets a stranger read"));
        // what an earlier mount left
        fs::remove_file(u.at("0/d/secret")).unwrap();
        fs::remove_dir(u.at("0/d")).unwrap();
        u.mounted.umount();
        run(Command::new("setfacl").args(["-m", "d:u:1234:rwx"]).arg(u.at("0/.wh..wh.runionfs/tmp")));
        u.mounted.mount_again();
    }
}

#[test]
fn a_caller_that_is_killed_leaves_nothing() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    let bytes = pattern(64 * MEBIBYTE, 5);
    for number in 0..4 {
        branches.file(format!("1/{number}"), &bytes);
    }
    let mut u = branches.mount();
    for number in 0..4 {
        let path = u.path(number.to_string());
        let mut caller = Command::new("chmod").arg("600").arg(&path).spawn().unwrap();
        let begun =
            poll(Duration::from_secs(30), || (u.prepared(0) > 0 || caller.try_wait().unwrap().is_some()).then_some(()));
        assert!(begun.is_some());
        caller.kill().unwrap();
        caller.wait().unwrap();
        assert!(poll(Duration::from_secs(30), || (u.prepared(0) == 0).then_some(())).is_some(), "left over");
        // before or after, and whole
        let copied = u.at("0").join(number.to_string()).exists();
        assert_eq!(u.mode(number.to_string()), if copied { 0o600 } else { 0o644 });
        assert!(fs::read(&path).unwrap() == bytes);
    }
    u.remount_and_compare();
}

#[test]
fn many_files_of_one_directory_come_up_at_once() {
    const FILES: u64 = 240;
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let content = |number: u64| pattern(1000 + 1700 * number as usize, number);
    for number in 0..FILES {
        branches.file(format!("1/d/{number}"), content(number));
    }
    let mut u = branches.mount();
    let over = AtomicBool::new(false);
    let path = |number: u64| u.path(format!("d/{number}"));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut number = 0;
            while !over.load(Ordering::Acquire) {
                number = (number + 7) % FILES;
                // the first byte is what is changed
                assert!(fs::read(path(number)).unwrap()[1..] == content(number)[1..], "{number} is torn");
                assert_eq!(fs::read_dir(u.path("d")).unwrap().count() as u64, FILES);
            }
        });
        let writers: Vec<_> = (0..16)
            .map(|writer| {
                scope.spawn(move || {
                    for number in (0..FILES).filter(|number| number % 16 == writer) {
                        let file = File::options().read(true).write(true).open(path(number)).unwrap();
                        file.write_all_at(b"!", 0).unwrap();
                        file.sync_data().unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        over.store(true, Ordering::Release);
        reader.join().unwrap();
    });
    for number in 0..FILES {
        let mut expected = content(number);
        expected[0] = b'!';
        assert!(fs::read(path(number)).unwrap() == expected, "{number}");
    }
    assert_eq!(u.prepared(0), 0);
    u.remount_and_compare();
}

#[test]
fn a_file_is_read_and_looked_at_while_it_is_copied() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    let bytes = pattern(192 * MEBIBYTE, 9);
    branches.file("1/d/f", &bytes);
    let u = branches.mount_with(&["threads=2"]);
    let (path, open) = (u.path("d/f"), File::open(u.path("d/f")).unwrap());
    let turns = thread::scope(|scope| {
        let copier = scope.spawn(|| chmod(&path));
        poll(Duration::from_secs(30), || (u.prepared(0) > 0 || copier.is_finished()).then_some(()));
        let mut turns = 0;
        while !copier.is_finished() {
            let at = turns * 7_654_321 % (191 * MEBIBYTE);
            let mut found = [0; 5000];
            open.read_exact_at(&mut found, at as u64).unwrap();
            assert!(found[..] == bytes[at..at + 5000], "at {at}");
            assert_eq!((u.stat("d/f").len(), u.list("d").len()), (bytes.len() as u64, 1));
            turns += 1;
        }
        turns
    });
    assert!(turns > 5, "{turns} turns while 192 MiB were copied");
    assert!(fs::read(&path).unwrap() == bytes);
}

/// A way to remove `f`, and what the top holds under that name then.
type Removal = (fn(&Path), Option<&'static str>);

/// The changing calls of the daemon while a name below goes that has a file of this length.
fn calls_of_removing(sandbox: &Sandbox, place: &Path, length: u64, (remove, left): Removal) -> Vec<String> {
    let (top, below) = (place.join("0"), place.join("1"));
    [&top, &below].iter().for_each(|branch| fs::create_dir_all(branch).unwrap());
    File::create(below.join("f")).unwrap().set_len(length).unwrap();
    fs::write(top.join("over"), "small").unwrap();
    let mut mounted = mount(sandbox, &top, &below);
    for entry in fs::read_dir(mounted.target()).unwrap() {
        entry.unwrap().metadata().unwrap();
    }
    let target: PathBuf = mounted.target().to_owned();
    let life = kill_at(mounted.pid(), usize::MAX, || remove(&target));
    mounted.wait_for_the_end();
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(fs::read_to_string(top.join("f")).ok().as_deref(), left);
    life.calls
}

#[test]
fn removing_what_is_large_below_is_as_much_as_removing_what_is_small() {
    let Some(sandbox) = sandbox::enter_on(Medium::Tmpfs) else { return };
    let ways: [(&str, Removal); 2] = [
        ("unlink", (|union| fs::remove_file(union.join("f")).unwrap(), None)),
        ("rename", (|union| fs::rename(union.join("over"), union.join("f")).unwrap(), Some("small"))),
    ];
    for (name, removal) in ways {
        let calls = |size: &str, length| {
            let calls = calls_of_removing(&sandbox, &sandbox.path().join(name).join(size), length, removal);
            assert!(!calls.is_empty() && !calls.iter().any(|call| call == "copy_file_range"), "{name}: {calls:?}");
            calls
        };
        assert_eq!(calls("small", 4096), calls("large", 1 << 40), "{name}");
    }
}

#[test]
fn blocks_of_a_large_file_are_freed_when_it_goes() {
    let Some(sandbox) = sandbox::enter() else { return };
    let top = sandbox.small_ext4("0", 80, &[]);
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    let u = branches.mount();
    let bytes = pattern(40 * MEBIBYTE, 2);
    let put = |name: &str| {
        let file = File::create(u.path(name)).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file.sync_all().unwrap();
    };
    // the kernel tells of the last close when it likes to
    let freed = |before| poll(Duration::from_secs(30), || (free(&top) > before + (38 << 20)).then_some(())).is_some();
    put("f");
    for _ in 0..3 {
        let before = free(&top);
        fs::remove_file(u.path("f")).unwrap();
        assert!(freed(before), "the blocks of a removed file are never freed");
        put("f");
        u.write("small", "x");
        fs::rename(u.path("small"), u.path("f")).unwrap();
        assert!(freed(before), "the blocks of a replaced file are never freed");
        assert_eq!(u.read("f"), "x");
        fs::remove_file(u.path("f")).unwrap();
        put("f");
    }
    // one that is open keeps them, until it is closed
    let open = File::open(u.path("f")).unwrap();
    let before = free(&top);
    fs::remove_file(u.path("f")).unwrap();
    assert!(free(&top) < before + (1 << 20));
    let mut found = vec![0; 1000];
    open.read_exact_at(&mut found, 39 << 20).unwrap();
    assert!(found[..] == bytes[39 << 20..(39 << 20) + 1000]);
    drop(open);
    assert!(freed(before), "the blocks of a file that was removed while it was open are never freed");
}
