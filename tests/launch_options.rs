//! Odd words on the command line: each is understood, or is one clear line and the exit status 125.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use harness::mount::finish;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Tree, printed};

#[test]
fn what_makes_no_sense_is_told_in_the_first_line() {
    let Some(tree) = Tree::new() else { return };
    let long = "x".repeat(65);
    for (words, reason) in [
        (&["--memory", "0"] as &[&str], "--memory is too little to start anything (give it"),
        (&["--memory="], "'' for '--memory <SIZE>': it is not a size"),
        (&["--memory", "-1"], "unexpected argument '-1' found"),
        (&["--memory", "99999999999999999999"], "it is not a size"),
        (&["--cpus", "0"], "'0' for '--cpus <NUMBER>': it must be between"),
        (&["--cpus", "nan"], "it is not a number"),
        (&["--pids-limit", "0"], "'0' for '--pids-limit <NUMBER>'"),
        (&["--cpuset-cpus="], "neither a number nor a range"),
        (&["--cgroup-parent", "../x", "--memory=1g"], "leads upwards (give the path"),
        (&["-v", ":/x"], "there is no source before the colon"),
        (&["-v", "/etc:"], "the target '' is no absolute path"),
        (&["-v", "/etc:/a/../x"], "the target '/a/../x' is no absolute path below / without .."),
        (
            &["-v", "/missing:/x"],
            "cannot show the host's /missing at /x of the container: No such file or directory (the so",
        ),
        (&["--tmpfs", "/x:size=-1"], "cannot mount tmpfs at /x of the container: Invalid argument (a word behind"),
        (&["--tmpfs", "/x:size=0"], "'size=0' would be no limit at all; leave it out for the usual one"),
        (&["--tmpfs", "/x:mode=700,nr_inodes=0"], "'nr_inodes=0' would be no limit at all"),
        (&["--name", ""], "'' for '--name <NAME>': letters, digits"),
        (&["--name", "a/b"], "'a/b' for '--name <NAME>'"),
        (&["--name", ".."], "'..' for '--name <NAME>'"),
        (&["--name", &long], "64 at most"),
        (&["--name=a", "--name=b"], "'--name <NAME>' cannot be used multiple times"),
        (&["--hostname", &long], "a host name has 1 to 64 letters"),
        (&["--add-host", "a\nb:1.2.3.4"], "invalid value"),
        (&["--user", "4294967295"], "is too large for a user"),
        (&["-w", "relative"], "'relative' for '--workdir <DIR>': it must be an absolute path"),
        (&["-w", "/etc/passwd"], "cannot enter the working directory /etc/passwd: Not a directory"),
        (&["-e", "=x"], "'=x' is no NAME=VALUE"),
        (&["--tty=maybe"], "'maybe' for '--tty[=<WHEN>]'"),
    ] {
        let outcome = finish(tree.rlaunch().args(words).arg("true"));
        assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{words:?}: {outcome:?}");
        assert!(outcome.stderr.lines().next().is_some_and(|line| line.contains(reason)), "{words:?}: {outcome:?}");
        // `--` in front of the word would make it the command.
        assert!(!outcome.stderr.contains("use '-- "), "{words:?}: {outcome:?}");
    }
}

#[test]
fn the_root_of_the_machine_is_no_root_for_a_container() {
    for root in ["/", "/proc/self/root", "/../"] {
        let outcome = finish(Command::new(RLAUNCH).args(["--rootfs", root, "true"]));
        assert_eq!(outcome.status, Some(125), "{outcome:?}");
        assert!(outcome.stderr.contains("leave the option out for a copy of it"), "{outcome:?}");
    }
}

#[test]
fn a_limit_that_leaves_no_room_for_the_command_is_named() {
    let Some(tree) = Tree::new() else { return };
    let outcome = finish(tree.rlaunch().args(["--pids-limit=1", "true"]));
    assert_eq!(outcome.status, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("--pids-limit"), "{outcome:?}");
    // Without an init of ours, one is enough.
    assert_eq!(printed(finish(tree.rlaunch().args(["--pids-limit=1", "--init=false", "echo", "ran"]))), "ran\n");
}

/// Names are bytes.
#[test]
fn words_need_not_be_text() {
    let Some(tree) = Tree::new() else { return };
    let odd = |before: &str, behind: &str| -> OsString {
        OsStr::from_bytes(&[before.as_bytes(), b"\xff", behind.as_bytes()].concat()).to_owned()
    };
    let source = tree.beside("").join(odd("source", ""));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    fs::write(tree.beside("").join(odd("env", "")), b"B=\xfe\n").unwrap();
    let mut volume = source.into_os_string();
    volume.push(":/volume");
    let mut command = tree.rlaunch();
    command.args([OsStr::new("-v"), &volume, OsStr::new("-w"), &odd("/made", ""), OsStr::new("-e"), &odd("A=", "")]);
    command.arg("--env-file").arg(tree.beside("").join(odd("env", "")));
    command.args(["sh", "-c", "cat /volume/file; printf '%s' \"$1$A$B$(pwd)\" | od -An -tx1", "sh"]).arg(odd("", ""));
    assert_eq!(printed(finish(&mut command)), "content ff ff fe 2f 6d 61 64 65 ff\n");
}

#[test]
fn a_file_of_variables_may_have_odd_lines_and_wrong_ones_are_named() {
    let Some(tree) = Tree::new() else { return };
    let file = tree.beside("variables");
    fs::write(&file, "\u{feff}A=1\r\n\n  # no\nB= two words \nHOST_HAS\nHOST_HAS_NOT\nC=x=y\nA=2\nD=\"q\"\nE=")
        .unwrap();
    let script = "for v in A B C D E HOST_HAS HOST_HAS_NOT; do eval \"echo \\\"$v=<\\${$v-none}>\\\"\"; done";
    let mut command = tree.rlaunch();
    command.env("HOST_HAS", "it").arg("--env-file").arg(&file).args(["sh", "-c", script]);
    assert_eq!(
        printed(finish(&mut command)),
        "A=<2>\nB=< two words >\nC=<x=y>\nD=<\"q\">\nE=<>\nHOST_HAS=<it>\nHOST_HAS_NOT=<none>\n"
    );
    for (text, reason) in
        [("A=1\n=x\n", "line 2: '=x' is no NAME=VALUE"), ("A=\0\n", "line 1: no variable holds a zero byte")]
    {
        fs::write(&file, text).unwrap();
        let outcome = finish(tree.rlaunch().arg("--env-file").arg(&file).arg("true"));
        assert_eq!(outcome.status, Some(125), "{outcome:?}");
        assert!(outcome.stderr.contains(reason), "{outcome:?}");
    }
    let outcome = finish(tree.rlaunch().args(["--env-file=/missing", "true"]));
    assert_eq!(outcome.stderr, "rlaunch: cannot read the environment from /missing: No such file or directory\n");
}

#[test]
fn an_entry_point_is_a_command_by_itself_and_an_empty_one_is_none() {
    let Some(tree) = Tree::new() else { return };
    assert_eq!(printed(finish(tree.rlaunch().args(["--entrypoint", "pwd"]))), "/\n");
    assert_eq!(printed(finish(tree.rlaunch().args(["--entrypoint=echo", "a", "-b"]))), "a -b\n");
    assert_eq!(printed(finish(tree.rlaunch().args(["--entrypoint=", "echo", "a"]))), "a\n");
    let outcome = finish(tree.rlaunch().arg("--entrypoint="));
    assert_eq!(
        (outcome.status, &*outcome.stderr),
        (Some(125), "rlaunch: there is no command to run (give one behind the options)\n")
    );
}

#[test]
fn options_end_at_the_command_and_at_two_dashes() {
    let Some(tree) = Tree::new() else { return };
    for (words, expected) in [
        (&["-it", "echo", "-v", "x"] as &[&str], "-v x\r\n"),
        (&["-ti", "--", "echo", "--", "-t"], "-- -t\r\n"),
        (&["-t=never", "-i", "echo", "--help"], "--help\n"),
        (&["-e", "A=1", "-e=A=2", "-eA=3", "sh", "-c", "echo $A"], "3\n"),
        (&["--tty", "echo", "never"], "never\r\n"),
    ] {
        assert_eq!(printed(finish(tree.rlaunch().args(words))), expected, "{words:?}");
    }
}
