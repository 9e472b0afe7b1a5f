//! The entry of fuse-overlayfs, line by line of what podman, buildah, containerd and mount(8) rely on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::fixture::as_user;
use harness::mount::{Outcome, finish, poll};
use harness::sandbox::{self, run};
use harness::{Errno, ErrnoOf as _};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, mknod, umask};
use nix::unistd::{Pid, mkfifo};
use rustix::fs::{Dir, XattrFlags, lgetxattr, llistxattr, lsetxattr};

#[path = "support/entry.rs"]
mod entry;

use entry::{BIN, Ground, NAME};

#[test]
fn it_is_called_in_every_form() {
    let Some(ground) = Ground::new() else { return };
    let dir = ground.sandbox.path().display().to_string();
    ground.write("l1/f", "1");
    let options = "lowerdir=l1:l2,upperdir=u,workdir=w";
    let absolute = format!("workdir={dir}/w,upperdir={dir}/u,lowerdir={dir}/l1:{dir}/l2,dev,suid");
    let containerd = format!("-o workdir={dir}/w -o upperdir={dir}/u -o lowerdir={dir}/l1:{dir}/l2");
    let path = format!("{dir}/bin:{}", std::env::var("PATH").unwrap());
    // mount(8) looks where programs of the machine are; Debian's is covered, in this namespace only
    let debians = which(&std::env::var("PATH").unwrap(), NAME);
    mount(Some(BIN), &debians, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    for line in [
        format!("{NAME} -o {options},volatile m"),
        format!("{NAME} -o{options} -o private -- overlay {dir}/m"),
        format!("{NAME} m -o ro,{options} -s"),
        format!("runionfs -o {options} m"),
        format!("runionfs overlay m -o {options},rw"),
        format!("runionfs mount -o {options} m"),
        format!("runionfs mount --log-level=error overlay {dir}/m -o lowerdir=l1:l2 -o upperdir=u,workdir=w"),
        // containerd's snapshotter gives each option alone: for a container, of remapped ids, and for an image
        format!("mount.fuse3 overlay {dir}/m {containerd} -t {NAME}"),
        format!(
            "mount.fuse3 overlay {dir}/m {containerd} -o uidmapping=0:0:1:1:100000:65536 -o gidmapping=0:0:1 -t {NAME}"
        ),
        format!("mount.fuse3 overlay {dir}/m -o lowerdir={dir}/l1:{dir}/l2 -t {NAME}"),
        // mounted already when it is started, without the privilege to
        format!("mount.fuse3 {NAME}#overlay {dir}/m -o {absolute},drop_privileges"),
        // what fstab's line becomes
        format!("mount -t fuse.{NAME} overlay {dir}/m -o {absolute}"),
        format!("mount -t fuse {NAME}#overlay {dir}/m -o {absolute}"),
    ] {
        let mut words = line.split(' ');
        let outcome = finish(
            Command::new(words.next().map(|name| which(&path, name)).unwrap())
                .args(words)
                .current_dir(ground.sandbox.path())
                .env("PATH", &path),
        );
        assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""), "{line}");
        assert_eq!(ground.read("m/f"), "1", "{line}");
        assert_eq!(ground.read("m/below"), "below", "{line}");
        let table: Vec<String> = ground.entries().into_iter().map(|entry| entry.kind).collect();
        let name = if line.starts_with("runionfs") { "runionfs" } else { NAME };
        assert_eq!(table, [format!("fuse.{name}")], "{line}");
        ground.umount();
    }
    let outcome = ground.call(["-o", options, "/dev/fd/0"]);
    assert!(outcome.status == Some(1) && outcome.stderr.contains("no open /dev/fuse"), "{}", outcome.stderr);
    for word in ["--version", "-V"] {
        let version = ground.call([word]);
        assert_eq!(version.status, Some(0));
        assert!(version.stdout.starts_with("fuse-overlayfs: version 2."), "{}", version.stdout);
    }
    assert!(ground.call(["--help"]).stdout.contains("lowerdir=DIR"));
}

fn which(path: &str, name: &str) -> PathBuf {
    std::env::split_paths(path).map(|dir| dir.join(name)).find(|found| found.exists()).unwrap()
}

#[test]
fn without_an_upper_directory_nothing_changes_and_the_former_upper_hides_what_it_hid() {
    let Some(ground) = Ground::new() else { return };
    ground.write("l2/dir/a", "a").write("l2/gone", "").write("l2/device", "").write("l2/marked/a", "a");
    ground.mount_all("");
    fs::remove_file(ground.at("m/gone")).unwrap();
    fs::remove_dir_all(ground.at("m/dir")).unwrap();
    ground.write("m/dir/b", "b");
    ground.umount();
    // what the kernel's overlayfs writes
    mknod(&ground.at("u/device"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    fs::create_dir(ground.at("u/marked")).unwrap();
    lsetxattr(ground.at("u/marked"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    ground.mount("lowerdir=u:l1:l2");
    assert_eq!(ground.names("m"), ["below", "dir", "marked"]);
    assert_eq!(ground.names("m/dir"), ["b"]);
    assert_eq!(ground.names("m/marked"), [""; 0]);
    assert_eq!(fs::write(ground.at("m/new"), "").errno(), Errno::EROFS);
    assert_eq!(fs::remove_file(ground.at("m/below")).errno(), Errno::EROFS);
}

#[test]
fn unknown_options_are_told_of_once_and_ignored() {
    let Some(ground) = Ground::new() else { return };
    let known = "nofail,_netdev,x-systemd.automount,comment=a,fast_ino=1,noacl,static_nlink,xino=off,redirect_dir=off,\
                 metacopy=off,index=off,userxattr,shared,auto_unmount,max_read=131072,timeout=1000000000,clone_fd,\
                 context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
    ground.mount(&format!("lowerdir=l2,{known}"));
    ground.umount();
    let outcome = ground.call(["-o", "lowerdir=l2,bogus,bogus=2", "-o", "other=3", "m"]);
    assert_eq!(outcome.status, Some(0));
    assert_eq!(outcome.stderr, "runionfs: unknown and ignored: bogus, other\n");
    assert_eq!(ground.read("m/below"), "below");
    ground.umount();
    let strict = finish(Command::new(BIN).args(["mount", "-o", "bogus"]).arg(ground.at("l2")).arg(ground.at("m")));
    assert_eq!(strict.status, Some(1));
}

#[test]
fn the_command_takes_the_words_of_overlayfs_and_stays_strict() {
    let Some(ground) = Ground::new() else { return };
    let call =
        |line: &str| finish(Command::new(BIN).arg("mount").args(line.split(' ')).current_dir(ground.sandbox.path()));
    for (line, status, says) in [
        ("-o lowerdir=l2,bogus m", 1, "unknown option 'bogus'"),
        ("-o upperdir=u,workdir=w,lowerdir=l2,udba=never m", 1, "udba=never"),
        ("-o upperdir=u,lowerdir=l2 m", 1, "without workdir="),
        ("l1=rw m -o lowerdir=l2", 2, "branches stand before the mount point"),
        ("-o lowerdir=l2 -o br=l1 m", 1, "two ways"),
    ] {
        let outcome = call(line);
        assert_eq!(outcome.status, Some(status), "{line}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(says), "{line}: {}", outcome.stderr);
        assert!(ground.entries().is_empty(), "{line}");
    }
    assert_eq!(call("-o lowerdir=l2 m").status, Some(0));
    let again = call("-o lowerdir=l2 m");
    assert_eq!((again.status, again.stderr.lines().count()), (Some(1), 1), "{}", again.stderr);
    assert_eq!(ground.entries().len(), 1);
    assert_eq!(call("-o remount,nodev,lowerdir=l2 m").status, Some(0));
    assert!(ground.entries()[0].options.contains("nodev"), "{:?}", ground.entries());
}

#[test]
fn what_cannot_be_mounted_is_one_line_and_status_1_and_nothing_is_mounted() {
    let Some(ground) = Ground::new() else { return };
    for (options, says) in [
        ("lowerdir=missing", "lowerdir missing"),
        ("lowerdir=l1::l2", "directory 2 of lowerdir= is empty"),
        ("upperdir=u,workdir=w", "no lowerdir="),
        ("lowerdir=l1,upperdir=u", "without workdir="),
        ("lowerdir=l1,upperdir=missing,workdir=w", "missing"),
        ("lowerdir=l1,upperdir=u,workdir=missing", "missing"),
        ("lowerdir=l1,br=l2", "two ways"),
        ("lowerdir=l1,uidmapping=0:1", "KEPT:SHOWN:COUNT"),
        ("lowerdir=l1,plugins=x", "plugins= is not supported"),
        ("lowerdir=l1,xattr_permissions=3", "0, 1 or 2"),
    ] {
        let outcome = ground.call(["-o", options, "m"]);
        assert_eq!(outcome.status, Some(1), "{options}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(says), "{options}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{options}: {}", outcome.stderr);
        assert!(ground.entries().is_empty(), "{options}");
    }
    let bare = finish(Command::new(BIN).args(["-o", "lowerdir=l1"]).current_dir(ground.sandbox.path()));
    assert_eq!((bare.status, &*bare.stderr), (Some(1), "runionfs: no mountpoint specified\n"));
    for line in [&["-o", "lowerdir=l1", "missing"][..], &["-o", "lowerdir=l1"], &["-x", "m"], &["a", "b", "c"], &[]] {
        let outcome = ground.call(line);
        assert_eq!((outcome.status, outcome.stderr.lines().count()), (Some(1), 1), "{line:?}: {}", outcome.stderr);
    }
}

/// Section 1.6 of the reference: what fuse-overlayfs 2.0.0 gets wrong.
#[test]
fn what_others_get_wrong_is_right() {
    let Some(ground) = Ground::new() else { return };
    ground
        .write("l1/opt/a", "a")
        .write("l1/opt/b", "b")
        .write("l1/f", "f")
        .write("l1/sticky/x", "")
        .write("l1/set/x", "");
    for (path, mode) in [("l1/sticky", 0o1777), ("l1/set", 0o2775)] {
        fs::set_permissions(ground.at(path), PermissionsExt::from_mode(mode)).unwrap();
    }
    ground.mount_all("");
    fs::remove_dir_all(ground.at("m/opt")).unwrap();
    ground.write("m/opt/z", "z").write("m/sticky/new", "").write("m/set/new", "");
    fs::hard_link(ground.at("m/f"), ground.at("m/f2")).unwrap();
    chown(ground.at("m/f"), Some(33), Some(33)).unwrap();
    mkfifo(&ground.at("m/fifo"), Mode::from_bits_truncate(0o644)).unwrap();
    let before = umask(Mode::empty());
    fs::create_dir(ground.at("m/open")).unwrap();
    fs::write(ground.at("m/open/file"), "").unwrap();
    umask(before);
    for round in 0..2 {
        assert_eq!(ground.names("m/opt"), ["z"], "{round}");
        assert_eq!((ground.mode("m/sticky"), ground.mode("m/set")), (0o1777, 0o2775), "{round}");
        assert_eq!((ground.stat("m/f").nlink(), ground.owner("m/f")), (2, (33, 33)), "{round}");
        assert_eq!((ground.stat("m/f2").ino(), ground.owner("m/f2")), (ground.stat("m/f").ino(), (33, 33)), "{round}");
        assert_eq!(ground.mode("m/fifo"), 0o644, "{round}");
        assert_eq!((ground.mode("m/open"), ground.mode("m/open/file")), (0o777, 0o666), "{round}");
        ground.umount();
        if round == 0 {
            ground.mount_all("");
        }
    }
}

#[test]
fn a_mount_that_follows_an_unmount_at_once_is_never_lost() {
    let Some(ground) = Ground::new() else { return };
    for round in 0..100 {
        ground.mount_all("");
        fs::write(ground.at("m/round"), round.to_string()).unwrap();
        match round % 2 {
            0 => ground.umount(),
            _ => umount2(&ground.at("m"), MntFlags::MNT_DETACH).unwrap(),
        }
        assert_eq!(ground.read("u/round"), round.to_string());
        assert_eq!(ground.names("m"), [""; 0], "written into the bare mount point");
    }
}

#[test]
fn five_hundred_lower_directories_are_one_union() {
    let Some(ground) = Ground::new() else { return };
    let link = |number: u32| format!("l/{number:026}");
    fs::create_dir(ground.at("l")).unwrap();
    for number in 0..500 {
        ground.write(&format!("{number}/f{number}"), &number.to_string()).write(&format!("{number}/all"), "");
        fs::write(ground.at(&format!("{number}/all")), number.to_string()).unwrap();
        symlink(format!("../{number}"), ground.at(&link(number))).unwrap();
    }
    let dir = ground.sandbox.path().display();
    let lower: Vec<String> = (0..500).map(|number| format!("{dir}/{}", link(number))).collect();
    let options = format!("lowerdir={},upperdir=u,workdir=w", lower.join(":"));
    ground.mount(&options);
    assert_eq!(ground.names("m").len(), 501);
    assert_eq!((ground.read("m/all"), ground.read("m/f499")), ("0".into(), "499".into()));
    ground.write("m/f499", "changed");
    assert_eq!(ground.read("u/f499"), "changed");
    ground.umount();
    let calls = ground.calls_to_mount(&options);
    assert!(calls < 500 * 18 + 1000, "{calls} system calls to mount 500 lower directories");
}

#[test]
fn lower_directories_are_reached_as_the_kernel_does_it() {
    let Some(ground) = Ground::new() else { return };
    ground.write("x/diff/a", "diff").write("x/diff1/a", "diff1").write("x/diff1/only", "");
    fs::create_dir(ground.at("l")).unwrap();
    symlink("../x/diff", ground.at("l/X")).unwrap();
    // `..` after a symbolic link leads to the parent of what the link names
    ground.mount("lowerdir=l/X:l/X/../diff1:l2:l/X");
    assert_eq!(ground.names("m"), ["a", "below", "only"]);
    assert_eq!(ground.read("m/a"), "diff");
    // a union below a union
    ground.write("l3/mine", "");
    fs::create_dir(ground.at("n")).unwrap();
    let outcome = ground.call(["-o", "lowerdir=m:l3,private", "n"]);
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    assert_eq!(ground.names("n"), ["a", "below", "mine", "only"]);
    assert_eq!(ground.read("n/below"), "below");
    umount2(&ground.at("n"), MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn paths_with_separators_in_them_are_escaped_or_quoted() {
    let Some(ground) = Ground::new() else { return };
    for (name, written) in [
        ("a:b", r"a\:b"),
        ("a,b", r"a\,b"),
        ("c,d:e", r#""c,d\:e""#),
        (r"back\slash", r"back\slash"),
        (r#"quo"te"#, r#"quo"te"#),
        ("with space=equals", "with space=equals"),
    ] {
        ground.write(&format!("{name}/which"), name);
        fs::create_dir(ground.at(&format!("u {name}"))).unwrap();
        let upper = written.replace('"', "");
        let upper = if written.contains(r#"quo"#) { r#"u quo"te"#.to_owned() } else { format!("u {upper}") };
        let upper = if upper.contains("c,d") { r"u c\,d\:e".to_owned() } else { upper };
        ground.mount(&format!("lowerdir={written},upperdir={upper},workdir=w"));
        assert_eq!(ground.read("m/which"), name);
        ground.write("m/new", name);
        assert_eq!(ground.read(&format!("u {name}/new")), name);
        ground.umount();
    }
}

#[test]
fn an_upper_directory_that_overlayfs_wrote_is_gone_on_with_in_its_form() {
    let Some(ground) = Ground::new() else { return };
    ground.write("l1/gone", "").write("l1/next", "").write("l1/dir/a", "a").write("l1/deep/er/f", "");
    let dir = ground.sandbox.path().display();
    let native = format!("lowerdir={dir}/l1,upperdir={dir}/u,workdir={dir}/w");
    if let Err(errno) = mount(Some("o"), &ground.at("m"), Some("overlay"), MsFlags::empty(), Some(&*native)) {
        return sandbox::skip(&format!("it needs the kernel's overlayfs: {errno}"));
    }
    fs::remove_file(ground.at("m/deep/er/f")).unwrap();
    ground.umount();
    ground.mount("lowerdir=l1,upperdir=u,workdir=w");
    assert_eq!(ground.names("m/deep/er"), [""; 0]);
    fs::remove_file(ground.at("m/next")).unwrap();
    fs::remove_dir_all(ground.at("m/dir")).unwrap();
    ground.write("m/dir/b", "b");
    ground.umount();
    assert!(ground.stat("u/next").file_type().is_char_device());
    let settled = poll(Duration::from_secs(10), || {
        mount(Some("o"), &ground.at("m"), Some("overlay"), MsFlags::empty(), Some(&*native)).ok()
    });
    assert!(settled.is_some(), "overlayfs does not take its directory back");
    assert_eq!(ground.names("m"), ["deep", "dir", "gone"]);
    assert_eq!((ground.names("m/dir"), ground.names("m/deep/er")), (vec!["b".into()], vec![]));
    ground.umount();
    // one that nobody wrote is written as layers are, or as is asked for
    fs::create_dir(ground.at("u2")).unwrap();
    for (words, device) in [("", false), (",whiteout=overlay", true)] {
        ground.mount(&format!("lowerdir=l1,upperdir=u2,workdir=w{words}"));
        let name = if device { "next" } else { "gone" };
        fs::remove_file(ground.at("m").join(name)).unwrap();
        ground.umount();
        assert_eq!(ground.at("u2").join(name).exists(), device);
        assert_eq!(ground.at("u2").join(format!(".wh.{name}")).exists(), !device);
    }
}

#[test]
fn owners_are_mapped_in_both_directions() {
    let Some(ground) = Ground::new() else { return };
    ground.write("l1/f", "f").write("l1/dir/x", "");
    chown(ground.at("l1/f"), Some(5), Some(6)).unwrap();
    fs::set_permissions(ground.at("l1"), PermissionsExt::from_mode(0o777)).unwrap();
    run(Command::new("setfacl").args(["-m", "u:33:rwx,g:44:r,d:u:33:rwx"]).arg(ground.at("l1/dir")));
    run(Command::new("setcap").arg("cap_net_raw+ep").arg(ground.at("l1/f")));
    let before = umask(Mode::empty());
    // the colon before the first is containers/storage's
    ground.mount_all(",uidmapping=:0:200000:65536,gidmapping=:0:200000:65536");
    assert_eq!((ground.owner("m"), ground.owner("m/f")), ((200_000, 200_000), (200_005, 200_006)));
    let acl = |path: &str| finish(Command::new("getfacl").args(["-n", "-p", "-c"]).arg(ground.at(path))).stdout;
    for entry in ["user:200033:rwx", "group:200044:r--", "default:user:200033:rwx"] {
        assert!(acl("m/dir").contains(entry), "{}", acl("m/dir"));
    }
    let capability = |path: &str| {
        let mut value = [0; 32];
        let length = lgetxattr(ground.at(path), "security.capability", &mut value[..]).unwrap();
        value[..length].to_vec()
    };
    assert_eq!(capability("m/f")[20..], 200_000_u32.to_le_bytes(), "of the root of the container");
    // what the root of the container does, and what its reply says
    as_user(200_000, 200_000, || {
        fs::create_dir(ground.at("m/made")).unwrap();
        fs::write(ground.at("m/made/file"), "").unwrap();
        assert_eq!(ground.owner("m/made"), (200_000, 200_000));
    });
    chown(ground.at("m/made/file"), Some(200_007), Some(200_008)).unwrap();
    run(Command::new("setfacl").args(["-m", "u:200009:r"]).arg(ground.at("m/made/file")));
    assert_eq!((ground.owner("u/made"), ground.owner("u/made/file")), ((0, 0), (7, 8)));
    assert!(acl("u/made/file").contains("user:9:r--"), "{}", acl("u/made/file"));
    fs::write(ground.at("m/dir/inherits"), "").unwrap();
    assert!(acl("u/dir/inherits").contains("user:33:rw"), "{}", acl("u/dir/inherits"));
    // ids that are nobody's in the container
    assert_eq!(chown(ground.at("m/f"), Some(7), None).errno(), Errno::EOVERFLOW);
    fs::write(ground.at("m/of_host"), "").unwrap();
    assert_eq!((ground.owner("m/of_host"), ground.owner("u/of_host")), ((265_534, 265_534), (65_534, 65_534)));
    // an open file that has no name any more
    let open = fs::File::open(ground.at("m/made/file")).unwrap();
    fs::remove_file(ground.at("m/made/file")).unwrap();
    assert_eq!(open.metadata().unwrap().uid(), 200_007);
    drop(open);
    umask(before);
    ground.umount();
    for (words, shown) in [("squash_to_root", (0, 0)), ("squash_to_uid=77,squash_to_gid=78", (77, 78))] {
        ground.mount_all(&format!(",{words}"));
        assert_eq!((ground.owner("m/f"), ground.owner("m/of_host"), ground.owner("m")), (shown, shown, shown));
        ground.umount();
    }
}

#[test]
fn owners_are_kept_in_an_attribute_where_that_is_asked_for() {
    let Some(ground) = Ground::new() else { return };
    ground.write("l1/f", "f").write("l1/old", "").write("l1/plain", "");
    let set = |path: &str, name: &str, value: &str| {
        lsetxattr(ground.at(path), name, value.as_bytes(), XattrFlags::empty()).unwrap();
    };
    set("l1/f", "user.containers.override_stat", "0:12:0640");
    set("l1/old", "user.fuseoverlayfs.override_stat", "3:13:100604");
    ground.mount_all(",xattr_permissions=2");
    assert_eq!((ground.owner("m/f"), ground.mode("m/f")), ((0, 12), 0o640));
    assert_eq!((ground.owner("m/old"), ground.mode("m/old")), ((3, 13), 0o604));
    chown(ground.at("m/plain"), Some(7), Some(8)).unwrap();
    fs::set_permissions(ground.at("m/plain"), PermissionsExt::from_mode(0o4755)).unwrap();
    fs::create_dir(ground.at("m/dir")).unwrap();
    chown(ground.at("m/dir"), Some(5), Some(5)).unwrap();
    assert_eq!((ground.owner("m/plain"), ground.mode("m/plain")), ((7, 8), 0o4755));
    // a set-user-id bit of another user's file is not real
    assert_eq!((ground.owner("u/plain"), ground.mode("u/plain")), ((0, 0), 0o755));
    let mut names = [0_u8; 256];
    assert_eq!(llistxattr(ground.at("m/plain"), &mut names[..]), Ok(0));
    ground.umount();
    // whoever mounts it later sees the same, and without being told
    let plain = ["mount", "-o", "workdir=w", "u=rw:l1=ro", "m"];
    run(Command::new(BIN).args(plain).current_dir(ground.sandbox.path()));
    assert_eq!((ground.owner("m/plain"), ground.owner("m/dir")), ((7, 8), (5, 5)));
}

#[test]
fn owners_are_kept_where_only_root_writes_them() {
    const KEPT: &str = "security.fuseoverlayfs.override_stat";
    let Some(ground) = Ground::new() else { return };
    ground.write("l1/f", "f").write("l1/plain", "");
    lsetxattr(ground.at("l1/f"), KEPT, b"0:12:100640", XattrFlags::empty()).unwrap();
    // of the other form it is nothing but an attribute
    lsetxattr(ground.at("l1/plain"), "user.containers.override_stat", b"9:9:0600", XattrFlags::empty()).unwrap();
    ground.mount_all(",xattr_permissions=1");
    assert_eq!((ground.owner("m/f"), ground.mode("m/f"), ground.owner("m/plain")), ((0, 12), 0o640, (0, 0)));
    chown(ground.at("m/f"), Some(7), Some(8)).unwrap();
    let mut value = [0_u8; 64];
    let length = lgetxattr(ground.at("u/f"), KEPT, &mut value[..]).unwrap();
    assert!(value[..length].starts_with(b"7:8:0640"), "{}", value[..length].escape_ascii());
    assert_eq!((ground.owner("m/f"), ground.owner("u/f")), ((7, 8), (0, 0)));
    assert_eq!(llistxattr(ground.at("m/f"), &mut value[..]), Ok(0));
    assert!(lgetxattr(ground.at("m/f"), KEPT, &mut value[..]).is_err());
    ground.umount();
    // the root of what was written says so to whoever mounts it later
    let plain = ["mount", "-o", "workdir=w", "u=rw:l1=ro", "m"];
    run(Command::new(BIN).args(plain).current_dir(ground.sandbox.path()));
    assert_eq!(ground.owner("m/f"), (7, 8));
}

#[test]
fn private_names_and_attributes_do_not_show_and_every_number_is_right() {
    let Some(ground) = Ground::new() else { return };
    ground.write("l1/dir/a", "").write("l2/dir/b", "").write("l1/gone", "");
    ground.mount_all(",whiteout=overlay");
    fs::remove_file(ground.at("m/gone")).unwrap();
    ground.write("m/dir/c", "");
    fs::rename(ground.at("m/dir/a"), ground.at("m/dir/d")).unwrap();
    assert_eq!(fs::rename(ground.at("m/dir"), ground.at("m/moved")).errno(), Errno::EXDEV);
    for name in ["m/.wh.x", "m/dir/.wh..wh..opq"] {
        assert_eq!(fs::write(ground.at(name), "").errno(), Errno::EPERM);
    }
    let mut names = [0_u8; 256];
    for path in ["m", "m/dir", "m/dir/c"] {
        assert_eq!(llistxattr(ground.at(path), &mut names[..]), Ok(0), "{path}");
        let entries = Dir::new(
            rustix::fs::open(ground.at(path).parent().unwrap(), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
                .unwrap(),
        );
        for entry in entries.unwrap().map(Result::unwrap) {
            assert_ne!(entry.ino(), 0);
        }
    }
    for entry in fs::read_dir(ground.at("m/dir")).unwrap().map(Result::unwrap) {
        use std::os::unix::fs::DirEntryExt as _;
        assert_eq!(entry.ino(), entry.metadata().unwrap().ino());
    }
    assert_eq!(ground.names("m"), ["below", "dir"]);
}

#[test]
fn the_daemon_holds_nothing_of_its_caller_and_is_asked_by_signals() {
    let Some(ground) = Ground::new() else { return };
    fs::create_dir(ground.at("cwd")).unwrap();
    mount(Some("none"), &ground.at("cwd"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let options = "lowerdir=../l1:../l2,upperdir=../u,workdir=../w";
    // the outcome comes with the end of its output
    let begun = Instant::now();
    let outcome = finish(
        Command::new(ground.at("bin/fuse-overlayfs")).args(["-o", options, "../m"]).current_dir(ground.at("cwd")),
    );
    assert_eq!((outcome.status, &*outcome.stderr), (Some(0), ""));
    assert!(begun.elapsed() < Duration::from_secs(10));
    let freed = poll(Duration::from_secs(10), || umount2(&ground.at("cwd"), MntFlags::empty()).ok());
    assert!(freed.is_some(), "the daemon holds the directory of its caller");
    assert_eq!(ground.read("m/below"), "below");
    let shown = finish(Command::new(BIN).arg("show").arg(ground.at("m")));
    let pid = shown.stdout.lines().find_map(|line| line.strip_prefix("pid ")?.parse().ok()).unwrap();
    let daemon = Pid::from_raw(pid);
    kill(daemon, Signal::SIGUSR1).unwrap();
    // laid on itself, as fuse-overlayfs lets one; the former is not the daemon's to unmount
    mount(Some("none"), &ground.at("m"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    umount2(&ground.at("m"), MntFlags::empty()).unwrap();
    assert_eq!(ground.read("m/below"), "below", "SIGUSR1 does not end it");
    kill(daemon, Signal::SIGTERM).unwrap();
    assert!(poll(Duration::from_secs(10), || ground.entries().is_empty().then_some(())).is_some());
    assert_eq!(ground.names("m"), [""; 0]);
}

#[test]
fn source_and_type_can_be_chosen() {
    let Some(ground) = Ground::new() else { return };
    for (words, kind, source) in
        [("", "fuse.fuse-overlayfs", NAME), (",fsname=a b,subtype=c", "fuse.c", "a b"), (",subtype=", "fuse", NAME)]
    {
        ground.mount(&format!("lowerdir=l2{words}"));
        let entries = ground.entries();
        assert_eq!((&*entries[0].kind, entries[0].source.clone()), (kind, source.to_owned()), "{words}");
        // our own tools know it all the same
        let shown = finish(Command::new(BIN).arg("show").arg(ground.at("m")));
        assert!(shown.stdout.starts_with("br0 "), "{}", shown.stderr);
        run(Command::new(BIN).arg("umount").arg(ground.at("m")));
    }
    assert!(!Path::new(&ground.at("m/below")).exists());
}

/// A union whose daemon cannot be asked is not taken for a branch, which all that it shows would belong to.
#[test]
fn a_union_that_cannot_be_asked_is_no_branch() {
    let Some(ground) = Ground::new() else { return };
    ground.write("l1/dir/file", "below");
    ground.mount_all("");
    // as another user, or a mount without a place for a socket
    mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let call = |words: &[&str], path: &str| finish(Command::new(BIN).args(words).arg(ground.at(path)));
    for words in [&["show"][..], &["stats"], &["diff"], &["check"], &["flush"], &["umount"], &["export"]] {
        let Outcome { status, stdout, stderr } = call(words, "m");
        assert_eq!((status, &*stdout, stderr.lines().count()), (Some(1), "", 1), "{words:?}: {stderr}");
        assert!(stderr.contains("in its place whose control socket"), "{words:?}: {stderr}");
    }
    // a directory in it may be one, and of all mounts those are told that can be
    assert_eq!(call(&["check"], "m/dir").status, Some(0));
    let all = finish(Command::new(BIN).arg("stats"));
    assert_eq!((all.status, &*all.stdout, &*all.stderr), (Some(0), "", ""));
    umount2("/run", MntFlags::empty()).unwrap();
    ground.umount();
}
