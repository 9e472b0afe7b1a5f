//! Attributes and ways of opening, each compared with what a plain directory does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use harness::fixture::{Branches, Union};
use harness::snapshot::Snapshot;
use harness::{Errno, ErrnoOf as _};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// The same file in the top, below, and in a plain directory beside the union; the plain one first.
fn three() -> Option<(Union, [PathBuf; 3])> {
    let branches = Branches::new(BIN, &["rw", "ro+wh"])?;
    for path in ["plain", "0/top", "1/low"] {
        branches.file(path, "0123456789").owner(path, 3, 4).mode(path, 0o644);
        set_times(&branches.at(path), (-2, 500_000_000), (1_000_000_000, 1));
    }
    let u = branches.mount();
    let paths = [u.at("plain"), u.path("top"), u.path("low")];
    Some((u, paths))
}

fn set_times(path: &Path, modified: (i64, i64), accessed: (i64, i64)) {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(accessed), last_modification: time(modified) };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn times(path: &Path) -> [(i64, i64); 2] {
    let stat = fs::symlink_metadata(path).unwrap();
    [(stat.mtime(), stat.mtime_nsec()), (stat.atime(), stat.atime_nsec())]
}

#[test]
fn times_before_1970_keep_their_fraction() {
    let Some((mut u, paths)) = three() else { return };
    for path in &paths {
        assert_eq!(times(path), [(-2, 500_000_000), (1_000_000_000, 1)], "{}: as it was", path.display());
    }
    for modified in [(-1, 0), (-1, 999_999_999), (0, 0), (-2_000_000_000, 250_000_000), (4_000_000_000, 999_999_999)] {
        for path in &paths {
            set_times(path, modified, (5, 6));
            assert_eq!(times(path), [modified, (5, 6)], "{}", path.display());
        }
        u.remount_and_compare();
        assert_eq!(times(&paths[2])[0], modified);
    }
}

#[test]
fn one_time_can_be_set_and_the_other_left() {
    let Some((_union, paths)) = three() else { return };
    for path in &paths {
        set_times(path, (77, 7), (0, UTIME_OMIT));
        assert_eq!(times(path), [(77, 7), (1_000_000_000, 1)], "{}", path.display());
        set_times(path, (0, UTIME_OMIT), (88, 8));
        assert_eq!(times(path), [(77, 7), (88, 8)], "{}", path.display());
        set_times(path, (0, UTIME_NOW), (0, UTIME_OMIT));
        let [(now, _), accessed] = times(path);
        assert!(now > 1_700_000_000 && accessed == (88, 8), "{}", path.display());
    }
}

/// Something done to a file.
type Action = fn(&Path);

#[test]
fn every_change_moves_the_times_that_posix_says() {
    let changes: [(&str, Action); 5] = [
        ("write", |path| File::options().write(true).open(path).unwrap().write_all(b"x").unwrap()),
        ("truncate", |path| nix::unistd::truncate(path, 3).unwrap()),
        ("chmod", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap()),
        ("chown", |path| std::os::unix::fs::chown(path, Some(9), None).unwrap()),
        ("append nothing", |path| drop(File::options().append(true).open(path).unwrap())),
    ];
    for (name, change) in changes {
        let Some((mut u, paths)) = three() else { return };
        let moved = |path: &Path| {
            let (before, stat) = (fs::metadata(path).unwrap(), || fs::metadata(path).unwrap());
            thread::sleep(std::time::Duration::from_millis(12));
            change(path);
            [
                stat().mtime() != before.mtime(),
                (stat().ctime(), stat().ctime_nsec()) != (before.ctime(), before.ctime_nsec()),
            ]
        };
        let [plain, top, low] = [0, 1, 2].map(|index| moved(&paths[index]));
        assert_eq!(top, plain, "{name} in the top: mtime, ctime");
        // Opening for writing alone may bring the file up, which moves its ctime.
        assert!(
            low == plain || (name == "append nothing" && low[0] == plain[0]),
            "{name} below: {low:?}, not {plain:?}"
        );
        u.remount_and_compare();
    }
}

#[test]
fn chown_and_chmod_leave_alone_what_they_are_not_asked_for() {
    let Some((mut u, paths)) = three() else { return };
    for path in &paths {
        std::os::unix::fs::chown(path, None, Some(44)).unwrap();
        std::os::unix::fs::chown(path, Some(33), None).unwrap();
        std::os::unix::fs::chown(path, None, None).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o7421)).unwrap();
        let stat = fs::metadata(path).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (33, 44, 0o7421), "{}", path.display());
        assert_eq!(times(path), [(-2, 500_000_000), (1_000_000_000, 1)], "{}", path.display());
    }
    u.remount_and_compare();
}

#[test]
fn a_directory_comes_up_without_what_it_holds() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/f", "f").file("1/d/sub/g", "g");
    let mut u = branches.mount();
    fs::set_permissions(u.path("d"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(u.path(""), fs::Permissions::from_mode(0o711)).unwrap();
    assert_eq!((u.on_disk("0"), u.on_disk("0/d")), (vec!["d".into()], vec![]));
    assert_eq!((u.mode("d"), u.mode(""), u.list("d")), (0o750, 0o711, vec!["f".into(), "sub".into()]));
    u.remount_and_compare();
}

#[test]
fn ways_of_opening_do_what_they_say() {
    let Some((u, paths)) = three() else { return };
    for path in &paths {
        let open = |flags: i32| File::options().read(true).custom_flags(flags).open(path);
        assert_eq!(open(libc::O_DIRECTORY).errno(), Errno::ENOTDIR, "{}", path.display());
        assert_eq!(open(libc::O_CREAT | libc::O_EXCL).errno(), Errno::EEXIST, "{}", path.display());
        let mut text = String::new();
        open(libc::O_NOATIME | libc::O_SYNC | libc::O_NOFOLLOW).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "0123456789");
        let no_access = open(libc::O_PATH).unwrap().read(&mut [0; 1]);
        assert_eq!(no_access.errno(), Errno::EBADF, "{}", path.display());
        drop(open(libc::O_TRUNC).unwrap());
        assert_eq!(fs::metadata(path).unwrap().len(), 0, "{}: O_RDONLY|O_TRUNC truncates", path.display());
    }
    symlink("top", u.path("link")).unwrap();
    let open = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(u.path("link"));
    assert_eq!(open.errno(), Errno::ELOOP);
    assert_eq!(File::options().write(true).open(u.path("")).errno(), Errno::EISDIR);
}

#[test]
fn offsets_beyond_4_gib_work_on_every_branch() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let far = 5 << 30;
    for path in ["0/top", "1/low"] {
        File::create(branches.at(path)).unwrap().write_all_at(b"far", far).unwrap();
    }
    let u = branches.mount();
    for name in ["top", "low"] {
        let file = File::options().read(true).write(true).open(u.path(name)).unwrap();
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, far).unwrap();
        file.write_all_at(b"farther", far + (1 << 30)).unwrap();
        assert_eq!((&bytes, u.stat(name).len()), (b"far", far + (1 << 30) + 7), "{name}");
        assert!(u.stat(name).blocks() < 1000, "{name}");
        // A snapshot would read all of it.
        fs::remove_file(u.path(name)).unwrap();
    }
}

#[test]
fn sockets_and_fifos_connect_processes() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    nix::unistd::mkfifo(&branches.at("1/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let u = branches.mount();
    let listener = UnixListener::bind(u.path("socket")).unwrap();
    let mut client = UnixStream::connect(u.path("socket")).unwrap();
    client.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    listener.accept().unwrap().0.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    let text = thread::scope(|scope| {
        scope.spawn(|| fs::write(u.path("fifo"), "through").unwrap());
        fs::read_to_string(u.path("fifo")).unwrap()
    });
    assert_eq!((text, u.on_disk("0")), ("through".into(), vec!["socket".into()]), "a fifo below is used in place");
}

#[test]
fn a_running_program_is_not_written_to() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for path in ["0/top", "1/low"] {
        branches.file(path, fs::read("/bin/sleep").unwrap()).mode(path, 0o755);
    }
    let u = branches.mount();
    for name in ["top", "low"] {
        let mut child = Command::new(u.path(name)).arg("60").spawn().unwrap();
        assert_eq!(File::options().write(true).open(u.path(name)).errno(), Errno::ETXTBSY, "{name}");
        fs::set_permissions(u.path(name), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "{name}: still runs after its copy-up");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_watch_on_a_file_below_goes_on_over_its_copy_up() {
    use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
    let Some((u, paths)) = three() else { return };
    let inotify = init(CreateFlags::NONBLOCK).unwrap();
    add_watch(&inotify, &paths[2], WatchFlags::MODIFY | WatchFlags::ATTRIB).unwrap();
    add_watch(&inotify, u.path(""), WatchFlags::CREATE | WatchFlags::DELETE).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(&inotify, &mut buffer);
    let mut events = || {
        let mut seen = ReadFlags::empty();
        while let Ok(event) = reader.next() {
            seen |= event.events();
        }
        seen
    };
    u.write("low", "changed");
    assert!(events().contains(ReadFlags::MODIFY));
    File::options().append(true).open(u.path("low")).unwrap().write_all(b"again").unwrap();
    fs::set_permissions(u.path("low"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(events().contains(ReadFlags::MODIFY | ReadFlags::ATTRIB), "after the copy-up, too");
    u.write("new", "");
    fs::remove_file(u.path("new")).unwrap();
    assert!(events().contains(ReadFlags::CREATE | ReadFlags::DELETE));
}

#[test]
fn a_link_to_a_symlink_or_device_is_a_link() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.symlink("1/l", "nowhere").symlink("0/m", "nowhere");
    nix::unistd::mkfifo(&branches.at("1/p"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut u = branches.mount();
    for name in ["l", "m", "p"] {
        fs::hard_link(u.path(name), u.path(format!("{name}2"))).unwrap();
    }
    for _remounted in 0..2 {
        for name in ["l", "m", "p"] {
            let (one, two) = (u.stat(name), u.stat(format!("{name}2")));
            assert_eq!((one.ino(), one.nlink(), one.mode()), (two.ino(), 2, two.mode()), "{name}");
        }
        u.mounted.remount();
    }
}

#[test]
fn a_work_area_elsewhere_keeps_the_top_clean() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("work").file("1/f", "low").file("1/d/g", "low");
    let option = format!("workdir={}", branches.at("work").display());
    let mut u = branches.mount_with(&[&option]);
    u.write("f", "changed");
    fs::remove_file(u.path("d/g")).unwrap();
    fs::remove_dir(u.path("d")).unwrap();
    u.remount_and_compare();
    assert_eq!(Snapshot::take(&u.at("0")).paths(), [".wh.d", "f"]);
}
