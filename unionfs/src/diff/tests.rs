use std::fs::{create_dir_all, write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::*;
use crate::options::branches;

/// Makes branches of lists of paths: `d/` is a directory, all else is a file.
fn make(trees: &[&[&str]]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (tree, index) in trees.iter().zip(0..) {
        let branch = root.path().join(index.to_string());
        create_dir_all(&branch).unwrap();
        for path in *tree {
            let entry = branch.join(path);
            create_dir_all(if path.ends_with('/') { &entry } else { entry.parent().unwrap() }).unwrap();
            if !path.ends_with('/') {
                write(&entry, b"").unwrap();
            }
        }
        same_times(&branch);
    }
    root
}

/// Directories that are on top as parents only have the times of those below.
fn same_times(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            same_times(&entry.path());
        }
    }
    let past = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    std::fs::File::open(dir).unwrap().set_modified(past).unwrap();
}

fn lines(root: &Path, attributes: &[&str]) -> Vec<String> {
    let list: Vec<String> =
        attributes.iter().zip(0..).map(|(attribute, i)| format!("{}/{i}={attribute}", root.display())).collect();
    let branches = branches::parse(list.join(":").as_ref()).unwrap();
    let changes = diff(&branches, None).unwrap();
    changes.iter().map(|change| format!("{} {}", change.kind, String::from_utf8_lossy(&change.path))).collect()
}

#[test]
fn changes_are_those_of_docker_diff() {
    let below: &[&str] = &["etc/hosts", "etc/passwd", "d/a", "d/b", "d/c/x", "f", "empty/"];
    for (top, expected) in [
        (&[][..], &[][..]),
        (&["new"], &["A /new"]),
        (&["new/sub/file"], &["A /new", "A /new/sub", "A /new/sub/file"]),
        (&["etc/hosts"], &["C /etc", "C /etc/hosts"]),
        (&["etc/new"], &["C /etc", "A /etc/new"]),
        (&[".wh.f"], &["D /f"]),
        (&[".wh.d"], &["D /d"]),
        (&["etc/.wh.passwd"], &["C /etc", "D /etc/passwd"]),
        (&[".wh.never"], &[]),
        (&["d/.wh..wh..opq"], &["C /d", "D /d/a", "D /d/b", "D /d/c"]),
        (&["d/.wh..wh..opq", "d/b", "d/new"], &["C /d", "D /d/a", "C /d/b", "D /d/c", "A /d/new"]),
        (&["d/", ".wh.d"], &["C /d", "D /d/a", "D /d/b", "D /d/c"]),
        (&["d/c/.wh..wh..opq"], &["C /d", "C /d/c", "D /d/c/x"]),
        (&["d/.wh..wh..opq", "d/c/y"], &["C /d", "D /d/a", "D /d/b", "C /d/c", "D /d/c/x", "A /d/c/y"]),
        (&["d"], &["C /d"]),
        (&["f/x"], &["C /f", "A /f/x"]),
        (&[".wh.f", "f"], &["C /f"]),
        (&[".wh..wh.runionfs/tmp/0", ".wh..wh.plnk/x", ".wh..wh.aufs"], &[]),
        (&["empty/"], &[]),
        (&[".wh..wh..opq", "f"], &["D /d", "D /empty", "D /etc", "C /f"]),
    ] {
        let root = make(&[top, below]);
        assert_eq!(lines(root.path(), &["rw", "ro"]), expected, "{top:?}");
    }
}

#[test]
fn whiteouts_below_hide_where_the_branch_says_so() {
    let trees: &[&[&str]] = &[&["a", "b"], &[".wh.a", "d/.wh..wh..opq"], &["a", "b", "d/x"]];
    let root = make(trees);
    assert_eq!(lines(root.path(), &["rw", "ro+wh", "ro"]), ["A /a", "C /b"]);
    assert_eq!(lines(root.path(), &["rw", "ro", "ro"]), ["C /a", "C /b"]);
    let root = make(&[&[".wh.d", ".wh.a"], trees[1], trees[2]]);
    assert_eq!(lines(root.path(), &["rw", "ro+wh", "ro"]), ["D /d"]);
}

#[test]
fn several_writable_branches_are_one_top() {
    let root = make(&[&["a", ".wh.b"], &["b", "c"], &["b", "c"]]);
    assert_eq!(lines(root.path(), &["rw", "rw", "ro"]), ["A /a", "D /b", "C /c"]);
}

#[test]
fn what_an_init_branch_holds_is_left_out() {
    let top: &[&str] = &["etc/hosts", "etc/new", ".wh.resolv", "data/x"];
    let root = make(&[top, &["etc/hosts", "resolv", "data/"], &["etc/hosts", "etc/other"]]);
    assert_eq!(lines(root.path(), &["rw", "ro+wh+init", "ro"]), ["C /data", "A /data/x", "C /etc", "A /etc/new"]);
}

#[test]
fn a_directory_is_changed_when_its_attributes_are() {
    let trees: &[&[&str]] = &[&["d/"], &["d/"]];
    let mode = |root: &Path| rustix::fs::chmod(root.join("0/d"), rustix::fs::Mode::RWXU).unwrap();
    let time = |root: &Path| {
        std::fs::File::open(root.join("0/d")).unwrap().set_modified(std::time::SystemTime::now()).unwrap()
    };
    for change in [&mode as &dyn Fn(&Path), &time] {
        let root = make(trees);
        assert_eq!(lines(root.path(), &["rw", "ro"]), [""; 0]);
        change(root.path());
        assert_eq!(lines(root.path(), &["rw", "ro"]), ["C /d"]);
    }
}

#[test]
fn names_are_bytes_of_any_length() {
    let long = "x".repeat(255);
    let root = make(&[&[], &[&long]]);
    let name = std::ffi::OsStr::from_bytes(b"\xff\n");
    write(root.path().join("0").join(name), b"").unwrap();
    let whiteout = crate::union::Name::new(long.as_bytes()).unwrap().whiteout();
    write(root.path().join("0").join(std::ffi::OsStr::from_bytes(&whiteout.file)), whiteout.content).unwrap();
    let list = format!("{0}/0=rw:{0}/1=ro", root.path().display());
    let changes = diff(&branches::parse(list.as_ref()).unwrap(), None).unwrap();
    assert_eq!(
        changes,
        [
            Change { kind: Kind::Deleted, path: format!("/{long}").into_bytes() },
            Change { kind: Kind::Added, path: b"/\xff\n".to_vec() },
        ]
    );
}

#[test]
fn a_union_that_nobody_can_write_has_no_changes_to_show() {
    let root = make(&[&["a"], &["a"]]);
    let branches = branches::parse(format!("{0}/0=ro:{0}/1=ro", root.path().display()).as_ref()).unwrap();
    assert!(matches!(diff(&branches, None), Err(DiffError::NothingOnTop(_))));
    let branches = branches::parse(format!("{0}/0=rw:{0}/9=ro", root.path().display()).as_ref()).unwrap();
    assert!(matches!(diff(&branches, None), Err(DiffError::Branch { error: Errno::NOENT, .. })));
}

#[test]
fn a_planted_link_is_not_followed() {
    let root = make(&[&["d/x"], &["e/secret"]]);
    std::os::unix::fs::symlink(root.path().join("1/e"), root.path().join("1/d")).unwrap();
    assert_eq!(lines(root.path(), &["rw", "ro"]), ["C /d", "A /d/x"]);
}
