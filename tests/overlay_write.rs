//! A top that is written in the form of overlayfs (`-o whiteout=overlay`): what comes to lie on the disk.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use harness::fixture::{Branches, Union};
use harness::mount::{Mounted, finish};
use harness::overlay::Overlay;
use harness::sandbox::Medium;
use harness::snapshot::xattrs;
use harness::{Errno, ErrnoOf as _};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, lsetxattr, mknodat, renameat_with};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

const OVERLAY: &[&str] = &["whiteout=overlay"];

#[track_caller]
fn assert_whiteout(u: &Union, path: &str) {
    let found = fs::symlink_metadata(u.at(path)).unwrap_or_else(|error| panic!("no whiteout {path}: {error}"));
    assert!(found.file_type().is_char_device() && found.rdev() == 0, "{path} is no whiteout but {found:?}");
}

#[track_caller]
fn assert_opaque(u: &Union, path: &str) {
    let xattrs = xattrs(&u.at(path)).unwrap();
    assert_eq!(
        xattrs.get(std::ffi::OsStr::new("trusted.overlay.opaque")).map(Vec::as_slice),
        Some(&b"y"[..]),
        "{path}: {xattrs:?}"
    );
}

#[track_caller]
fn assert_not_opaque(u: &Union, path: &str) {
    assert!(xattrs(&u.at(path)).unwrap().is_empty(), "{path} has marks");
}

fn device(path: &Path) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

#[test]
fn removal_leaves_a_device_in_the_place_of_what_lies_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/below", "").file("1/both", "").file("0/both", "").file("0/top", "").dir("1/dir").dir("1/bothdir");
    branches.dir("0/bothdir").dir("0/topdir").file("1/full/a", "").file("1/full/b", "");
    let mut u = branches.mount_with(OVERLAY);
    for file in ["below", "both", "top", "full/a", "full/b"] {
        fs::remove_file(u.path(file)).unwrap();
    }
    assert_eq!(u.on_disk("0/full"), ["a", "b"]);
    for dir in ["dir", "bothdir", "topdir", "full"] {
        fs::remove_dir(u.path(dir)).unwrap();
    }
    for name in ["below", "both", "dir", "bothdir", "full"] {
        assert_whiteout(&u, &format!("0/{name}"));
    }
    assert_eq!(u.on_disk("0"), ["below", "both", "bothdir", "dir", "full"]);
    assert_eq!(u.list(""), [""; 0]);
    u.assert_no_temporaries(0);
    u.remount_and_compare();
}

#[test]
fn what_comes_to_the_place_of_a_whiteout_replaces_it() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    for name in ["file", "dir", "link", "hard", "fifo", "moved", "moveddir"] {
        branches.file(format!("1/{name}/below"), "");
        device(&branches.at(format!("0/{name}")));
    }
    branches.file("0/old", "old").file("0/olddir/x", "");
    let mut u = branches.mount_with(OVERLAY);
    u.write("file", "new");
    fs::create_dir(u.path("dir")).unwrap();
    symlink("target", u.path("link")).unwrap();
    fs::hard_link(u.path("file"), u.path("hard")).unwrap();
    mknodat(CWD, u.path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::rename(u.path("old"), u.path("moved")).unwrap();
    fs::rename(u.path("olddir"), u.path("moveddir")).unwrap();
    assert_eq!(u.on_disk("0"), ["dir", "fifo", "file", "hard", "link", "moved", "moveddir"]);
    assert_opaque(&u, "0/dir");
    assert_opaque(&u, "0/moveddir");
    assert_eq!((u.list("dir"), u.list("moveddir")), (vec![], vec!["x".to_owned()]));
    assert_eq!(u.stat("hard").nlink(), 2);
    u.assert_no_temporaries(0);
    u.remount_and_compare();
}

#[test]
fn there_are_no_marks_that_hide_nothing() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/d/a", "").file("1/d/b", "");
    let u = branches.mount_with(OVERLAY);
    // a name that never was below
    fs::create_dir(u.path("fresh")).unwrap();
    u.write("fresh/f", "");
    fs::rename(u.path("fresh/f"), u.path("fresh/g")).unwrap();
    fs::remove_file(u.path("fresh/g")).unwrap();
    assert_eq!(u.on_disk("0/fresh"), [""; 0]);
    assert_not_opaque(&u, "0/fresh");
    // names that were, in a directory that hides them already
    fs::remove_file(u.path("d/a")).unwrap();
    fs::remove_file(u.path("d/b")).unwrap();
    fs::remove_dir(u.path("d")).unwrap();
    fs::create_dir(u.path("d")).unwrap();
    assert_opaque(&u, "0/d");
    u.write("d/a", "");
    fs::rename(u.path("d/a"), u.path("d/b")).unwrap();
    fs::remove_file(u.path("d/b")).unwrap();
    assert_eq!(u.on_disk("0/d"), [""; 0]);
    // a directory that comes to a place where nothing lies below, and one that leaves such a place
    fs::rename(u.path("fresh"), u.path("other")).unwrap();
    assert_not_opaque(&u, "0/other");
    assert_eq!(u.on_disk("0"), ["d", "other"]);
}

#[test]
fn renames_leave_a_whiteout_only_where_something_lies_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches
        .file("1/a", "a")
        .file("1/x", "")
        .file("0/b", "b")
        .dir("1/e")
        .file("1/e/gone", "")
        .dir("0/d")
        .file("0/d/f", "");
    branches.file("0/one/f", "").file("1/one", "").file("1/two", "two");
    let mut u = branches.mount_with(OVERLAY);
    fs::rename(u.path("a"), u.path("a2")).unwrap();
    assert_whiteout(&u, "0/a");
    fs::rename(u.path("b"), u.path("x")).unwrap();
    fs::remove_file(u.path("e/gone")).unwrap();
    assert_whiteout(&u, "0/e/gone");
    fs::rename(u.path("d"), u.path("e")).unwrap();
    assert_opaque(&u, "0/e");
    assert_eq!(u.on_disk("0/e"), ["f"]);
    renameat_with(CWD, u.path("one"), CWD, u.path("two"), RenameFlags::EXCHANGE).unwrap();
    assert_opaque(&u, "0/two");
    assert_eq!((u.read("one"), u.list("two")), ("two".into(), vec!["f".into()]));
    assert_eq!(u.on_disk("0"), ["a", "a2", "e", "one", "two", "x"]);
    u.assert_no_temporaries(0);
    u.remount_and_compare();
}

#[test]
fn what_would_be_a_whiteout_is_no_entry() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("0/f", "").file("1/d/x", "");
    device(&branches.at("1/dev"));
    let u = branches.mount_with(OVERLAY);
    let made = mknodat(CWD, u.path("new"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), 0);
    assert_eq!(made.errno(), Errno::EPERM);
    assert_eq!(renameat_with(CWD, u.path("f"), CWD, u.path("g"), RenameFlags::WHITEOUT).errno(), Errno::EPERM);
    // on a branch below that is not in that form it is an entry, which cannot be copied up
    assert!(u.stat("dev").file_type().is_char_device());
    assert_eq!(std::os::unix::fs::lchown(u.path("dev"), Some(1), None).errno(), Errno::EPERM);
    assert_eq!(fs::rename(u.path("dev"), u.path("moved")).errno(), Errno::EPERM);
    // others can
    let null = rustix::fs::makedev(1, 3);
    mknodat(CWD, u.path("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), null).unwrap();
    // and a directory with content below is copied by who moves it
    assert_eq!(fs::rename(u.path("d"), u.path("e")).errno(), Errno::EXDEV);
    u.assert_no_temporaries(0);
}

#[test]
fn marks_of_branches_below_do_not_come_along() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/d/f", "f").file("1/d/e/x", "");
    for (path, attribute, value) in [
        ("1/d", "trusted.overlay.opaque", "y"),
        ("1/d/e", "trusted.overlay.redirect", "/elsewhere"),
        ("1/d/f", "trusted.overlay.metacopy", ""),
    ] {
        lsetxattr(branches.at(path), attribute, value.as_bytes(), XattrFlags::empty()).unwrap();
    }
    let mut u = branches.mount_with(OVERLAY);
    u.write("d/e/new", "");
    File::options().append(true).open(u.path("d/f")).unwrap();
    lsetxattr(u.path("d/f"), "user.x", b"", XattrFlags::empty()).unwrap();
    for path in ["0/d", "0/d/e"] {
        assert_not_opaque(&u, path);
    }
    assert_eq!(
        (u.list("d"), u.list("d/e"), u.read("d/f")),
        (vec!["e".into(), "f".into()], vec!["new".into(), "x".into()], "f".into())
    );
    u.remount_and_compare();
}

#[test]
fn marks_of_the_other_form_go_with_their_names() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    for name in ["file", "dir", "moved", "removed", "left"] {
        branches.file(format!("1/{name}/below"), "").whiteout(format!("0/{name}"));
    }
    branches.file("0/old", "").dir("0/removed").file("0/opaque/x", "").opaque("0/opaque").file("1/opaque/below", "");
    let mut u = branches.mount_with(OVERLAY);
    assert_eq!(u.list(""), ["old", "opaque", "removed"]);
    assert_eq!((u.list("removed"), u.list("opaque")), (vec![], vec!["x".to_owned()]));
    u.write("file", "");
    fs::create_dir(u.path("dir")).unwrap();
    fs::rename(u.path("old"), u.path("moved")).unwrap();
    fs::remove_dir(u.path("removed")).unwrap();
    assert_opaque(&u, "0/dir");
    assert_whiteout(&u, "0/removed");
    assert_eq!(u.on_disk("0"), [".wh.left", "dir", "file", "moved", "opaque", "removed"]);
    fs::remove_file(u.path("opaque/x")).unwrap();
    fs::remove_dir(u.path("opaque")).unwrap();
    assert_whiteout(&u, "0/opaque");
    u.remount_and_compare();
}

#[test]
fn a_directory_on_a_lower_writable_branch_takes_the_place_of_its_whiteout() {
    let Some(branches) = Branches::new(BIN, &["rw", "rw", "ro"]) else { return };
    branches.file("0/d/top", "").file("1/f", "f").file("2/d/below", "");
    device(&branches.at("1/d"));
    let mut u = branches.mount_with(OVERLAY);
    assert_eq!(u.list("d"), ["top"]);
    // the file stays on its branch, which has to hold the directory for it
    fs::rename(u.path("f"), u.path("d/f")).unwrap();
    assert_eq!((u.list("d"), u.read("d/f")), (vec!["f".into(), "top".into()], "f".into()));
    u.assert_no_temporaries(1);
    u.remount_and_compare();
}

#[test]
fn names_of_any_length_are_hidden() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let name = "n".repeat(255);
    branches.file(format!("1/{name}"), "");
    let mut u = branches.mount_with(OVERLAY);
    fs::remove_file(u.path(&name)).unwrap();
    assert_whiteout(&u, &format!("0/{name}"));
    u.remount_and_compare();
    fs::create_dir(u.path(&name)).unwrap();
    assert_opaque(&u, &format!("0/{name}"));
}

#[test]
fn a_top_that_cannot_be_written_so_is_refused() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    let (lower, upper, work) = (branches.at("lower"), branches.at("upper"), branches.at("work"));
    fs::create_dir(&lower).unwrap();
    fs::create_dir(&upper).unwrap();
    // which makes no whiteouts for others
    let _overlay = Overlay::mount(&branches.at("0"), &[lower], Some((&upper, &work)), "");
    let Err(outcome) = Mounted::try_mount(BIN, branches.string(), &branches.at("mnt"), OVERLAY) else {
        panic!("it was mounted")
    };
    let says = format!("runionfs: branch {} cannot be written in the form of overlayfs", branches.at("0").display());
    assert!(outcome.stderr.starts_with(&says) && outcome.stderr.lines().count() == 1, "{outcome:?}");
}

#[test]
fn show_and_diff_know_the_form() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/a", "").file("1/d/x", "");
    let mut u = branches.mount_with(OVERLAY);
    fs::remove_file(u.path("a")).unwrap();
    fs::remove_dir_all(u.path("d")).unwrap();
    fs::create_dir(u.path("d")).unwrap();
    let outcome = finish(Command::new(BIN).arg("show").arg(u.path("")));
    let first = format!("br0 {}=rw+ovl", u.at("0").display());
    assert!(outcome.stdout.lines().any(|line| line == first), "{outcome:?}");
    assert!(outcome.stdout.lines().any(|line| line == "option whiteout=overlay"), "{outcome:?}");
    let list = format!("{}=rw+ovl:{}=ro+wh", u.at("0").display(), u.at("1").display());
    let mounted = finish(Command::new(BIN).arg("diff").arg(u.path("")));
    u.mounted.umount();
    for outcome in [mounted, finish(Command::new(BIN).arg("diff").arg(&list))] {
        assert_eq!((&*outcome.stdout, &*outcome.stderr), ("D /a\nC /d\nD /d/x\n", ""));
    }
}

#[test]
fn a_full_disk_leaves_the_state_before() {
    let Some(sandbox) = harness::sandbox::enter_on(Medium::Tmpfs) else { return };
    let disk = sandbox.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let tmpfs = Some("size=8m,nr_inodes=40,mode=755");
    nix::mount::mount(Some("tmpfs"), &disk, Some("tmpfs"), nix::mount::MsFlags::empty(), tmpfs).unwrap();
    for path in ["disk/0", "1/d", "mnt"] {
        fs::create_dir_all(sandbox.path().join(path)).unwrap();
    }
    (0..60).for_each(|number| fs::write(sandbox.path().join(format!("1/f{number}")), "below").unwrap());
    let string = format!("{}=rw:{}=ro", disk.join("0").display(), sandbox.path().join("1").display());
    let mounted = Mounted::mount(BIN, string, &sandbox.path().join("mnt"), OVERLAY);
    let mut refused = 0;
    for number in 0..60 {
        let path = mounted.target().join(format!("f{number}"));
        match fs::remove_file(&path) {
            Ok(()) => assert!(!path.exists()),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
                assert_eq!(fs::read_to_string(&path).unwrap(), "below");
                refused += 1;
            }
        }
    }
    assert!((10..60).contains(&refused), "{refused} were refused");
    assert_eq!(fs::read_dir(disk.join("0/.wh..wh.runionfs/tmp")).unwrap().count(), 0);
}

#[test]
fn flushed_hard_links_are_those_that_overlayfs_sees() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro"]) else { return };
    branches.file("1/a", "below").hard_link("1/a", "1/b").dir("1/d").hard_link("1/a", "1/d/c");
    let work = branches.at("work");
    fs::create_dir(&work).unwrap();
    let mut u = branches.mount_with(&["whiteout=overlay", &format!("workdir={}", work.display())]);
    u.write("a", "changed");
    fs::remove_file(u.path("b")).unwrap();
    let outcome = finish(Command::new(BIN).arg("flush").arg(u.path("")));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    u.mounted.umount();
    let kernel = Overlay::mount(&u.at("kernel"), &[u.at("0"), u.at("1")], None, "");
    let stat = |name: &str| fs::metadata(kernel.target().join(name)).unwrap();
    assert_eq!((stat("a").ino(), stat("a").nlink()), (stat("d/c").ino(), 2));
    assert_eq!(fs::read_to_string(kernel.target().join("d/c")).unwrap(), "changed");
    assert_eq!(fs::read_dir(kernel.target()).unwrap().count(), 2);
}

/// What an ordinary user does in a user namespace of its own: the union over `top` and `low`, then overlayfs over them.
const AS_USER: &str = r#"
set -e
cd "$1"
mkdir top low mnt work low/d
echo a >low/a
echo x >low/d/x
"$2" mount "$1/top=rw:$1/low=ro" "$1/mnt" -o "whiteout=overlay,workdir=$1/work"
rm mnt/a
rm -r mnt/d
mkdir mnt/d
ls -A mnt mnt/d
umount mnt
mount -t overlay overlay -o "userxattr,lowerdir=$1/top:$1/low" "$1/mnt"
ls -A mnt mnt/d
umount mnt
"#;

#[test]
fn an_ordinary_user_writes_marks_that_its_overlayfs_reads() {
    let Some(sandbox) = harness::sandbox::enter() else { return };
    let (fuse, root, program) =
        (sandbox.path().join("fuse"), sandbox.path().join("user"), sandbox.path().join("runionfs"));
    // here others may not open it
    mknodat(CWD, &fuse, FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(10, 229)).unwrap();
    fs::set_permissions(&fuse, fs::Permissions::from_mode(0o666)).unwrap();
    let flags = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&fuse), "/dev/fuse", None::<&str>, flags, None::<&str>).unwrap();
    fs::create_dir(&root).unwrap();
    std::os::unix::fs::chown(&root, Some(1_000), Some(1_000)).unwrap();
    fs::copy(BIN, &program).unwrap();
    let as_user = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "unshare", "-Urm"]);
        command.args(["bash", "-c", script, "-"]).arg(&root).arg(&program);
        finish(&mut command)
    };
    let may = as_user("true");
    if may.status != Some(0) {
        harness::sandbox::skip(&format!("it needs user namespaces of ordinary users: {}", may.stderr.trim_end()));
        return;
    }
    let outcome = as_user(AS_USER);
    let shown = "mnt:\nd\n\nmnt/d:\n";
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), &*[shown, shown].concat()), "{}", outcome.stderr);
    let opaque = xattrs(&root.join("top/d")).unwrap();
    assert_eq!(opaque.get(std::ffi::OsStr::new("user.overlay.opaque")).map(Vec::as_slice), Some(&b"y"[..]));
}
