//! Branches that are given as layers of overlayfs (`+ovl`): each mark, and who sees what of the marks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use harness::fixture::{Branches, Union};
use harness::mount::{Mounted, finish};
use harness::overlay::Overlay;
use harness::snapshot::{Exactness, Snapshot, xattrs};
use harness::{Errno, ErrnoOf as _, sandbox};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, lgetxattr, lremovexattr, lsetxattr, mknodat};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn device(path: &Path, major: u32, minor: u32) {
    let number = rustix::fs::makedev(major, minor);
    mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), number).unwrap();
}

fn set(path: &Path, attribute: &str, value: &str) {
    lsetxattr(path, attribute, value.as_bytes(), XattrFlags::empty()).unwrap();
}

/// Asserts that a directory shows these names and no others: neither listed, nor found by lookup, nor to be made.
#[track_caller]
fn assert_shows(u: &Union, dir: &str, shown: &[&str], hidden: &[&str]) {
    assert_eq!(u.list(dir), shown, "in {dir:?}");
    for name in shown {
        assert!(u.exists(Path::new(dir).join(name)), "{name} is listed but not found in {dir:?}");
    }
    for name in hidden {
        assert!(!u.exists(Path::new(dir).join(name)), "{name} is not listed but found in {dir:?}");
    }
}

#[test]
fn a_device_0_0_is_a_whiteout_wherever_it_lies() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "rr+ovl", "ro"]) else { return };
    branches.file("3/a", "").file("3/b", "").file("3/dir/x", "").file("3/dir/y", "").file("3/d/x", "").file("1/c", "");
    branches.dir("1/dir").dir("1/alone").dir("2/alone2").file("2/b2", "");
    device(&branches.at("1/a"), 0, 0);
    device(&branches.at("1/d"), 0, 0);
    device(&branches.at("2/b"), 0, 0);
    device(&branches.at("1/dir/x"), 0, 0);
    // hides nothing, and does not show either: where the listing is merged, and where it is not
    device(&branches.at("1/none"), 0, 0);
    device(&branches.at("1/alone/none"), 0, 0);
    device(&branches.at("2/alone2/none"), 0, 0);
    // not a whiteout
    device(&branches.at("1/null"), 1, 3);
    mknodat(CWD, branches.at("1/block"), FileType::BlockDevice, Mode::from_raw_mode(0o600), 0).unwrap();
    let mut u = branches.mount();
    for _remounted in 0..2 {
        let shown = ["alone", "alone2", "b2", "block", "c", "dir", "null"];
        assert_shows(&u, "", &shown, &["a", "b", "d", "none", "d/x"]);
        assert_shows(&u, "dir", &["y"], &["x"]);
        assert_shows(&u, "alone", &[], &["none"]);
        assert_shows(&u, "alone2", &[], &["none"]);
        u.mounted.remount();
    }
    // a new entry comes to the top, and the whiteout hides what is below it for good
    fs::create_dir(u.path("d")).unwrap();
    u.write("a", "new");
    assert_shows(&u, "d", &[], &["x"]);
    u.remount_and_compare();
    assert_eq!(u.read("a"), "new");
}

#[test]
fn the_last_branch_shows_no_device_0_0_either() {
    for access in [&["ro+ovl"][..], &["rw", "ro+ovl"], &["ro+ovl", "ro+ovl"]] {
        let Some(branches) = Branches::new(BIN, access) else { return };
        let last = access.len() - 1;
        branches.file(format!("{last}/a"), "");
        device(&branches.at(format!("{last}/b")), 0, 0);
        let u = branches.mount();
        assert_shows(&u, "", &["a"], &["b"]);
    }
}

#[test]
fn elsewhere_a_device_0_0_is_an_entry() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("2/a", "").dir("1/d").file("2/d/x", "");
    device(&branches.at("1/a"), 0, 0);
    set(&branches.at("1/d"), "trusted.overlay.opaque", "y");
    let u = branches.mount();
    assert!(u.stat("a").file_type().is_char_device());
    assert_shows(&u, "d", &["x"], &[]);
}

#[test]
fn a_directory_is_opaque_by_each_attribute_and_by_its_value() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    let cases = [
        ("trusted.overlay.opaque", "y", true),
        ("user.overlay.opaque", "y", true),
        ("user.fuseoverlayfs.opaque", "y", true),
        ("trusted.overlay.opaque", "n", false),
        ("trusted.overlay.opaque", "yes", false),
        ("trusted.overlay.opaque", "", false),
        ("trusted.overlay.opaque", "x", false),
        ("user.overlay.origin", "y", false),
    ];
    for (number, (attribute, value, _)) in cases.iter().enumerate() {
        branches.file(format!("1/{number}/above"), "").file(format!("2/{number}/below"), "");
        set(&branches.at(format!("1/{number}")), attribute, value);
    }
    branches.file("1/file/above", "").opaque("1/file").file("2/file/below", "");
    branches.file("1/name/.wh.below", "").file("2/name/below", "");
    let mut u = branches.mount();
    for _remounted in 0..2 {
        for (number, (attribute, value, opaque)) in cases.iter().enumerate() {
            let shown = if *opaque { &["above"][..] } else { &["above", "below"] };
            assert_eq!(u.list(number.to_string()), shown, "{attribute}={value}");
        }
        assert_shows(&u, "file", &["above"], &["below"]);
        assert_shows(&u, "name", &[], &["below"]);
        u.mounted.remount();
    }
}

#[test]
fn an_opaque_root_hides_all_below() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    branches.file("1/a", "").file("2/b", "");
    set(&branches.at("1"), "user.overlay.opaque", "y");
    let u = branches.mount();
    assert_shows(&u, "", &["a"], &["b"]);
}

#[test]
fn empty_files_are_whiteouts_where_attributes_say_so() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    for (dir, value) in [("x", Some("x")), ("y", Some("y")), ("plain", None)] {
        for name in ["trusted", "user", "full", "unmarked"] {
            branches.file(format!("1/{dir}/{name}"), if name == "full" { "1" } else { "" });
            branches.file(format!("2/{dir}/{name}"), "below");
        }
        set(&branches.at(format!("1/{dir}/trusted")), "trusted.overlay.whiteout", "");
        set(&branches.at(format!("1/{dir}/user")), "user.overlay.whiteout", "y");
        set(&branches.at(format!("1/{dir}/full")), "user.overlay.whiteout", "y");
        if let Some(value) = value {
            set(&branches.at(format!("1/{dir}")), "trusted.overlay.opaque", value);
        }
    }
    branches.file("1/alone/gone", "");
    set(&branches.at("1/alone/gone"), "user.overlay.whiteout", "");
    set(&branches.at("1/alone"), "user.overlay.opaque", "x");
    let mut u = branches.mount();
    for _remounted in 0..2 {
        assert_shows(&u, "x", &["full", "unmarked"], &["trusted", "user"]);
        assert_shows(&u, "y", &["full", "trusted", "unmarked", "user"], &[]);
        assert_shows(&u, "plain", &["full", "trusted", "unmarked", "user"], &[]);
        assert_shows(&u, "alone", &[], &["gone"]);
        assert_eq!((u.read("x/full"), u.read("plain/user")), ("1".into(), String::new()));
        u.mounted.remount();
    }
}

#[test]
fn the_kernel_reads_attribute_whiteouts_the_same() {
    let Some(branches) = Branches::new(BIN, &["ro+ovl", "ro"]) else { return };
    branches.file("0/d/gone", "").file("1/d/gone", "").file("1/d/kept", "");
    set(&branches.at("0/d/gone"), "trusted.overlay.whiteout", "y");
    set(&branches.at("0/d"), "trusted.overlay.opaque", "x");
    // the kernel looks for such directories only in layers whose root says so, too
    set(&branches.at("0"), "trusted.overlay.opaque", "x");
    let kernel = Overlay::mount(&branches.at("kernel"), &[branches.at("0"), branches.at("1")], None, "");
    let names = fs::read_dir(kernel.target().join("d")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["kept"]);
    let u = branches.mount();
    assert_shows(&u, "d", &["kept"], &["gone"]);
}

#[test]
fn a_renamed_directory_shows_what_lies_under_its_old_name() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    for (name, attribute, value) in [
        ("sibling", "trusted.overlay.redirect", "old"),
        ("absolute", "user.overlay.redirect", "/p/old"),
        ("nowhere", "trusted.overlay.redirect", "/p/none"),
    ] {
        branches.file(format!("1/p/{name}/above"), "").file(format!("2/p/{name}/by_name"), "");
        set(&branches.at(format!("1/p/{name}")), attribute, value);
    }
    branches.file("1/p/opaque/above", "").file("2/p/old/below/deep", "deep");
    set(&branches.at("1/p/opaque"), "trusted.overlay.redirect", "old");
    set(&branches.at("1/p/opaque"), "trusted.overlay.opaque", "y");
    device(&branches.at("1/p/old"), 0, 0);
    let mut u = branches.mount();
    for _remounted in 0..2 {
        assert_shows(&u, "p", &["absolute", "nowhere", "opaque", "sibling"], &["old"]);
        assert_shows(&u, "p/sibling", &["above", "below"], &["by_name"]);
        assert_shows(&u, "p/absolute", &["above", "below"], &["by_name"]);
        assert_shows(&u, "p/nowhere", &["above"], &["by_name"]);
        assert_shows(&u, "p/opaque", &["above"], &["below"]);
        assert_eq!(u.read("p/sibling/below/deep"), "deep");
        u.mounted.remount();
    }
    // and it can be renamed again
    fs::rename(u.path("p/sibling"), u.path("moved")).unwrap();
    u.write("moved/below/deep", "changed");
    u.remount_and_compare();
    assert_eq!((u.list("moved"), u.read("moved/below/deep")), (vec!["above".into(), "below".into()], "changed".into()));
}

#[test]
fn a_directory_whose_parent_is_new_shows_what_it_was_renamed_with() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    branches.file("2/old/below", "").file("1/new/moved/above", "");
    set(&branches.at("1/new/moved"), "trusted.overlay.redirect", "/old");
    device(&branches.at("1/old"), 0, 0);
    let mut u = branches.mount();
    assert_shows(&u, "new/moved", &["above", "below"], &[]);
    assert_shows(&u, "", &["new"], &["old"]);
    u.remount_and_compare();
}

#[test]
fn a_damaged_redirect_is_an_error_and_never_another_directory() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    let cases = [("up", "../old"), ("empty", ""), ("slash", "/"), ("twice", "/p//old"), ("below", "p/old")];
    for (name, value) in cases {
        branches.dir(format!("1/{name}")).dir(format!("2/{name}/x"));
        set(&branches.at(format!("1/{name}")), "trusted.overlay.redirect", value);
    }
    let u = branches.mount();
    for (name, _) in cases {
        assert_eq!(fs::metadata(u.path(name)).errno(), Errno::EIO, "{name}");
        assert_eq!(fs::metadata(u.path(format!("{name}/x"))).errno(), Errno::EIO, "{name}");
    }
}

#[test]
fn marks_are_neither_listed_nor_read_nor_set() {
    const MARKS: [&str; 6] = [
        "trusted.overlay.origin",
        "user.overlay.impure",
        "user.fuseoverlayfs.origin",
        "trusted.overlay.opaque",
        "trusted.runionfs.x",
        "user.runionfs.x",
    ];
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    branches.file("1/d/f", "").file("2/plain", "");
    for path in ["1/d", "1/d/f", "2/plain"] {
        MARKS.iter().for_each(|mark| set(&branches.at(path), mark, "1"));
        set(&branches.at(path), "user.own", "2");
    }
    let mut u = branches.mount();
    for path in ["d", "d/f", "plain"] {
        let path = u.path(path);
        assert_eq!(xattrs(&path).unwrap(), BTreeMap::from([(OsString::from("user.own"), b"2".to_vec())]));
        for mark in MARKS {
            assert_eq!(lgetxattr(&path, mark, &mut [0_u8; 9]).errno(), Errno::ENODATA, "{mark}");
            assert_eq!(lremovexattr(&path, mark).errno(), Errno::ENODATA, "{mark}");
            assert_eq!(lsetxattr(&path, mark, b"y", XattrFlags::empty()).errno(), Errno::EPERM, "{mark}");
        }
        // now it is copied up, without what was about its old place
        set(&path, "user.own", "3");
    }
    for path in ["0/d", "0/d/f"] {
        assert_eq!(
            xattrs(&u.at(path)).unwrap(),
            BTreeMap::from([(OsString::from("user.own"), b"3".to_vec())]),
            "{path}"
        );
    }
    assert!(xattrs(&u.at("0/plain")).unwrap().keys().all(|name| !name.to_string_lossy().contains("runionfs")));
    u.remount_and_compare();
}

#[test]
fn what_a_union_without_such_a_branch_holds_is_the_callers() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/f", "");
    set(&branches.at("1/f"), "trusted.overlay.opaque", "y");
    let u = branches.mount();
    set(&u.path("f"), "user.overlay.x", "1");
    assert_eq!(xattrs(&u.path("f")).unwrap().len(), 2);
    assert_eq!(xattrs(&u.at("0/f")).unwrap().len(), 2);
    assert_eq!(lsetxattr(u.path("f"), "trusted.runionfs.x", b"", XattrFlags::empty()).errno(), Errno::EPERM);
}

#[test]
fn escaped_attributes_are_those_of_an_overlayfs_within() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl"]) else { return };
    branches.dir("1/d");
    set(&branches.at("1/d"), "trusted.overlay.overlay.opaque", "y");
    set(&branches.at("1/d"), "user.overlay.overlay.overlay.x", "deep");
    let expected = BTreeMap::from([
        (OsString::from("trusted.overlay.opaque"), b"y".to_vec()),
        (OsString::from("user.overlay.overlay.x"), b"deep".to_vec()),
    ]);
    let mut u = branches.mount();
    for _copied_up in 0..2 {
        assert_eq!(xattrs(&u.path("d")).unwrap(), expected);
        assert_eq!(lremovexattr(u.path("d"), "trusted.overlay.opaque").errno(), Errno::EPERM);
        u.write("d/f", "");
        u.mounted.remount();
    }
    assert!(u.on_disk("0").contains(&"d".to_owned()));
}

/// A layer whose file has its data below, made by the kernel; at the root, or behind many others.
fn metacopy(branches: &Branches, many: bool) -> &'static str {
    let path = if many { "many/deep/file" } else { "file" };
    branches.file(format!("2/{path}"), "data");
    if many {
        for number in 0..1_100 {
            branches.file(format!("1/{number}"), "");
        }
    }
    let (upper, work) = (branches.at("1"), branches.at("work"));
    let kernel = Overlay::mount(
        &branches.at("kernel"),
        &[branches.at("2")],
        Some((&upper, &work)),
        "metacopy=on,redirect_dir=on",
    );
    fs::set_permissions(kernel.target().join(path), fs::Permissions::from_mode(0o600)).unwrap();
    drop(kernel);
    assert!(lgetxattr(upper.join(path), "trusted.overlay.metacopy", &mut [0_u8; 64]).is_ok(), "the kernel copied it");
    path
}

#[test]
fn a_layer_with_files_without_data_is_refused() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    metacopy(&branches, false);
    let Err(outcome) = Mounted::try_mount(BIN, branches.string(), &branches.at("mnt"), &[]) else {
        panic!("it was mounted")
    };
    let says = format!(
        "runionfs: branch {} holds files without data, such as file (overlayfs with metacopy=on): they would read as zeros\n",
        branches.at("1").display()
    );
    assert_eq!((outcome.status, outcome.stderr), (Some(1), says));
}

#[test]
fn a_file_without_data_that_is_met_later_never_reads_as_zeros() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    let path = metacopy(&branches, true);
    let u = branches.mount();
    assert_eq!(u.stat(path).len(), 4);
    assert_eq!(fs::read(u.path(path)).errno(), Errno::EIO);
    assert_eq!(File::options().write(true).open(u.path(path)).errno(), Errno::EIO);
    assert_eq!(fs::set_permissions(u.path(path), fs::Permissions::from_mode(0o644)).errno(), Errno::EIO);
    assert_eq!(fs::rename(u.path(path), u.path("elsewhere")).errno(), Errno::EIO);
    assert_eq!(fs::hard_link(u.path(path), u.path("link")).errno(), Errno::EIO);
    u.assert_no_temporaries(0);
    fs::remove_file(u.path(path)).unwrap();
    u.write(path, "new");
    assert_eq!(u.read(path), "new");
}

/// Mounts fuse-overlayfs over `lower`, lets `act` change it, and unmounts; false where there is none.
fn written_by_fuse_overlayfs(branches: &Branches, forced_wh: bool, act: impl FnOnce(&Path)) -> Option<Snapshot> {
    let target = branches.at("fuse");
    fs::create_dir(&target).unwrap();
    fs::create_dir(branches.at("work")).unwrap();
    let [lower, upper, work] = ["2", "1", "work"].map(|name| branches.at(name).display().to_string());
    let mut command = Command::new("fuse-overlayfs");
    command.arg("-o").arg(format!("lowerdir={lower},upperdir={upper},workdir={work}")).arg(&target);
    if forced_wh {
        command.env("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", "1");
    }
    match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            sandbox::skip("it needs fuse-overlayfs");
            return None;
        }
        output => assert!(output.unwrap().status.success()),
    }
    act(&target);
    let shown = Snapshot::take(&target);
    nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH).unwrap();
    Some(shown)
}

#[test]
fn a_layer_of_fuse_overlayfs_is_read_as_it_lies() {
    for forced_wh in [false, true] {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
        for file in ["a", "b", "d/f", "d/g", "d/sub/s", "e/q", "x/y", "full/1"] {
            branches.file(format!("2/{file}"), file);
        }
        let change = |root: &Path| {
            for file in ["a", "d/f"] {
                fs::remove_file(root.join(file)).unwrap();
            }
            for dir in ["e", "x", "full"] {
                fs::remove_dir_all(root.join(dir)).unwrap();
            }
            fs::create_dir(root.join("e")).unwrap();
            fs::create_dir(root.join("fresh")).unwrap();
            fs::write(root.join("e/new"), "new").unwrap();
            fs::write(root.join("x"), "a file now").unwrap();
            fs::rename(root.join("b"), root.join("b2")).unwrap();
            fs::set_permissions(root.join("d/g"), fs::Permissions::from_mode(0o600)).unwrap();
        };
        let Some(mut shown) = written_by_fuse_overlayfs(&branches, forced_wh, change) else { return };
        let u = branches.mount();
        let mut ours = Snapshot::take(u.mounted.target());
        for tree in [&mut shown, &mut ours] {
            // the root is that of the top
            tree.entries.remove(Path::new(""));
        }
        shown.assert_same(&ours, Exactness::EqualButTimes, "fuse-overlayfs showed another tree");
        for hidden in ["a", "b", "d/f", "e/q", "x/y", "full", "full/1"] {
            assert!(fs::symlink_metadata(u.path(hidden)).is_err(), "{hidden} is found");
        }
    }
}

#[test]
fn a_layer_may_be_moved_and_removed_like_any_other() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    branches.file("2/d/a", "").file("2/d/b", "").dir("1/d").file("1/d/c", "");
    device(&branches.at("1/d/a"), 0, 0);
    let mut u = branches.mount();
    assert_shows(&u, "d", &["b", "c"], &["a"]);
    rustix::fs::renameat_with(CWD, u.path("d"), CWD, u.path("e"), RenameFlags::NOREPLACE).unwrap();
    u.remount_and_compare();
    assert_shows(&u, "e", &["b", "c"], &["a"]);
    fs::remove_dir_all(u.path("e")).unwrap();
    u.remount_and_compare();
    assert_shows(&u, "", &[], &["d", "e"]);
}

#[test]
fn diff_knows_the_marks() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+ovl", "ro"]) else { return };
    branches.file("2/gone", "").file("2/kept", "").file("2/d/x", "").dir("1/d");
    device(&branches.at("1/gone"), 0, 0);
    set(&branches.at("1/d"), "trusted.overlay.opaque", "y");
    let u = branches.mount();
    u.write("gone", "");
    u.write("d/x", "");
    fs::remove_file(u.path("kept")).unwrap();
    let outcome = finish(Command::new(BIN).arg("diff").arg(u.path("")));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    assert_eq!(outcome.stdout, "C /d\nA /d/x\nA /gone\nD /kept\n");
}

#[test]
fn odd_words_are_refused_in_one_line() {
    let Some(sandbox) = sandbox::enter() else { return };
    let at = sandbox.path().join("b");
    fs::create_dir(&at).unwrap();
    let path = at.display();
    for (branches, options, says) in [
        (
            format!("{path}=rw+ovl"),
            &[][..],
            format!("branch {path} is rw+ovl: a branch is written in that form with -o whiteout=overlay only"),
        ),
        (
            format!("{path}=ro+ovl+init"),
            &[],
            format!(
                "branch {path} cannot be ro+ovl+init: an init branch is written in place, and no layer of overlayfs"
            ),
        ),
        (format!("{path}=rw"), &["whiteout=char"], "option 'whiteout=char': wh and overlay are known".to_owned()),
    ] {
        let Err(outcome) = Mounted::try_mount(BIN, &branches, Path::new("/mnt"), options) else {
            panic!("{branches} was mounted")
        };
        assert_eq!((outcome.status, outcome.stderr), (Some(1), format!("runionfs: {says}\n")), "{branches}");
    }
}
