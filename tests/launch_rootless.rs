//! Containers of an ordinary user: with the further ids that the machine gives, and alone.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use harness::mount::{Outcome, finish};
use harness::rootless::{USER, Way, again, inside};
use harness::sandbox::{self, Sandbox};
use harness::snapshot::{Exactness, Snapshot};
use nix::mount::{MsFlags, mount};

#[path = "support/launch.rs"]
mod launch;
#[path = "support/tools.rs"]
mod tools;

use launch::{RLAUNCH, Tree, printed, wait_until_gone};

/// Where there are no helpers for further ids.
const NO_HELPERS: &str = "/usr/lib";

fn alone(command: &mut Command) -> Outcome {
    finish(command.env("PATH", NO_HELPERS))
}

#[track_caller]
fn output(outcome: Outcome) -> String {
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    outcome.stdout
}

const LOOK: &str = "id -u; id -g; cat /proc/self/uid_map; cat /proc/1/comm; hostname; touch /here; stat -c %u /here; echo x > /dev/null; test -c /dev/null; mount -t tmpfs t /mnt 2>/dev/null || echo refused";

#[test]
fn the_caller_is_root_and_has_the_ids_of_the_machine() {
    if !again(Way::Fusermount, "the_caller_is_root_and_has_the_ids_of_the_machine") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let text = tree.print(&format!("{LOOK}; chown 5:7 /here; stat -c %u:%g /here; su -s /bin/sh root -c true"));
    let words: Vec<_> = text.lines().map(str::trim).collect();
    let map: Vec<Vec<&str>> = words[2..4].iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((&words[..2], map), (&["0", "0"][..], vec![vec!["0", "10001", "1"], vec!["1", "200000", "65536"]]));
    assert_eq!(words[4..], ["rlaunch", "tree", "0", "refused", "5:7"]);
    let here = fs::metadata(tree.path("here")).unwrap();
    assert_eq!((here.uid(), here.gid()), (200_004, 200_006));
}

#[test]
fn without_helpers_the_caller_is_root_alone() {
    if !again(Way::Fusermount, "without_helpers_the_caller_is_root_alone") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let outcome = alone(tree.rlaunch().args(["sh", "-c", LOOK]));
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    assert!(outcome.stderr.contains("note: newuidmap and newgidmap"), "{outcome:?}");
    let text = output(outcome);
    let words: Vec<_> = text.lines().map(str::trim).collect();
    let map: Vec<&str> = words[2].split_whitespace().collect();
    assert_eq!((&words[..2], &map[..]), (&["0", "0"][..], &["0", "10001", "1"][..]));
    assert_eq!(words[3..], ["rlaunch", "tree", "0", "refused"]);
    assert_eq!(fs::metadata(tree.path("here")).unwrap().uid(), USER);
}

#[test]
fn the_copy_of_the_host_is_there_for_users_too() {
    if !again(Way::Fusermount, "the_copy_of_the_host_is_there_for_users_too") {
        return;
    }
    let script = "id -u && touch /etc/new /usr/bin/new && rm /etc/hostname && ls /etc/new /usr/bin/new && ! test -e /etc/hostname && pwd";
    for text in in_a_copy(&format!("cd /usr; {script}")) {
        assert_eq!(text, "0\n/etc/new\n/usr/bin/new\n/usr\n");
        assert!(!Path::new("/etc/new").exists() && !Path::new("/usr/bin/new").exists());
    }
}

/// Both kinds of namespaces; the shell is found by its own path, so that only helpers are missing.
fn in_a_copy(script: &str) -> [String; 2] {
    [std::env::var("PATH").expect("a path"), NO_HELPERS.to_owned()].map(|path| {
        let script = format!("PATH=/usr/sbin:/usr/bin:/sbin:/bin; {script}");
        output(finish(Command::new(RLAUNCH).args(["--no-submounts", "/bin/sh", "-c", &script]).env("PATH", path)))
    })
}

#[test]
fn packages_can_be_fetched_and_installed_by_users() {
    if !again(Way::Fusermount, "packages_can_be_fetched_and_installed_by_users") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let (package, control) = (tree.beside("package"), tree.beside("package/DEBIAN/control"));
    fs::create_dir_all(package.join("DEBIAN")).unwrap();
    fs::create_dir_all(package.join("opt/runionfs-test")).unwrap();
    fs::write(package.join("opt/runionfs-test/file"), "content").unwrap();
    let fields = "Package: runionfs-test\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: a test\n";
    fs::write(control, fields).unwrap();
    let file = tree.beside("package.deb");
    let built = finish(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&package).arg(&file));
    assert_eq!(built.status, Some(0), "{built:?}");
    let script = format!(
        "set -e; for dir in /var/lib/apt/lists /var/cache/apt/archives; do echo x > $dir/partial/x; mv $dir/partial/x $dir/x; done
        dpkg -i {} > /dev/null; cat /opt/runionfs-test/file; dpkg-query -W -f ' ${{Status}}' runionfs-test",
        file.display()
    );
    for text in in_a_copy(&script) {
        assert_eq!(text, "content install ok installed");
    }
    assert!(!Path::new("/opt/runionfs-test").exists());
}

#[test]
fn branches_of_a_user_become_a_root() {
    if !again(Way::Fusermount, "branches_of_a_user_become_a_root") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    fs::create_dir(tree.beside("data")).unwrap();
    let script = "echo new > /new; rm /etc/passwd; chown $0 /new; stat -c %u:%g /new
        echo own >> /etc/hosts; tail -n 1 /etc/hosts; touch /made/there/file";
    // Somebody else can own a file only where there is somebody else.
    for (owner, path) in [("3:4", std::env::var("PATH").expect("a path")), ("0:0", NO_HELPERS.to_owned())] {
        let top = tree.beside(if owner == "0:0" { "alone" } else { "among-others" });
        fs::create_dir(&top).unwrap();
        let branches = format!("{}=rw:{}=ro+wh", top.display(), tree.path("").display());
        let mut command = Command::new(RLAUNCH);
        command.args(["--branches", &branches, "-v"]).arg(format!("{}:/made/there", tree.beside("data").display()));
        assert_eq!(
            output(finish(command.args(["/bin/sh", "-c", script, owner]).env("PATH", path))),
            format!("{owner}\nown\n")
        );
        assert_eq!(fs::read_to_string(top.join("new")).unwrap(), "new\n");
        assert!(top.join("etc/.wh.passwd").exists() && tree.path("etc/passwd").exists());
        assert!(!top.join("etc/hosts").exists() && !top.join("made").exists(), "that is the container's own");
        assert!(tree.beside("data/file").exists());
    }
}

#[test]
fn containers_of_a_user_are_listed_entered_and_stopped() {
    if !again(Way::Fusermount, "containers_of_a_user_are_listed_entered_and_stopped") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let home = tree.beside("home");
    let rlaunch = |arguments: &[&str]| finish(Command::new(RLAUNCH).args(arguments).env("XDG_DATA_HOME", &home));
    let start = ["-d", "--name", "mine", "sh", "-c", "while :; do sleep 0.1; done"];
    assert_eq!(printed(finish(tree.rlaunch().args(start).env("XDG_DATA_HOME", &home))), "mine\n");
    assert!(printed(rlaunch(&["ps"])).contains("mine "));
    assert_eq!(printed(rlaunch(&["exec", "mine", "sh", "-c", "id -u; hostname; ls -d /proc/1"])), "0\ntree\n/proc/1\n");
    assert_eq!(printed(rlaunch(&["stop", "--time=1", "mine"])), "");
    assert_eq!(rlaunch(&["wait", "mine"]).status, Some(143));
    assert_eq!(printed(rlaunch(&["rm", "mine"])), "");
    assert!(!home.join("rlaunch").exists());
    // A copy of the machine, with files of other users in it.
    let script = "test -e /etc/mine && exit 3; mkdir /etc/mine && echo x > /etc/mine/x && chown -R 1:1 /etc/mine";
    let copy = |words: &[&str]| {
        let mut command = Command::new(RLAUNCH);
        finish(
            command
                .args(words)
                .args(["--no-submounts", "--name", "copy", "sh", "-c", script])
                .env("XDG_DATA_HOME", &home),
        )
    };
    assert_eq!(copy(&[]).status, Some(0));
    assert_eq!(rlaunch(&["start", "--attach", "copy"]).status, Some(3), "what was written is there");
    assert_eq!(output(rlaunch(&["rm", "copy"])), "");
    assert!(!home.join("rlaunch").exists());
}

#[test]
fn a_limit_that_a_user_cannot_set_is_an_error_that_says_how() {
    if !again(Way::Fusermount, "a_limit_that_a_user_cannot_set_is_an_error_that_says_how") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let outcome = finish(tree.rlaunch().args(["--memory", "64m", "true"]));
    assert_eq!(outcome.status, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("memory") && outcome.stderr.contains('('), "{outcome:?}");
    let outcome = finish(tree.rlaunch().args(["--memory", "64m", "--best-effort-limits", "true"]));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("warning"), "{outcome:?}");
}

#[test]
fn nothing_of_a_users_container_stays() {
    if !again(Way::Fusermount, "nothing_of_a_users_container_stays") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let running = launch::Running::start(tree.rlaunch().args(["sh", "-c", "echo ready; while :; do sleep 0.1; done"]));
    let init = running.init();
    drop(running);
    wait_until_gone(&[init]);
}

#[test]
fn where_the_machine_hides_parts_of_proc_the_container_has_what_is_left_of_it() {
    let test = "where_the_machine_hides_parts_of_proc_the_container_has_what_is_left_of_it";
    if inside().is_none() {
        // As in a container of docker's.
        let Some(_sandbox) = sandbox::enter() else { return };
        for path in ["/proc/kcore", "/proc/timer_list"].map(Path::new).into_iter().filter(|path| path.exists()) {
            mount(Some("/dev/null"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        }
        assert!(!again(Way::Fusermount, test));
        return;
    }
    let tree = Tree::new().expect("it can run");
    let script = "test -e /proc/self/status && cat /proc/self/comm && cat /dev/fd/9 9< /etc/passwd
        for file in /proc/kcore /proc/timer_list /proc/keys /proc/interrupts; do cat $file 2>/dev/null; done
        for file in sys/kernel/hostname sysrq-trigger self/comm irq/default_smp_affinity; do
            (echo 1 > /proc/$file) 2>/dev/null && echo $file was written
        done; grep -c . /proc/self/uid_map; mount -t proc proc /proc 2>/dev/null || echo refused";
    let copy = || {
        let mut command = Command::new(RLAUNCH);
        command.arg("--no-submounts");
        command
    };
    for (mut command, last) in [(tree.rlaunch(), "cat"), (copy(), "cat")] {
        let outcome = finish(command.args(["/bin/sh", "-c", script]));
        assert_eq!(outcome.status, Some(0), "{outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
        assert!(outcome.stderr.contains("warning: the container cannot have a /proc of its own"), "{outcome:?}");
        assert!(outcome.stdout.starts_with(&format!("{last}\nroot:")), "{outcome:?}");
        assert!(outcome.stdout.ends_with("\n2\nrefused\n"), "{outcome:?}");
        assert!(!outcome.stdout.contains("was written"), "{outcome:?}");
    }
}

#[test]
fn a_root_that_only_its_owner_may_use_says_so_to_other_users() {
    const THIS: &str = "a_root_that_only_its_owner_may_use_says_so_to_other_users";
    if !again(Way::Fusermount, THIS) {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let (mount_point, top, source) = (tree.beside("union"), tree.beside("top"), tree.path(""));
    fs::create_dir(&mount_point).unwrap();
    fs::create_dir(&top).unwrap();
    let branches = format!("{}=rw:{}=ro", top.display(), source.display());
    for (options, status) in [(&[][..], Some(126)), (&["-o", "allow_other"], Some(0))] {
        let mut mount = Command::new(Path::new(RLAUNCH).with_file_name("runionfs"));
        mount.args(["mount", &branches]).arg(&mount_point).args(options);
        printed(finish(&mut mount));
        let run = |user: &str| {
            let mut command = Command::new(RLAUNCH);
            finish(command.arg("--rootfs").arg(&mount_point).args(["--user", user, "busybox", "id", "-u"]))
        };
        let (owner, other) = (run("0"), run("5"));
        printed(finish(Command::new("fusermount3").arg("-u").arg(&mount_point)));
        assert_eq!(printed(owner), "0\n");
        assert_eq!((other.status, other.stderr.lines().count()), (status, usize::from(status != Some(0))), "{other:?}");
        if status != Some(0) {
            for word in ["cannot run 'busybox'", "-o allow_other", "leave --user out"] {
                assert!(other.stderr.contains(word), "{word}: {other:?}");
            }
        }
    }
}

#[test]
fn root_alone_gives_files_to_others_without_effect() {
    if !again(Way::Fusermount, "root_alone_gives_files_to_others_without_effect") {
        return;
    }
    let tree = Tree::new().expect("it can run");
    let script =
        "cd /; touch f; ln -s f l; chown 3 f && chown :4 f && chown 3:4 f && chown -h 3:4 l && stat -c %u:%g f l
        chown 0:0 f && chown 0 missing; chmod 4755 f && stat -c %a f; grep Seccomp: /proc/self/status";
    let outcome = alone(tree.rlaunch().args(["sh", "-c", script]));
    assert!(outcome.stderr.contains("chown: missing: No such file"), "{outcome:?}");
    assert_eq!(output(outcome), "0:0\n0:0\n4755\nSeccomp:\t2\n");
    // Who wants to know it gets the kernel's answer.
    let plain = alone(tree.rlaunch().args(["--security-opt=seccomp=unconfined", "sh", "-c", "chown 3 /f"]));
    assert!(plain.stderr.contains("Invalid argument"), "{plain:?}");
    // A further command is not told otherwise.
    let mut command = tree.rlaunch();
    command.args(["--name", "alone", "--rm", "sh", "-c", "echo ready; while :; do sleep 0.1; done"]);
    let home = tree.beside("home");
    let _running = launch::Running::start(command.env("PATH", NO_HELPERS).env("XDG_DATA_HOME", &home));
    let mut further = Command::new(RLAUNCH);
    further.args(["exec", "alone", "sh", "-c", "chown 3:4 /f && stat -c %u:%g /f"]).env("XDG_DATA_HOME", &home);
    assert_eq!(printed(finish(&mut further)), "0:0\n");
}

/// Files of root and of others, on a file system of their own, so that they are found again.
const THEIRS: &str = "files-of-others";

fn files_of_others(sandbox: &Sandbox) {
    let place = sandbox.path().join(THEIRS);
    fs::create_dir(&place).expect("make a place");
    mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("mount it");
    for (name, mode, owner) in [
        ("secret", 0o600, 0),
        ("lock", 0o640, 0),
        ("emptied", 0o600, 3000),
        ("readable", 0o644, 3000),
        ("shared", 0o666, 3000),
    ] {
        fs::write(place.join(name), "of somebody else\n").expect("make a file");
        chown(place.join(name), Some(owner), Some(owner)).expect("give it away");
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(mode)).expect("set its mode");
    }
}

#[test]
fn files_of_others_on_the_host_are_as_unreadable_and_as_safe_as_before() {
    let test = "files_of_others_on_the_host_are_as_unreadable_and_as_safe_as_before";
    if inside().is_none() {
        let Some(sandbox) = sandbox::enter() else { return };
        files_of_others(&sandbox);
        let look = || Snapshot::take(&sandbox.path().join(THEIRS));
        let before = look();
        assert!(!again(Way::Fusermount, test));
        // But for when they were read: the kernel lets only root keep that.
        before.assert_same(&look(), Exactness::Equal, "the files of others");
        return;
    }
    let table = launch::mounts();
    let place = table.lines().filter_map(|line| line.split(' ').nth(4)).find(|path| path.ends_with(THEIRS)).unwrap();
    // dpkg locks and empties files that only root may read; what is in them is nobody's here. Nothing is added to them.
    let script = "stat -c '%n %u:%g %a' *; cat secret; cat readable
        (echo more >> secret) || echo kept; (dd if=/dev/zero of=secret bs=1 count=1 conv=notrunc) || echo kept
        (flock -n 9 && echo locked) 9<> lock
        : > emptied; echo mine > emptied; cat emptied
        echo mine >> shared; tail -n 1 shared; chmod 600 readable && stat -c %a readable; rm secret && ls";
    let expected = "emptied 0:0 600\nlock 0:0 640\nreadable 0:0 644\nsecret 0:0 600\nshared 0:0 666\nof somebody else\nkept\n\
                    kept\nlocked\nmine\nmine\n600\nemptied\nlock\nreadable\nshared\n";
    for path in [std::env::var("PATH").expect("a path"), NO_HELPERS.to_owned()] {
        let mut command = Command::new(RLAUNCH);
        command.args(["/bin/sh", "-c", &format!("PATH=/usr/bin:/bin; {script}")]).env("PATH", &path).current_dir(place);
        let outcome = finish(&mut command);
        assert_eq!(outcome.stdout, expected, "{outcome:?}");
        assert_eq!(outcome.stderr.matches("Permission denied").count(), 2, "{outcome:?}");
    }
}
