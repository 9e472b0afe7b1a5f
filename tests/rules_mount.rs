//! Rules 36 to 40: durability, space, permissions, direct changes, and what may be mounted over what.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::fixture::{Branches, Union, as_user};
use harness::mount::{Mounted, finish, is_alive, poll};
use harness::sandbox::{self, mounts_below, run};
use harness::snapshot::{Exactness, Snapshot};
use harness::{Errno, ErrnoOf as _};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::{FsFlags, statvfs};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const PATIENCE: Duration = Duration::from_secs(20);

/// Mounting is refused with status 1, one line that contains `hint`, and nothing is mounted.
#[track_caller]
fn assert_refused(branches: &str, target: &Path, options: &[&str], hint: &str) {
    let Err(outcome) = Mounted::try_mount(BIN, branches, target, options) else {
        panic!("{branches} must be refused");
    };
    assert_eq!((outcome.status, &*outcome.stdout), (Some(1), ""), "{branches}: {outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{branches}: {:?}", outcome.stderr);
    assert!(outcome.stderr.contains(hint), "{branches}: {:?} does not mention {hint:?}", outcome.stderr);
    assert_eq!(mounts_below(target), [""; 0].map(Path::new), "{branches}: something is mounted");
}

#[test]
fn fsync_of_files_and_directories_works_on_every_branch() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("0/d/top", "").file("1/d/low", "").file("1/e/low", "");
    let u = branches.mount();
    for path in ["d", "e", "d/top", "d/low"] {
        let file = fs::File::open(u.path(path)).unwrap();
        rustix::fs::fsync(file.as_fd()).unwrap();
        rustix::fs::fdatasync(file.as_fd()).unwrap();
    }
    u.write("e/low", "written");
    fs::File::open(u.path("e")).unwrap().sync_all().unwrap();
    assert_eq!(u.on_disk("0/e"), ["low"]);
}

#[test]
fn a_volatile_union_is_refused_after_a_crash_and_taken_after_a_clean_end() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/f", "low");
    let mut u = branches.mount_with(&["volatile"]);
    u.write("f", "written");
    fs::File::options().append(true).open(u.path("f")).unwrap().sync_all().unwrap();
    u.remount_and_compare();
    u.mounted.kill9();
    run(Command::new("umount").args(["-l"]).arg(u.path("")));
    let string = u.branches().string().into_string().unwrap();
    assert_refused(&string, &u.path(""), &["volatile"], "volatile");
    assert_refused(&string, &u.path(""), &[], "volatile");
}

#[test]
fn statfs_shows_the_top_writable_branch() {
    let Some(sandbox) = sandbox::enter() else { return };
    drop(sandbox.small_ext4("1", 16, &[]));
    let branches = Branches::inside(sandbox, BIN, &["ro+wh", "rw", "ro+wh"]);
    let u = branches.mount();
    let (ours, theirs) = (statvfs(&u.path("")).unwrap(), statvfs(&u.at("1")).unwrap());
    assert_eq!(
        (ours.blocks(), ours.block_size(), ours.files()),
        (theirs.blocks(), theirs.block_size(), theirs.files())
    );
    assert_eq!((ours.blocks_free(), ours.blocks_available()), (theirs.blocks_free(), theirs.blocks_available()));
    assert_eq!(ours.name_max(), 255);
}

#[test]
fn permissions_are_those_of_the_merged_attributes() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/opened/f", "content").mode("1/opened", 0o700).dir("0/opened").mode("0/opened", 0o755);
    branches.file("1/closed/f", "content").mode("1/closed", 0o755).dir("0/closed").mode("0/closed", 0o700);
    branches.file("1/secret", "content").mode("1/secret", 0o600);
    let u = branches.mount();
    let [opened, closed, secret] = ["opened/f", "closed/f", "secret"].map(|path| u.path(path));
    as_user(1234, 5678, || {
        assert_eq!(fs::read(&opened).unwrap(), b"content", "a mode below the topmost does not matter");
        assert_eq!(fs::read(&closed).errno(), Errno::EACCES);
        assert_eq!(fs::read_dir(closed.parent().unwrap()).errno(), Errno::EACCES);
        assert_eq!(fs::read(&secret).errno(), Errno::EACCES);
        assert_eq!(fs::write(&opened, "").errno(), Errno::EACCES);
    });
    chmod(&u.path("secret"), 0o604);
    as_user(1234, 5678, || assert_eq!(fs::read(&secret).unwrap(), b"content", "a change counts at once"));
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_mount_by_root_keeps_set_id_programs_and_devices() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/id", fs::read("/usr/bin/id").unwrap()).owner("1/id", 42, 42).mode("1/id", 0o4755);
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let (mode, null) = (nix::sys::stat::Mode::from_bits_truncate(0o666), nix::sys::stat::makedev(1, 3));
    nix::sys::stat::mknod(&branches.at("1/null"), kind, mode, null).unwrap();
    let u = branches.mount();
    let entry = u.mounted.entry().unwrap();
    assert_eq!(entry.kind, "fuse.runionfs");
    assert!(entry.super_options.contains("default_permissions") && entry.super_options.contains("allow_other"));
    assert!(!entry.options.contains("nosuid") && !entry.options.contains("nodev"), "{}", entry.options);
    assert!(!statvfs(&u.path("")).unwrap().flags().intersects(FsFlags::ST_NOSUID | FsFlags::ST_NODEV));
    let output = Command::new(u.path("id")).arg("-u").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "42");
    fs::write(u.path("null"), "into the void").unwrap();
}

#[test]
fn direct_changes_are_noticed_with_udba_reval() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches
        .file("1/content", "old")
        .file("1/same-size", "old")
        .file("1/gone", "")
        .file("1/d/f", "")
        .file("0/top", "old");
    branches.file("1/mode", "");
    let mut u = branches.mount_with(&["udba=reval"]);
    let known = Snapshot::take(&u.path(""));
    assert_eq!(known.paths(), ["content", "d", "d/f", "gone", "mode", "same-size", "top"]);
    assert_eq!(fs::symlink_metadata(u.path("new")).errno(), Errno::ENOENT);
    fs::write(u.at("1/content"), "a longer content").unwrap();
    fs::write(u.at("1/same-size"), "new").unwrap();
    fs::remove_file(u.at("1/gone")).unwrap();
    fs::write(u.at("1/new"), "new").unwrap();
    fs::write(u.at("1/d/new"), "new").unwrap();
    fs::write(u.at("0/top"), "changed").unwrap();
    chmod(&u.at("1/mode"), 0o600);
    u.accept_read_only_branches();
    let all_noticed = |u: &Union| {
        let read = |path: &str| fs::read_to_string(u.path(path)).unwrap_or_default();
        let contents = ["content", "same-size", "new", "d/new", "top"].map(read);
        contents == ["a longer content", "new", "new", "new", "changed"]
            && !u.exists("gone")
            && u.mode("mode") == 0o600
            && u.list("d") == ["f", "new"]
            && u.list("") == ["content", "d", "mode", "new", "same-size", "top"]
    };
    let noticed = poll(PATIENCE, || all_noticed(&u).then_some(()));
    assert!(noticed.is_some(), "not all is noticed: {:?}", Snapshot::take(&u.path("")));
}

#[test]
fn direct_changes_never_crash_nor_write_to_a_wrong_file() {
    for options in ["udba=none", "udba=reval"] {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
        branches
            .file("0/d/f", "f")
            .file("0/d/g", "g")
            .file("1/d/low", "low")
            .file("0/e/x", "x")
            .file("0/victim", "victim");
        let mut u = branches.mount_with(&[options]);
        let open = fs::File::options().append(true).open(u.path("d/f")).unwrap();
        drop(Snapshot::take(&u.path("")));
        fs::rename(u.at("0/d"), u.at("0/moved")).unwrap();
        fs::rename(u.at("0/e/x"), u.at("0/e/y")).unwrap();
        fs::remove_file(u.at("0/moved/g")).unwrap();
        fs::remove_dir_all(u.at("1/d")).unwrap();
        u.accept_read_only_branches();
        // Each of these may succeed or fail; what it must not do is hang, end the daemon, or hit another file.
        std::io::Write::write_all(&mut &open, b"+").unwrap_or_default();
        for path in ["d/f", "d/g", "d/low", "e/x", "d/new"] {
            fs::write(u.path(path), "changed").unwrap_or_default();
            fs::read(u.path(path)).unwrap_or_default();
            fs::rename(u.path(path), u.path("e/renamed")).unwrap_or_default();
            fs::remove_file(u.path(path)).unwrap_or_default();
        }
        drop(fs::read_dir(u.path("d")).map(Iterator::count));
        assert!(is_alive(u.mounted.pid()), "{options}");
        assert_eq!(
            (u.read("victim"), fs::read_to_string(u.at("0/e/y")).unwrap()),
            ("victim".into(), "x".into()),
            "{options}"
        );
        drop(open);
        u.mounted.remount();
        assert_eq!(u.read("victim"), "victim", "{options}");
    }
}

#[test]
fn branches_that_overlap_are_refused() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("0/inner/deep").dir("1/inner").symlink("link", branches.at("0"));
    let [b0, inner, deep, b1] =
        ["0", "0/inner", "0/inner/deep", "1"].map(|path| branches.at(path).display().to_string());
    let link = branches.at("link").display().to_string();
    let mnt = branches.at("mnt");
    for (string, hint) in [
        (format!("{b0}=rw:{b0}=ro"), &*b0),
        (format!("{b0}=rw:{b0}/.=ro"), &b0),
        (format!("{b0}=rw:{link}=ro"), "0"),
        (format!("{b0}=rw:{inner}=ro"), "inner"),
        (format!("{b0}=rw:{deep}=rw:{b1}=ro"), "deep"),
        (format!("{b1}=ro:{deep}=ro:{b0}=rw"), "deep"),
        (format!("{b0}=rw:{b1}/missing=ro"), "missing"),
        (format!("{b0}=rw:{b1}=ro:{b1}=ro+wh"), &b1),
    ] {
        assert_refused(&string, &mnt, &[], hint);
    }
}

#[test]
fn a_writable_branch_on_a_read_only_file_system_is_refused() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let top = branches.at("0");
    run(Command::new("mount").arg("--bind").arg(&top).arg(&top));
    run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&top));
    assert_refused(&branches.string().into_string().unwrap(), &branches.at("mnt"), &[], "0");
}

#[test]
fn a_branch_may_lie_inside_a_read_only_one_and_shows_as_an_empty_directory() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/etc/f", "low").file("1/var/tops/mine/old", "of the top").file("1/var/tops/other", "");
    let outer = branches.at("1").display().to_string();
    let string = format!("{outer}/var/tops/mine=rw:{outer}=ro+wh");
    let mounted = Mounted::mount(BIN, string, &branches.at("mnt"), &[]);
    let path = |path: &str| mounted.target().join(path);
    assert_eq!(harness::snapshot::names(&path("")).unwrap(), ["etc", "old", "var"]);
    assert_eq!(harness::snapshot::names(&path("var/tops")).unwrap(), ["mine", "other"]);
    assert_eq!(fs::read_dir(path("var/tops/mine")).unwrap().count(), 0, "the top does not show inside itself");
    assert_eq!(fs::remove_dir(path("var/tops/mine")).errno(), Errno::EBUSY);
    fs::write(path("etc/f"), "changed").unwrap();
    fs::write(path("var/tops/other"), "changed").unwrap();
    assert_eq!(fs::read_to_string(branches.at("1/etc/f")).unwrap(), "low");
    assert_eq!(fs::read_to_string(branches.at("1/var/tops/mine/etc/f")).unwrap(), "changed");
    assert_eq!(fs::read_dir(path("var/tops/mine")).unwrap().count(), 0);
}

#[test]
fn our_own_mount_point_and_mounts_in_a_branch_are_not_entered() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/f", "low").file("1/mnt/covered", "").file("1/sub/covered", "").file("elsewhere/mounted", "");
    run(Command::new("mount").arg("--bind").arg(branches.at("elsewhere")).arg(branches.at("1/sub")));
    let mounted = Mounted::mount(BIN, branches.string(), &branches.at("1/mnt"), &[]);
    let tree = Snapshot::take(mounted.target());
    assert_eq!(tree.paths(), ["f", "mnt", "mnt/covered", "sub", "sub/covered"]);
    fs::write(mounted.target().join("sub/covered"), "x").unwrap();
    assert_eq!(fs::read_to_string(branches.at("0/sub/covered")).unwrap(), "x");
}

#[test]
fn reading_through_the_union_moves_no_access_time_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/d/f", "content").symlink("1/d/l", "f").dir("1/empty");
    let before = Snapshot::take(&branches.at("1"));
    let time =
        |path: &Path| (fs::symlink_metadata(path).unwrap().atime(), fs::symlink_metadata(path).unwrap().atime_nsec());
    let link_before = time(&branches.at("1/d/l"));
    let mut u = branches.mount();
    std::thread::sleep(Duration::from_millis(20));
    for _remounted in 0..2 {
        assert_eq!((u.read("d/f"), u.read("d/l")), ("content".into(), "content".into()));
        assert_eq!((u.list("d"), u.list("empty")), (vec!["f".into(), "l".into()], vec![]));
        u.mounted.remount();
    }
    assert_eq!(time(&u.at("1/d/l")), link_before, "a symlink's");
    before.assert_same(&Snapshot::take(&u.at("1")), Exactness::Untouched, "reading");
}

#[test]
fn a_writable_branch_in_use_is_refused_and_a_quick_successor_waits() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("mnt2").file("1/f", "low");
    let (string, second) = (branches.string().into_string().unwrap(), branches.at("mnt2"));
    let mut u = branches.mount();
    assert_refused(&string, &second, &[], "0");
    assert_eq!(u.read("f"), "low", "the first mount goes on");
    let late = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Mounted::try_mount(BIN, &string, &second, &[]));
        std::thread::sleep(Duration::from_millis(500));
        u.mounted.umount();
        waiting.join().unwrap()
    });
    let late = late.expect("a branch that becomes free within 5 s is taken");
    assert_eq!(fs::read_to_string(late.target().join("f")).unwrap(), "low");
}

#[test]
fn read_only_branches_are_shared_by_many_mounts() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/f", "low").dir("top2").dir("mnt2");
    let string = format!("{}=rw:{}=ro+wh", branches.at("top2").display(), branches.at("1").display());
    let second = branches.at("mnt2");
    let u = branches.mount();
    let other = Mounted::mount(BIN, string, &second, &[]);
    fs::write(other.target().join("f"), "other").unwrap();
    assert_eq!(u.read("f"), "low");
}

#[test]
fn signals_end_the_mount_cleanly() {
    for (signal, foreground) in [(Signal::SIGTERM, false), (Signal::SIGINT, false), (Signal::SIGTERM, true)] {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
        branches.file("1/f", "low");
        let (string, mnt) = (branches.string(), branches.at("mnt"));
        if foreground {
            let mut child =
                Command::new(BIN).arg("mount").arg(&string).arg(&mnt).arg("-f").stdin(Stdio::null()).spawn().unwrap();
            let served = poll(PATIENCE, || fs::read(mnt.join("f")).ok());
            assert_eq!(served.as_deref(), Some(&b"low"[..]));
            kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal).unwrap();
            let status = poll(PATIENCE, || child.try_wait().unwrap()).expect("it ends");
            assert_eq!(status.code(), Some(0), "-f ends with status 0 after {signal}");
        } else {
            let mut u = branches.mount();
            u.write("g", "written");
            kill(u.mounted.pid(), signal).unwrap();
            u.mounted.wait_for_the_end();
            assert_eq!(mounts_below(&mnt), [""; 0].map(Path::new), "{signal}");
            u.mounted.mount_again();
            assert_eq!(u.list(""), ["f", "g"]);
        }
    }
}

#[test]
fn the_daemon_keeps_nothing_of_its_caller() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let u = branches.mount();
    let of = |what: &str| Path::new("/proc").join(u.mounted.pid().to_string()).join(what);
    // where the daemon of an initramfs finds it again
    assert_eq!(fs::read_link(of("cwd")).unwrap(), Path::new("/proc"));
    for descriptor in 0..3 {
        assert_eq!(fs::read_link(of(&format!("fd/{descriptor}"))).unwrap(), Path::new("/dev/null"));
    }
    let status = fs::read_to_string(of("status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("Umask:"), "0000");
    assert_eq!(
        field("NSsid:").split_whitespace().last(),
        field("NSpid:").split_whitespace().last(),
        "a session of its own"
    );
    let limits = fs::read_to_string(of("limits")).unwrap();
    let files: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "the limit of open files is raised to the hard one");
}

#[test]
fn the_umount_command_ends_the_mount() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let mut u = branches.mount();
    let outcome = finish(Command::new(BIN).arg("umount").arg(u.path("")));
    assert_eq!((outcome.status, &*outcome.stdout, &*outcome.stderr), (Some(0), "", ""));
    assert!(u.mounted.entry().is_none());
    u.mounted.wait_for_the_end();
    let again = finish(Command::new(BIN).arg("umount").arg(u.path("")));
    assert_eq!((again.status, again.stderr.lines().count()), (Some(1), 1), "{again:?}");
    u.mounted.mount_again();
}

#[test]
fn a_low_limit_of_open_files_is_enough() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    for number in 0..300 {
        branches.file(format!("1/{number}/a/f"), "low").dir(format!("0/{number}/b"));
    }
    let mut mount = Command::new("prlimit");
    mount.args(["--nofile=128:128", BIN, "mount"]).arg(branches.string()).arg(branches.at("mnt"));
    let outcome = finish(&mut mount);
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    let (mnt, all) = (branches.at("mnt"), 1 + 300 * 4);
    assert_eq!(Snapshot::take(&mnt).entries.len(), all);
    for number in 0..300 {
        fs::write(mnt.join(format!("{number}/a/f")), "changed").unwrap();
    }
    fs::remove_dir_all(mnt.join("7")).unwrap();
    assert_eq!(Snapshot::take(&mnt).entries.len(), all - 4);
}

#[test]
fn a_tree_deeper_than_any_path_can_say_is_changed_at_its_bottom() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    let deep = |root: &Path| {
        let name = "d".repeat(200);
        let mut directory = std::os::fd::OwnedFd::from(fs::File::open(root).unwrap());
        for _level in 0..40 {
            match rustix::fs::mkdirat(&directory, &name, rustix::fs::Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => panic!("mkdir: {errno}"),
            }
            let flags = rustix::fs::OFlags::DIRECTORY;
            directory = rustix::fs::openat(&directory, &name, flags, rustix::fs::Mode::empty()).unwrap();
        }
        directory
    };
    let create = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::APPEND;
    let open = |directory: &std::os::fd::OwnedFd, name: &str| {
        fs::File::from(rustix::fs::openat(directory, name, create, rustix::fs::Mode::RWXU).unwrap())
    };
    let bottom = deep(&branches.at("1"));
    std::io::Write::write_all(&mut open(&bottom, "f"), b"low").unwrap();
    drop(bottom);
    let mnt = branches.at("mnt");
    let mut mounted = Mounted::mount(BIN, branches.string(), &mnt, &[]);
    let bottom = deep(&mnt);
    std::io::Write::write_all(&mut open(&bottom, "f"), b" changed").unwrap();
    rustix::fs::renameat(&bottom, "f", &bottom, "g").unwrap();
    drop((open(&bottom, "gone"), bottom));
    mounted.remount();
    let bottom = deep(&mnt);
    rustix::fs::unlinkat(&bottom, "gone", rustix::fs::AtFlags::empty()).unwrap();
    let names: Vec<_> =
        rustix::fs::Dir::read_from(&bottom).unwrap().map(|entry| entry.unwrap().file_name().to_owned()).collect();
    assert!(names.contains(&c"g".to_owned()) && !names.contains(&c"f".to_owned()), "{names:?}");
    assert_eq!(std::io::read_to_string(open(&bottom, "g")).unwrap(), "low changed");
}

#[test]
fn hundreds_of_branches_make_one_union() {
    let Some(branches) = Branches::new(BIN, &["rw"]) else { return };
    let mut string = branches.string();
    for number in 0..200 {
        branches
            .file(format!("b{number}/f{number:03}"), number.to_string())
            .file(format!("b{number}/d/in{number:03}"), "");
        string.push(format!(":{}=ro+wh", branches.at(format!("b{number}")).display()));
    }
    let mounted = Mounted::mount(BIN, string, &branches.at("mnt"), &[]);
    let path = |path: &str| mounted.target().join(path);
    assert_eq!(harness::snapshot::names(&path("")).unwrap().len(), 201);
    assert_eq!(harness::snapshot::names(&path("d")).unwrap().len(), 200);
    assert_eq!(fs::read_to_string(path("f199")).unwrap(), "199");
    fs::remove_dir_all(path("d")).unwrap();
    fs::write(path("f150"), "changed").unwrap();
    assert_eq!(fs::read_to_string(branches.at("0/f150")).unwrap(), "changed");
    assert!(!path("d").exists());
}

#[test]
fn attributes_that_aufs_knows_are_accepted() {
    let Some(branches) = Branches::new(BIN, &["rw+nolwh", "rr+wh", "ro"]) else { return };
    branches.file("1/f", "one").file("2/g", "two");
    let mut u = branches.mount();
    fs::remove_file(u.path("f")).unwrap();
    u.assert_whiteout("0/f");
    assert_eq!(fs::metadata(u.at("0/.wh.f")).unwrap().nlink(), 1, "a whiteout is a file of its own");
    u.remount_and_compare();
}
