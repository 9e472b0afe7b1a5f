//! `runionfs doctor`: right whoever asks and whatever the kernel lacks, and nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::old_kernel::{KERNELS, OLD_FILTER, pretend};
use harness::rootless::{self, Way};
use harness::sandbox::{self, Medium, Sandbox, mount_table};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");

/// The rows of a report by their names, the status beside.
struct Told {
    status: Option<i32>,
    json: Value,
}

impl Told {
    #[track_caller]
    fn by(command: &mut Command) -> Told {
        let Outcome { status, stdout, stderr } = finish(command);
        assert_eq!(stderr, "");
        Told { status, json: serde_json::from_str(&stdout).unwrap() }
    }

    #[track_caller]
    fn row(&self, feature: &str) -> &Value {
        let rows = self.json["rows"].as_array().unwrap();
        rows.iter().find(|row| row["feature"] == feature).unwrap_or_else(|| panic!("no {feature}: {rows:?}"))
    }

    #[track_caller]
    fn assert(&self, feature: &str, state: &str, change: &str) {
        let row = self.row(feature);
        assert_eq!(row["state"], state, "{row}");
        assert!(row["change"].as_str().unwrap().contains(change), "{row}");
    }
}

fn doctor(directories: &[&Path]) -> Command {
    let mut command = Command::new(BIN);
    command.args(["doctor", "--json"]).args(directories);
    command
}

/// A directory to look at, in a private mount namespace.
fn enter() -> Option<Sandbox> {
    let sandbox = sandbox::enter_on(Medium::Disk)?;
    fs::create_dir(sandbox.path().join("branch")).unwrap();
    Some(sandbox)
}

#[test]
fn root_is_told_what_there_is_and_nothing_is_left() {
    let Some(sandbox) = enter() else { return };
    let branch = sandbox.path().join("branch");
    let table = || mount_table().into_iter().map(|entry| (entry.target, entry.options)).collect::<Vec<_>>();
    let connections = || fs::read_dir("/sys/fs/fuse/connections").unwrap().count();
    let before = (table(), connections());
    let told = Told::by(&mut doctor(&[&branch]));
    // those of tests beside this one come and go
    assert_eq!(table(), before.0);
    assert_eq!((told.status, &told.json["unions"]), (Some(0), &Value::Bool(true)));
    for feature in
        ["/dev/fuse", "mount(2) of FUSE", "FUSE protocol", "readdirplus", "writable", "file handles", "locks"]
    {
        told.assert(feature, "yes", "nothing");
    }
    assert_eq!(told.row("mount(2) of FUSE")["found"], "");
    assert_eq!(told.row("file system")["group"], branch.to_str().unwrap());
    assert_eq!(fs::read_dir(&branch).unwrap().count(), 0);
    for row in told.json["rows"].as_array().unwrap() {
        for field in ["group", "feature", "state", "gives", "change"] {
            assert!(row[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {row}");
        }
    }
}

#[test]
fn the_table_shows_the_same_to_readers() {
    let Some(sandbox) = enter() else { return };
    let outcome = finish(Command::new(BIN).arg("doctor").arg(sandbox.path()));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].starts_with("FEATURE") && lines[0].ends_with("WHAT TO CHANGE"), "{}", lines[0]);
    assert!(lines.iter().any(|line| line.starts_with("/dev/fuse ") && line.ends_with(" nothing")), "{outcome:?}");
    assert!(lines.contains(&&*sandbox.path().display().to_string()));
    assert_eq!(lines.last(), Some(&"This user can mount unions here."));
}

#[test]
fn a_directory_that_is_none_is_said_in_a_line() {
    let Some(sandbox) = enter() else { return };
    fs::write(sandbox.path().join("file"), "").unwrap();
    for (name, reason) in [("file", "Not a directory"), ("missing", "No such file or directory")] {
        let outcome = finish(Command::new(BIN).arg("doctor").arg(sandbox.path().join(name)));
        assert_eq!((outcome.status, &*outcome.stdout, outcome.stderr.lines().count()), (Some(1), "", 1), "{outcome:?}");
        assert!(outcome.stderr.contains(name) && outcome.stderr.contains(reason), "{outcome:?}");
    }
}

#[test]
fn without_the_device_there_are_no_unions() {
    let Some(_sandbox) = enter() else { return };
    mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    // the harness wants it
    fs::write("/dev/null", "").unwrap();
    let told = Told::by(&mut doctor(&[]));
    assert_eq!((told.status, &told.json["unions"]), (Some(1), &Value::Bool(false)));
    told.assert("/dev/fuse", "no", "--device /dev/fuse");
    told.assert("mount(2) of FUSE", "no", "make /dev/fuse work first");
    told.assert("FUSE protocol", "unknown", "make mounting work first");
}

#[test]
fn who_may_not_mount_is_not_told_that_he_can() {
    let Some(_sandbox) = enter() else { return };
    // as root of a container is, though the device be given to it and the helper be set-user-id
    let confined = ["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", BIN, "doctor", "--json"];
    let told = Told::by(Command::new("setpriv").args(confined));
    assert_eq!((told.status, &told.json["unions"]), (Some(1), &Value::Bool(false)));
    told.assert("/dev/fuse", "yes", "nothing");
    told.assert("mount(2) of FUSE", "no", "be root");
    told.assert("fusermount3", "no", "CAP_SYS_ADMIN");
}

#[test]
fn users_are_told_what_to_change() {
    let Some(sandbox) = enter() else { return };
    let closed = || Told::by(Way::Fusermount.command().args([BIN, "doctor", "--json"]).arg(sandbox.path()));
    if rootless::ordinary_daemons(&sandbox) {
        let told = closed();
        assert_eq!(told.status, Some(0));
        told.assert("/dev/fuse", "yes", "nothing");
        told.assert("mount(2) of FUSE", "no", "fusermount3");
        told.assert("passthrough", "no", "CAP_SYS_ADMIN");
        told.assert("writable", "no", "ro+wh");
        for feature in ["fusermount3", "user namespaces", "FUSE in a user namespace", "/etc/subuid and /etc/subgid"] {
            told.assert(feature, "yes", "nothing");
        }
        let node = sandbox.path().join("closed");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &node,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::RUSR,
            rustix::fs::makedev(10, 229),
        )
        .unwrap();
        mount(Some(&node), "/dev/fuse", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let told = closed();
        assert_eq!((told.status, &told.json["unions"]), (Some(1), &Value::Bool(false)));
        told.assert("/dev/fuse", "no", "chmod 666 /dev/fuse");
        // What it was mounted on is in the sandbox, and cannot be removed else.
        umount2("/dev/fuse", MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn where_there_may_be_no_namespaces_the_switch_is_named() {
    let Some(sandbox) = enter() else { return };
    if !rootless::ordinary_daemons(&sandbox) {
        return;
    }
    let script = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$0\" doctor --json";
    let told = Told::by(Way::OneId.command().args(["sh", "-c", script, BIN]));
    assert_eq!(told.status, Some(0), "root of a namespace mounts all the same");
    assert_eq!(told.row("mount(2) of FUSE")["found"], "for this user namespace, without these");
    told.assert("user namespaces", "no", "sysctl user.max_user_namespaces");
}

#[test]
fn it_is_right_on_older_kernels() {
    let Some(sandbox) = enter() else { return };
    let branch = sandbox.path().join("branch");
    for kernel in KERNELS.into_iter().chain([OLD_FILTER]) {
        pretend(kernel);
        let told = Told::by(&mut doctor(&[&branch]));
        assert_eq!(told.status, Some(0), "{kernel}");
        if kernel != OLD_FILTER {
            assert_eq!(told.row("FUSE protocol")["found"], format!("7.{}", kernel.fuse()));
            told.assert("passthrough", "no", "Linux 6.9");
        }
        told.assert("system calls", "no", "older calls do it");
        let missing = told.row("system calls")["found"].as_str().unwrap();
        assert!(missing.contains("mount_setattr") && missing.contains("fchmodat2"), "{missing}");
        assert_eq!(missing.contains("renameat2"), !kernel.renames_with_flags(), "{kernel}: {missing}");
        told.assert("writable", "yes", "nothing");
        assert_eq!(fs::read_dir(&branch).unwrap().count(), 0, "{kernel}");
    }
}
