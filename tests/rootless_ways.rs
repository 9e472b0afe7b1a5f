//! An ordinary user mounts: as root of a user namespace with one id or with ranges of ids, and by fusermount3.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use harness::fixture::{Branches, Union};
use harness::mount::{Mounted, finish};
use harness::rootless::{self, USER, Way, again, give};
use harness::sandbox;
use harness::{Errno, ErrnoOf as _};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, chownat, mknodat};

const BINARY: &str = env!("CARGO_BIN_EXE_runionfs");

/// A union of the user's own branches.
fn own() -> Option<Branches> {
    let branches = Branches::new(BINARY, &["rw", "ro+wh"])?;
    branches.file("1/dir/file", "below").file("1/gone", "x").symlink("1/link", "dir/file");
    mknodat(CWD, branches.at("1/fifo"), FileType::Fifo, Mode::from(0o640), 0).expect("make a fifo");
    Some(branches)
}

/// What everybody may do in what is his.
fn everyday_work(mut union: Union) {
    assert_eq!(union.read("link"), "below");
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    for name in ["dir", "dir/file", "gone", "link", "fifo"] {
        assert_eq!((union.stat(name).uid(), union.stat(name).gid()), (uid, gid), "{name}");
    }
    union.write("dir/file", "changed");
    union.write("dir/new", "new");
    fs::remove_file(union.path("gone")).expect("remove a file that lies below");
    fs::rename(union.path("fifo"), union.path("pipe")).expect("rename a fifo that lies below");
    symlink("x", union.path("symlink")).expect("make a symlink");
    // nobody may do anything with it but change that
    fs::create_dir(union.path("closed")).expect("mkdir");
    fs::set_permissions(union.path("closed"), PermissionsExt::from_mode(0o000)).expect("chmod");
    fs::remove_dir(union.path("closed")).expect("remove a directory that is closed");
    union.write("write-only", "1");
    fs::set_permissions(union.path("write-only"), PermissionsExt::from_mode(0o200)).expect("chmod");
    fs::File::options()
        .append(true)
        .open(union.path("write-only"))
        .and_then(|mut file| file.write_all(b"2"))
        .expect("append");
    assert_eq!(union.mode("write-only"), 0o200);
    fs::set_permissions(union.path("write-only"), PermissionsExt::from_mode(0o4711)).expect("chmod");
    assert_eq!(union.mode("write-only"), 0o4711);
    fs::set_permissions(union.path("dir"), PermissionsExt::from_mode(0o2755)).expect("chmod");
    union.remount_and_compare();
    assert_eq!(union.read("write-only"), "12");
    assert_eq!((union.mode("write-only"), union.mode("dir")), (0o4711, 0o2755));
    assert_eq!(union.list(""), ["dir", "link", "pipe", "symlink", "write-only"]);
    union.assert_no_temporaries(0);
}

#[test]
fn everyday_work_with_one_id() {
    if again(Way::OneId, "everyday_work_with_one_id") {
        everyday_work(own().expect("it can run").mount());
    }
}

#[test]
fn everyday_work_with_ranges_of_ids() {
    if again(Way::Ranges, "everyday_work_with_ranges_of_ids") {
        everyday_work(own().expect("it can run").mount());
    }
}

#[test]
fn everyday_work_by_fusermount() {
    if again(Way::Fusermount, "everyday_work_by_fusermount") {
        everyday_work(own().expect("it can run").mount());
    }
}

/// Runs a script of `sh -e` as the user in a mount of root's branches below the user's top.
fn over_roots_branches(way: Way, script: &str) {
    let Some(sandbox) = sandbox::enter() else { return };
    if !rootless::ordinary_daemons(&sandbox) {
        return;
    }
    let at = |name: &str| sandbox.path().join(name);
    fs::create_dir(at("1")).expect("make a branch");
    fs::create_dir(at("1/private")).expect("make a directory");
    fs::create_dir(at("1/public")).expect("make a directory");
    for name in ["1/shared", "1/secret", "1/empty", "1/private/x", "1/public/x", "1/owned"] {
        fs::write(at(name), if name == "1/empty" { "" } else { "of root" }).expect("write a file");
    }
    for (name, mode) in [("1/secret", 0o600), ("1/empty", 0o600), ("1/private", 0o700)] {
        fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).expect("chmod");
    }
    chownat(CWD, at("1/owned"), Some(Uid::from_raw(33)), Some(Gid::from_raw(44)), AtFlags::empty()).expect("chown");
    mknodat(CWD, at("1/null"), FileType::CharacterDevice, Mode::from(0o644), rustix::fs::makedev(1, 3)).expect("mknod");
    symlink("shared", at("1/link")).expect("make a symlink");
    for name in ["0", "mnt", "home"] {
        give(&at(name));
    }
    let before = harness::snapshot::Snapshot::take(&at("1"));
    let mut command = way.command();
    let mount = "\"$B\" mount \"$PWD/0=rw:$PWD/1=ro+wh\" mnt; cd mnt";
    let denied = "denied() { if \"$@\" 2>../home/said; then echo \"$* is allowed\"; exit 1; fi; grep -q 'Permission denied' ../home/said; }";
    let script = format!("set -e\n{denied}\n{mount}\n{script}\ncd ..\n\"$B\" umount mnt\n");
    command.args(["sh", "-ec", &script]).current_dir(sandbox.path()).env("B", BINARY);
    let outcome = finish(command.env("XDG_RUNTIME_DIR", at("home")));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    before.assert_same(
        &harness::snapshot::Snapshot::take(&at("1")),
        harness::snapshot::Exactness::EqualButTimes,
        "root's branch has changed",
    );
}

/// Who is root there has root's files shown as root's own, and does with them what the machine's root lets be read.
const AS_ROOT: &str = r#"
test "$(stat -c %u:%g shared secret private null link | sort -u)" = 0:0
test "$(cat shared)" = 'of root'
denied cat secret
denied ls private
denied cat private/x
echo more >>shared
chmod 640 shared
rm public/x
rmdir public
# of a file that cannot be read only an empty copy can be made, or a copy of nothing
denied chmod 644 secret
denied mv secret elsewhere
printf anew >secret
test "$(cat secret)" = anew
chmod 644 empty
test "$(stat -c %a empty)" = 644
mv null zero
mv link pointer
test "$(stat -c '%F %t:%T %a %u' zero)" = 'character special file 1:3 644 0'
test "$(find . -type c)" = ./zero
chmod 600 zero
test "$(stat -c '%F %a' zero)" = 'character special file 600'
"$B" show . >/dev/null
cd ..; "$B" umount mnt; "$B" mount "$PWD/0=rw:$PWD/1=ro+wh" mnt; cd mnt
test "$(stat -c '%F %t:%T %a' zero)" = 'character special file 1:3 600'
test "$(stat -c '%F %s' ../0/zero)" = 'regular empty file 0'
test "$(readlink pointer)" = shared
test ! -e public
"#;

#[test]
fn roots_branches_below_with_one_id() {
    let unknown = "test \"$(stat -c %u:%g owned)\" = 0:0\n";
    over_roots_branches(Way::OneId, &format!("{unknown}{AS_ROOT}"));
}

#[test]
fn roots_branches_below_with_ranges_of_ids() {
    // what one of the user's own ids owns is known, and so is nobody, whom the kernel tells for all that are not
    let chown = r#"
test "$(stat -c %u:%g owned)" = 0:0
for id in 1 33 65534; do
    for thing in shared link null fifo dir; do
        test -e $thing || case $thing in fifo) mkfifo fifo ;; dir) mkdir dir ;; esac
        chown -h $id:$id $thing
        test "$(stat -c %u:%g $thing)" = $id:$id
    done
done
cd ..; "$B" umount mnt; "$B" mount "$PWD/0=rw:$PWD/1=ro+wh" mnt; cd mnt
test "$(stat -c %u:%g shared link null fifo dir | sort -u)" = 65534:65534
chown -h 0:0 shared link null fifo dir
test "$(stat -c %u:%g shared link null fifo dir | sort -u)" = 0:0
"#;
    over_roots_branches(Way::Ranges, &format!("{chown}{AS_ROOT}"));
}

#[test]
fn roots_branches_below_by_fusermount() {
    over_roots_branches(
        Way::Fusermount,
        r#"
test "$(stat -c %u:%g shared secret private null link | sort -u)" = 0:0
test "$(stat -c %u:%g owned)" = 33:44
test "$(cat shared)" = 'of root'
denied cat secret
denied sh -c 'echo more >>shared'
# the directory is the user's, so names may go; what they lead to stays root's
mv shared elsewhere
mv null zero
mv link pointer
test "$(stat -c '%F %t:%T %a %u' zero)" = 'character special file 1:3 644 0'
test "$(stat -c %u:%g elsewhere pointer | sort -u)" = 0:0
cd ..; "$B" umount mnt; "$B" mount "$PWD/0=rw:$PWD/1=ro+wh" mnt; cd mnt
test "$(stat -c %u:%g elsewhere pointer zero | sort -u)" = 0:0
test "$(readlink pointer)" = shared
mkdir -m 6755 set-id
touch program
chmod 4755 program
test "$(stat -c %a set-id program | xargs)" = '6755 4755'
"#,
    );
}

/// A mount point of another file system in a branch is an empty directory: nobody can look behind it there.
#[test]
fn a_branch_with_mounts_that_are_locked_is_cut_off_at_them() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !rootless::ordinary_daemons(&sandbox) {
        return;
    }
    let at = |name: &str| sandbox.path().join(name);
    for name in ["0", "1", "1/on-it", "mnt", "home"] {
        give(&at(name));
    }
    fs::write(at("1/file"), "below").expect("write a file");
    sandbox::run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(at("1/on-it")));
    fs::write(at("1/on-it/mounted"), "").expect("write a file");
    let script = "\"$B\" mount $PWD/0=rw:$PWD/1=ro+wh mnt; ls -A mnt/on-it; cat mnt/file; \"$B\" umount mnt";
    let mut command = Way::OneId.command();
    command.args(["sh", "-ec", script]).current_dir(sandbox.path()).env("B", BINARY);
    let outcome = finish(command.env("XDG_RUNTIME_DIR", at("home")));
    assert_eq!((outcome.status, &*outcome.stdout), (Some(0), "below"), "{outcome:?}");
}

#[test]
fn others_are_let_in_only_where_the_machine_lets_the_user_do_so() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !rootless::ordinary_daemons(&sandbox) {
        return;
    }
    for name in ["0", "mnt"] {
        give(&sandbox.path().join(name));
    }
    let (top, target) = (sandbox.path().join("0"), sandbox.path().join("mnt"));
    let branches = format!("{}=rw", top.display());
    let mut mounted = Mounted::mount(BINARY, &branches, &target, &[]);
    fs::write(target.join("x"), "").expect("root may use it");
    mounted.umount();
    // as it is where nobody has changed /etc/fuse.conf
    fs::write("/etc/fuse.conf", "").expect("empty the file that is bound there");
    let refused = Mounted::try_mount(BINARY, &branches, &target, &[]).expect_err("it is refused");
    assert_eq!(refused.status, Some(1));
    assert!(refused.stderr.contains("user_allow_other") && refused.stderr.lines().count() == 1, "{refused:?}");
}

/// Without the right to let others in, not even root looks in.
#[test]
fn nobody_else_looks_into_a_users_mount() {
    let Some(sandbox) = sandbox::enter() else { return };
    if !rootless::ordinary_daemons(&sandbox) {
        return;
    }
    for name in ["0", "mnt"] {
        give(&sandbox.path().join(name));
    }
    let target = sandbox.path().join("mnt");
    let mut command = Way::Fusermount.command();
    let branches = format!("{}=rw", sandbox.path().join("0").display());
    let outcome = finish(command.args([BINARY, "mount", &branches]).arg(&target));
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    let refused = fs::read_dir(&target).expect_err("root is let in").kind();
    let mut command = Way::Fusermount.command();
    let outcome = finish(command.args([BINARY, "umount"]).arg(&target));
    assert_eq!((refused, outcome.status), (ErrorKind::PermissionDenied, Some(0)), "{outcome:?}");
}

/// A caller with the ids of root in the namespace is not root of the machine, so its writes strip set-id bits there.
#[test]
fn set_id_bits_go_as_on_a_plain_directory() {
    if again(Way::Ranges, "set_id_bits_go_as_on_a_plain_directory") {
        let union = own().expect("it can run").mount();
        let plain = union.at("plain");
        fs::create_dir(&plain).expect("mkdir");
        let look = |dir: &Path| {
            let mut seen = Vec::new();
            for (name, change) in [("w", 0), ("t", 1), ("c", 2)] {
                let path = dir.join(name);
                fs::write(&path, "content").expect("write");
                fs::set_permissions(&path, PermissionsExt::from_mode(0o6777)).expect("chmod");
                match change {
                    0 => fs::write(&path, "else").expect("write"),
                    1 => {
                        fs::File::options().write(true).open(&path).and_then(|file| file.set_len(1)).expect("truncate")
                    }
                    _ => chownat(CWD, &path, Some(Uid::from_raw(5)), None, AtFlags::empty()).expect("chown"),
                }
                seen.push(fs::metadata(&path).expect("stat").mode() & 0o7777);
            }
            seen
        };
        assert_eq!(look(&union.path("dir")), look(&plain));
    }
}

#[test]
fn what_the_kernel_refuses_before_us_is_as_on_a_plain_directory() {
    if again(Way::OneId, "what_the_kernel_refuses_before_us_is_as_on_a_plain_directory") {
        let union = own().expect("it can run").mount();
        let path = union.path("dir/file");
        let chowned = chownat(CWD, &path, Some(Uid::from_raw(USER)), None, AtFlags::empty());
        assert_eq!(chowned, Err(rustix::io::Errno::INVAL), "an owner that the namespace does not know");
        let null = rustix::fs::makedev(1, 3);
        let made = mknodat(CWD, union.path("null"), FileType::CharacterDevice, Mode::from(0o600), null);
        assert_eq!(made, Err(rustix::io::Errno::PERM), "a device");
        let set = rustix::fs::lsetxattr(&path, "trusted.a", b"1", rustix::fs::XattrFlags::empty());
        assert_eq!(set, Err(rustix::io::Errno::PERM), "an attribute of the machine's root");
        assert_eq!(fs::read(union.path("nowhere")).errno(), Errno::ENOENT);
    }
}
