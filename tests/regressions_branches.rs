//! Defects that reviews found in unions over unusual branches: several writable ones, broken or full file systems,
//! entries that somebody planted, changes behind the mount's back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::fixture::Branches;
use harness::mount::{Mounted, finish, poll};
use harness::sandbox::{self, run};
use harness::{Errno, ErrnoOf as _};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn read_write(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Waits until direct changes are noticed, which takes a second.
#[track_caller]
fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    assert!(poll(Duration::from_secs(10), || is().then_some(())).is_some(), "{what}");
}

#[test]
fn a_hard_link_of_a_lower_writable_branch_that_is_renamed_over_does_not_count() {
    for lower in ["rw", "ro+wh"] {
        let Some(branches) = Branches::new(BIN, &["rw", lower]) else { return };
        branches.file("1/x", "below").hard_link("1/x", "1/y").file("0/n", "new");
        let mut u = branches.mount();
        fs::rename(u.path("n"), u.path("x")).unwrap();
        for _remounted in 0..2 {
            assert_eq!((u.read("x"), u.read("y")), ("new".into(), "below".into()), "{lower}");
            assert_eq!((u.stat("x").nlink(), u.stat("y").nlink()), (1, 1), "{lower}");
            u.mounted.remount();
        }
    }
}

#[test]
fn hard_links_of_a_lower_writable_branch_stay_one_file_over_a_rename() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw"]) else { return };
    branches.file("1/x", "old").hard_link("1/x", "1/y").file("0/t", "replaced");
    let mut u = branches.mount();
    fs::rename(u.path("x"), u.path("t")).unwrap();
    u.write("t", "new");
    for _remounted in 0..2 {
        assert_eq!((u.list(""), u.read("t"), u.read("y")), (vec!["t".into(), "y".into()], "new".into(), "new".into()));
        assert_eq!((u.stat("t").ino(), u.stat("t").nlink()), (u.stat("y").ino(), 2));
        u.mounted.remount();
    }
}

#[test]
fn a_new_entry_inherits_from_the_directory_that_shows() {
    let Some(branches) = Branches::new(BIN, &["ro+wh", "rw"]) else { return };
    branches.dir("0/a").mode("0/a", 0o755).dir("1/a").owner("1/a", 0, 7).mode("1/a", 0o2755);
    branches.dir("0/b").owner("0/b", 0, 7).mode("0/b", 0o2755).dir("1/b").mode("1/b", 0o755);
    let u = branches.mount();
    for (directory, mode, gid) in [("a", 0o755, 0), ("b", 0o2755, 7)] {
        let (new, file) = (format!("{directory}/new"), format!("{directory}/file"));
        fs::create_dir(u.path(&new)).unwrap();
        u.write(&file, "");
        assert_eq!((u.mode(&new), u.stat(&new).gid(), u.stat(&file).gid()), (mode, gid, gid), "{directory}");
    }
}

#[test]
fn a_removed_fifo_can_be_used_and_changed_unless_its_branch_is_read_only() {
    for (branch, expected) in [("0", Ok(())), ("1", Err(Errno::ESTALE))] {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
        let path = branches.at(branch).join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        let u = branches.mount();
        let fifo = read_write(&u.path("fifo"));
        fs::remove_file(u.path("fifo")).unwrap();
        nix::unistd::write(&fifo, b"through").unwrap();
        let mut bytes = [0; 7];
        assert_eq!(nix::unistd::read(&fifo, &mut bytes), Ok(7), "{branch}");
        assert_eq!((&bytes, fifo.metadata().unwrap().nlink()), (b"through", 0), "{branch}");
        let changed = nix::sys::stat::fchmod(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600));
        assert_eq!(changed, expected, "{branch}");
    }
}

#[test]
fn an_open_file_can_be_linked_after_the_name_that_opened_it_went() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/a", "old!").hard_link("1/a", "1/b");
    let mut u = branches.mount();
    let file = read_write(&u.path("a"));
    fs::remove_file(u.path("a")).unwrap();
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::unistd::linkat(AT_FDCWD, link.as_str(), AT_FDCWD, &u.path("c"), AtFlags::AT_SYMLINK_FOLLOW).unwrap();
    file.write_all_at(b"new!", 0).unwrap();
    drop(file);
    for _remounted in 0..2 {
        assert_eq!((u.read("b"), u.read("c")), ("new!".into(), "new!".into()));
        assert_eq!((u.stat("b").ino(), u.stat("b").nlink()), (u.stat("c").ino(), 2));
        u.mounted.remount();
    }
}

#[test]
fn an_entry_whose_inode_is_broken_spoils_no_listing() {
    let Some(sandbox) = sandbox::enter() else { return };
    let lower = sandbox.small_ext4("1", 8, &[]);
    for name in ["a", "bad", "c"] {
        fs::write(lower.join(name), name).unwrap();
    }
    umount2(&lower, MntFlags::empty()).unwrap();
    let image = sandbox.path().join("1.img");
    // a type that there is not
    run(Command::new("debugfs").args(["-w", "-R", "set_inode_field /bad mode 0150000"]).arg(&image));
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&lower));
    let broken = fs::symlink_metadata(lower.join("bad")).errno();
    let u = Branches::inside(sandbox, BIN, &["rw", "rw"]).mount();
    assert_eq!(u.list(""), ["a", "bad", "c"]);
    assert_eq!(fs::symlink_metadata(u.path("bad")).errno(), broken);
    run(Command::new("ls").arg(u.path("")));
    assert_eq!((u.read("a"), u.read("c")), ("a".into(), "c".into()));
}

#[test]
fn planted_names_of_long_whiteouts_are_no_obstacle() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro"]) else { return };
    for branch in ["1", "2"] {
        branches.dir(format!("{branch}/d/.wh..wh.long.directory")).file(format!("{branch}/d/a"), "");
        branches.symlink(format!("{branch}/d/.wh..wh.long.loop"), ".wh..wh.long.loop");
        let fifo = branches.at(format!("{branch}/d/.wh..wh.long.fifo"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    }
    let u = branches.mount();
    assert_eq!(u.list("d"), ["a"]);
    fs::remove_dir_all(u.path("d")).unwrap();
    assert_eq!(u.list(""), [""; 0]);
}

#[test]
fn a_full_branch_makes_no_two_inodes_of_one_file() {
    let Some(sandbox) = sandbox::enter() else { return };
    let top = sandbox.path().join("0");
    fs::create_dir(&top).unwrap();
    mount(Some("none"), &top, Some("tmpfs"), MsFlags::empty(), Some("size=200k,nr_inodes=2000")).unwrap();
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro"]);
    for number in 0..300 {
        branches.file(format!("1/e{number}"), "");
    }
    let u = branches.mount_with(&["udba=reval"]);
    // rows of the table of numbers are to lie in pages that are not there yet
    fs::create_dir(u.path("pad")).unwrap();
    for number in 0..600 {
        u.write(format!("pad/{number}"), "");
    }
    assert_eq!(fs::write(u.path("fill"), vec![b'x'; 1 << 20]).errno(), Errno::ENOSPC);
    let files: Vec<_> = (0..300).map(|number| read_write(&u.path(format!("e{number}")))).collect();
    let changed = |file: &&File| file.set_permissions(fs::Permissions::from_mode(0o600)).is_ok();
    assert!(files.iter().filter(changed).count() > 0, "an empty file needs no block");
    fs::remove_file(u.path("fill")).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    // direct changes are looked for after a second: the names are asked for again
    std::thread::sleep(Duration::from_millis(1_200));
    for (number, file) in files.iter().enumerate() {
        let name = format!("e{number}");
        let reader = File::open(u.path(&name)).unwrap();
        assert_eq!(reader.metadata().unwrap().ino(), file.metadata().unwrap().ino(), "{name}");
        if number % 30 == 0 {
            file.write_all_at(b"new", 0).unwrap();
            assert_eq!(std::io::read_to_string(&reader).unwrap(), "new", "{name}");
        }
    }
}

#[test]
fn removing_names_of_one_object_writes_little_for_each() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/0", "");
    for number in 1..1_500 {
        branches.hard_link("1/d/0", format!("1/d/{number}"));
    }
    let u = branches.mount();
    let written = || {
        let text = fs::read_to_string(format!("/proc/{}/io", u.mounted.pid())).unwrap();
        text.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse::<u64>().unwrap()
    };
    let before = written();
    fs::remove_dir_all(u.path("d")).unwrap();
    let each = (written() - before) / 1_500;
    // a record that is written anew for each name comes to 5 KiB
    assert!(each < 2_048, "{each} bytes for each name");
}

#[test]
fn a_mount_that_is_refused_by_a_later_branch_leaves_no_volatile_marker() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw"]) else { return };
    branches.file("1/.wh..wh.runionfs", "in the way");
    let refused =
        finish(Command::new(BIN).arg("mount").arg(branches.string()).arg(branches.at("mnt")).args(["-o", "volatile"]));
    assert_eq!(refused.status, Some(1), "{refused:?}");
    fs::remove_file(branches.at("1/.wh..wh.runionfs")).unwrap();
    branches.mount().write("f", "x");
}

#[test]
fn a_direct_rename_in_a_read_only_branch_is_followed() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/a", "content").file("0/log", "old");
    let mut u = branches.mount_with(&["udba=reval"]);
    // the kernel must not forget them, whoever drops caches meanwhile
    let hold = |name| File::options().read(true).custom_flags(nix::libc::O_PATH).open(u.path(name)).unwrap();
    let _held = ["a", "log"].map(hold);
    assert_eq!((u.read("a"), u.read("log")), ("content".into(), "old".into()));
    fs::rename(u.at("1/a"), u.at("1/b")).unwrap();
    fs::rename(u.at("0/log"), u.at("0/log.1")).unwrap();
    fs::write(u.at("0/log"), "new").unwrap();
    u.accept_read_only_branches();
    wait_for("the new names show", || {
        !u.exists("a") && fs::read_to_string(u.path("log")).is_ok_and(|log| log == "new")
    });
    assert_eq!((u.read("b"), u.read("log.1")), ("content".into(), "old".into()));
    rustix::fs::setxattr(u.path("log.1"), "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let has_it = |path| rustix::fs::getxattr(u.at(path), "user.x", &mut [0_u8; 4]);
    assert_eq!((has_it("0/log.1"), has_it("0/log")), (Ok(1), Err(rustix::io::Errno::NODATA)));
}

#[test]
fn a_change_goes_to_the_file_that_has_the_name_after_a_direct_rename() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("0/log", "old");
    let u = branches.mount_with(&["udba=reval"]);
    assert_eq!(u.read("log"), "old");
    // the kernel must not forget it, whoever drops caches meanwhile
    let _held = File::options().read(true).custom_flags(nix::libc::O_PATH).open(u.path("log")).unwrap();
    fs::rename(u.at("0/log"), u.at("0/log.1")).unwrap();
    fs::write(u.at("0/log"), "new").unwrap();
    // nobody looks at the old name until the kernel asks again
    std::thread::sleep(Duration::from_millis(1_200));
    fs::set_permissions(u.path("log.1"), fs::Permissions::from_mode(0o600)).unwrap();
    let mode = |path| fs::metadata(u.at(path)).unwrap().mode() & 0o777;
    assert_eq!((mode("0/log.1"), mode("0/log")), (0o600, 0o644));
    assert_eq!((u.read("log.1"), u.read("log")), ("old".into(), "new".into()));
}

#[test]
fn a_directory_that_was_replaced_directly_is_stale_and_not_read_only() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/d/e/old", "");
    let mut u = branches.mount_with(&["udba=reval"]);
    let directory = File::open(u.path("d/e")).unwrap();
    let ino = u.stat("d/e").ino();
    fs::rename(u.at("1/d/e"), u.at("1/moved")).unwrap();
    fs::create_dir(u.at("1/d/e")).unwrap();
    fs::remove_dir_all(u.at("1/moved")).unwrap();
    u.accept_read_only_branches();
    wait_for("the new directory shows", || fs::metadata(u.path("d/e")).is_ok_and(|stat| stat.ino() != ino));
    let changed = directory.set_permissions(fs::Permissions::from_mode(0o700)).errno();
    assert!(matches!(changed, Errno::ESTALE | Errno::ENOENT), "{changed}");
}

#[test]
fn a_directory_that_is_another_branch_keeps_its_times_when_it_comes_up() {
    let Some(branches) = Branches::new(BIN, &["ro"]) else { return };
    branches.dir("0/v/top").mode("0/v/top", 0o755);
    run(Command::new("touch").args(["-d", "2001-01-01 UTC"]).arg(branches.at("0/v/top")));
    let (target, before) = (branches.at("mnt"), fs::metadata(branches.at("0/v/top")).unwrap());
    let string = format!("{}=rw:{}=ro", branches.at("0/v/top").display(), branches.at("0").display());
    let mounted = Mounted::mount(BIN, string, &target, &[]);
    fs::set_permissions(target.join("v/top"), fs::Permissions::from_mode(0o711)).unwrap();
    let now = fs::metadata(target.join("v/top")).unwrap();
    assert_eq!((now.mode() & 0o7777, now.uid(), now.mtime()), (0o711, before.uid(), before.mtime()));
    drop(mounted);
}
