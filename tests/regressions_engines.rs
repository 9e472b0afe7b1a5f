//! One test for each defect a to i that was found when container engines drove another union file system.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::process::Command;

use harness::fixture::Branches;
use harness::mount::{Mounted, finish};
use harness::user_namespace::UserNamespace;
use nix::sys::stat::{Mode, umask};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

fn two() -> Option<Branches> {
    Branches::new(BIN, &["rw", "ro+wh"])
}

#[test]
fn regression_a_a_tree_that_was_removed_and_made_again_stays_empty() {
    let Some(branches) = two() else { return };
    branches.file("1/opt/a", "a").file("1/opt/b", "b").file("1/opt/sub/c", "c");
    let mut u = branches.mount();
    fs::remove_dir_all(u.path("opt")).unwrap();
    fs::create_dir(u.path("opt")).unwrap();
    u.write("opt/z", "z");
    for _remounted in 0..2 {
        assert_eq!(u.list("opt"), ["z"]);
        u.mounted.remount();
    }
    u.assert_opaque("0/opt");
}

#[test]
fn regression_b_a_child_does_not_cost_the_parent_its_mode() {
    let Some(branches) = two() else { return };
    branches.dir("1/tmp").mode("1/tmp", 0o1777).dir("1/shared").mode("1/shared", 0o2777);
    let mut u = branches.mount();
    u.write("tmp/f", "");
    u.write("shared/f", "");
    for _remounted in 0..2 {
        assert_eq!((u.mode("tmp"), u.mode("shared")), (0o1777, 0o2777));
        u.mounted.remount();
    }
}

#[test]
fn regression_c_a_new_link_and_its_file_have_one_owner_and_two_links() {
    let Some(branches) = two() else { return };
    branches.file("1/f", "content");
    let mut u = branches.mount();
    fs::hard_link(u.path("f"), u.path("f2")).unwrap();
    std::os::unix::fs::chown(u.path("f"), Some(33), Some(33)).unwrap();
    for _remounted in 0..2 {
        for name in ["f", "f2"] {
            let stat = u.stat(name);
            assert_eq!((stat.nlink(), stat.uid(), stat.gid()), (2, 33, 33), "{name}");
        }
        assert_eq!(u.stat("f").ino(), u.stat("f2").ino());
        u.mounted.remount();
    }
    let disk = |name: &str| fs::metadata(u.at("0").join(name)).unwrap();
    assert_eq!((disk("f").ino(), disk("f").nlink()), (disk("f2").ino(), 2), "one file on disk, too");
}

#[test]
fn regression_d_a_fifo_has_the_mode_it_was_given() {
    let Some(branches) = two() else { return };
    let u = branches.mount();
    nix::unistd::mkfifo(&u.path("p"), Mode::from_bits_truncate(0o666)).unwrap();
    assert_eq!(u.mode("p"), 0o644);
    assert!(u.stat("p").file_type().is_fifo());
}

#[test]
fn regression_e_no_umask_means_no_umask() {
    let Some(branches) = two() else { return };
    let u = branches.mount();
    umask(Mode::empty());
    u.write("f", "");
    fs::create_dir(u.path("d")).unwrap();
    umask(Mode::from_bits_truncate(0o022));
    assert_eq!((u.mode("f"), u.mode("d")), (0o666, 0o777));
}

#[test]
fn regression_f_a_directory_belongs_to_its_maker_in_a_user_namespace() {
    let Some(branches) = two() else { return };
    branches.dir("1/low").mode("1/low", 0o777);
    let mut u = branches.mount();
    let namespace = UserNamespace::new(100_000);
    let directory = u.path("low/d");
    let path = directory.to_str().unwrap();
    // the reply to mkdir, then the reply to a lookup after the mount has forgotten everything
    assert_eq!(namespace.run(0, &["sh", "-c", "mkdir $0 && stat -c %U:%G:%u:%g $0", path]), "root:root:0:0\n");
    u.mounted.remount();
    assert_eq!(namespace.run(0, &["stat", "-c", "%U:%G:%u:%g", path]), "root:root:0:0\n");
    assert_eq!((u.stat("low/d").uid(), u.stat("low/d").gid()), (100_000, 100_000));
}

#[test]
fn regression_g_a_quick_successor_is_never_unmounted_by_its_predecessor() {
    let Some(branches) = two() else { return };
    branches.file("1/f", "low");
    let mut u = branches.mount();
    for round in 0..40 {
        u.write(format!("file{round}"), "");
        u.mounted.detach();
        u.mounted.mount_again();
        assert_eq!(u.read("f"), "low", "{round}");
    }
    assert_eq!(u.list("").len(), 41);
    u.mounted.umount();
    assert_eq!(fs::read_dir(u.path("")).unwrap().count(), 0, "nothing was written beneath the mount");
    u.mounted.mount_again();
}

#[test]
fn regression_h_a_mount_that_cannot_write_is_refused_and_not_found_out_later() {
    let Some(branches) = two() else { return };
    branches.file("1/f", "low").file("file", "").dir("second");
    let (string, second, file) = (branches.string(), branches.at("second"), branches.at("file"));
    let refused = |options: &str| {
        let outcome = Mounted::try_mount(BIN, &string, &second, &[options]).expect_err(options);
        assert!(matches!(outcome.status, Some(1 | 2)), "{options}: {outcome:?}");
        assert!(!outcome.stderr.trim().is_empty(), "{options}: {outcome:?}");
    };
    // nowhere, no directory, on another file system
    for workdir in [branches.at("nowhere"), file, "/dev/shm".into()] {
        refused(&format!("workdir={}", workdir.display()));
    }
    // without one, the work area lies in the branch: everything can be done
    let u = branches.mount();
    u.write("f", "changed");
    u.write("new", "new");
    fs::remove_file(u.path("f")).unwrap();
    fs::rename(u.path("new"), u.path("f")).unwrap();
    assert_eq!((u.list(""), u.read("f")), (vec!["f".to_owned()], "new".to_owned()));
}

#[test]
fn regression_i_the_type_of_the_mount_is_ours() {
    let Some(branches) = two() else { return };
    let u = branches.mount();
    let entry = u.mounted.entry().unwrap();
    assert_eq!(entry.kind, "fuse.runionfs");
    assert!(entry.source.contains("/0=rw") && entry.source.contains("/1=ro+wh"), "{}", entry.source);
    let found = finish(Command::new("findmnt").args(["-n", "-o", "TARGET", "-t", "fuse.runionfs"]).arg(u.path("")));
    assert_eq!((found.status, found.stdout.trim()), (Some(0), u.path("").to_str().unwrap().trim_end_matches('/')));
}
