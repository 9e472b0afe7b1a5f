//! The throw-away copy of the host.
//!
//! What is run here over the real host only looks, and writes files of its own. Everything that destroys is tested in
//! `launch_hosts_place`.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::mount::{finish, poll};
use harness::sandbox::{self, Sandbox};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{PATIENCE, RLAUNCH, Running, mounts, printed, wait_until_gone};

fn rlaunch(script: &str) -> Command {
    let mut command = Command::new(RLAUNCH);
    command.args(["sh", "-c", script]);
    command
}

/// The process that serves the union of a container, and the directory on disk where it writes, which it keeps open.
fn daemon_of(running: &Running) -> (Pid, PathBuf) {
    let daemon = running.daemon();
    let entries = fs::read_dir(format!("/proc/{daemon}/fd")).expect("list the daemon's descriptors");
    let mut open = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let is_scratch =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"rlaunch-"));
    (daemon, open.find(is_scratch).expect("the daemon keeps its directory open"))
}

#[test]
fn a_script_on_standard_input_runs_in_a_copy_and_its_status_comes_back() {
    let Some(_sandbox) = sandbox::enter() else { return };
    let script = format!("echo 'ls / && touch /rlaunch-test-x && exit 7' | '{RLAUNCH}' sh");
    let outcome = finish(Command::new("sh").args(["-c", &script]));
    assert_eq!((outcome.status, &*outcome.stderr), (Some(7), ""), "{outcome:?}");
    let inside: Vec<_> = outcome.stdout.lines().collect();
    for name in ["bin", "etc", "usr", "proc", "dev"] {
        assert!(inside.contains(&name), "{inside:?}");
    }
    assert!(!Path::new("/rlaunch-test-x").exists());
}

#[test]
fn what_is_written_stays_inside_and_goes_with_the_container() {
    let Some(sandbox) = sandbox::enter() else { return };
    fs::write(sandbox.path().join("old"), "old").unwrap();
    fs::create_dir(sandbox.path().join("dir")).unwrap();
    let script = "echo new > new && echo changed > old && rmdir dir && mkdir made && ls && cat new old";
    let output = printed(finish(rlaunch(script).current_dir(sandbox.path())));
    assert_eq!(output, "made\nnew\nold\nnew\nchanged\n");
    let names: Vec<_> = fs::read_dir(sandbox.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(fs::read_to_string(sandbox.path().join("old")).unwrap(), "old");
}

#[test]
fn files_of_the_host_are_read_as_far_ahead_as_in_any_union() {
    let Some(_sandbox) = sandbox::enter() else { return };
    let outcome = finish(&mut rlaunch("cat /sys/class/bdi/$(mountpoint -d /)/read_ahead_kb"));
    assert_eq!(printed(outcome), "1024\n");
}

#[test]
fn environment_working_directory_and_host_name_are_the_callers() {
    let Some(sandbox) = sandbox::enter() else { return };
    let directory = sandbox.path().join("a b");
    fs::create_dir(&directory).unwrap();
    let host = nix::unistd::gethostname().unwrap();
    let mut command = rlaunch("pwd; echo $GREETING; uname -n");
    let output = printed(finish(command.current_dir(&directory).env("GREETING", "hello")));
    assert_eq!(output, format!("{}\nhello\n{}\n", directory.display(), host.display()));
}

#[test]
fn a_working_directory_that_is_not_in_the_copy_is_warned_about() {
    let Some(_sandbox) = sandbox::enter() else { return };
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let outcome = finish(rlaunch("pwd").current_dir(directory.path()));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "/\n"), "{outcome:?}");
    let expected = format!(
        "rlaunch: warning: cannot enter the working directory {}: No such file or directory; starting in / instead\n",
        directory.path().display()
    );
    assert_eq!(outcome.stderr, expected);
}

#[test]
fn run_and_tmp_are_fresh_and_the_kernels_directories_the_containers_own() {
    let Some(_sandbox) = sandbox::enter() else { return };
    let script = "ls -A /tmp; stat -c %a /tmp /run/lock; echo x > /tmp/x; echo x > /run/x
        awk '$2 ~ \"^/(|proc|sys|dev|run|tmp)$\" {print $2, $3}' /proc/mounts | grep -v ^/proc/; ls /proc/self/ns/pid";
    let output = printed(finish(&mut rlaunch(script)));
    assert_eq!(
        output,
        "1777\n1777\n/ fuse.runionfs\n/proc proc\n/sys sysfs\n/dev tmpfs\n/run tmpfs\n/tmp tmpfs\n/proc/self/ns/pid\n"
    );
}

#[test]
fn other_users_can_use_the_copy() {
    let Some(_sandbox) = sandbox::enter() else { return };
    let Some(_setpriv) = tools::find("setpriv") else { return };
    let script =
        "exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -c 'id -u; ls / > /dev/null; echo x > /tmp/x'";
    assert_eq!(printed(finish(&mut rlaunch(script))), "65534\n");
}

#[test]
fn the_hosts_mount_table_never_shows_the_union() {
    let Some(_sandbox) = sandbox::enter() else { return };
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>).unwrap();
    let before = mounts();
    let running = Running::start(
        Command::new(RLAUNCH)
            .args(["--cap-add=SYS_ADMIN", "sh", "-c"])
            .arg("mount -t tmpfs tmpfs /srv && echo ready && exec sleep 1000"),
    );
    assert_eq!(mounts(), before, "while it runs");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().0, Some(143));
    assert_eq!(mounts(), before, "after it has ended");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
}

#[test]
fn nothing_is_left_behind() {
    let Some(_sandbox) = sandbox::enter() else { return };
    let script = "mkdir -p /rlaunch-test/d && chmod 0 /rlaunch-test/d && echo ready && exec sleep 1000";
    let running = Running::start(&mut rlaunch(script));
    let (daemon, directory) = daemon_of(&running);
    let everybody = running.children();
    assert_eq!(everybody.len(), 2, "pid 1 and the daemon");
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o7777, 0o700);
    assert!(directory.join("top/rlaunch-test").exists(), "writes go to disk");
    kill(running.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(running.wait().0, Some(143));
    // The launcher has waited for both.
    assert!(!harness::mount::is_alive(daemon));
    wait_until_gone(&everybody);
    assert!(!directory.exists());
}

#[test]
fn a_killed_launcher_leaves_no_process_and_the_next_start_removes_its_directory() {
    let Some(_sandbox) = sandbox::enter() else { return };
    let running = Running::start(&mut rlaunch("echo ready; while :; do ls / > /dev/null; done"));
    let (daemon, directory) = daemon_of(&running);
    let everybody = [running.children(), vec![running.pid()]].concat();
    assert!(everybody.contains(&daemon));
    // While it runs, the start of another leaves its directory alone.
    assert_eq!(finish(&mut rlaunch("true")).status, Some(0));
    assert!(directory.exists());
    kill(running.pid(), Signal::SIGKILL).unwrap();
    drop(running);
    wait_until_gone(&everybody);
    let removed = poll(PATIENCE, || {
        assert_eq!(finish(&mut rlaunch("true")).status, Some(0));
        (!directory.exists()).then_some(())
    });
    assert!(removed.is_some(), "{} is still there", directory.display());
}

#[test]
fn a_container_whose_daemon_dies_ends_with_a_reason() {
    let Some(_sandbox) = sandbox::enter() else { return };
    let running = Running::start(rlaunch("echo ready; exec sleep 1000").stderr(Stdio::null()));
    let (daemon, directory) = daemon_of(&running);
    kill(daemon, Signal::SIGKILL).unwrap();
    assert_eq!(running.wait().0, Some(125));
    assert!(!directory.exists());
}

#[test]
fn mounts_below_the_root_have_unions_of_their_own() {
    let Some(sandbox) = sandbox::enter() else { return };
    let data = submount(&sandbox, "data", MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
    fs::write(data.join("old"), "on another file system").unwrap();
    fs::create_dir(data.join("inner")).unwrap();
    let inner = submount(&sandbox, "data/inner", MsFlags::empty());
    fs::write(inner.join("deep"), "deep").unwrap();
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o751)).unwrap();
    // nodev comes where no list of devices is enforced.
    let script = "cat data/old; echo new > data/new; echo changed > data/old; rm data/inner/deep; echo x > data/inner/x
        ls data data/inner; cat data/old; stat -c %a data/inner; df data | tail -1 | grep -c rlaunch
        grep ' '$PWD/data' ' /proc/self/mountinfo | cut -d' ' -f6 | sed s/nodev,//; mv data/inner/x data 2> /dev/null; ls data/x";
    let before = mounts();
    let output = printed(finish(rlaunch(script).current_dir(sandbox.path())));
    assert_eq!(
        output,
        "on another file systemdata:\ninner\nnew\nold\n\ndata/inner:\nx\nchanged\n751\n1\nrw,nosuid,noexec,relatime\ndata/x\n"
    );
    assert_eq!(mounts(), before);
    assert_eq!(fs::read_to_string(data.join("old")).unwrap(), "on another file system");
    assert!(inner.join("deep").exists() && !inner.join("x").exists() && !data.join("new").exists());
    fs::write(data.join("writable"), "the host can still write").unwrap();
}

#[test]
fn mounts_that_cannot_be_written_are_shown_as_they_are() {
    let Some(sandbox) = sandbox::enter() else { return };
    let data = submount(&sandbox, "data", MsFlags::empty());
    fs::write(data.join("file"), "seen").unwrap();
    mount(None::<&str>, &data, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>).unwrap();
    // A single file has no union either.
    fs::write(sandbox.path().join("single"), "").unwrap();
    fs::write(sandbox.path().join("source"), "one file").unwrap();
    let (source, target) = (sandbox.path().join("source"), sandbox.path().join("single"));
    mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let script = "cat data/file single; for f in data/new single; do (echo x > $f) 2>&1; done";
    let outcome = finish(rlaunch(script).current_dir(sandbox.path()));
    assert!(outcome.stdout.starts_with("seenone file"), "{outcome:?}");
    assert_eq!(outcome.stdout.matches("ead-only file system").count(), 2, "{outcome:?}");
    assert!(!outcome.stderr.contains("rlaunch"), "{outcome:?}");
}

/// A file system on another machine, which has gone away: FUSE mounts are asked by the kernel, and nobody answers.
#[test]
fn far_file_systems_are_read_only_and_whether_they_answer_does_not_matter() {
    let Some(sandbox) = sandbox::enter() else { return };
    let far = sandbox.path().join("far");
    fs::create_dir(&far).unwrap();
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("there:/far"), &far, Some("fuse.sshfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let script = "awk '$2 ~ \"/far$\" {print $3, substr($4, 1, 2)}' /proc/mounts";
    let outcome = finish(rlaunch(script).current_dir(sandbox.path()));
    umount2(&far, MntFlags::MNT_DETACH).unwrap();
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "fuse.sshfs ro\n"), "{outcome:?}");
    assert_eq!(outcome.stderr, format!("rlaunch: note: {} (fuse.sshfs) is shown read-only\n", far.display()));
}

#[test]
fn mounts_can_be_left_out() {
    let Some(sandbox) = sandbox::enter() else { return };
    let data = submount(&sandbox, "data", MsFlags::empty());
    fs::write(data.join("file"), "not shown").unwrap();
    let mut command = Command::new(RLAUNCH);
    command.args(["--no-submounts", "sh", "-c", "ls -A data; echo x > data/x && ls data"]);
    assert_eq!(printed(finish(command.current_dir(sandbox.path()))), "x\n");
    assert!(!data.join("x").exists());
}

/// A file system of its own in the sandbox.
fn submount(sandbox: &Sandbox, name: &str, flags: MsFlags) -> PathBuf {
    let path = sandbox.path().join(name);
    fs::create_dir_all(&path).expect("make a file system of its own");
    mount(Some("tmpfs"), &path, Some("tmpfs"), flags, None::<&str>).expect("make a file system of its own");
    path
}

#[test]
fn names_are_resolved_also_where_the_configuration_lies_in_run() {
    let Some(sandbox) = sandbox::enter() else { return };
    // As systemd-resolved has it, shown in place of the real /etc and /run in this namespace only.
    let (etc, run) = (sandbox.path().join("etc"), sandbox.path().join("run"));
    harness::sandbox::run(Command::new("cp").args(["-a", "/etc"]).arg(&etc));
    fs::create_dir_all(run.join("systemd/resolve")).unwrap();
    fs::write(run.join("systemd/resolve/stub-resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
    // It may be a mount of its own, or a link already.
    drop(fs::remove_file(etc.join("resolv.conf")));
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf")).unwrap();
    for (source, target) in [(&etc, "/etc"), (&run, "/run")] {
        mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).unwrap();
    }
    assert_eq!(
        printed(finish(&mut rlaunch("cat /etc/resolv.conf; ls /run"))),
        "nameserver 192.0.2.53\nlock\nsystemd\n"
    );
}

#[test]
fn what_is_written_can_be_kept_where_nobody_else_gets_at_it() {
    let Some(sandbox) = sandbox::enter() else { return };
    let data = submount(&sandbox, "data", MsFlags::empty());
    let keep = sandbox.path().join("kept");
    let run = |script: &str| {
        let mut command = Command::new(RLAUNCH);
        command.arg("--keep").arg(&keep).args(["sh", "-c", script]).current_dir(sandbox.path());
        finish(&mut command)
    };
    assert_eq!(printed(run("echo one > file; echo two > data/file")), "");
    assert_eq!(printed(run("cat file data/file; rm file")), "one\ntwo\n");
    assert_eq!(printed(run("ls; cat data/file")), "data\nkept\ntwo\n");
    assert!(fs::read_dir(&data).unwrap().next().is_none() && !sandbox.path().join("file").exists());
    assert_eq!(fs::metadata(&keep).unwrap().permissions().mode() & 0o7777, 0o700);
    fs::set_permissions(&keep, fs::Permissions::from_mode(0o711)).unwrap();
    let outcome = run("true");
    assert_eq!(outcome.status, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("others can enter it") && outcome.stderr.contains("--force"), "{outcome:?}");
    let mut forced = Command::new(RLAUNCH);
    forced.arg("--keep").arg(&keep).args(["--force", "true"]);
    assert_eq!(printed(finish(&mut forced)), "");
    // A link of somebody else must not lead us to another place.
    std::os::unix::fs::symlink(&keep, sandbox.path().join("link")).unwrap();
    let mut linked = Command::new(RLAUNCH);
    assert_eq!(finish(linked.arg("--keep").arg(sandbox.path().join("link")).arg("true")).status, Some(125));
}

#[test]
fn what_is_written_can_stay_in_memory_and_its_end_names_the_option() {
    let Some(sandbox) = sandbox::enter() else { return };
    let data = submount(&sandbox, "data", MsFlags::empty());
    let before = mounts();
    let run = |option: &str, script: &str| {
        let mut command = Command::new(RLAUNCH);
        command.args([option, "sh", "-c", script]).current_dir(sandbox.path());
        finish(&mut command)
    };
    assert_eq!(printed(run("--tmpfs-top", "echo one > file; echo two > data/file; cat file data/file")), "one\ntwo\n");
    let outcome = run("--tmpfs-top=2m", "head -c 4000000 /dev/zero > file");
    assert_eq!(outcome.status, Some(1), "{outcome:?}");
    let lines: Vec<_> = outcome.stderr.lines().collect();
    assert!(lines[0].contains("No space left on device"), "{outcome:?}");
    assert!(lines[1].starts_with("rlaunch: warning: there was no space left"), "{outcome:?}");
    assert!(lines[1].contains("--tmpfs-top=SIZE") && lines.len() == 2, "{outcome:?}");
    // Also where there is room again at the end, for most programs take back what they could not finish.
    // Empty files take memory as well, and no more than that.
    let script =
        "i=0; while printf '' > $i; do i=$((i + 1)); done 2> /dev/null; test $i -gt 1000 -a $i -lt 1030 || echo $i
        rm -f [0-9]*; echo small > other; cat other";
    let outcome = run("--tmpfs-top=2m", &format!("f() {{ {script}\n}}; f 2> /dev/null"));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "small\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("--tmpfs-top=SIZE"), "{outcome:?}");
    assert_eq!(mounts(), before);
    assert!(fs::read_dir(&data).unwrap().next().is_none());
}

#[test]
fn without_a_disk_it_says_what_is_missing() {
    let Some(_sandbox) = sandbox::enter() else { return };
    // The binary may lie in /var/tmp itself.
    let elsewhere = tempfile::tempdir_in("/tmp").unwrap();
    let program = elsewhere.path().join("rlaunch");
    fs::copy(RLAUNCH, &program).unwrap();
    for place in ["/var/tmp", "/var/lib"] {
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    let outcome = finish(Command::new(program).arg("true").env_remove("TMPDIR"));
    assert_eq!(fs::read_dir("/var/lib").unwrap().count(), 0);
    for place in ["/var/tmp", "/var/lib"] {
        umount2(place, MntFlags::MNT_DETACH).unwrap();
    }
    assert_eq!(outcome.status, Some(125));
    assert_eq!(
        outcome.stderr,
        "rlaunch: cannot make a directory for the container: /var/lib/rlaunch: it is not on a disk; /var/tmp: it is not \
         on a disk (set TMPDIR to a directory on a disk)\n"
    );
}
