//! A long request ends when its caller is killed, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::fixture::{Branches, Union};
use harness::mount::poll;
use harness::sandbox::Medium;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
/// So much that nobody has copied it before the test looks.
const LARGE: usize = 1 << 30;

/// Starts a command that needs a copy of a file, and kills it when the copy has begun.
#[track_caller]
fn kill_while_it_copies(u: &Union, command: &mut Command) {
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    poll(Duration::from_secs(30), || (u.prepared(0) > 0).then_some(())).expect("the copy-up begins");
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
}

fn write_a_byte(u: &Union) -> Command {
    let mut command = Command::new("dd");
    command.args(["if=/dev/zero", "bs=1", "count=1", "conv=notrunc"]).arg(format!("of={}", u.path("large").display()));
    command
}

#[test]
fn a_copy_up_ends_when_who_wants_it_is_killed() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/large", vec![7; LARGE]);
    let u = branches.mount();
    let mut commands = vec![Command::new("chmod")];
    commands[0].arg("600").arg(u.path("large"));
    // where the kernel gathers writes it was told that the byte is written: nobody may drop it then
    if !u.mounted.gathers_writes() {
        commands.push(write_a_byte(&u));
    }
    for mut command in commands {
        kill_while_it_copies(&u, &mut command);
        assert!(!u.at("0/large").exists(), "the copy-up ended with {command:?}");
        u.assert_no_temporaries(0);
    }
    let mut file = fs::File::open(u.path("large")).unwrap();
    let mut last = [0; 1];
    file.seek(SeekFrom::End(-1)).unwrap();
    file.read_exact(&mut last).unwrap();
    assert_eq!(last, [7]);
    drop(file);

    // and the next one is not ended by it
    let file = fs::File::options().write(true).open(u.path("large")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0).unwrap();
    drop(file);
    assert_eq!(fs::metadata(u.at("0/large")).unwrap().len(), LARGE as u64);
    u.assert_read_only_branches_untouched();
}

#[test]
fn a_write_that_was_gathered_survives_who_wrote_it() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/large", vec![7; LARGE / 2]);
    let u = branches.mount_with(&["passthrough=off", "writeback=auto"]);
    assert!(u.mounted.gathers_writes());
    kill_while_it_copies(&u, &mut write_a_byte(&u));
    let written = fs::read(u.at("0/large")).unwrap();
    assert_eq!((written.len(), &written[..2]), (LARGE / 2, &[0, 7][..]));
}

#[test]
fn a_signal_that_is_handled_does_not_end_a_copy_up() {
    let Some(branches) = Branches::on(Medium::Tmpfs, BIN, &["rw", "ro+wh"]) else { return };
    branches.file("1/large", vec![7; LARGE / 4]);
    let u = branches.mount();
    let script = "trap : USR1; echo ready; read go; exec 3<>\"$1\"; (sleep 0.02; kill -USR1 $$) & printf x >&3";
    let mut shell = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(u.path("large"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    shell.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    drop(shell.stdin.take());
    assert!(shell.wait().unwrap().success());
    assert_eq!(fs::metadata(u.at("0/large")).unwrap().len(), (LARGE / 4) as u64);
}
