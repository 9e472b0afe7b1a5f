//! Rules 32 to 34: hard links, inode numbers and link counts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use harness::fixture::{Branches, Union};
use harness::sandbox;
use harness::snapshot::{Exactness, Kind, Snapshot, WORK_AREA};
use harness::{Errno, ErrnoOf as _};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// Asserts that all names are one file: number, link count, content, mode and owner.
#[track_caller]
fn assert_one_file(u: &Union, names: &[&str], links: u64, content: &str) {
    let first = u.stat(names[0]);
    for name in names {
        let stat = u.stat(name);
        assert_eq!(stat.ino(), first.ino(), "{name} has another number than {}", names[0]);
        assert_eq!(stat.nlink(), links, "link count of {name}");
        assert_eq!(u.read(name), content, "{name}");
        assert_eq!(
            (stat.mode(), stat.uid(), stat.mtime_nsec()),
            (first.mode(), first.uid(), first.mtime_nsec()),
            "{name}"
        );
    }
}

fn three_links() -> Option<Branches> {
    let branches = Branches::new(BIN, &["rw", "ro+wh"])?;
    branches.file("1/a", "old").dir("1/d").hard_link("1/a", "1/b").hard_link("1/a", "1/d/c");
    Some(branches)
}

#[test]
fn aliases_below_stay_one_file_over_copy_up_and_remount() {
    for writer in ["a", "d/c"] {
        let Some(branches) = three_links() else { return };
        let mut u = branches.mount();
        let names = ["a", "b", "d/c"];
        assert_one_file(&u, &names, 3, "old");
        let ino = u.stat("b").ino();
        u.write(writer, "new");
        fs::set_permissions(u.path("b"), fs::Permissions::from_mode(0o604)).unwrap();
        std::os::unix::fs::chown(u.path("d/c"), Some(33), None).unwrap();
        for _remounted in 0..3 {
            assert_one_file(&u, &names, 3, "new");
            assert_eq!((u.mode("a"), u.stat("b").uid(), u.stat("a").ino()), (0o604, 33, ino));
            u.mounted.remount();
        }
        u.write("b", "newer");
        assert_one_file(&u, &names, 3, "newer");
        assert_eq!(u.list(""), ["a", "b", "d"]);
    }
}

#[test]
fn a_removed_alias_is_counted_over_remounts() {
    let Some(branches) = three_links() else { return };
    let mut u = branches.mount();
    fs::remove_file(u.path("b")).unwrap();
    assert_one_file(&u, &["a", "d/c"], 2, "old");
    u.mounted.remount();
    u.write("a", "new");
    assert_one_file(&u, &["a", "d/c"], 2, "new");
    u.mounted.remount();
    assert_one_file(&u, &["a", "d/c"], 2, "new");
    fs::remove_file(u.path("a")).unwrap();
    assert_one_file(&u, &["d/c"], 1, "new");
    u.mounted.remount();
    assert_one_file(&u, &["d/c"], 1, "new");
    assert_eq!(u.list(""), ["d"]);
}

#[test]
fn an_alias_that_was_never_touched_shows_the_data_of_the_removed_one() {
    let Some(branches) = three_links() else { return };
    let mut u = branches.mount();
    u.write("a", "new");
    fs::remove_file(u.path("a")).unwrap();
    u.mounted.remount();
    assert_one_file(&u, &["b", "d/c"], 2, "new");
}

#[test]
fn a_new_link_to_a_file_below_joins_its_aliases() {
    let Some(branches) = three_links() else { return };
    branches.file("1/single", "one");
    let mut u = branches.mount();
    fs::hard_link(u.path("b"), u.path("e")).unwrap();
    fs::hard_link(u.path("single"), u.path("d/twin")).unwrap();
    std::os::unix::fs::chown(u.path("single"), Some(33), Some(33)).unwrap();
    for _remounted in 0..2 {
        assert_one_file(&u, &["a", "b", "d/c", "e"], 4, "old");
        assert_one_file(&u, &["single", "d/twin"], 2, "one");
        assert_eq!(u.stat("d/twin").uid(), 33);
        u.mounted.remount();
    }
    u.write("e", "new");
    assert_one_file(&u, &["a", "b", "d/c", "e"], 4, "new");
    fs::remove_file(u.path("b")).unwrap();
    u.mounted.remount();
    assert_one_file(&u, &["a", "d/c", "e"], 3, "new");
}

#[test]
fn a_renamed_alias_is_still_one_of_them() {
    let Some(branches) = three_links() else { return };
    let mut u = branches.mount();
    fs::rename(u.path("a"), u.path("d/moved")).unwrap();
    for _remounted in 0..2 {
        assert_one_file(&u, &["d/moved", "b", "d/c"], 3, "old");
        u.mounted.remount();
    }
    u.write("other", "other");
    fs::rename(u.path("other"), u.path("b")).unwrap();
    u.write("d/c", "new");
    for _remounted in 0..2 {
        assert_one_file(&u, &["d/moved", "d/c"], 2, "new");
        assert_one_file(&u, &["b"], 1, "other");
        u.mounted.remount();
    }
}

#[test]
fn a_file_that_took_an_aliass_place_is_another_file() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/a", "low").hard_link("1/a", "1/b").file("0/a", "top");
    let mut u = branches.mount();
    assert_ne!(u.stat("a").ino(), u.stat("b").ino());
    assert_eq!((u.read("a"), u.read("b")), ("top".into(), "low".into()));
    u.write("b", "changed");
    for _remounted in 0..2 {
        assert_eq!((u.read("a"), u.read("b")), ("top".into(), "changed".into()));
        assert_eq!(u.stat("b").nlink(), 2, "a hidden alias counts as on disk");
        u.mounted.remount();
    }
    fs::remove_file(u.path("b")).unwrap();
    u.write("b", "fresh");
    assert_eq!((u.read("b"), u.stat("b").nlink()), ("fresh".into(), 1), "a new file is no alias");
}

#[test]
fn links_within_the_top_are_real() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.dir("1/low").whiteout("0/gone").file("1/gone", "");
    let mut u = branches.mount();
    u.write("f", "x");
    for name in ["g", "low/h", "gone"] {
        fs::hard_link(u.path("f"), u.path(name)).unwrap();
    }
    let names = ["f", "g", "low/h", "gone"];
    assert_one_file(&u, &names, 4, "x");
    assert_eq!(fs::metadata(u.at("0/low/h")).unwrap().nlink(), 4);
    u.remount_and_compare();
    fs::remove_file(u.path("f")).unwrap();
    assert_one_file(&u, &names[1..], 3, "x");
    assert_eq!(fs::hard_link(u.path("low"), u.path("directory")).errno(), Errno::EPERM);
    assert_eq!(fs::hard_link(u.path("missing"), u.path("m")).errno(), Errno::ENOENT);
}

/// The number of every entry below the root, by path.
fn numbers(u: &Union) -> BTreeMap<PathBuf, u64> {
    let tree = Snapshot::take(&u.path(""));
    tree.entries.into_iter().map(|(path, entry)| (path, entry.ino)).collect()
}

/// Asserts that no two objects have the same number, and that none has a reserved one.
fn assert_unique(numbers: &BTreeMap<PathBuf, u64>) {
    let mut seen: BTreeMap<u64, &Path> = BTreeMap::new();
    for (path, number) in numbers {
        let other = seen.insert(*number, path);
        assert_eq!(other, None, "{} has the same number {number}", path.display());
        assert!(*number > 1 || path.as_os_str().is_empty(), "{} has the reserved number {number}", path.display());
    }
}

/// A union whose three branches are file systems of their own that use the same inode numbers.
fn same_numbers_below() -> Option<Branches> {
    let sandbox = sandbox::enter()?;
    for branch in ["0", "1", "2"] {
        drop(sandbox.small_ext4(branch, 8, &[]));
    }
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh", "ro+wh"]);
    for branch in 0..3 {
        for number in 0..20 {
            branches.file(format!("{branch}/in{branch}/{number}"), format!("{branch}/{number}"));
            branches.file(format!("{branch}/merged/{branch}-{number}"), "");
        }
    }
    let ino = |path: &str| fs::metadata(branches.at(path)).unwrap().ino();
    assert_eq!((ino("1/in1/3"), ino("2/in2/3")), (ino("0/in0/3"), ino("0/in0/3")), "what this test is about");
    Some(branches)
}

#[test]
fn numbers_are_unique_though_branches_repeat_them() {
    let Some(branches) = same_numbers_below() else { return };
    let mut u = branches.mount();
    let before = numbers(&u);
    assert_unique(&before);
    let device = u.stat("").dev();
    assert!(before.keys().all(|path| u.stat(path).dev() == device), "st_dev is one value");
    assert_eq!((u.read("in0/3"), u.read("in1/3"), u.read("in2/3")), ("0/3".into(), "1/3".into(), "2/3".into()));
    u.mounted.remount();
    assert_eq!(numbers(&u), before);
}

#[test]
fn numbers_stay_over_copy_up_rename_forget_and_remount() {
    let Some(branches) = same_numbers_below() else { return };
    branches.symlink("1/in1/link", "x").dir("1/dir/sub");
    let mut u = branches.mount();
    let before = numbers(&u);
    for path in ["in1/1", "in2/2", "in0/3", "merged/1-4", "dir", "dir/sub"] {
        fs::set_permissions(u.path(path), fs::Permissions::from_mode(0o700)).unwrap();
    }
    std::os::unix::fs::lchown(u.path("in1/link"), Some(1), Some(1)).unwrap();
    assert_eq!(numbers(&u), before, "over copy-up");
    fs::rename(u.path("in1/1"), u.path("in2/moved")).unwrap();
    fs::rename(u.path("in1/5"), u.path("in1/five")).unwrap();
    fs::hard_link(u.path("in2/6"), u.path("in1/six")).unwrap();
    let mut expected = before;
    for (old, new) in [("in1/1", "in2/moved"), ("in1/5", "in1/five")] {
        let number = expected.remove(Path::new(old)).unwrap();
        expected.insert(new.into(), number);
    }
    expected.insert("in1/six".into(), expected[Path::new("in2/6")]);
    assert_eq!(numbers(&u), expected, "over rename and link");
    // 2: dentries and inodes, so that the kernel forgets what it knows of ours (proc_sys_vm(5)).
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(numbers(&u), expected, "over forget");
    for _again in 0..2 {
        u.mounted.remount();
        assert_eq!(numbers(&u), expected, "over remount");
    }
}

#[test]
fn a_damaged_table_costs_nothing_but_stability() {
    for damage in ["missing", "empty", "garbage", "half"] {
        let Some(branches) = same_numbers_below() else { return };
        let mut u = branches.mount();
        for path in ["in1/1", "in2/2", "merged/1-4"] {
            u.write(path, "changed");
        }
        let before = Snapshot::take(&u.path(""));
        u.mounted.umount();
        spoil(&u.at("0").join(WORK_AREA), damage);
        u.mounted.mount_again();
        before.assert_same(&Snapshot::take(&u.path("")), Exactness::Equal, damage);
        assert_unique(&numbers(&u));
        u.write("in1/1", "changed again");
        assert_eq!(u.read("in1/1"), "changed again");
    }
}

/// A removal forgets the number of a copy, and a power cut may keep that and lose the removal itself: the names below
/// lead to the copy by its number.
#[test]
fn aliases_stay_one_file_where_the_number_of_the_copy_was_lost() {
    for damage in ["missing", "empty", "forgotten"] {
        let Some(branches) = three_links() else { return };
        let mut u = branches.mount();
        let ino = u.stat("a").ino();
        u.write("a", "new");
        fs::rename(u.path("a"), u.path("d/e")).unwrap();
        u.mounted.umount();
        let table = u.at("0").join(WORK_AREA).join("numbers");
        match damage {
            "missing" => fs::remove_file(table).unwrap(),
            "empty" => fs::write(table, "").unwrap(),
            _ => {
                let copy = fs::metadata(u.at("0/d/e")).unwrap().ino();
                let rows = fs::File::options().read(true).write(true).open(table).unwrap();
                let mut row = [0; 16];
                rows.read_exact_at(&mut row, copy * 16).unwrap();
                assert_eq!(row[..8], ino.to_le_bytes(), "the row of the copy");
                rows.write_all_at(&[0; 16], copy * 16).unwrap();
            }
        }
        for _remounted in 0..2 {
            u.mounted.mount_again();
            assert_one_file(&u, &["b", "d/c", "d/e"], 3, "new");
            assert_eq!(u.stat("d/e").ino(), ino, "{damage}");
            u.mounted.umount();
        }
    }
}

/// Spoils every file in a work area.
fn spoil(work: &Path, damage: &str) {
    let tree = Snapshot::take(work);
    let files: Vec<_> = tree.entries.iter().filter(|(_, entry)| entry.kind == Kind::File).collect();
    for (path, entry) in files {
        let file = work.join(path);
        match damage {
            "missing" => fs::remove_file(file).unwrap(),
            "empty" => fs::write(file, "").unwrap(),
            "garbage" => fs::write(file, (0..5000_u32).map(|i| ((i * 7919) >> 3) as u8).collect::<Vec<_>>()).unwrap(),
            _ => fs::File::options().write(true).open(file).unwrap().set_len(entry.size / 2 + 1).unwrap(),
        }
    }
}

#[test]
fn a_record_of_a_file_that_is_gone_names_no_other() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/f", "low").file("1/g", "low");
    let mut u = branches.mount();
    let number = u.stat("f").ino();
    u.write("f", "changed");
    u.mounted.umount();
    let inode = fs::metadata(u.at("0/f")).unwrap().ino();
    fs::remove_file(u.at("0/f")).unwrap();
    // ext4 gives a freed number out again at once; where it does not, there is nothing to mistake.
    let reused = (0..100).any(|i| {
        fs::write(u.at(format!("0/other{i}")), "other").unwrap();
        fs::metadata(u.at(format!("0/other{i}"))).unwrap().ino() == inode
    });
    u.mounted.mount_again();
    assert_unique(&numbers(&u));
    assert_eq!((u.stat("f").ino(), u.read("f")), (number, "low".into()), "inode number reused: {reused}");
}

#[test]
fn aliases_that_are_hidden_removed_and_replaced_confuse_nothing() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.file("2/a", "old").dir("2/d").hard_link("2/a", "2/d/b").hard_link("2/a", "2/c").hard_link("2/a", "2/e");
    branches.whiteout("1/c").file("1/e", "above").file("2/rest", "");
    let mut u = branches.mount();
    u.write("a", "new");
    fs::remove_dir_all(u.path("d")).unwrap();
    for _remounted in 0..2 {
        assert_eq!(
            (u.list(""), u.read("a"), u.read("e")),
            (["a", "e", "rest"].map(Into::into).into(), "new".into(), "above".into())
        );
        assert_eq!(u.stat("a").nlink(), 3, "what other branches hide counts as on disk");
        u.mounted.remount();
    }
    fs::rename(u.path("a"), u.path("rest")).unwrap();
    u.write("a", "fresh");
    fs::hard_link(u.path("a"), u.path("a2")).unwrap();
    for _remounted in 0..2 {
        assert_eq!((u.read("a"), u.read("rest"), u.stat("a").nlink()), ("fresh".into(), "new".into(), 2));
        assert_ne!(u.stat("a").ino(), u.stat("rest").ino());
        u.mounted.remount();
    }
}

#[test]
fn exchanged_and_crossed_aliases_stay_what_they_are() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/a", "one").hard_link("1/a", "1/b").file("1/x", "two").hard_link("1/x", "1/y");
    let mut u = branches.mount();
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, u.path("a"), rustix::fs::CWD, u.path("x"), exchange).unwrap();
    u.write("b", "1");
    u.write("y", "2");
    for _remounted in 0..2 {
        assert_one_file(&u, &["x", "b"], 2, "1");
        assert_one_file(&u, &["a", "y"], 2, "2");
        u.mounted.remount();
    }
    fs::rename(u.path("x"), u.path("y")).unwrap();
    for _remounted in 0..2 {
        assert_one_file(&u, &["y", "b"], 2, "1");
        assert_one_file(&u, &["a"], 1, "2");
        u.mounted.remount();
    }
}

#[test]
fn aliases_stay_one_file_after_a_crash() {
    let Some(branches) = three_links() else { return };
    let mut u = branches.mount();
    u.write("a", "new");
    fs::remove_file(u.path("b")).unwrap();
    fs::hard_link(u.path("d/c"), u.path("e")).unwrap();
    u.mounted.kill9();
    harness::sandbox::run(std::process::Command::new("umount").arg("-l").arg(u.path("")));
    u.mounted.mount_again();
    assert_one_file(&u, &["a", "d/c", "e"], 3, "new");
}

/// The name by which a file was seen last may stand below only, where there is nothing to be made durable.
#[test]
fn a_copied_up_file_is_made_durable_by_whichever_name() {
    for flushed in [false, true] {
        let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
        branches.file("1/a", "old").dir("1/d/e").hard_link("1/a", "1/d/e/b");
        let u = branches.mount();
        let file = fs::File::options().read(true).write(true).open(u.path("a")).unwrap();
        file.write_all_at(b"new", 0).unwrap();
        assert_eq!(u.stat("d/e/b").nlink(), 2);
        if flushed {
            harness::sandbox::run(std::process::Command::new(BIN).arg("flush").arg(u.path("")));
        }
        file.sync_all().unwrap();
        assert_one_file(&u, &["a", "d/e/b"], 2, "new");
    }
}

/// A path of the union leads to one name of a file now and to another after a directory is renamed: both count.
#[test]
fn names_that_had_the_same_path_are_two() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/x/f", "old").dir("1/y").dir("1/z");
    for name in ["1/y/f", "1/z/f", "1/a", "1/b"] {
        branches.hard_link("1/x/f", name);
    }
    let mut u = branches.mount();
    for copied_up in [false, true] {
        if copied_up {
            u.write("a", "new");
        }
        let (from, content) = if copied_up { ("z", "new") } else { ("y", "old") };
        let links = u.stat("b").nlink();
        fs::remove_file(u.path("x/f")).unwrap();
        assert_eq!(u.stat("b").nlink(), links - 1);
        fs::remove_dir(u.path("x")).unwrap();
        fs::rename(u.path(from), u.path("x")).unwrap();
        assert_one_file(&u, &["a", "b", "x/f"], links - 1, content);
        u.mounted.remount();
        assert_one_file(&u, &["a", "b", "x/f"], links - 1, content);
    }
    fs::remove_file(u.path("x/f")).unwrap();
    for _remounted in 0..2 {
        assert_one_file(&u, &["a", "b"], 2, "new");
        u.mounted.remount();
    }
}

/// What a path leads to after a directory was renamed says nothing of the name that is gone.
#[test]
fn a_name_is_not_taken_for_another_at_the_next_mount() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/x/f", "old").dir("1/y").hard_link("1/x/f", "1/y/f").hard_link("1/x/f", "1/a");
    let mut u = branches.mount();
    u.write("a", "new");
    fs::remove_file(u.path("x/f")).unwrap();
    u.mounted.remount();
    fs::rename(u.path("x"), u.path("old")).unwrap();
    fs::rename(u.path("y"), u.path("x")).unwrap();
    for _remounted in 0..2 {
        assert_one_file(&u, &["a", "x/f"], 2, "new");
        u.mounted.remount();
    }
}

#[test]
fn a_number_in_use_is_not_given_out_again() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/low", "low");
    let u = branches.mount();
    u.write("top", "top");
    let open: Vec<_> = ["top", "low"].map(|name| fs::File::open(u.path(name)).unwrap()).into();
    fs::remove_file(u.path("top")).unwrap();
    fs::remove_file(u.path("low")).unwrap();
    let taken: Vec<u64> = open.iter().map(|file| file.metadata().unwrap().ino()).collect();
    for round in 0..200 {
        u.write(format!("new{round}"), "new");
        assert!(!taken.contains(&u.stat(format!("new{round}")).ino()));
    }
    let mut content = [0; 3];
    for (file, expected) in open.iter().zip([b"top", b"low"]) {
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(&content, expected);
    }
}

#[test]
fn a_merged_directory_has_one_link() {
    let Some(branches) = Branches::new(BIN, &["rw", "ro+wh", "ro+wh"]) else { return };
    branches.dir("0/merged/a").dir("1/merged/b").dir("2/merged/c");
    let u = branches.mount();
    assert_eq!(u.stat("merged").nlink(), 1);
    assert_eq!(u.stat("").nlink(), 1);
    for number in 0..5 {
        fs::create_dir(u.path(format!("merged/new{number}"))).unwrap();
    }
    assert_eq!(u.stat("merged").nlink(), 1);
    let found = std::process::Command::new("find").arg(u.path("")).args(["-type", "d", "-name", "?"]).output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap().lines().count(), 3, "find is not misled by the count");
}
