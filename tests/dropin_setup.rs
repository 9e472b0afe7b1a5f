//! `runionfs setup podman`: the line of storage.conf that it writes, and podman, which reads it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::sandbox::{self, Sandbox};
use nix::mount::{MsFlags, mount};

const BIN: &str = env!("CARGO_BIN_EXE_runionfs");
const CONF: &str = "/etc/containers/storage.conf";

/// Directories of containers/storage that are empty, in this mount namespace only.
fn enter() -> Option<Sandbox> {
    let sandbox = sandbox::enter()?;
    for dir in ["/etc/containers", "/var/lib/containers"] {
        fs::create_dir_all(dir).unwrap();
        mount(Some("none"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
    }
    Some(sandbox)
}

fn setup(words: &[&str]) -> Outcome {
    finish(Command::new(BIN).args(["setup", "podman"]).args(words))
}

#[track_caller]
fn done(words: &[&str]) -> String {
    let outcome = setup(words);
    assert_eq!(outcome.status, Some(0), "{words:?}: {}", outcome.stderr);
    outcome.stdout
}

/// The same as a user without rights, whose home this is.
fn as_user(home: &Path, words: &[&str]) -> Outcome {
    let user = ["--reuid=1000", "--regid=1000", "--clear-groups"];
    let mut command = Command::new("setpriv");
    command.args(user).arg(BIN).args(["setup", "podman"]).args(words).env("HOME", home);
    finish(command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME"))
}

#[test]
fn podman_mounts_by_it_until_it_is_removed() {
    let Some(sandbox) = enter() else { return };
    if finish(Command::new("which").arg("podman")).status != Some(0) {
        return sandbox::skip("it needs podman (tests/setup)");
    }
    fs::write("/etc/containers/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let program = sandbox.path().join("fuse-overlayfs");
    symlink(BIN, &program).unwrap();
    let shown = done(&["--dry-run"]);
    assert!(shown.starts_with(&format!("--- /dev/null\n+++ {CONF}\n")), "{shown}");
    assert!(shown.contains(&format!("+mount_program = \"{BIN}\"\n")), "{shown}");
    assert!(!Path::new(CONF).exists());
    let told = done(&[]);
    assert!(told.contains("undo: runionfs setup podman --remove"), "{told}");
    let asked = || {
        let template = "{{.Store.GraphDriverName}} {{index .Store.GraphOptions \"overlay.mount_program\"}}";
        let said = finish(Command::new("podman").args(["info", "--format", template]).env("TMPDIR", sandbox.path()));
        assert_eq!(said.status, Some(0), "{}", said.stderr);
        said.stdout
    };
    let said = asked();
    assert!(said.starts_with("overlay ") && said.contains(&format!("Executable:{BIN} ")), "{said}");
    assert!(done(&[]).contains("nothing is changed"));
    done(&["--program", program.to_str().unwrap()]);
    assert!(asked().contains(&format!("Executable:{} ", program.display())));
    // a file that said nothing else goes
    assert_eq!(done(&["--remove"]), format!("{CONF} is removed: it said nothing else\n"));
    assert!(!Path::new(CONF).exists());
    assert!(done(&["--remove"]).contains("nothing is changed"));
    assert_eq!(fs::read_dir("/etc/containers").unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn a_file_keeps_what_it_says_its_owner_and_its_mode() {
    let Some(sandbox) = enter() else { return };
    let real = sandbox.path().join("real.conf");
    let text = "# mine\n[storage]\ndriver = \"overlay\" # this one\n[storage.options.overlay]\n\
                mount_program = \"/usr/bin/fuse-overlayfs\"\n";
    fs::write(&real, text).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    chown(&real, Some(7), Some(8)).unwrap();
    symlink(&real, CONF).unwrap();
    let shown = done(&["-n"]);
    assert!(shown.contains("\n-mount_program = \"/usr/bin/fuse-overlayfs\"\n+# by 'runionfs"), "{shown}");
    assert_eq!(fs::read_to_string(&real).unwrap(), text);
    done(&[]);
    let about = fs::metadata(&real).unwrap();
    assert_eq!((about.uid(), about.gid(), about.mode() & 0o7777), (7, 8, 0o640));
    assert!(fs::symlink_metadata(CONF).unwrap().is_symlink());
    let written = fs::read_to_string(&real).unwrap();
    assert!(written.starts_with("# mine\n") && written.contains("# this one\n"), "{written}");
    assert!(written.ends_with(&format!("mount_program = \"{BIN}\"\n")), "{written}");
    let told = done(&["--remove"]);
    assert!(told.contains("names /usr/bin/fuse-overlayfs again"), "{told}");
    assert_eq!(fs::read_to_string(&real).unwrap(), text);
}

#[test]
fn what_cannot_be_set_up_is_one_line_and_changes_nothing() {
    let Some(sandbox) = enter() else { return };
    let home = sandbox.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (text, words, says) in [
        ("[storage]\ndriver = \"vfs\"\n", &[][..], "the driver is vfs"),
        ("[storage]\ndriver = 5\n", &[], "the driver is 5"),
        ("[storage\n", &[], "it is no TOML"),
        ("[storage]\n", &["--program", "/etc/passwd"], "is no program"),
        ("[storage]\n", &["--program", "/missing"], "is no program"),
    ] {
        fs::write(CONF, text).unwrap();
        let outcome = setup(words);
        assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{text}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(says), "{text}: {}", outcome.stderr);
        assert_eq!(fs::read_to_string(CONF).unwrap(), text);
    }
    let outcome = as_user(&home, &[]);
    assert!(outcome.status == Some(1) && outcome.stderr.contains("say --rootless"), "{}", outcome.stderr);
    let outcome = setup(&["--rootless"]);
    let line = "runionfs: --rootless is for podman of another user than root: run it as that user\n";
    assert_eq!((outcome.status, &*outcome.stderr), (Some(2), line), "root has no podman of a user");
    assert_eq!(fs::read_to_string(CONF).unwrap(), "[storage]\n");
}

#[test]
fn a_user_has_a_file_of_his_own() {
    let Some(sandbox) = enter() else { return };
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let home: PathBuf = sandbox.path().join("home");
    fs::create_dir_all(home.join(".local/share/containers/storage/vfs-images")).unwrap();
    chown(&home, Some(1000), Some(1000)).unwrap();
    let outcome = as_user(&home, &["--rootless"]);
    assert_eq!(outcome.status, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("was used with the driver vfs"), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("undo: runionfs setup podman --rootless --remove"), "{}", outcome.stdout);
    let conf = home.join(".config/containers/storage.conf");
    let about = fs::metadata(&conf).unwrap();
    assert_eq!((about.uid(), about.mode() & 0o7777), (1000, 0o644));
    let text = fs::read_to_string(&conf).unwrap();
    assert!(text.starts_with("[storage]\ndriver = \"overlay\"\n") && text.contains(BIN), "{text}");
    assert!(!Path::new(CONF).exists());
    assert_eq!(as_user(&home, &["--rootless", "--remove"]).status, Some(0));
    assert!(!conf.exists());
}
