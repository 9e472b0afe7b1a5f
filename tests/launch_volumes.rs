//! Volumes, file systems in memory, a read-only root, and the files in /etc of a container's own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::sandbox;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Tree, mounts, printed};

/// A container with one more option, `OPTION=VALUE` with `@` for the directory beside the tree.
#[track_caller]
fn run(tree: &Tree, options: &[&str], script: &str) -> Outcome {
    let here = tree.beside("").to_str().expect("a path in UTF-8").trim_end_matches('/').to_owned();
    let mut command = tree.rlaunch();
    command.args(options.iter().map(|option| option.replace('@', &here))).args(["sh", "-c", script]);
    finish(&mut command)
}

fn tree() -> Option<Tree> {
    let tree = Tree::new()?;
    fs::create_dir_all(tree.beside("data/sub")).expect("make a volume");
    fs::write(tree.beside("data/file"), "of the host\n").expect("make a volume");
    Some(tree)
}

#[test]
fn a_volume_shows_a_part_of_the_host_and_takes_changes() {
    let Some(tree) = tree() else { return };
    let before = mounts();
    let outcome = run(
        &tree,
        &["-v=@/data:/srv/data", "--volume=@/data/file:/one"],
        "cat /srv/data/file /one; echo new > /srv/data/new",
    );
    assert_eq!(printed(outcome), "of the host\nof the host\n");
    assert_eq!(fs::read_to_string(tree.beside("data/new")).unwrap(), "new\n");
    assert_eq!(mounts(), before);
    // The mount points are all that is left in the tree.
    assert!(fs::read_dir(tree.path("srv/data")).unwrap().next().is_none());
    assert_eq!(fs::metadata(tree.path("one")).unwrap().len(), 0);
}

#[test]
fn a_read_only_volume_is_so_with_all_that_is_mounted_in_it() {
    let Some(tree) = tree() else { return };
    let sub = tree.beside("data/sub");
    mount(Some("tmpfs"), &sub, Some("tmpfs"), MsFlags::MS_NOEXEC, None::<&str>).unwrap();
    fs::write(sub.join("deep"), "deep\n").unwrap();
    let script = "cat /d/sub/deep; for f in /d/x /d/sub/x; do (echo x > $f) 2>&1; done
        grep ' /d' /proc/self/mountinfo | cut -d' ' -f5,6";
    let outcome = run(&tree, &["-v=@/data:/d:ro,nosuid,nodev"], script);
    assert!(outcome.stdout.starts_with("deep\n"), "{outcome:?}");
    assert_eq!(outcome.stdout.matches("ead-only file system").count(), 2, "{outcome:?}");
    assert!(outcome.stdout.contains("/d ro,nosuid,nodev"), "{outcome:?}");
    assert!(outcome.stdout.contains("/d/sub ro,nosuid,nodev,noexec"), "{outcome:?}");
    fs::write(sub.join("x"), "the host can still write").unwrap();
}

#[test]
fn what_the_host_mounts_later_appears_only_where_that_was_asked_for() {
    let Some(tree) = tree() else { return };
    mount(Some(&tree.beside("data")), &tree.beside("data"), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    mount(None::<&str>, &tree.beside("data"), None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    let script = "echo ready; read line < /d/go; ls /d/sub";
    for (words, expected) in [("rslave", "there\n"), ("rprivate", "")] {
        sandbox::run(Command::new("mkfifo").arg(tree.beside("data/go")));
        let mut command = tree.rlaunch();
        command.arg(format!("-v={}:/d:{words}", tree.beside("data").display())).args(["sh", "-c", script]);
        let running = launch::Running::start(&mut command);
        let sub = tree.beside("data/sub");
        mount(Some("tmpfs"), &sub, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(sub.join("there"), "").unwrap();
        fs::write(tree.beside("data/go"), "go\n").unwrap();
        assert_eq!(running.wait(), (Some(0), expected.to_owned()), "{words}");
        umount2(&sub, MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(tree.beside("data/go")).unwrap();
    }
}

/// The volume, as a mount of its own that is shared.
fn share(tree: &Tree) -> PathBuf {
    let data = tree.beside("data");
    mount(Some(&data), &data, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("share a volume");
    mount(None::<&str>, &data, None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("share a volume");
    data
}

#[test]
fn container_and_host_see_what_the_other_mounts_in_a_shared_volume() {
    let Some(tree) = tree() else { return };
    let data = share(&tree);
    fs::create_dir_all(data.join("inside")).unwrap();
    for (words, flags) in [("rshared", "rw"), ("shared,nosuid,ro", "ro,nosuid")] {
        sandbox::run(Command::new("mkfifo").arg(data.join("go")));
        let before = mounts();
        let mut command = tree.rlaunch();
        command.args(["--cap-add=SYS_ADMIN", "-v", &format!("{}:/d:{words}", data.display()), "--tmpfs=/t"]);
        let script = "mount -t tmpfs inside /d/inside && touch /d/inside/file && mount -t tmpfs alone /t && echo ready
            read line < /d/go; ls /d/sub; umount /d/inside; awk '$5 == \"/d\" {print $6}' /proc/self/mountinfo | cut -d, -f1,2";
        let running = launch::Running::start(command.args(["sh", "-c", script]));
        assert!(data.join("inside/file").exists(), "{words}: what the container mounts is the host's, too");
        assert_eq!(mounts().lines().count(), before.lines().count() + 1, "{words}: and nothing else is");
        let sub = data.join("sub");
        mount(Some("tmpfs"), &sub, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(sub.join("there"), "").unwrap();
        fs::write(data.join("go"), "go\n").unwrap();
        let (status, output) = running.wait();
        assert_eq!((status, output.starts_with(&format!("there\n{flags}"))), (Some(0), true), "{words}: {output}");
        assert!(!data.join("inside/file").exists(), "{words}: it was unmounted on both sides");
        umount2(&sub, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(mounts(), before, "{words}");
        fs::remove_file(data.join("go")).unwrap();
    }
}

#[test]
fn nothing_of_ours_is_mounted_in_a_volume_that_the_host_shares() {
    let Some(tree) = tree() else { return };
    let data = share(&tree);
    fs::create_dir_all(data.join("kernel")).unwrap();
    let before = mounts();
    // Neither by name, nor through a link, nor because it is a place that is hidden.
    let outcome = run(&tree, &["-v=@/data:/d:rshared", "-v=@/tree:/d/sub"], "echo started");
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("/d/sub: it would appear on the host"), "{outcome:?}");
    symlink("/d", tree.path("link")).unwrap();
    let script = "ls /d/sub; echo ready; exec sleep 1000";
    for options in [
        &["-v=@/data:/d:rshared", "--tmpfs=/link/sub"] as &[&str],
        &["-v=@/data:/d:rshared", "-v=@/data:/link/sub:rshared"],
        &["-v=@/data:/sys/firmware:rshared"],
    ] {
        let here = tree.beside("").to_str().unwrap().trim_end_matches('/').to_owned();
        let mut command = tree.rlaunch();
        command.args(options.iter().map(|option| option.replace('@', &here))).args(["sh", "-c", script]);
        command.stderr(std::process::Stdio::null());
        let mut running = launch::Running::begin(&mut command);
        let line = running.line();
        assert_eq!(mounts(), before, "{options:?}");
        assert!(line == "ready" || line.is_empty(), "{options:?}: {line}");
    }
    assert!(fs::read_dir(data.join("sub")).unwrap().next().is_none());
}

#[test]
fn a_link_at_the_target_leads_only_where_it_leads_inside() {
    let Some(tree) = tree() else { return };
    fs::create_dir_all(tree.path("inside")).unwrap();
    fs::create_dir_all(tree.beside("outside")).unwrap();
    for (link, target, seen) in [
        ("/inside", "/link", "/inside/file"),
        ("../../../../../../inside", "/link", "/inside/file"),
        ("missing/deep", "/link", "/missing/deep/file"),
        (tree.beside("outside").to_str().unwrap(), "/link/x", "/link/x/file"),
    ] {
        symlink(link, tree.path("link")).unwrap();
        let option = format!("-v=@/data:{target}");
        assert_eq!(printed(run(&tree, &[&option], &format!("cat {seen}"))), "of the host\n", "{link}");
        fs::remove_file(tree.path("link")).unwrap();
    }
    assert!(fs::read_dir(tree.beside("outside")).unwrap().next().is_none(), "nothing was made outside");
}

#[test]
fn nothing_is_mounted_in_proc_and_no_magic_link_is_followed() {
    let Some(tree) = tree() else { return };
    for (link, target) in [("/proc/sys", "/link"), ("/proc/self/root", "/link"), ("/proc/1/cwd/x", "/link")] {
        symlink(link, tree.path("link")).unwrap();
        let outcome = run(&tree, &[&format!("-v=@/data:{target}")], "echo started");
        assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{link}: {outcome:?}");
        fs::remove_file(tree.path("link")).unwrap();
    }
    let outcome = run(&tree, &["-v=@/data/file:/proc/sys/kernel/core_pattern"], "echo started");
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("may not lie in /proc"), "{outcome:?}");
}

#[test]
fn a_volume_that_cannot_be_shown_ends_the_start_with_the_reason() {
    let Some(tree) = tree() else { return };
    for (option, reason) in [
        ("-v=@/missing:/d", "/missing at /d of the container: No such file or directory"),
        ("-v=@/data:/etc/passwd", "Not a directory"),
        ("-v=@/data/file:/etc", "Not a directory"),
        ("-v=@/data:d", "is no absolute path"),
        ("-v=@/data:/d:rshared", "mount --make-rshared"),
        ("-v=@/data:/d:shared", "does not lie on a shared mount"),
        ("-v=@/data:/d:rslave", "neither shared nor a slave"),
        ("--tmpfs=/x:huge=always", "is no word"),
    ] {
        let outcome = run(&tree, &[option], "echo started");
        assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{option}: {outcome:?}");
        assert!(outcome.stderr.contains(reason), "{option}: {}", outcome.stderr);
    }
}

#[test]
fn file_systems_in_memory_have_the_size_and_mode_that_are_asked_for() {
    let Some(tree) = tree() else { return };
    let script = "stat -c %a /a /b; cp /bin/busybox /b/true && /b/true && echo runs; cp /bin/busybox /a/x 2>/dev/null || echo full
        awk '$2 ~ \"^/[ab]$\" {print $2, $3, substr($4, 1, 22)}' /proc/mounts";
    let output = printed(run(&tree, &["--tmpfs=/a:size=64k", "--tmpfs=/b:mode=0711,exec"], script));
    assert_eq!(output, "1777\n711\nruns\nfull\n/a tmpfs rw,nosuid,nodev,noexec\n/b tmpfs rw,nosuid,nodev,relati\n");
}

#[test]
fn what_covers_the_containers_own_devices_is_what_there_is() {
    let Some(tree) = tree() else { return };
    fs::create_dir(tree.beside("own")).unwrap();
    fs::write(tree.beside("own/mine"), "of the host\n").unwrap();
    for (options, expected) in [
        (&["-v=@/own:/dev"] as &[&str], "mine\n"),
        (&["--tmpfs=/dev"], ""),
        (&["-v=@/own:/dev", "--dns=192.0.2.53", "--init=false"], "mine\n"),
        (&["-v=@/own:/sys", "--tmpfs=/dev"], ""),
    ] {
        assert_eq!(printed(run(&tree, options, "ls /dev")), expected, "{options:?}");
    }
    assert_eq!(printed(run(&tree, &["-v=@/own:/sys"], "ls /sys")), "mine\n");
    let outcome = run(&tree, &["-v=@/own:/dev", "--tty=always"], "echo started");
    assert_eq!((outcome.status, &*outcome.stdout), (Some(125), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("leave out what covers its /dev, or use --tty=never"), "{outcome:?}");
}

#[test]
fn a_read_only_root_keeps_what_is_mounted_in_it_writable() {
    let Some(tree) = tree() else { return };
    let script = "(echo x > /x) 2>&1; echo y > /d/y; echo z > /t/z; echo w > /dev/shm/w; mount -o remount,rw / 2>&1";
    let outcome = run(&tree, &["--read-only", "-v=@/data:/d", "--tmpfs=/t"], script);
    assert!(outcome.stdout.contains("/x: Read-only file system"), "{outcome:?}");
    assert!(tree.beside("data/y").exists() && !tree.path("x").exists());
}

#[test]
fn a_read_only_copy_of_the_host_is_so_in_all_its_unions() {
    let Some(sandbox) = sandbox::enter() else { return };
    let data = sandbox.path().join("data");
    fs::create_dir(&data).unwrap();
    mount(Some("tmpfs"), &data, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let mut command = Command::new(RLAUNCH);
    command.args(["--read-only", "sh", "-c", "for f in x data/x /usr/x /tmp/x; do (echo x > $f) 2>&1; done; ls /tmp"]);
    let outcome = finish(command.current_dir(sandbox.path()));
    assert_eq!(outcome.stdout.matches("ead-only file system").count(), 3, "{outcome:?}");
    assert!(outcome.stdout.ends_with("x\n"), "{outcome:?}");
}

#[test]
fn names_are_the_containers_own_and_the_tree_is_left_as_it_is() {
    let Some(tree) = tree() else { return };
    for name in ["hosts", "resolv.conf", "hostname"] {
        fs::write(tree.path("etc").join(name), "of the tree\n").unwrap();
    }
    let options = ["--dns=192.0.2.53", "--add-host=web:192.0.2.7", "--net=none"];
    let script = "cat /etc/resolv.conf /etc/hosts /etc/hostname; echo changed > /etc/hosts; cat /etc/hosts; mount | grep -c /dev/shm";
    assert_eq!(
        printed(run(&tree, &options, script)),
        "nameserver 192.0.2.53\n127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 tree\n\
         192.0.2.7 web\ntree\nchanged\n1\n"
    );
    for name in ["hosts", "resolv.conf", "hostname"] {
        assert_eq!(fs::read_to_string(tree.path("etc").join(name)).unwrap(), "of the tree\n");
    }
    // With the host's network come the host's servers.
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(printed(run(&tree, &[], "cat /etc/resolv.conf")), host);
}

#[test]
fn a_tree_without_these_files_gets_none_unless_asked() {
    let Some(tree) = tree() else { return };
    assert_eq!(printed(run(&tree, &[], "ls /etc")), "passwd\n");
    // As resolvconf has it; the directory of the link is made.
    symlink("../run/resolvconf/resolv.conf", tree.path("etc/resolv.conf")).unwrap();
    assert_eq!(printed(run(&tree, &["--dns=192.0.2.53"], "cat /etc/resolv.conf")), "nameserver 192.0.2.53\n");
}

#[test]
fn a_copy_of_the_host_can_ask_other_servers() {
    let Some(_sandbox) = sandbox::enter() else { return };
    let mut command = Command::new(RLAUNCH);
    command.args(["--dns=192.0.2.53", "--add-host=web.example:192.0.2.7", "sh", "-c"]);
    let output = printed(finish(command.arg("cat /etc/resolv.conf; tail -n 1 /etc/hosts")));
    assert_eq!(output, "nameserver 192.0.2.53\n192.0.2.7 web.example\n");
    assert!(!fs::read_to_string("/etc/hosts").unwrap().contains("web.example"));
}

#[test]
fn mount_points_that_the_host_lacks_are_not_in_what_is_kept_of_a_copy() {
    let Some(sandbox) = sandbox::enter() else { return };
    let here = sandbox.path();
    for name in ["data/sub", "other"] {
        fs::create_dir_all(here.join(name)).unwrap();
    }
    fs::write(here.join("data/file"), "of the host\n").unwrap();
    mount(Some("tmpfs"), &here.join("other"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let volumes = ["data:{}/new/deep", "data/file:{}/one", "data:{}/other/there"];
    for turn in ["first", "again"] {
        let mut command = Command::new(RLAUNCH);
        command.arg("--keep").arg(here.join("kept")).current_dir(here);
        command.args(
            volumes
                .map(|volume| format!("-v={}/{}", here.display(), volume.replace("{}", &here.display().to_string()))),
        );
        let script = format!("cat new/deep/file one other/there/file; echo x > other/{turn}; echo x > {turn}");
        let outcome = finish(command.args(["sh", "-c", &script]));
        assert_eq!(printed(outcome), "of the host\nof the host\nof the host\n", "{turn}");
    }
    let find = "cd kept && find . -name .wh..wh.runionfs -prune -o -mindepth 1 -printf '%f\\n' | sort -u";
    let kept = printed(finish(Command::new("sh").args(["-c", find]).current_dir(here)));
    let names: Vec<_> = kept.lines().collect();
    for name in ["new", "deep", "one", "there"] {
        assert!(!names.contains(&name), "{name}: {kept}");
    }
    assert!(names.contains(&"first") && names.contains(&"again"), "{kept}");
    assert!(!names.iter().any(|name| name.starts_with("init")), "{kept}");
    assert!(!here.join("new").exists() && !here.join("one").exists() && !here.join("other/there").exists());
}
