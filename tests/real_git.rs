//! Real work: a large repository lies in a read-only branch; git switches between its branches, directories of it are
//! renamed, and a package manager replaces trees, with the result that a plain directory has and never with EXDEV.
//!
//! `RUNIONFS_GIT_FILES` sets how many files the repository has.

#[path = "support/tools.rs"]
mod tools;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::fixture::Branches;
use harness::sandbox::{self, Medium, run};
use harness::snapshot::{Exactness, Snapshot};
use harness::trial::number;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const LIMIT: Duration = Duration::from_secs(1_500);
const IN_A_DIRECTORY: u32 = 50;

/// A commit in the form of git-fast-import(1).
fn commit(stream: &mut String, branch: &str, from: Option<&str>, changes: impl Fn(&mut String)) {
    let text = format!("commit for {branch}");
    let from = from.map(|from| format!("from {from}\n")).unwrap_or_default();
    let who = "A <a@example.org> 1700000000 +0000";
    write!(stream, "commit refs/heads/{branch}\ncommitter {who}\ndata {}\n{text}\n{from}", text.len()).expect("text");
    changes(stream);
    stream.push('\n');
}

fn file(stream: &mut String, path: &str, content: &str) {
    write!(stream, "M 100644 inline {path}\ndata {}\n{content}\n", content.len()).expect("text");
}

fn path_of(number: u32) -> String {
    let directory = number / IN_A_DIRECTORY;
    format!("area{}/package{directory}/sub/file{number}.txt", directory % 10)
}

/// A branch `main`; `changed`, with a tenth of the files changed and as many gone; and `moved`, with directories renamed,
/// one of them to the name that another one had.
fn history(files: u32) -> String {
    let mut stream = String::new();
    commit(&mut stream, "main", None, |stream| {
        (0..files).for_each(|number| file(stream, &path_of(number), &format!("content of {number}\n")));
    });
    commit(&mut stream, "changed", Some("refs/heads/main"), |stream| {
        for number in (0..files).step_by(10) {
            file(stream, &path_of(number), &format!("changed content of {number}\n"));
            writeln!(stream, "D {}", path_of(number + 1)).expect("text");
            file(stream, &format!("new{}/file{number}", number % 7), "new\n");
        }
    });
    commit(&mut stream, "moved", Some("refs/heads/main"), |stream| {
        for (from, to) in
            [("area0", "elsewhere"), ("area1", "area0"), ("area2/package2", "package2"), ("area3", "area4/inside")]
        {
            writeln!(stream, "R {from} {to}").expect("text");
        }
    });
    stream
}

fn git(directory: &Path, words: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).args(["-c", "gc.auto=0", "-c", "core.hooksPath=/dev/null"]).args(words);
    // neither the user's settings nor the machine's, nor doubts about whose the repository is
    command.env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_COUNT", "1");
    command.env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    let output = command.output().expect("start git");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn make_repository(at: &Path, files: u32) {
    run(Command::new("git").args(["init", "-q", "-b", "main"]).arg(at));
    let mut import = Command::new("git")
        .arg("-C")
        .arg(at)
        .args(["fast-import", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("start git fast-import");
    let mut input = import.stdin.take().expect("its input is piped");
    input.write_all(history(files).as_bytes()).expect("feed git fast-import");
    drop(input);
    assert!(import.wait().expect("wait for git fast-import").success());
    git(at, &["checkout", "-q", "main"]);
}

/// What git leaves in `.git` tells of inode numbers and times; the work tree must be the same.
fn work_tree(root: &Path) -> Snapshot {
    let mut tree = Snapshot::take(root).without(|path| path == Path::new(".git"));
    tree.entries.remove(Path::new(""));
    tree
}

/// Renames directories as package managers do: the old tree goes aside in one rename, a new one takes its place, and
/// then the old one goes, or comes back.
fn replace_trees(root: &Path) {
    for number in 0..10 {
        let area = root.join(format!("area{number}"));
        let Ok(packages) = fs::read_dir(&area) else { continue };
        let mut packages: Vec<PathBuf> = packages.map(|entry| entry.expect("an entry").path()).collect();
        packages.sort();
        for (turn, package) in packages.iter().enumerate() {
            let name = package.file_name().expect("a name").to_str().expect("text");
            let aside = area.join(format!(".{name}-Kd8fQ2xV"));
            fs::rename(package, &aside).unwrap_or_else(|error| panic!("{}: {error}", package.display()));
            fs::create_dir_all(package.join("sub")).expect("make the new tree");
            fs::write(package.join("sub/package.json"), "{}").expect("write into the new tree");
            if turn % 2 == 0 {
                fs::remove_dir_all(&aside).expect("remove the old tree");
            } else {
                fs::remove_dir_all(package).expect("remove the new tree");
                fs::rename(&aside, package).expect("bring the old tree back");
            }
        }
    }
}

/// One tree after the other takes all its steps; then they must be the same.
/// What is done to a work tree.
type Step = fn(&Path);

#[test]
fn a_large_repository_below_is_switched_moved_and_replaced_as_in_a_plain_directory() {
    let Some(_) = tools::find("git") else { return };
    let Some(sandbox) = sandbox::enter_for(Medium::Disk, LIMIT) else { return };
    let files = number("RUNIONFS_GIT_FILES", 20_000);
    let plain = sandbox.path().join("plain");
    let branches = Branches::inside(sandbox, BIN, &["rw", "ro+wh"]);
    make_repository(&branches.at("1"), files);
    run(Command::new("cp").arg("-a").arg(branches.at("1")).arg(&plain));
    let mut union = branches.mount();
    let steps: [(&str, Step); 4] = [
        ("changed", |root| drop(git(root, &["checkout", "-q", "changed"]))),
        ("moved", |root| drop(git(root, &["checkout", "-q", "moved"]))),
        ("renames", |root| {
            for (from, to) in
                [("elsewhere", "back"), ("area0", "elsewhere"), ("back", "area0"), ("area4", "area5/area4")]
            {
                fs::rename(root.join(from), root.join(to)).unwrap_or_else(|error| panic!("{from}: {error}"));
            }
        }),
        ("replaced", replace_trees),
    ];
    for (name, step) in steps {
        step(&plain);
        step(union.mounted.target());
        union.mounted.remount();
        assert_eq!(
            git(union.mounted.target(), &["status", "--porcelain"]),
            git(&plain, &["status", "--porcelain"]),
            "{name}"
        );
    }
    let expected = work_tree(&plain);
    expected.assert_same(&work_tree(union.mounted.target()), Exactness::EqualButTimes, "after all steps");
    for root in [&plain, union.mounted.target()] {
        git(root, &["reset", "-q", "--hard"]);
        git(root, &["clean", "-q", "-f", "-d"]);
        git(root, &["checkout", "-q", "main"]);
        assert_eq!(git(root, &["status", "--porcelain"]), "", "{}", root.display());
        git(root, &["fsck", "--no-dangling"]);
    }
    work_tree(&plain).assert_same(
        &work_tree(union.mounted.target()),
        Exactness::EqualButTimes,
        "back at the beginning",
    );
}
