//! What the kernel reads and writes by itself is the same file to everyone, and what it shows of it is never old;
//! nor is what is read and written through the daemon.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use harness::fixture::{Branches, Union, as_user};
use harness::mapping::{Mapping, Sharing};
use harness::mount::poll;
use harness::old_kernel::pretended;
use harness::sandbox::{Medium, skip};
use rustix::fs::{FallocateFlags, SeekFrom, XattrFlags};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
/// Both ways to the content of a file.
const WAYS: [&str; 2] = ["passthrough=auto", "passthrough=off"];

/// A union for each way, with a file in the top, one below, and one below that is copied up and closed.
fn unions() -> impl Iterator<Item = (&'static str, Union)> {
    WAYS.into_iter().filter_map(|way| {
        let branches = Branches::new(BIN, &["rw", "ro+wh"])?;
        branches.file("0/top", "0123456789").file("1/low", "0123456789").file("1/up", "0123456789");
        let u = branches.mount_with(&[way]);
        chmod(&u.path("up"), 0o644);
        Some((way, u))
    })
}

const NAMES: [&str; 3] = ["top", "low", "up"];

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn append(path: &Path) -> File {
    OpenOptions::new().append(true).open(path).unwrap()
}

/// Whether the daemon says that the kernel takes files.
fn has_passthrough(u: &Union) -> bool {
    let output = Command::new(BIN).arg("show").arg(u.mounted.target()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().any(|line| line == "feature passthrough")
}

#[test]
fn the_kernel_reads_and_writes_files_of_the_top_by_itself() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/top", "0123456789").file("1/up", "0123456789");
    let u = branches.mount_with(&["passthrough=auto"]);
    if !has_passthrough(&u) {
        return skip("the kernel takes no files: it is older than 6.9, or this is not root of the machine");
    }
    chmod(&u.path("up"), 0o640);
    u.write("made", "0123456789");
    let mut options = OpenOptions::new();
    let made_open = options.read(true).write(true).create_new(true).open(u.path("made open")).unwrap();
    made_open.write_all_at(b"0123456789", 0).unwrap();
    let opened = ["top", "up", "made"].map(|name| read_write(&u.path(name)));
    for (name, file) in ["top", "up", "made", "made open"].into_iter().zip(opened.iter().chain([&made_open])) {
        // the first one asks for capabilities to take away
        file.write_all_at(b"0", 0).unwrap();
        let alone = u.without_daemon(|| {
            file.write_all_at(b"AB", 4).unwrap();
            let mut bytes = [0; 10];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"0123AB6789", "{name}");
        });
        assert!(alone, "{name}: it was done through the daemon");
        assert_eq!(fs::read(u.at("0").join(name)).unwrap(), b"0123AB6789", "{name}");
    }
}

#[test]
fn it_does_not_with_passthrough_off() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/top", "0123456789");
    let u = branches.mount_with(&["passthrough=off"]);
    assert!(!has_passthrough(&u));
    let output = Command::new(BIN).arg("show").arg(u.mounted.target()).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().lines().any(|line| line == "option passthrough=off"));
}

#[test]
fn a_file_that_is_copied_up_while_open_is_one_file_to_the_last_close_and_after_it() {
    for (way, u) in unions() {
        let early = File::open(u.path("low")).unwrap();
        assert_eq!(early.metadata().unwrap().len(), 10);
        let writer = append(&u.path("low"));
        (&writer).write_all(b"abc").unwrap();
        let late = read_write(&u.path("low"));
        late.write_all_at(b"X", 0).unwrap();
        for file in [&early, &writer, &late] {
            let stat = file.metadata().unwrap();
            assert_eq!((stat.len(), stat.ino()), (13, u.stat("low").ino()), "{way}");
        }
        let mut bytes = [0; 13];
        early.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"X123456789abc", "{way}");
        drop((early, writer, late));
        let again = read_write(&u.path("low"));
        again.write_all_at(b"Y", 13).unwrap();
        assert_eq!((again.metadata().unwrap().len(), u.stat("low").len()), (14, 14), "{way}");
        assert_eq!(u.read("low"), "X123456789abcY", "{way}");
    }
}

#[test]
fn stat_after_a_write_is_right_by_every_way() {
    for (way, u) in unions() {
        for name in NAMES {
            let path = u.path(name);
            let (file, other) = (read_write(&path), File::open(&path).unwrap());
            for round in 0..20 {
                let size = 10 + round * 7;
                file.set_times(fs::FileTimes::new().set_modified(UNIX_EPOCH)).unwrap();
                assert_eq!((u.stat(name).mtime(), other.metadata().unwrap().mtime()), (0, 0), "{way}, {name}");
                file.write_all_at(b"abcdefg", size).unwrap();
                for stat in [u.stat(name), other.metadata().unwrap(), file.metadata().unwrap()] {
                    assert_eq!(stat.len(), size + 7, "{way}, {name}");
                    assert_ne!(stat.mtime(), 0, "{way}, {name}");
                }
            }
            file.set_len(3).unwrap();
            assert_eq!((u.stat(name).len(), other.metadata().unwrap().len()), (3, 3), "{way}, {name}");
            let shown = u.stat(name);
            drop((file, other));
            let (now, disk) = (u.stat(name), fs::metadata(u.at("0").join(name)).unwrap());
            assert_eq!((now.len(), now.mtime(), now.mtime_nsec()), (3, shown.mtime(), shown.mtime_nsec()), "{way}");
            assert_eq!((now.mtime(), now.mtime_nsec()), (disk.mtime(), disk.mtime_nsec()), "{way}, {name}");
        }
    }
}

#[test]
fn a_write_through_a_mapping_moves_the_time_that_stat_shows() {
    let past = fs::FileTimes::new().set_modified(UNIX_EPOCH);
    for (way, u) in unions() {
        for name in NAMES {
            let path = u.path(name);
            let file = read_write(&path);
            let map = Mapping::new(&file, 10, Sharing::Shared).unwrap();
            let moves = |when: &str| {
                File::open(&path).unwrap().set_times(past).unwrap();
                // what is remembered by now would be shown
                assert_eq!([u.stat(name).mtime(), u.stat(name).mtime()], [0, 0], "{way}, {name}, {when}");
                map.write(0, when.as_bytes());
                map.sync().unwrap();
                assert_ne!(u.stat(name).mtime(), 0, "{way}, {name}, {when}");
                let disk = fs::metadata(u.at("0").join(name)).unwrap();
                assert_eq!(u.stat(name).mtime(), disk.mtime(), "{way}, {name}, {when}");
            };
            moves("open");
            moves("again");
            drop(file);
            moves("closed");
            moves("once more");
            drop(map);
            File::open(&path).unwrap().set_times(past).unwrap();
            assert_eq!(u.stat(name).mtime(), 0, "{way}, {name}");
        }
    }
}

#[test]
fn appending_by_several_loses_nothing() {
    const EACH: usize = 200;
    for (way, u) in unions() {
        for name in NAMES {
            let path = u.path(name);
            thread::scope(|scope| {
                for writer in 0..4 {
                    let path = &path;
                    scope.spawn(move || {
                        let mut file = append(path);
                        for line in 0..EACH {
                            if line % 50 == 49 {
                                file = append(path);
                            }
                            file.write_all(format!("\n{writer} {line:08}").as_bytes()).unwrap();
                        }
                    });
                }
            });
            let text = u.read(name);
            let mut lines: Vec<&str> = text.lines().skip(1).collect();
            lines.sort_unstable();
            let expected: Vec<String> =
                (0..4).flat_map(|writer| (0..EACH).map(move |line| format!("{writer} {line:08}"))).collect();
            assert_eq!(lines, expected, "{way}, {name}");
            assert_eq!(fs::read_to_string(u.at("0").join(name)).unwrap(), text, "{way}, {name}");
        }
    }
}

#[test]
fn direct_reads_and_writes_act_on_the_same_file() {
    for (medium, way) in [Medium::Disk, Medium::Tmpfs].into_iter().flat_map(|medium| WAYS.map(|way| (medium, way))) {
        let Some(branches) = Branches::on(medium, BIN, &["rw", "ro+wh"]) else { return };
        branches.file("0/top", vec![b'a'; 8192]).file("1/low", vec![b'a'; 8192]);
        let u = branches.mount_with(&[way]);
        for name in ["top", "low"] {
            let (buffered, mut options) = (read_write(&u.path(name)), OpenOptions::new());
            let direct = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(u.path(name)).unwrap();
            let memory = vec![b'd'; 8192];
            let aligned = memory.as_ptr().align_offset(4096);
            direct.write_all_at(&memory[aligned..aligned + 4096], 0).unwrap();
            buffered.write_all_at(b"buffered", 4096).unwrap();
            let mut read = vec![0; 8192];
            let aligned = read.as_ptr().align_offset(4096);
            direct.read_exact_at(&mut read[aligned..aligned + 4096], 4096).unwrap();
            assert_eq!(&read[aligned..aligned + 8], b"buffered", "{medium:?} {way} {name}");
            let content = fs::read(u.path(name)).unwrap();
            assert_eq!(
                (&content[..4], &content[4096..4104]),
                (&b"dddd"[..], &b"buffered"[..]),
                "{medium:?} {way} {name}"
            );
        }
    }
}

#[test]
fn what_another_cuts_off_is_gone_from_a_mapping() {
    for (way, u) in unions() {
        for name in NAMES {
            u.write(name, [b'x'; 8192]);
            let file = read_write(&u.path(name));
            let map = Mapping::new(&file, 8192, Sharing::Shared).unwrap();
            assert_eq!(map.read(8191, 1), b"x");
            map.write(8191, b"y");
            nix::unistd::truncate(&u.path(name), 4096).unwrap();
            nix::unistd::truncate(&u.path(name), 8192).unwrap();
            assert_eq!((map.read(4095, 1), map.read(8191, 1)), (vec![b'x'], vec![0]), "{way}, {name}");
            map.write(8190, b"z");
            map.sync().unwrap();
            let disk = fs::read(u.at("0").join(name)).unwrap();
            assert_eq!((disk.len(), disk[4095], disk[8190], disk[8191]), (8192, b'x', b'z', 0), "{way}, {name}");
        }
    }
}

#[test]
fn every_call_acts_on_the_same_file() {
    for (way, u) in unions() {
        for name in NAMES {
            let (file, other) = (read_write(&u.path(name)), File::open(u.path(name)).unwrap());
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
            assert_eq!((other.metadata().unwrap().len(), u.stat(name).len()), (1 << 20, 1 << 20), "{way}, {name}");
            file.write_all_at(b"data", 1 << 19).unwrap();
            let holes = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, holes, 4096, (1 << 19) - 4096).unwrap();
            if pretended().finds_holes() {
                assert_eq!(rustix::fs::seek(&other, SeekFrom::Hole(0)).unwrap(), 4096, "{way}, {name}");
                assert_eq!(rustix::fs::seek(&other, SeekFrom::Data(4096)).unwrap(), 1 << 19, "{way}, {name}");
            }
            let mut bytes = [1; 4];
            other.read_exact_at(&mut bytes, 8192).unwrap();
            assert_eq!(bytes, [0; 4], "{way}, {name}: the hole reads as zeros");
            let (mut from, mut to) = (1 << 19, 16);
            assert_eq!(rustix::fs::copy_file_range(&other, Some(&mut from), &file, Some(&mut to), 4).unwrap(), 4);
            other.read_exact_at(&mut bytes, 16).unwrap();
            assert_eq!(&bytes, b"data", "{way}, {name}");
            file.sync_all().unwrap();
            file.sync_data().unwrap();
            file.set_len(20).unwrap();
            assert_eq!(fs::read(u.at("0").join(name)).unwrap(), b"0123456789\0\0\0\0\0\0data", "{way}, {name}");
        }
    }
}

/// What a program says of itself that is run by an ordinary user: its effective user, and its capabilities.
fn powers(program: &Path) -> (String, u64) {
    let script = "exec setpriv --reuid 1234 --regid 5678 --clear-groups \"$0\" -E '^(Uid|CapEff):' /proc/self/status";
    let run = || {
        let output = Command::new("sh").args(["-c", script]).arg(program).output().unwrap();
        // a child of another test may have a writer's descriptor for a moment, and the program is busy
        (output.status.code() != Some(126)).then(|| String::from_utf8(output.stdout).unwrap())
    };
    let text = poll(Duration::from_secs(10), run).expect("the program is busy");
    let of = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap().split_whitespace();
    (of("Uid:").nth(1).unwrap().to_owned(), u64::from_str_radix(of("CapEff:").next().unwrap(), 16).unwrap())
}

/// CAP_NET_RAW, permitted and in force, as an attribute has it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Programs in the three places of a union, for each way.
fn programs(mode: u32) -> impl Iterator<Item = (&'static str, Union)> {
    WAYS.into_iter().filter_map(move |way| {
        let branches = Branches::new(BIN, &["rw", "ro+wh"])?;
        for path in ["0/top", "1/low", "1/up"] {
            branches.file(path, fs::read("/usr/bin/grep").unwrap()).mode(path, mode);
        }
        let u = branches.mount_with(&[way]);
        rustix::fs::setxattr(u.path("up"), "user.x", b"", XattrFlags::empty()).unwrap();
        Some((way, u))
    })
}

#[test]
fn a_write_takes_the_power_of_a_program_away() {
    for (way, u) in programs(0o4777) {
        for name in NAMES {
            let path = u.path(name);
            assert_eq!(powers(&path).0, "0", "{way}, {name}: the bit works while it is there");
            as_user(1234, 5678, || append(&path).write_all(b"x").unwrap());
            assert_eq!(powers(&path), ("1234".into(), 0), "{way}, {name}");
        }
    }
}

#[test]
fn a_bit_that_appears_while_a_writer_has_the_file_open_goes_with_its_next_write() {
    for (way, u) in programs(0o777) {
        for name in NAMES {
            let path = u.path(name);
            let reader = File::open(&path).unwrap();
            let writer = as_user(1234, 5678, || append(&path));
            (&writer).write_all(b"x").unwrap();
            chmod(&path, 0o4777);
            as_user(1234, 5678, || (&writer).write_all(b"x").unwrap());
            drop(writer);
            assert_eq!(powers(&path), ("1234".into(), 0), "{way}, {name}");
            assert_eq!(fs::metadata(u.at("0").join(name)).unwrap().mode() & 0o7777, 0o777, "{way}, {name}");
            // the file stays open, and the next bit works until it is written again
            chmod(&path, 0o4777);
            assert_eq!(powers(&path).0, "0", "{way}, {name}");
            as_user(1234, 5678, || append(&path).write_all(b"x").unwrap());
            assert_eq!(powers(&path), ("1234".into(), 0), "{way}, {name}");
            drop(reader);
        }
    }
}

#[test]
fn a_bit_that_appears_while_a_reader_has_the_file_open_goes_with_the_first_write() {
    for (way, u) in programs(0o777) {
        for name in NAMES {
            let path = u.path(name);
            let reader = File::open(&path).unwrap();
            chmod(&path, 0o6777);
            assert_eq!(powers(&path).0, "0", "{way}, {name}: the bit works while it is there");
            as_user(1234, 5678, || append(&path).write_all(b"x").unwrap());
            assert_eq!(powers(&path), ("1234".into(), 0), "{way}, {name}");
            assert_eq!(u.mode(name), 0o777, "{way}, {name}");
            drop(reader);
        }
    }
}

#[test]
fn an_open_takes_no_privilege_from_what_comes_after_it() {
    const STRANGE: u32 = 4242;
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/opened", "x").file("0/program", "0123456789").file("1/below", "x").dir("0/dir");
    for path in ["0/program", "1/below", "0/dir"] {
        chown(branches.at(path), None, Some(STRANGE)).unwrap();
    }
    for path in ["1/below", "0/dir"] {
        chmod(&branches.at(path), 0o2755);
    }
    // all of it is done by the thread that gave a file to the kernel just before
    let u = branches.mount_with(&["threads=1"]);
    let open = || drop(File::open(u.path("opened")).unwrap());
    let mode = |name: &str| fs::metadata(u.path(name)).unwrap().mode() & 0o7777;
    open();
    chmod(&u.path("program"), 0o6755);
    assert_eq!(mode("program"), 0o6755, "root gives bits of a group that it is not in");
    let file = read_write(&u.path("program"));
    open();
    file.write_all_at(b"root", 0).unwrap();
    open();
    file.set_len(5).unwrap();
    drop(file);
    assert_eq!(mode("program"), 0o6755, "what root writes takes nothing away");
    open();
    fs::create_dir(u.path("dir/new")).unwrap();
    assert_eq!(mode("dir/new"), 0o2755, "the bit of the directory is handed down");
    open();
    chown(u.path("below"), Some(STRANGE), None).unwrap();
    chmod(&u.path("below"), 0o2750);
    open();
    let accessed = fs::FileTimes::new().set_accessed(UNIX_EPOCH);
    File::open(u.path("below")).unwrap().set_times(accessed).unwrap();
    assert_eq!((mode("below"), fs::metadata(u.at("0/below")).unwrap().mode() & 0o7777), (0o2750, 0o2750));
}

/// What takes long is done by a thread of its own, which is started by one that gave a file to the kernel just before.
#[test]
fn an_open_takes_no_privilege_from_threads_that_are_started_after_it() {
    const STRANGE: u32 = 4242;
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/opened", "x").file("1/large", "0123456789abcdef".repeat(1 << 20));
    chown(branches.at("1/large"), None, Some(STRANGE)).unwrap();
    chmod(&branches.at("1/large"), 0o2755);
    let u = branches.mount_with(&["threads=1"]);
    drop(File::open(u.path("opened")).unwrap());
    // no handle is opened for it
    nix::unistd::truncate(&u.path("large"), 9 << 20).unwrap();
    assert_eq!(fs::metadata(u.at("0/large")).unwrap().mode() & 0o7777, 0o2755);
    assert_eq!(u.mode("large"), 0o2755);
}

#[test]
fn a_write_takes_capabilities_away() {
    for (way, u) in programs(0o777) {
        for name in NAMES {
            let path = u.path(name);
            let give = || rustix::fs::setxattr(&path, "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
            give();
            assert_ne!(powers(&path).1, 0, "{way}, {name}: they work while they are there");
            as_user(1234, 5678, || append(&path).write_all(b"x").unwrap());
            assert_eq!(powers(&path), ("1234".into(), 0), "{way}, {name}");
            let writer = as_user(1234, 5678, || append(&path));
            give();
            as_user(1234, 5678, || (&writer).write_all(b"x").unwrap());
            drop(writer);
            assert_eq!(powers(&path), ("1234".into(), 0), "{way}, {name}: an open writer");
        }
    }
}

#[test]
fn a_removed_file_gives_its_space_back_when_it_is_closed() {
    for way in WAYS {
        let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
        let u = branches.mount_with(&[way]);
        let free = || rustix::fs::statvfs(u.at("0")).unwrap().f_bfree;
        let before = free();
        for open in [false, true] {
            u.write("f", vec![1; 8 << 20]);
            assert_eq!(u.read("f").len(), 8 << 20);
            let file = open.then(|| File::open(u.path("f")).unwrap());
            fs::remove_file(u.path("f")).unwrap();
            drop(file);
            // the kernel tells of it a moment later
            let back = || (free() + 16 >= before).then_some(());
            assert!(poll(Duration::from_secs(10), back).is_some(), "{way}, open: {open}");
        }
    }
}

/// The kernel answers with EIO where the handles of an inode are not of one kind.
#[test]
fn any_mixture_of_opens_and_changes_is_served() {
    for (way, u) in unions() {
        thread::scope(|scope| {
            for name in NAMES {
                let path = u.path(name);
                scope.spawn(move || mix(&path));
            }
        });
        for name in NAMES {
            assert_eq!(fs::read(u.path(name)).unwrap(), fs::read(u.at("0").join(name)).unwrap(), "{way}, {name}");
        }
    }
}

/// Opens a file in all manners while its set-id bit comes and goes.
fn mix(path: &Path) {
    let ended = AtomicBool::new(false);
    let turn = |turn: u32| {
        for round in 0..150 {
            match (turn + round) % 3 {
                0 => append(path).write_all(b"x").unwrap(),
                1 => drop(fs::read(path).unwrap()),
                _ => read_write(path).set_len(10).unwrap(),
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                chmod(path, 0o4755);
                chmod(path, 0o755);
            }
        });
        let turns = [0, 1, 2].map(|number| scope.spawn(move || turn(number)));
        let results = turns.map(|turn| turn.join());
        ended.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
}
