//! What the caller of rlaunch sees: exit statuses, streams, messages; and what the command is given.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::mount::finish;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Tree, printed};

#[test]
fn the_exit_status_is_the_commands() {
    let Some(tree) = Tree::new() else { return };
    for (script, status) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 125", 125),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -9 $$", 137),
    ] {
        assert_eq!(tree.sh(script).status, Some(status), "{script}");
    }
}

#[test]
fn a_missing_command_is_127_and_one_that_cannot_run_126() {
    let Some(tree) = Tree::new() else { return };
    fs::write(tree.path("bin/garbage"), "garbage").unwrap();
    fs::set_permissions(tree.path("bin/garbage"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(tree.path("bin/locked"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.path("bin/locked"), fs::Permissions::from_mode(0o644)).unwrap();
    for (command, status, reason) in [
        ("missing", 127, "No such file or directory"),
        ("/missing", 127, "No such file or directory"),
        ("/bin/sh/x", 127, "Not a directory"),
        ("", 127, "No such file or directory"),
        ("locked", 126, "Permission denied"),
        ("/etc", 126, "Permission denied"),
        ("garbage", 126, "Exec format error"),
    ] {
        let outcome = finish(tree.rlaunch().arg("--").arg(command));
        assert_eq!((outcome.status, &*outcome.stdout), (Some(status), ""), "{command}: {outcome:?}");
        let start = format!("rlaunch: cannot run '{command}' in the container: {reason}");
        assert!(outcome.stderr.starts_with(&start), "{command}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{command}: {}", outcome.stderr);
    }
}

#[test]
fn failures_of_our_own_are_125_and_say_what_was_being_done() {
    let Some(tree) = Tree::new() else { return };
    let file = tree.path("etc/passwd");
    for (arguments, message) in [
        (["--rootfs", "/missing/root", "true"], "cannot use /missing/root as the root: No such file or directory"),
        (["--rootfs", file.to_str().unwrap(), "true"], "as the root: it is not a directory"),
        (["--rotfs", "/", "true"], "unexpected argument '--rotfs'"),
    ] {
        let outcome = finish(Command::new(RLAUNCH).args(arguments));
        assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
        assert!(outcome.stderr.contains(message), "{}", outcome.stderr);
    }
    assert_eq!(finish(&mut Command::new(RLAUNCH)).status, Some(125));
}

#[test]
fn words_after_the_command_are_its_own() {
    let Some(tree) = Tree::new() else { return };
    let outcome = finish(tree.rlaunch().args(["echo", "--rootfs", "/x", "--", "-h"]));
    assert_eq!(printed(outcome), "--rootfs /x -- -h\n");
}

#[test]
fn a_subcommand_is_one_only_as_the_first_word() {
    let Some(tree) = Tree::new() else { return };
    fs::write(tree.path("bin/run"), "#!/bin/sh\necho \"ran $*\"\n").unwrap();
    fs::set_permissions(tree.path("bin/run"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(printed(finish(tree.rlaunch().args(["run", "x"]))), "ran x\n");
    assert_eq!(printed(finish(tree.rlaunch().args(["--", "run", "x"]))), "ran x\n");
    let mut first = Command::new(RLAUNCH);
    first.args(["run", "--rootfs"]).arg(tree.path("")).args(["echo", "run"]);
    assert_eq!(printed(finish(&mut first)), "run\n");
}

#[test]
fn a_terminal_can_be_asked_for_where_the_caller_has_none() {
    let Some(tree) = Tree::new() else { return };
    let script = "tty; stty size; wc -c; echo problem >&2";
    for (option, has_terminal) in [("-t", true), ("-it", true), ("--tty=never", false), ("--tty=auto", false)] {
        for input in ["", "line\\n", "half"] {
            let script = format!("printf '{input}' | '{RLAUNCH}' --rootfs \"$1\" {option} sh -c '{script}' 2>&1");
            let outcome = finish(Command::new("sh").args(["-c", &script, "sh"]).arg(tree.path("")));
            assert_eq!(outcome.status, Some(0), "{option} {input}: {outcome:?}");
            // The terminal shows what is typed, at any moment between these.
            let count = format!("{}\r\n", input.replace("\\n", "\n").len());
            for text in ["/dev/pts/0", "24 80", &count, "problem\r\n"] {
                assert_eq!(outcome.stdout.contains(text), has_terminal, "{option} {input} {text}: {outcome:?}");
            }
        }
    }
}

#[test]
fn streams_are_passed_through_as_they_are() {
    let Some(tree) = Tree::new() else { return };
    let mut child = Command::new("timeout")
        .args(["60", RLAUNCH, "--rootfs"])
        .arg(tree.path(""))
        .args(["sh", "-c", "cat; echo problem >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than a pipe holds, and no text.
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[1]).collect();
    let mut input = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.stdout == bytes, "{} bytes came back of {}", output.stdout.len(), bytes.len());
    assert_eq!((&*output.stderr, output.status.code()), (&b"problem\n"[..], Some(0)));
}

#[test]
fn a_tree_gives_a_clean_environment_and_starts_at_its_root() {
    let Some(tree) = Tree::new() else { return };
    let mut command = tree.rlaunch();
    command
        .args(["env"])
        .env_clear()
        .env("SECRET", "1")
        .env("PATH", "/nowhere")
        .env("TERM", "vt100")
        .current_dir("/usr");
    let output = printed(finish(&mut command));
    let mut lines: Vec<_> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=vt100"]
    );
    assert_eq!(tree.print("pwd"), "/\n");
}

#[test]
fn descriptors_other_than_the_streams_are_closed() {
    let Some(tree) = Tree::new() else { return };
    let script = format!("exec 5</etc/passwd 9>/dev/null; exec '{RLAUNCH}' --rootfs \"$1\" ls /proc/self/fd");
    let outcome = finish(Command::new("bash").args(["-c", &script, "bash"]).arg(tree.path("")));
    assert_eq!(printed(outcome), "0\n1\n2\n3\n", "the last one is the directory that ls reads");
}

#[test]
fn blocked_and_ignored_signals_are_the_callers() {
    let Some(tree) = Tree::new() else { return };
    let look = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"];
    for prepare in ["true", "trap '' HUP USR1"] {
        // The words after the script are its arguments: a command, or rlaunch and the same command.
        let script = format!("{prepare}; exec \"$@\"");
        let outside = printed(finish(Command::new("sh").args(["-c", &script, "sh"]).args(look)));
        let launch = [RLAUNCH, "--rootfs", tree.path("").to_str().unwrap()].map(str::to_owned);
        let inside = printed(finish(Command::new("sh").args(["-c", &script, "sh"]).args(launch).args(look)));
        assert_eq!(inside, outside, "{prepare}");
    }
}

/// As podman and docker have it. A copy of this machine goes on where the caller is.
#[test]
fn files_of_a_command_are_not_made_as_the_caller_would_make_them() {
    let Some(tree) = Tree::new() else { return };
    let with = |mask: &str, arguments: &[&str]| {
        let script = format!("umask {mask}; exec '{RLAUNCH}' \"$@\"");
        finish(Command::new("sh").args(["-c", &script, "sh"]).args(arguments).args(["sh", "-c", "umask"]))
    };
    let root = tree.path("");
    let rootfs = ["--rootfs", root.to_str().unwrap()];
    for (mask, options, expected) in [
        ("077", &[][..], "0022\n"),
        ("0", &["--no-init"], "0022\n"),
        ("077", &["--umask=27"], "0027\n"),
        ("077", &["--umask", "0000", "--user=7"], "0000\n"),
    ] {
        assert_eq!(printed(with(mask, &[&rootfs, options].concat())), expected, "{mask} {options:?}");
    }
    for (options, expected) in [(&["--no-submounts"][..], "0027\n"), (&["--no-submounts", "--umask=0007"], "0007\n")] {
        assert_eq!(printed(with("027", options)), expected, "{options:?}");
    }
    for wrong in ["1000", "0o22", "u=rwx", ""] {
        let outcome = with("022", &[&rootfs[..], &["--umask", wrong]].concat());
        assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
        assert!(outcome.stderr.contains("up to four octal digits are expected"), "{outcome:?}");
    }
}

/// Only the command has its mask: what is made for it has the modes that are asked for.
#[test]
fn a_working_directory_that_is_made_cannot_be_written_by_others() {
    let Some(tree) = Tree::new() else { return };
    for mask in ["000", "077"] {
        let directory = format!("/made-{mask}/below");
        let options = ["--workdir", &directory, "--umask", mask];
        let outcome = finish(tree.rlaunch().args(options).args(["sh", "-c", "pwd; stat -c %a . .."]));
        assert_eq!(printed(outcome), format!("{directory}\n755\n755\n"));
    }
}

/// One who has not logged in has no folder for what runs.
#[test]
fn an_ordinary_user_needs_nothing_but_a_tree() {
    let Some(tree) = Tree::new() else { return };
    // Mount points that are missing are made by who may.
    assert_eq!(tree.print("true"), "");
    // The directories above the binary may be closed to others.
    let program = tree.beside("rlaunch");
    fs::copy(RLAUNCH, &program).unwrap();
    let Some(setpriv) = tools::find("setpriv") else { return };
    let mut command = Command::new(setpriv);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).env_remove("XDG_RUNTIME_DIR");
    let outcome =
        finish(command.arg("--rootfs").arg(tree.path("")).args(["sh", "-c", "id -u; touch /x || echo closed"]));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "0\nclosed\n"), "{outcome:?}");
    assert!(!Path::new("/tmp/rlaunch-65534/").exists(), "its record has gone with it");
}
